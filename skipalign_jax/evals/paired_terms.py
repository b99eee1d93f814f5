"""Terms of long-short misalignment for pairs of passes, on the device."""

import functools

import jax

from skipalign_jax.model import decoder, losses, model_config, sharding

CHUNK = 64  # places per row whose logits, of both passes, exist at one time


@functools.partial(jax.jit, static_argnames=("config", "count", "shown"))
def of_rows(
  params: decoder.Params,
  config: model_config.ModelConfig,
  hidden_RLD: jax.Array,
  count: int,
  shown: int,
) -> tuple[jax.Array, jax.Array]:
  """`losses.long_short_terms` of rows 0 … count−1 with the next `count` rows.

  Only the last `shown` places of each row are compared.
  """
  last_RCD = hidden_RLD[:, -shown:]
  terms = losses.long_short_terms(
    last_RCD[:count],
    last_RCD[count : 2 * count],
    decoder.bind(config, params).head(),
    CHUNK,
  )
  return jax.tree.map(sharding.constrain_replicated, terms)

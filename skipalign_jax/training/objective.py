"""What a step minimises: cross entropy, and Long-Short Alignment added to it.

One convention for every objective: it returns a sum over its microbatch, and the step
divides by Σ target weight of the whole batch, which `prepare` computes before the first
microbatch. So any number of microbatches gives the mean over one batch.
"""

import jax
import jax.numpy as jnp

from skipalign_jax.method import long_short
from skipalign_jax.model import decoder, losses
from skipalign_jax.training import recipe as recipe_lib
from skipalign_jax.training import state as state_lib


def prepare(
  recipe: recipe_lib.Recipe, batch: state_lib.Batch, step: jax.Array
) -> tuple[state_lib.Batch, jax.Array, jax.Array]:
  """The pairs of the regulariser, and the denominator of the step.

  Args:
    recipe: of the step.
    batch: a whole batch, [B, L].
    step: its number; the regulariser draws its short windows for it.

  Returns:
    The batch; with the regulariser it has short_segment_ids, and pair_weight scaled so
    that all pairs of the batch weigh α times what all targets do. The weight of each
    target [B, L] fp32, and their sum, at least 1.
  """
  _, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  total = jnp.maximum(jnp.sum(weight_BL), 1.0)
  if recipe.long_short.alpha:
    windows = long_short.windows(recipe.long_short, recipe.seed, step, batch, weight_BL)
    pairs = jnp.sum(windows["pair_weight"])
    pairs = jnp.where(pairs > 0, pairs, 1.0)  # weights of samples are fractions
    windows["pair_weight"] *= recipe.long_short.alpha * total / pairs
    batch = batch | windows
  return batch, weight_BL, total


def loss_sum(
  recipe: recipe_lib.Recipe, params: decoder.Params, batch: state_lib.Batch
) -> tuple[jax.Array, state_lib.Metrics]:
  """The sum that is minimised, over a microbatch, and its parts; fp32 scalars.

  Args:
    recipe: of the step.
    params: fp32 weights, or adapters joined to their base.
    batch: rows of what `prepare` returned, with their positions.
  """
  if recipe.long_short.alpha:
    return regularised_sum(recipe, params, batch)
  total, _ = cross_entropy_sum(recipe, params, batch, batch["positions"])
  return total, {"loss": total}


def cross_entropy_sum(
  recipe: recipe_lib.Recipe,
  params: decoder.Params,
  batch: state_lib.Batch,
  positions_BL: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Σ weight · cross entropy of the targets of a batch, and Σ weight; fp32 scalars."""
  model = decoder.bind(recipe.model, params)
  targets_BL, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  hidden_BLD = _read(recipe, model, batch, positions_BL, batch["segment_ids"])
  total = losses.cross_entropy(
    hidden_BLD, model.head(), targets_BL, weight_BL, recipe.loss_chunk
  )
  return total, jnp.sum(weight_BL)


def regularised_sum(
  recipe: recipe_lib.Recipe, params: decoder.Params, batch: state_lib.Batch
) -> tuple[jax.Array, state_lib.Metrics]:
  """Cross entropy and Long-Short Alignment (2506.11769): two forward passes.

  Args: as `loss_sum`; both windows have the same positions.

  Returns:
    What is minimised; and the sums of cross entropy, SCE and symmetric KL.
  """
  model, alpha = decoder.bind(recipe.model, params), recipe.long_short.alpha
  targets_BL, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  long_BLD, short_BLD = (
    _read(recipe, model, batch, batch["positions"], batch[name])
    for name in ("segment_ids", "short_segment_ids")
  )
  if recipe.long_short.stop_gradient == "short":
    short_BLD = jax.lax.stop_gradient(short_BLD)  # no backward pass through it
  total, (loss, sce, symmetric_kl) = long_short.regularised(
    long_BLD,
    short_BLD,
    model.head(),
    targets_BL,
    weight_BL,
    batch["pair_weight"],
    recipe.loss_chunk,
    recipe.long_short.stop_gradient,
  )
  return total, {"loss": loss, "sce": sce / alpha, "symmetric_kl": symmetric_kl / alpha}


def _read(recipe, model, batch, positions_BL, segment_ids_BL) -> jax.Array:
  """Final hidden states [B, L, D] of a batch, in compute dtype."""
  hidden_BLD, _ = model(
    batch["tokens"],
    positions_BL,
    segment_ids_BL,
    recipe.compute_dtype,
    recipe.remat,
    backend=recipe.attention,
  )
  return hidden_BLD

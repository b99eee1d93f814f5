"""What a step minimises: cross entropy, and what a second read of the batch adds to it,
or the loss of preference pairs.

One convention for every objective: it returns a sum over its microbatch, and the step
divides by Σ target weight of the whole batch (or by its number of pairs), which
`prepare` computes before the first microbatch. So any number of microbatches gives the
mean over one batch.
"""

import jax
import jax.numpy as jnp

from skipalign_jax.method import (
  distillation,
  long_short,
  positions,
  preference,
  two_reads,
)
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
    step: its number; the regularisers draw for it.

  Returns:
    The batch; with a regulariser it has what the second read reads otherwise
    (segment_ids_2 or positions_2), and pair_weight scaled so that all pairs of the
    batch weigh α (or λ) times what all targets do. The weight of each target [B, L]
    fp32, and their sum or the number of preference pairs, at least 1.
  """
  _, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  if recipe.loss.has_pairs:
    pairs = preference.count(weight_BL, batch["segment_ids"])
    return batch, weight_BL, jnp.maximum(pairs, 1.0)
  total = jnp.maximum(jnp.sum(weight_BL), 1.0)
  if recipe.long_short.alpha:
    second = long_short.windows(recipe.long_short, recipe.seed, step, batch, weight_BL)
  elif recipe.distill.weight:
    limit = positions.limit_at(recipe.positions, step, recipe.steps)
    second = distillation.views(
      recipe.distill, limit, recipe.seed, step, batch, weight_BL
    )
  else:
    return batch, weight_BL, total
  pairs = jnp.sum(second["pair_weight"])
  pairs = jnp.where(pairs > 0, pairs, 1.0)  # weights of samples are fractions
  second["pair_weight"] *= recipe.pair_weight * total / pairs
  return batch | second, weight_BL, total


def loss_sum(
  recipe: recipe_lib.Recipe, params: decoder.Params, batch: state_lib.Batch
) -> tuple[jax.Array, state_lib.Metrics]:
  """The sum that is minimised, over a microbatch, and its parts; fp32 scalars.

  Args:
    recipe: of the step.
    params: fp32 weights, or adapters joined to their base.
    batch: rows of what `prepare` returned, with their positions.
  """
  if recipe.loss.has_pairs:
    return preference_sum(recipe, params, batch)
  if recipe.pair_weight:
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
  """Cross entropy and a regulariser: two forward passes.

  Args: as `loss_sum`.

  Returns:
    What is minimised; and the sum of cross entropy with those of SCE and symmetric KL
    (Long-Short Alignment), or of KL and equal predictions (self-distillation).
  """
  model, alpha = decoder.bind(recipe.model, params), recipe.pair_weight
  if recipe.long_short.alpha:
    divergence, names = "sce", ("sce", "symmetric_kl")
    constant = {"long": "first", "short": "second", "none": "none"}[
      recipe.long_short.stop_gradient
    ]
  else:
    divergence, names, constant = "kl", ("kl", "agreement"), "first"
  targets_BL, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  first_BLD = _read(recipe, model, batch, batch["positions"], batch["segment_ids"])
  positions_BL, segment_ids_BL = (
    batch.get(f"{name}_2", batch[name]) for name in ("positions", "segment_ids")
  )
  second_BLD = _read(recipe, model, batch, positions_BL, segment_ids_BL)
  if constant == "second":
    second_BLD = jax.lax.stop_gradient(second_BLD)  # no backward pass through it
  total, (loss, *parts) = two_reads.regularised(
    first_BLD,
    second_BLD,
    model.head(),
    targets_BL,
    weight_BL,
    batch["pair_weight"],
    recipe.loss_chunk,
    divergence,
    constant,
  )
  means = {name: part / alpha for name, part in zip(names, parts, strict=True)}
  return total, {"loss": loss} | means


def preference_sum(
  recipe: recipe_lib.Recipe, params: decoder.Params, batch: state_lib.Batch
) -> tuple[jax.Array, state_lib.Metrics]:
  """The loss of preference pairs, without full logits.

  Its gradient in log p of a target depends on all places of both replies. So log p is
  computed first, without a gradient; then it is a cross entropy whose weights are minus
  that gradient, and its value is not used.

  Args: as `loss_sum`.

  Returns:
    As `preference.loss_sum`.
  """
  model = decoder.bind(recipe.model, params)
  targets_BL, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  hidden_BLD = _read(recipe, model, batch, batch["positions"], batch["segment_ids"])
  constants = jax.lax.stop_gradient((hidden_BLD, model.head()))
  log_p_BL, _ = losses.target_log_probs(*constants, targets_BL, recipe.loss_chunk)
  loss = lambda log_p_BL: preference.loss_sum(
    recipe.loss, log_p_BL, weight_BL, batch["segment_ids"], batch["reference"]
  )
  (total, sums), slope_BL = jax.value_and_grad(loss, has_aux=True)(log_p_BL)
  surrogate = losses.cross_entropy(
    hidden_BLD, model.head(), targets_BL, -slope_BL, recipe.loss_chunk
  )
  return total + (surrogate - jax.lax.stop_gradient(surrogate)), sums


def reply_log_probs(
  recipe: recipe_lib.Recipe, params: decoder.Params, batch: state_lib.Batch
) -> jax.Array:
  """log π(y|x) of the replies of a batch of pairs at its positions, [B, P, 2] fp32."""
  model = decoder.bind(recipe.model, params)
  targets_BL, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  hidden_BLD = _read(recipe, model, batch, batch["positions"], batch["segment_ids"])
  log_p_BL, _ = losses.target_log_probs(
    hidden_BLD, model.head(), targets_BL, recipe.loss_chunk
  )
  return preference.log_probs(log_p_BL, weight_BL, batch["segment_ids"])


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

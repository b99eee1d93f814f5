"""The one training step, and the held-out loss.

Positions are drawn inside the step, on the device, from the sample ids: order, packing,
hosts and restarts cannot change them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from skipalign_jax.method import positions
from skipalign_jax.model import decoder, sharding
from skipalign_jax.training import objective
from skipalign_jax.training import recipe as recipe_lib
from skipalign_jax.training import state as state_lib


def make_train_step(
  recipe: recipe_lib.Recipe,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
) -> Callable[..., tuple[state_lib.TrainState, state_lib.Metrics]]:
  """The step as a plain function of (state, batch)."""

  def train_step(state: state_lib.TrainState, batch: state_lib.Batch):
    batch = draw_positions(recipe, batch, state.step)
    batch, weight_BL, weight = objective.prepare(recipe, batch, state.step)

    def loss(params, micro):
      params = state_lib.full_params(recipe, dataclasses.replace(state, params=params))
      sums = objective.loss_sum(recipe, params, micro)
      return jax.tree.map(lambda x: x / weight, sums)

    (total, means), grads = accumulate(
      jax.value_and_grad(loss, has_aux=True), state.params, batch, recipe.grad_accum
    )
    grad_norm = optax.global_norm(grads)
    updates, opt = optimizer.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)

    finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)
    params, opt = jax.tree.map(  # a step that is not finite leaves the model as it was
      lambda new, old: jnp.where(finite, new, old),
      (params, opt),
      (state.params, state.opt),
    )
    metrics = {"learning_rate": schedule(state.step), "grad_norm": grad_norm}
    metrics |= means | {"finite": finite} | describe(batch, weight_BL)
    return state_lib.TrainState(state.step + finite, params, opt, state.base), metrics

  return train_step


def make_eval_step(recipe: recipe_lib.Recipe) -> Callable[..., Any]:
  """Held-out (Σ loss, Σ weight) at contiguous positions, as at inference."""

  def eval_step(params: decoder.Params, batch: state_lib.Batch):
    positions_BL = positions.contiguous(batch["segment_ids"])
    return objective.cross_entropy_sum(recipe, params, batch, positions_BL)

  return eval_step


def draw_positions(
  recipe: recipe_lib.Recipe, batch: state_lib.Batch, step: jax.Array
) -> state_lib.Batch:
  """The batch with its positions; rows of longer texts are cropped on the way."""
  limit = positions.limit_at(recipe.positions, step, recipe.steps)
  if recipe.crop:
    return positions.crop(recipe.positions, recipe.seed, batch, recipe.crop, limit)
  drawn_BL = positions.synthesize(recipe.positions, recipe.seed, batch, limit)
  return batch | {"positions": drawn_BL}


def accumulate(value_and_grad, params, batch: state_lib.Batch, parts: int):
  """Sums values and gradients over `parts` microbatches.

  Microbatch a takes rows a, a + parts, …: each device keeps its own rows.
  """
  if parts == 1:
    return value_and_grad(params, batch)
  micro = jax.tree.map(
    lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch
  )

  def add(total, part):
    return jax.tree.map(jnp.add, total, value_and_grad(params, part)), None

  first = jax.tree.map(lambda x: x[0], micro)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(value_and_grad, params, first),
  )
  return jax.lax.scan(add, zeros, micro)[0]


def describe(batch: state_lib.Batch, weight_BL: jax.Array) -> state_lib.Metrics:
  """The step's input in numbers: tokens, targets, positions, skips."""
  segment_BL = batch["segment_ids"]
  positions_BL = batch.get("positions_2", batch["positions"])
  L = segment_BL.shape[1]
  tokens = jnp.sum(segment_BL > 0)
  inside_BL = (segment_BL[:, 1:] == segment_BL[:, :-1]) & (segment_BL[:, 1:] > 0)
  jump_BL = (positions_BL[:, 1:] - positions_BL[:, :-1] != 1) & inside_BL
  jumps_in = jax.vmap(lambda jump, segment: jnp.bincount(segment, jump, length=L + 1))
  skipped = jnp.sum(jumps_in(jump_BL.astype(int), segment_BL[:, 1:]) > 0)
  samples = jnp.sum(jnp.max(segment_BL, axis=1))
  return {
    "tokens": tokens,
    "target_fraction": jnp.sum(weight_BL > 0) / jnp.maximum(tokens, 1),
    "largest_position": jnp.max(positions_BL),
    "skipped_fraction": skipped / jnp.maximum(samples, 1),
  }


def compile_steps(
  recipe: recipe_lib.Recipe,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  mesh: jax.sharding.Mesh,
) -> tuple[Any, Any]:
  """(train_step, eval_step) jitted: donation and shardings are set here only."""
  _, state_at = state_lib.shardings(mesh, optimizer, recipe.model, recipe.adapters)
  rows = sharding.batch_sharding(mesh)
  everywhere = sharding.replicated(mesh)
  train_step = jax.jit(
    make_train_step(recipe, optimizer, schedule),
    in_shardings=(state_at, rows),
    out_shardings=(state_at, everywhere),
    donate_argnums=0,
  )
  eval_step = jax.jit(
    make_eval_step(recipe),
    in_shardings=(state_lib.full_params(recipe, state_at), rows),
    out_shardings=everywhere,
  )
  return train_step, eval_step

"""The training state and the one training step.

A batch is a dict of arrays [B, L]: tokens, segment_ids, block_ids, is_response,
loss_weight, sample_ids, epochs (see data/packing.py). Positions are drawn
inside the step, on the device, from the sample ids.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from skipalign_jax import config as config_lib
from skipalign_jax.method import long_short, positions
from skipalign_jax.model import backends, decoder, lora, lora_state, losses, sharding

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
  """All that a step changes, and the frozen base of adapters."""

  step: jax.Array  # updates applied; a skipped NaN step is none
  params: decoder.Params  # fp32 masters of what is trained: the weights, or adapters
  opt: optax.OptState
  base: decoder.Params | None = None  # under adapters; a step hands it through


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that a step needs and never changes."""

  model: decoder.ModelConfig
  positions: positions.PositionConfig
  long_short: long_short.LongShortConfig
  crop: int  # tokens that a longer row of text is cut to; 0 for rows as they are
  seed: int
  compute_dtype: str
  remat: str
  attention: backends.Backend
  loss_chunk: int
  grad_accum: int
  adapters: lora.Config | None = None  # None trains all weights


def recipe_from(
  config: ml_collections.ConfigDict,
  shape: decoder.ModelConfig,
  position_recipe: positions.PositionConfig,
  platform: str,
) -> Recipe:
  """The recipe that a config means, for a model of this shape.

  Args:
    config: the whole config.
    shape: of the model.
    position_recipe: what `resolve.check` made of config.positions.
    platform: of the devices: "cpu", "gpu", "cuda" or "tpu".

  Raises:
    UserError: the attention backend does not exist there.
  """
  regulariser = long_short.LongShortConfig(**config.long_short)
  parts = 2 if regulariser.alpha else 1  # a short window cuts each sample in two
  backend = backends.choose(
    config.attention.backend,
    platform,
    config.model.compute_dtype,
    config.data.seq_len,
    shape.head_dim,
    parts * config_lib.max_samples(config.data) + 1,  # and the padding
  )
  return Recipe(
    model=shape,
    positions=position_recipe,
    long_short=regulariser,
    crop=config.data.seq_len if config.data.text_window else 0,
    seed=config.seed,
    compute_dtype=config.model.compute_dtype,
    remat=config.model.remat,
    attention=backend,
    loss_chunk=config.loss.chunk,
    grad_accum=config.grad_accum,
    adapters=lora.from_config(config.lora),
  )


def full_params(recipe: Recipe, state: TrainState) -> decoder.Params:
  """What the model computes with; of a state of shardings, where that lives."""
  if recipe.adapters is None:
    return state.params
  return lora.join(recipe.adapters, state.params, state.base)


def loss_sum(
  recipe: Recipe, params: decoder.Params, batch: Batch, positions_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Σ weight·loss over the targets of `batch`, and Σ weight; fp32 scalars."""
  bound = decoder.bind(recipe.model, params)
  targets_BL, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  hidden_BLD = read(recipe, bound, batch, positions_BL, batch["segment_ids"])
  total = losses.cross_entropy(
    hidden_BLD, bound.head(), targets_BL, weight_BL, recipe.loss_chunk
  )
  return total, jnp.sum(weight_BL)


def read(recipe, bound, batch: Batch, positions_BL, segment_ids_BL) -> jax.Array:
  """Final hidden states of a batch."""
  hidden_BLD, _ = bound(
    batch["tokens"],
    positions_BL,
    segment_ids_BL,
    recipe.compute_dtype,
    recipe.remat,
    backend=recipe.attention,
  )
  return hidden_BLD


def regularised_loss(
  recipe: Recipe,
  params: decoder.Params,
  batch: Batch,
  positions_BL: jax.Array,
  weights: jax.Array,
  pairs: jax.Array,
) -> tuple[jax.Array, Metrics]:
  """Cross entropy and Long-Short Alignment of a microbatch: two forward passes.

  Args:
    recipe: of the step.
    params: fp32 master weights.
    batch: with the arrays of `long_short.windows`.
    positions_BL: of both windows; their differences count.
    weights: Σ weight of the whole step.
    pairs: Σ pair_weight of the whole step.

  Returns:
    What is minimised, and this microbatch's parts of the step's means.
  """
  bound, alpha = decoder.bind(recipe.model, params), recipe.long_short.alpha
  targets_BL, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  long_BLD = read(recipe, bound, batch, positions_BL, batch["segment_ids"])
  short_BLD = read(recipe, bound, batch, positions_BL, batch["short_segment_ids"])
  if recipe.long_short.stop_gradient == "short":
    short_BLD = jax.lax.stop_gradient(short_BLD)  # no backward pass through it
  total, (loss, sce, symmetric_kl) = long_short.regularised(
    long_BLD,
    short_BLD,
    bound.head(),
    targets_BL,
    weight_BL / weights,
    alpha * batch["pair_weight"] / pairs,
    recipe.loss_chunk,
    recipe.long_short.stop_gradient,
  )
  parts = {"loss": loss, "sce": sce / alpha, "symmetric_kl": symmetric_kl / alpha}
  return total, parts


def make_train_step(
  recipe: Recipe,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """The step as a plain function of (state, batch)."""

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    if recipe.crop:
      batch = positions.crop(recipe.positions, recipe.seed, batch, recipe.crop)
    else:
      drawn_BL = positions.synthesize(recipe.positions, recipe.seed, batch)
      batch = batch | {"positions": drawn_BL}
    _, weight_BL = losses.next_token_targets(
      batch["tokens"], batch["segment_ids"], batch["loss_weight"]
    )
    weights = jnp.maximum(jnp.sum(weight_BL), 1.0)  # of the whole step
    if recipe.long_short.alpha:
      batch |= long_short.windows(
        recipe.long_short, recipe.seed, state.step, batch, weight_BL
      )
      pairs = jnp.sum(batch["pair_weight"])
      pairs = jnp.where(pairs > 0, pairs, 1.0)  # weights of samples are fractions

    def micro_loss(params, micro):
      positions_BL = micro["positions"]
      params = full_params(recipe, dataclasses.replace(state, params=params))
      if recipe.long_short.alpha:
        return regularised_loss(recipe, params, micro, positions_BL, weights, pairs)
      total, _ = loss_sum(recipe, params, micro, positions_BL)
      return total / weights, {"loss": total / weights}

    (total, means), grads = accumulate(
      jax.value_and_grad(micro_loss, has_aux=True),
      state.params,
      batch,
      recipe.grad_accum,
    )
    grad_norm = optax.global_norm(grads)
    updates, opt = optimizer.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)

    finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)
    params, opt = jax.tree.map(  # a NaN step leaves the model as it was
      lambda new, old: jnp.where(finite, new, old),
      (params, opt),
      (state.params, state.opt),
    )
    metrics = means | {
      "learning_rate": schedule(state.step),
      "grad_norm": grad_norm,
      "finite": finite,
    }
    metrics |= describe(batch, weight_BL, batch["positions"])
    return TrainState(state.step + finite, params, opt, state.base), metrics

  return train_step


def accumulate(value_and_grad, params, batch: Batch, parts: int):
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


def describe(batch: Batch, weight_BL: jax.Array, positions_BL: jax.Array) -> Metrics:
  """What the step was fed: tokens, targets, positions, skips."""
  segment_BL = batch["segment_ids"]
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


def make_eval_step(recipe: Recipe) -> Callable[[decoder.Params, Batch], Any]:
  """Held-out (Σ loss, Σ weight) at contiguous positions, as at inference."""

  def eval_step(params: decoder.Params, batch: Batch):
    positions_BL = positions.contiguous(batch["segment_ids"])
    return loss_sum(recipe, params, batch, positions_BL)

  return eval_step


def state_shardings(
  mesh: jax.sharding.Mesh,
  optimizer: optax.GradientTransformation,
  config: decoder.ModelConfig,
  adapters: lora.Config | None = None,
) -> tuple[TrainState, TrainState]:
  """The abstract state, and where each of its arrays lives.

  Adam's moments are laid out as the parameters they belong to (ZeRO).
  """
  _, shapes = decoder.definition(config)
  params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), shapes)
  params_at, base, base_at = sharding.params_shardings(mesh, params), None, None
  if adapters is not None:
    params_at, base_at = lora_state.shardings(adapters, mesh, params)
    base = lora_state.abstract_base(adapters, params)
    params = lora_state.abstract_adapters(adapters, params)
  opt = jax.eval_shape(optimizer.init, params)
  opt_at = optax.tree_map_params(
    optimizer,
    lambda _, sharding: sharding,
    opt,
    params_at,
    transform_non_params=lambda _: sharding.replicated(mesh),
  )
  step = jax.ShapeDtypeStruct((), jnp.int32)
  return (
    TrainState(step, params, opt, base),
    TrainState(sharding.replicated(mesh), params_at, opt_at, base_at),
  )


def init_state(
  params: decoder.Params,
  optimizer: optax.GradientTransformation,
  shardings: TrainState,
  base: decoder.Params | None = None,
) -> TrainState:
  """The state before the first step; takes over the memory of `params` and `base`."""
  start = lambda params: TrainState(jnp.int32(0), params, optimizer.init(params))
  at = dataclasses.replace(shardings, base=None)
  state = jax.jit(start, out_shardings=at, donate_argnums=0)(params)
  return dataclasses.replace(state, base=base)


def compile_steps(
  recipe: Recipe,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  mesh: jax.sharding.Mesh,
) -> tuple[Any, Any]:
  """(train_step, eval_step) jitted: donation and shardings live here only."""
  _, state_at = state_shardings(mesh, optimizer, recipe.model, recipe.adapters)
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
    in_shardings=(full_params(recipe, state_at), rows),
    out_shardings=everywhere,
  )
  return train_step, eval_step

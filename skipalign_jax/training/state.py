"""The training state: what a step changes, where it lives, and how it begins.

A batch is a dict of arrays [B, L]: tokens, segment_ids, block_ids, is_response,
loss_weight, sample_ids, epochs (see data/packing.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from skipalign_jax.model import (
  decoder,
  lora,
  lora_state,
  model_config,
  quantized,
  sharding,
)
from skipalign_jax.training import recipe as recipe_lib

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
  """All that a step changes, and the frozen base of adapters."""

  step: jax.Array  # updates applied; a step that is skipped does not count
  params: decoder.Params  # fp32 masters of what is trained: the weights, or adapters
  opt: optax.OptState
  base: decoder.Params | None = None  # under adapters; a step returns it unchanged


def full_params(recipe: recipe_lib.Recipe, state: TrainState) -> decoder.Params:
  """The weights that the model computes with; for a state of shardings, theirs."""
  if recipe.adapters is None:
    return state.params
  return lora.join(recipe.adapters, state.params, state.base)


def merged_params(
  recipe: recipe_lib.Recipe, state: TrainState, mesh: jax.sharding.Mesh
) -> decoder.Params:
  """The weights that evaluations use: adapters are merged into their base."""
  if recipe.adapters is None:
    return state.params
  at = sharding.params_shardings(mesh, decoder.definition(recipe.model)[1])
  merge = jax.jit(lora.merge, static_argnums=1, out_shardings=at)
  return merge(full_params(recipe, state), recipe.compute_dtype)


def shardings(
  mesh: sharding.AnyMesh,
  optimizer: optax.GradientTransformation,
  config: model_config.ModelConfig,
  adapters: lora.Config | None = None,
) -> tuple[TrainState, TrainState]:
  """The abstract state, and the sharding of each of its arrays.

  The optimizer's arrays are sharded as the parameters they belong to (ZeRO).
  """
  _, shapes = decoder.definition(config)
  params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), shapes)
  params_at, base, base_at = sharding.params_shardings(mesh, params), None, None
  if adapters is not None:
    params_at, base_at = lora_state.shardings(adapters, mesh, params)
    base = lora_state.abstract_base(adapters, params)
    params = lora_state.abstract_adapters(adapters, params)
  opt = jax.eval_shape(optimizer.init, params)
  opt_at = _opt_shardings(mesh, opt, params, params_at)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  return (
    TrainState(step, params, opt, base),
    TrainState(sharding.replicated(mesh), params_at, opt_at, base_at),
  )


def _opt_shardings(mesh, opt, params, params_at):
  """Of an optimizer's state: each array is split as the parameter whose path it has.

  It may have only some axes of it, such as the sums over rows. What belongs to no
  parameter is replicated.
  """
  with_path = jax.tree_util.tree_leaves_with_path
  specs = [at.spec for at in jax.tree.leaves(params_at)]
  owners = {
    sharding.path_of(path): (x.shape, spec)
    for (path, x), spec in zip(with_path(params), specs, strict=True)
  }

  def of(key_path, x):
    names = [key.key for key in key_path if isinstance(key, jax.tree_util.DictKey)]
    ends = ("/".join(names[i:]) for i in range(len(names)))
    owner = next((owners[end] for end in ends if end in owners), None)
    if owner is None:
      return sharding.replicated(mesh)
    spec = sharding.part_of(owner[1], owner[0], x.shape)
    return NamedSharding(mesh, sharding.fit(spec, x.shape, mesh))

  return jax.tree_util.tree_map_with_path(of, opt)


def device_bytes(state: TrainState, at: TrainState) -> int:
  """Bytes of an abstract state that one device has, given the shardings."""
  return quantized.num_bytes(
    jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(where.shard_shape(x.shape), x.dtype),
      state,
      at,
    )
  )


def create(
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

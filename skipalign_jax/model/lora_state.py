"""The trees of a run with adapters: shapes, initial values, and shardings.

Shapes: n layers, I/O in/out features, R rank.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from skipalign_jax.model import lora, quantized, sharding

# Tensor first: what is left after gathering the others is a block of its features.
LONG = ("tensor", *sharding.SHARDS)


def abstract_adapters(config: lora.Config, params: lora.Tree) -> lora.Tree:
  """Abstract adapters of a model, given its (abstract) parameters."""
  tree: lora.Tree = {}
  for name in config.targets:
    n, out, into = _at(params, lora.MATRICES[name]).shape
    at = lora.layer_of(tree, name)
    at["lora_a"] = jax.ShapeDtypeStruct((n, config.rank, into), jnp.float32)
    at["lora_b"] = jax.ShapeDtypeStruct((n, out, config.rank), jnp.float32)
  return tree


def abstract_base(config: lora.Config, params: lora.Tree) -> lora.Tree:
  """The abstract base as it is stored, given a model's (abstract) parameters.

  Matrices of linear layers by config.base; norms, which are multiplied in fp32, in
  fp32; the rest in bf16.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jax.eval_shape(storage(config, sharding.path_of(path)), x), params
  )


def storage(config: lora.Config, path: str) -> Callable[[jax.Array], quantized.Stored]:
  """The function that converts a parameter of the base to its stored form."""
  if path.endswith("norm/weight"):
    return lambda x: x.astype(jnp.float32)
  kind = config.base if path in lora.MATRICES.values() else "bfloat16"
  return functools.partial(quantized.store, storage=kind)


@functools.partial(jax.jit, static_argnums=(0, 1))
def as_trained(
  config: lora.Config,
  path: str,
  block: jax.Array,
  a_nRI: jax.Array | None,
  b_nOR: jax.Array | None,
) -> jax.Array:
  """A block of a parameter as training computed with it, fp32.

  Args:
    config: of the adapters.
    path: of the parameter.
    block: of the base in fp32, whole in its last axis, which may be tiled.
    a_nRI, b_nOR: the adapters of its layers and outputs, or None.
  """
  base = quantized.dense(storage(config, path)(block), jnp.float32)
  if a_nRI is None:
    return base
  return jax.vmap(functools.partial(lora.added, scale=config.scale))(base, a_nRI, b_nOR)


def sizes(config: lora.Config, params: lora.Tree) -> tuple[int, int]:
  """Parameters of the adapters, and bytes of the base as it is stored."""
  adapters = jax.tree.leaves(abstract_adapters(config, params))
  return sum(x.size for x in adapters), quantized.num_bytes(
    abstract_base(config, params)
  )


def init(config: lora.Config, params: lora.Tree, seed: int) -> lora.Tree:
  """A normal with variance 1/I, B zero: the model is the base.

  Args:
    config: of the adapters.
    params: (abstract) parameters of the model.
    seed: of A.
  """

  def draw(path, x):
    name = sharding.path_of(path)
    if name.endswith("lora_b"):
      return jnp.zeros(x.shape)
    index = list(lora.MATRICES.values()).index(name.replace("lora_a", "weight"))
    key = jax.random.fold_in(jax.random.key(seed), index)
    return jax.random.normal(key, x.shape) * x.shape[-1] ** -0.5

  return jax.tree_util.tree_map_with_path(draw, abstract_adapters(config, params))


def shardings(
  config: lora.Config, mesh: sharding.AnyMesh, params: lora.Tree
) -> tuple[lora.Tree, lora.Tree]:
  """Shardings of adapters and base.

  An adapter's long side is split over all axes that split its matrix, R stays whole.
  Values and scales of a quantised matrix are split as the matrix would be.
  """

  def named(spec, x):
    return NamedSharding(mesh, sharding.fit(PartitionSpec(*spec), x.shape, mesh))

  def adapter(path, x):
    is_a = sharding.path_of(path).endswith("lora_a")
    return named((None, None, LONG) if is_a else (None, LONG, None), x)

  def stored(path, x):
    name = sharding.path_of(path)
    kept = jax.eval_shape(storage(config, name), x)
    return jax.tree.map(lambda part: named(sharding.spec(name), part), kept)

  with_path = jax.tree_util.tree_map_with_path
  adapters_at = with_path(adapter, abstract_adapters(config, params))
  return adapters_at, with_path(stored, params)


def placer(
  config: lora.Config, shardings: lora.Tree
) -> Callable[..., quantized.Stored]:
  """Creates the base on its devices, with one layer in full precision at a time.

  Returns:
    A `hf.reference.Place`.
  """

  def place(path, shape, dtype, read):
    del dtype
    store, at = storage(config, path), _at(shardings, path)
    if path not in lora.MATRICES.values() or config.base == "bfloat16":
      kept = jax.eval_shape(store, jax.ShapeDtypeStruct(shape, jnp.float32))
      return jax.make_array_from_callback(
        shape, at, lambda index: read(index).astype(kept.dtype)
      )
    one = (1, *shape[1:])
    mesh = jax.tree.leaves(at)[0].mesh
    one_at = NamedSharding(mesh, sharding.fit(sharding.spec(path), one, mesh))
    empty, put = _quantiser(config.base, shape, at)
    stored = empty()
    for i in range(shape[0]):
      layer = jax.make_array_from_callback(
        one, one_at, lambda index, i=i: read((slice(i, i + 1), *index[1:]))
      )
      stored = put(stored, layer, i)
    return stored

  return place


@functools.cache
def _quantiser(storage, shape, at):
  """Two compiled functions: the empty matrix, and one that stores a layer in it."""
  store = functools.partial(quantized.store, storage=storage)
  kept = jax.eval_shape(store, jax.ShapeDtypeStruct(shape, jnp.float32))

  def put(stored, layer, i):
    update = lambda all, one: jax.lax.dynamic_update_slice_in_dim(all, one, i, axis=0)
    return jax.tree.map(update, stored, store(layer))

  empty = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kept)
  return (
    jax.jit(empty, out_shardings=at),
    jax.jit(put, out_shardings=at, donate_argnums=0),
  )


def _at(tree: lora.Tree, path: str) -> Any:
  for key in path.split("/"):
    tree = tree[key]
  return tree

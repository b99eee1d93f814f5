"""A run that trained adapters, as a model: its base plus their product.

The checkpoint holds the adapters only. What is read here is what training computed
with: matrices as they were stored there, quantised and multiplied out again, plus
B A, a block at a time.

Shapes: n layers, I/O in/out features, R rank.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipalign_jax import lora, model, model_config, sharding
from skipalign_jax.hf import native, weights

Parameters = dict[str, weights.Parameter]


def config_of(described: native.Description) -> lora.Config | None:
  """The adapters of a run; None if it trained all weights or is no run."""
  given = (described.config or {}).get("lora")
  return lora.from_config(given) if given else None


def open_merged(
  workdir: pathlib.Path,
  step: int,
  shape: model_config.ModelConfig,
  config: lora.Config,
  base: Parameters,
) -> Parameters:
  """Path -> lazy parameter of the model that a checkpoint of adapters makes of `base`.

  Raises:
    UserError: the checkpoint is damaged or holds other adapters.
  """
  abstract = lora.abstract_adapters(config, model.definition(shape)[1])
  pairs = native.open_arrays(
    workdir,
    step,
    {sharding.path_of(path): x.shape for path, x in _leaves(abstract)},
  )
  return {
    path: weights.Parameter(
      path, one.shape, np.dtype(np.float32), _reader(config, one, pairs)
    )
    for path, one in base.items()
  }


def random_base(shape: model_config.ModelConfig, seed: int) -> Parameters:
  """The weights that a run from scratch begins with, drawn again."""
  drawn = {
    sharding.path_of(path): np.asarray(x)
    for path, x in _leaves(model.init(shape, seed))
  }
  return {
    path: weights.Parameter(
      path, x.shape, x.dtype, lambda index, dtype, x=x: x[index].astype(dtype)
    )
    for path, x in drawn.items()
  }


def _reader(config: lora.Config, base: weights.Parameter, pairs: Parameters):
  a_path, b_path = (base.path.replace("/weight", f"/lora_{x}") for x in "ab")

  def read_block(index: weights.Index, dtype: np.dtype) -> np.ndarray:
    *outer, last = index
    stored = lora.as_stored(config, base.path, base.read(tuple(outer), np.float32))
    if a_path not in pairs:
      return stored[..., last].astype(dtype)
    a_nRI = pairs[a_path].read((outer[0],), np.float32)
    b_nOR = pairs[b_path].read(tuple(outer), np.float32)
    add = jax.vmap(lambda w, a, b: lora.merged(lora.Adapted(w, a, b, config.scale)))
    merged_nOI = add(jnp.asarray(stored), a_nRI, b_nOR)
    return np.asarray(merged_nOI)[..., last].astype(dtype)

  return read_block


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
  return jax.tree_util.tree_leaves_with_path(tree)

"""A run that trained adapters, as a model: its base plus their product.

The checkpoint contains the adapters only. The weights read here are those of training:
the base as it was stored there, quantised and dequantised again, plus B A, in blocks.

Shapes: n layers, I/O in/out features, R rank.
"""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np

from skipalign_jax.hf import names, native, weights
from skipalign_jax.model import decoder, lora, lora_state, model_config, sharding
from skipalign_jax.runtime import errors

Parameters = dict[str, weights.Parameter]


def config_of(described: native.Description) -> lora.Config | None:
  """The adapters of a run; None if it trained all weights or is not a run."""
  config = (described.config or {}).get("lora")
  return lora.from_config(config) if config else None


def open_merged(
  workdir: pathlib.Path,
  step: int,
  shape: model_config.ModelConfig,
  config: lora.Config,
  base: Parameters,
) -> Parameters:
  """Path -> lazy parameter of `base` with the adapters of a checkpoint merged into it.

  Raises:
    UserError: the checkpoint is damaged or has other adapters.
  """
  pairs = open_pairs(workdir, step, shape, config)
  return {
    path: weights.Parameter(
      path,
      one.shape,
      np.dtype(np.float32),
      _reader(config, one, pairs),
      one.chunk_layers,
    )
    for path, one in base.items()
  }


def open_pairs(
  workdir: pathlib.Path,
  step: int,
  shape: model_config.ModelConfig,
  config: lora.Config,
) -> Parameters:
  """Path → lazy A or B of a checkpoint, such as layers/attn/q/lora_a.

  Raises:
    UserError: the checkpoint is damaged or has other adapters.
  """
  abstract = lora_state.abstract_adapters(config, decoder.definition(shape)[1])
  expected = {sharding.path_of(path): x.shape for path, x in _leaves(abstract)}
  return native.open_arrays(workdir, step, expected)


def digest(base: Parameters) -> str:
  """Identifies a base by a corner of the first layer of each parameter."""
  corners = hashlib.sha256()
  for path, one in sorted(base.items()):
    first = slice(0, 1 if names.is_stacked(path) else 8)
    corner = one.read((first, *[slice(0, 8)] * (len(one.shape) - 1)), np.float32)
    corners.update(repr((path, one.shape)).encode() + corner.tobytes())
  return corners.hexdigest()[:16]


def check_base(
  workdir: pathlib.Path, described: native.Description, base: Parameters
) -> None:
  """Raises UserError if a run's adapters belong to another base."""
  if described.base_digest not in (None, digest(base)):
    raise errors.UserError(
      f"{workdir} has adapters of {described.base}, whose weights are not those that "
      "the run started from; restore them"
    )


def random_base(shape: model_config.ModelConfig, seed: int) -> Parameters:
  """The initial weights of a run from scratch, drawn again."""
  drawn = {
    sharding.path_of(path): np.asarray(x)
    for path, x in _leaves(decoder.init(shape, seed))
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
    block, pair = base.read(tuple(outer), np.float32), (None, None)
    if a_path in pairs:
      pair = (pairs[a_path].read((outer[0],)), pairs[b_path].read(tuple(outer)))
    trained = lora_state.as_trained(config, base.path, block, *pair)
    return np.asarray(trained)[..., last].astype(dtype)

  return read_block


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
  return jax.tree_util.tree_leaves_with_path(tree)

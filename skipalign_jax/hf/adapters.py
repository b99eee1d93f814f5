"""A run that trained adapters, as a model: its base plus their product.

The checkpoint contains the adapters only. The weights read here are those of training:
the base as it was stored there, quantised and dequantised again, plus B A, in blocks.

Shapes: n layers, I/O in/out features, R rank.
"""

import hashlib
import math
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from skipalign_jax.hf import names, native, weights
from skipalign_jax.model import decoder, lora, lora_state, model_config, sharding
from skipalign_jax.runtime import distributed, errors

Parameters = dict[str, weights.Parameter]

_EXACT = "crc32:"  # what `digest` begins with
_BLOCK_BYTES = 2**25  # of the values that it reads at a time, about


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


def digest(parameters: Parameters) -> str:
  """Identifies weights by their values, each of them.

  Reads everything once, in blocks, on the host: meshes and devices play no part, and a
  model in another format or in a wider type is the same one. A CRC-32 of each
  parameter's float32 bytes; so a change of one weight is always noticed, and any other
  but for a chance of one in 2^32.
  """
  found = hashlib.sha256()
  for path, one in sorted(parameters.items()):
    found.update(repr((path, one.shape, _checksum(one))).encode())
  return _EXACT + found.hexdigest()[:16]


def digest_of(known: str) -> Callable[[Parameters], str]:
  """The function that made what is in `known`.

  Earlier versions took a corner of the first layer of each parameter; what they wrote
  is compared in that way.
  """
  return digest if _EXACT in known else _corner_digest


def _corner_digest(parameters: Parameters) -> str:
  corners = hashlib.sha256()
  for path, one in sorted(parameters.items()):
    first = slice(0, 1 if names.is_stacked(path) else 8)
    corner = one.read((first, *[slice(0, 8)] * (len(one.shape) - 1)), np.float32)
    corners.update(repr((path, one.shape)).encode() + corner.tobytes())
  return corners.hexdigest()[:16]


def check_base(
  workdir: pathlib.Path, described: native.Description, base: Parameters
) -> None:
  """Raises UserError if a run's adapters belong to another base.

  Reads the whole base, in the first process.
  """
  known = described.base_digest
  if known is None or not distributed.is_first():
    return
  if known != digest_of(known)(base):
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


def _checksum(parameter: weights.Parameter) -> int:
  """CRC-32 of all values as float32, in order."""
  checksum = 0
  per_row = 4 * math.prod(parameter.shape[1:])
  rows = max(parameter.chunk_layers, _BLOCK_BYTES // max(per_row, 1), 1)
  for start in range(0, parameter.shape[0], rows):
    block = parameter.read((slice(start, start + rows),), np.float32)
    checksum = zlib.crc32(np.ascontiguousarray(block), checksum)
  return checksum


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

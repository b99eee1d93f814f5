"""A run that trained adapters, as a model: its base plus their product.

The checkpoint holds the adapters only. What is read here is what training computed
with: matrices as they were stored there, quantised and multiplied out again, plus
B A, a block at a time.

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
  abstract = lora_state.abstract_adapters(config, decoder.definition(shape)[1])
  pairs = native.open_arrays(
    workdir,
    step,
    {sharding.path_of(path): x.shape for path, x in _leaves(abstract)},
  )
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


def digest(base: Parameters) -> str:
  """Tells one base from another by a corner of the first layer of each parameter."""
  corners = hashlib.sha256()
  for path, one in sorted(base.items()):
    first = slice(0, 1 if names.is_stacked(path) else 8)
    corner = one.read((first, *[slice(0, 8)] * (len(one.shape) - 1)), np.float32)
    corners.update(repr((path, one.shape)).encode() + corner.tobytes())
  return corners.hexdigest()[:16]


def check_base(
  workdir: pathlib.Path, described: native.Description, base: Parameters
) -> None:
  """Raises UserError where `base` is not the one that a run's adapters belong to."""
  if described.base_digest not in (None, digest(base)):
    raise errors.UserError(
      f"{workdir} holds adapters of {described.base}, which now has other weights than "
      "when the run began; bring those back"
    )


def random_base(shape: model_config.ModelConfig, seed: int) -> Parameters:
  """The weights that a run from scratch begins with, drawn again."""
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

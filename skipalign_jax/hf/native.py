"""Workdirs: the folders that training and `convert import` write.

    config.json               format, model_config, hf_config, base, config …
    tokenizer/                the HF tokenizer
    checkpoints/<step>/params Orbax pytree of the parameters, layers stacked

Training adds optimizer state and data iterator beside `params`; whoever only
wants the model reads `params`. Blocks are read with TensorStore, the store that
Orbax writes, because Orbax itself restores whole arrays.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import numpy as np
import orbax.checkpoint.experimental.v1 as orbax
import tensorstore

from skipalign_jax import errors, model_config, rope
from skipalign_jax.hf import names, safetensors_io, weights

FORMAT = "skipalign_jax"
CHECKPOINTS, PARAMS, TOKENIZER = "checkpoints", "params", "tokenizer"

_CHUNK_BYTES = 64 * 2**20  # of the embedding and the output matrix
_COMMITTED = "_CHECKPOINT_METADATA"


@dataclasses.dataclass(frozen=True)
class Description:
  """The config.json of a workdir.

  Attributes:
    model_config: shape of the model in the checkpoints.
    hf_config: config.json of the model it started from, None from scratch.
    generation_config: generation_config.json of that model, None without one.
    base: reference of that model, None from scratch.
    config: the resolved training config, None after a mere import.
    versions: library name -> version that wrote the folder; None if unknown.
  """

  model_config: model_config.ModelConfig
  hf_config: dict[str, Any] | None = None
  generation_config: dict[str, Any] | None = None
  base: str | None = None
  config: dict[str, Any] | None = None
  versions: dict[str, str] | None = None


def write_config(workdir: str | os.PathLike[str], description: Description) -> None:
  """Writes config.json."""
  value = {"format": FORMAT, **dataclasses.asdict(description)}
  safetensors_io.write_json(pathlib.Path(workdir) / "config.json", value)


def is_workdir(path: pathlib.Path) -> bool:
  """Whether a folder's config.json is ours."""
  file = path / "config.json"
  return file.is_file() and safetensors_io.read_json(file).get("format") == FORMAT


def read_config(workdir: str | os.PathLike[str]) -> Description:
  """Reads config.json; UserError when it is damaged."""
  file = pathlib.Path(workdir) / "config.json"
  value = safetensors_io.read_json(file)
  try:
    shape = dict(value["model_config"])
    shape["rope"] = rope.RopeConfig(**shape["rope"])
    known = {field.name for field in dataclasses.fields(Description)}
    rest = {key: value[key] for key in known - {"model_config"} if key in value}
    return Description(model_config=model_config.ModelConfig(**shape), **rest)
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(f"{file}: damaged or from another version: {error}") from (
      error
    )


def steps(workdir: str | os.PathLike[str]) -> list[int]:
  """Steps with complete parameters, ascending.

  Orbax writes into a folder with a longer name and renames it at the end.
  """
  folder = pathlib.Path(workdir) / CHECKPOINTS
  if not folder.is_dir():
    return []
  return sorted(
    int(path.name)
    for path in folder.iterdir()
    if path.name.isdecimal()
    and (path / _COMMITTED).is_file()
    and (path / PARAMS / "_METADATA").is_file()
  )


def find_step(workdir: pathlib.Path, step: int | None) -> int:
  """`step`, or the latest one; UserError when it does not exist."""
  available = steps(workdir)
  if not available:
    raise errors.UserError(
      f"{workdir}: has no complete checkpoint under {CHECKPOINTS}/; was the run "
      "stopped before its first save?"
    )
  if step is None:
    return available[-1]
  if step not in available:
    raise errors.UserError(
      f"{workdir}: has no checkpoint of step {step}; it has "
      f"{', '.join(map(str, available))}"
    )
  return step


def open_parameters(
  workdir: pathlib.Path, step: int, config: model_config.ModelConfig
) -> dict[str, weights.Parameter]:
  """Path -> lazy parameter of one checkpoint.

  Raises:
    UserError: the checkpoint is damaged or not of this config.
  """
  folder = (workdir / CHECKPOINTS / str(step) / PARAMS).absolute()
  metadata = safetensors_io.read_json(folder / "_METADATA")
  stored = {
    "/".join(part["key"] for part in leaf["key_metadata"])
    for leaf in metadata.get("tree_metadata", {}).values()
  }
  expected = names.expected_shapes(config)
  if stored != set(expected):
    different = ", ".join(sorted(stored ^ set(expected))[:5])
    raise errors.UserError(
      f"{folder}: its parameters are not those of {workdir}/config.json: {different}"
    )
  driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
  parameters = {}
  for path, shape in expected.items():
    store = _open_store(folder, path, driver)
    if store.shape != shape:
      raise errors.UserError(
        f"{folder}: {path} is {list(store.shape)}, config.json says {list(shape)}"
      )
    parameters[path] = weights.Parameter(
      path,
      shape,
      store.dtype.numpy_dtype,
      _reader(folder, store),
      chunk_layers=store.chunk_layout.read_chunk.shape[0] or 1,
    )
  return parameters


def _open_store(
  folder: pathlib.Path, path: str, driver: str
) -> tensorstore.TensorStore:
  spec = {
    "driver": driver,
    "kvstore": {
      "driver": "ocdbt",
      "base": f"file://{folder}/",
      "path": path.replace("/", ".") + "/",
    },
  }
  try:
    return tensorstore.open(spec, open=True, read=True).result()
  except ValueError as error:
    raise errors.UserError(f"{folder}: {path} cannot be read ({error})") from error


def _reader(folder: pathlib.Path, store: tensorstore.TensorStore):
  def read_block(index: weights.Index, dtype: np.dtype) -> np.ndarray:
    try:
      return tensorstore.cast(store, dtype)[index].read().result()
    except ValueError as error:
      raise errors.UserError(f"{folder}: damaged checkpoint ({error})") from error

  return read_block


def write_params(
  workdir: pathlib.Path, step: int, parameters: Iterable[tuple[str, np.ndarray]]
) -> None:
  """Writes checkpoints/<step>/params, one parameter in memory at a time.

  Args:
    workdir: an existing folder.
    step: of the new checkpoint.
    parameters: (path, stacked array).
  """
  target = (workdir / CHECKPOINTS / str(step)).absolute()
  session = (workdir / "partial").absolute()
  for path, array in parameters:
    with _storage(path):
      orbax.partial.save(session, _nested(path, array))
    del array
  orbax.partial.finalize(session)
  # Orbax calls the one item of a partial save "state"; ours is an item among
  # others of a CheckpointManager step.
  target.mkdir(parents=True)
  (session / "state").rename(target / PARAMS)
  (target / _COMMITTED).write_text(
    json.dumps(
      {
        "item_handlers": {
          PARAMS: "orbax.checkpoint._src.handlers.pytree_checkpoint_handler."
          "PyTreeCheckpointHandler"
        },
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": None,
        "commit_timestamp_nsecs": None,
        "custom_metadata": {},
      }
    )
  )
  shutil.rmtree(session)


def _storage(path: str) -> orbax.Context:
  """How Orbax lays a parameter out: a layer a chunk, so readers can take few."""
  context = orbax.Context()
  saving = context.array.saving
  saving.use_compression = False  # weights hardly compress, and it costs minutes
  if names.is_stacked(path):
    saving.storage_options.shard_axes = (0,)
  else:
    saving.storage_options.chunk_byte_size = _CHUNK_BYTES
  return context


def _nested(path: str, leaf: Any) -> Any:
  for key in reversed(path.split("/")):
    leaf = {key: leaf}
  return leaf

"""Workdirs: the folders that training and `convert import` write.

    config.json               format, model_config, hf_config, base, config …
    tokenizer/                the HF tokenizer
    checkpoints/<step>/params Orbax pytree of the parameters, layers stacked

Training adds the optimizer state and the data iterator next to `params`; the model is
`params` alone. Blocks are read and written with TensorStore, which Orbax itself stores
arrays with, because Orbax handles whole arrays only.
"""

import dataclasses
import functools
import operator
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorstore

from skipalign_jax.hf import names, weights
from skipalign_jax.model import model_config, rope
from skipalign_jax.runtime import checksums, errors, files, storage

FORMAT = "skipalign_jax"
CHECKPOINTS, PARAMS, TOKENIZER = "checkpoints", "params", "tokenizer"

_CHUNK_BYTES = 64 * 2**20  # of the embedding and the output matrix, about
_COMMITTED = "_CHECKPOINT_METADATA"
_INDEX_BYTES = 2**20  # files up to this are checked when a checkpoint is opened


@dataclasses.dataclass(frozen=True)
class Description:
  """The config.json of a workdir.

  Attributes:
    model_config: shape of the model in the checkpoints.
    hf_config: config.json of the model it started from, None from scratch.
    generation_config: generation_config.json of that model, None without one.
    base: reference of that model, None from scratch.
    config: the resolved training config, None after an import.
    versions: library name -> version that wrote the folder; None if unknown.
    base_digest: of the base's weights, if adapters need them again.
  """

  model_config: model_config.ModelConfig
  hf_config: dict[str, Any] | None = None
  generation_config: dict[str, Any] | None = None
  base: str | None = None
  config: dict[str, Any] | None = None
  versions: dict[str, str] | None = None
  base_digest: str | None = None


def write_config(workdir: str | os.PathLike[str], description: Description) -> None:
  """Writes config.json."""
  value = {"format": FORMAT, **dataclasses.asdict(description)}
  files.write_json(pathlib.Path(workdir) / "config.json", value)


def is_workdir(path: pathlib.Path) -> bool:
  """Whether a folder's config.json is ours."""
  file = path / "config.json"
  return file.is_file() and files.read_json(file, finite=False).get("format") == FORMAT


def read_config(workdir: str | os.PathLike[str]) -> Description:
  """Reads config.json; UserError when it is damaged."""
  file = pathlib.Path(workdir) / "config.json"
  value = files.read_json(file)
  try:
    shape = dict(value["model_config"])
    for field in dataclasses.fields(model_config.ModelConfig):
      if field.type is int:
        operator.index(shape[field.name])  # TypeError if it is not a whole number
    shape["rope"] = rope.RopeConfig(**shape["rope"])
    shape["nope_layers"] = tuple(shape.get("nope_layers", ()))
    known = {field.name for field in dataclasses.fields(Description)}
    rest = {key: value[key] for key in known - {"model_config"} if key in value}
    return Description(model_config=model_config.ModelConfig(**shape), **rest)
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(f"{file}: damaged or from another version: {error}") from (
      error
    )


def check_path(path: pathlib.Path, flag: str) -> None:
  """Raises UserError for a workdir whose arrays TensorStore puts elsewhere.

  Args:
    path: of the workdir.
    flag: how it was given, for the message.
  """
  if "\\" in str(path.absolute()):
    raise errors.UserError(
      f"{flag}: the library that writes arrays takes \\ for /; give a path without, "
      "such as a symbolic link"
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
  """Path -> lazy parameter of one checkpoint of all weights; see `open_arrays`."""
  return open_arrays(workdir, step, names.expected_shapes(config))


def open_arrays(
  workdir: pathlib.Path, step: int, expected: dict[str, tuple[int, ...]]
) -> dict[str, weights.Parameter]:
  """Path -> lazy parameter of one checkpoint.

  Opening compares the sizes of all files and the checksums of small ones, the indices.
  The first time that a parameter is read, the checksums of all files are compared.

  Args:
    workdir: the folder.
    step: of the checkpoint.
    expected: path -> shape of what must be in it, no more and no less.

  Raises:
    UserError: the checkpoint is damaged or has other parameters.
  """
  _check_checksums(workdir, step, _INDEX_BYTES)
  check = functools.cache(lambda: _check_checksums(workdir, step))
  folder = workdir / CHECKPOINTS / str(step) / PARAMS
  return {
    path: weights.Parameter(
      path,
      store.shape,
      store.dtype.numpy_dtype,
      _reader(folder, store, check),
      chunk_layers=store.chunk_layout.read_chunk.shape[0] or 1,
    )
    for path, store in open_stores(folder, expected, "config.json").items()
  }


def open_stores(
  folder: pathlib.Path, expected: dict[str, tuple[int, ...]], source: str
) -> dict[str, tensorstore.TensorStore]:
  """Path -> array of one item of a checkpoint; their indices are read, no values.

  Args:
    folder: of the item.
    expected: path -> shape of what must be in it, no more and no less.
    source: where the shapes are from, for messages.

  Raises:
    UserError: the item is damaged or has other arrays.
  """
  folder = folder.absolute()
  metadata = files.read_json(folder / "_METADATA")
  try:
    stored = {
      "/".join(part["key"] for part in leaf["key_metadata"])
      for leaf in metadata.get("tree_metadata", {}).values()
      if not leaf.get("value_metadata", {}).get("skip_deserialize")  # no array
    }
  except (KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(f"{folder}: damaged _METADATA ({error!r})") from error
  if stored != set(expected):
    different = ", ".join(sorted(stored ^ set(expected))[:5])
    raise errors.UserError(
      f"{folder}: its arrays are not those of {source}: {different}"
    )
  driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
  # Otherwise TensorStore gives zeros where a file has gone, as while a run deletes it.
  whole = metadata.get("store_array_data_equal_to_fill_value", False)
  options = {"fill_missing_data_reads": not whole}
  stores = {path: _open_store(folder, path, driver, options) for path in expected}
  for path, store in stores.items():
    if store.shape != expected[path]:
      raise errors.UserError(
        f"{folder}: {path} is {list(store.shape)}, {source} says {list(expected[path])}"
      )
  return stores


def _check_checksums(
  workdir: pathlib.Path, step: int, max_bytes: int | None = None
) -> None:
  """Raises UserError if the parameters differ from what was written."""
  folder = workdir / CHECKPOINTS / str(step)
  if found := checksums.damage(folder, PARAMS, max_bytes):
    others = ", ".join(str(other) for other in steps(workdir) if other != step)
    raise errors.UserError(
      f"{folder} is damaged: {found}. "
      + (
        f"Name another step as {workdir}@STEP; there are {others}."
        if others
        else "It is the only checkpoint; restore it from a copy."
      )
    )


def _open_store(
  folder: pathlib.Path, path: str, driver: str, options: dict[str, Any]
) -> tensorstore.TensorStore:
  try:
    return tensorstore.open(
      _store_spec(folder, path, driver) | options, open=True, read=True
    ).result()
  except ValueError as error:
    raise errors.UserError(f"{folder}: {path} cannot be read ({error})") from error


def _reader(
  folder: pathlib.Path, store: tensorstore.TensorStore, check: Callable[[], None]
):
  def read_block(index: weights.Index, dtype: np.dtype) -> np.ndarray:
    check()
    try:
      return tensorstore.cast(store, dtype)[index].read().result()
    except ValueError as error:
      if not folder.is_dir():
        raise errors.UserError(
          f"{folder} was deleted while it was read; a run deletes all but its latest "
          "checkpoints (checkpoint.keep). Run the command again, or read a copy"
        ) from error
      raise errors.UserError(f"{folder}: damaged checkpoint ({error})") from error

  return read_block


def write_params(
  workdir: pathlib.Path, step: int, parameters: Iterable[weights.Parameter]
) -> None:
  """Writes checkpoints/<step>/params, a layer in memory at a time.

  Orbax saves whole arrays, and its partial save took four times the largest
  stacked parameter; so the arrays are written with TensorStore in Orbax's
  layout, and Orbax restores them like its own (tested).

  Args:
    workdir: an existing folder; call it in one that is renamed when complete.
    step: of the new checkpoint.
    parameters: what to write, as their stored dtype.
  """
  target = (workdir / CHECKPOINTS / str(step)).absolute()
  (target / PARAMS).mkdir(parents=True)
  tree = {}
  for parameter in parameters:
    _write(target / PARAMS, parameter)
    keys = parameter.path.split("/")
    tree[str(tuple(keys))] = {
      "key_metadata": [{"key": key, "key_type": 2} for key in keys],  # 2: of a dict
      "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
    }
  files.write_json(
    target / PARAMS / "_METADATA",
    {
      "tree_metadata": tree,
      "use_ocdbt": True,
      "use_zarr3": True,
      "store_array_data_equal_to_fill_value": True,
      "custom_metadata": None,
    },
  )
  handler = (
    "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
  )
  files.write_json(
    target / _COMMITTED,
    {
      "item_handlers": {PARAMS: handler},
      "metrics": {},
      "performance_metrics": {},
      "init_timestamp_nsecs": None,
      "commit_timestamp_nsecs": None,
      "custom_metadata": {},
    },
  )
  checksums.write(target)


def _write(folder: pathlib.Path, parameter: weights.Parameter) -> None:
  """One array, in blocks along axis 0: a layer, or rows of about `_CHUNK_BYTES`."""
  shape = parameter.shape
  rows = 1
  if not names.is_stacked(parameter.path):
    row_bytes = parameter.dtype.itemsize * int(np.prod(shape[1:]))
    rows = min(max(_CHUNK_BYTES // row_bytes, 1), shape[0])
  spec = _store_spec(folder, parameter.path, "zarr3") | {
    "metadata": {
      "shape": shape,
      "data_type": parameter.dtype.name,
      "chunk_grid": {
        "name": "regular",
        "configuration": {"chunk_shape": (rows, *shape[1:])},
      },
      # Weights hardly compress, and trying costs minutes.
      "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    },
    "store_data_equal_to_fill_value": True,
  }
  group = max(rows, parameter.chunk_layers)
  blocks = [slice(i, min(i + group, shape[0])) for i in range(0, shape[0], group)]
  try:
    store = tensorstore.open(spec, create=True, write=True).result()
    for block in blocks:
      values = parameter.read((block,))
      stacked = names.is_stacked(parameter.path)
      for i, part in enumerate(values if stacked else [values], block.start):
        weights.check_finite(names.hf_name(parameter.path, i), part)
      store[block].write(values).result()
  except errors.UserError:  # what was found wrong with the source
    raise
  except ValueError as error:
    raise errors.UserError(
      f"{folder}: {parameter.path} cannot be written ({storage.explain(error)})"
    ) from error


def _store_spec(folder: pathlib.Path, path: str, driver: str) -> dict[str, Any]:
  return {
    "driver": driver,
    "kvstore": {
      "driver": "ocdbt",
      # Not a file:// URL, in which %, # and ? of a path would mean something else.
      "base": {"driver": "file", "path": f"{folder}/"},
      "path": path.replace("/", ".") + "/",
    },
  }

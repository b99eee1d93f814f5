"""HF weight folders: lazy reading with checks, streaming sharded writing.

The safetensors library checks the header of a file each time that it opens it: at most
100 MB and not more than the file, whole sizes that fit the types, and byte ranges that
cover the file without gaps and overlaps. So headers alone decide whether a folder is
complete. What the library does not check is checked here: the numbers of values and
of tensors, names of shards, tensors in two files, and types that are not floats.
Format: https://github.com/huggingface/safetensors#format
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from skipalign_jax.runtime import errors, escape, files, json_limits, untrusted

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 5 * 10**9  # what transformers uses

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
MAX_TENSORS = 100_000  # of a file; headers are parsed again for each reading
_MAX_HEADER_VALUES = 20 * MAX_TENSORS  # types, sizes and byte ranges of these
_MAX_NAME_LENGTH = 200  # characters of a shard's name
_MAX_PROBLEM_LENGTH = 200  # characters of a message about a damaged file
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclasses.dataclass(frozen=True)
class _Entry:
  file: pathlib.Path
  dtype: str
  shape: tuple[int, ...]


class SafetensorsFolder:
  """The tensors of an HF folder, one file or shards with an index.

  Attributes:
    where: the folder, for messages.
    shapes: tensor name -> shape.
  """

  def __init__(self, folder: str | os.PathLike[str], single: str = SINGLE):
    """Reads and checks the headers of all files.

    Args:
      folder: has them.
      single: name of the file where there is only one.

    Raises:
      UserError: no safetensors, a missing or damaged shard, or a tensor that is
        stored twice or not where the index says.
    """
    folder = pathlib.Path(folder)
    self.where = str(folder)
    self._entries: dict[str, _Entry] = {}
    index = _weight_map(folder, single)
    for file in _weight_files(folder, index, single):
      for name, entry in _entries(file):
        if name in self._entries:
          raise errors.UserError(
            f"{folder}: {escape.line(name)} is stored twice, in "
            f"{self._entries[name].file.name} and {file.name}; remove the outdated "
            f"file and its entries in {INDEX}"
          )
        self._entries[name] = entry
    for name, file_name in index.items():
      if name not in self._entries or self._entries[name].file.name != file_name:
        raise errors.UserError(
          f"{folder}: {INDEX} puts {escape.line(name)} into {file_name}, which does "
          "not contain it; the shards belong to another download"
        )
    self.shapes = {name: entry.shape for name, entry in self._entries.items()}

  def dtype(self, name: str) -> np.dtype:
    """Stored type of a tensor; UserError when it is not a float."""
    entry = self._entries[name]
    if entry.dtype not in DTYPES:
      raise errors.UserError(
        f"{entry.file}: {escape.line(name)} is stored as {entry.dtype}; only "
        f"{', '.join(DTYPES)} can be read (quantised checkpoints cannot)"
      )
    return DTYPES[entry.dtype]

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    """Rows (axis 0) of a tensor; nothing else of it is read."""
    self.dtype(name)
    # Opened each time: the library maps the file, and pages that were read count as
    # memory of the process until it is closed. With backend="pread" 0.8.0 reads the
    # whole tensor.
    with _opened(self._entries[name].file) as opened:
      return opened.get_slice(name)[rows]


def has_weights(folder: pathlib.Path) -> bool:
  """Whether a folder has the weights of a whole model, in one file or with an index."""
  return any((folder / name).is_file() for name in (SINGLE, INDEX))


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Any]:
  """The library's reader of a file; its errors become UserError."""
  with file.open("rb") as stream:
    start = stream.read(8)
  if start == b"version ":
    raise errors.UserError(
      f"{file}: is a Git LFS pointer, not the weights; run 'git lfs pull'"
    )
  try:
    # The library compares it too, but only after it has mapped the whole file.
    if int.from_bytes(start, "little") > untrusted.MAX_JSON_BYTES:
      raise safetensors.SafetensorError("header too large")
    with safetensors.safe_open(file, framework="np") as opened:
      yield opened
  except (safetensors.SafetensorError, OSError) as error:
    raise _damaged(file, error) from error


def _damaged(file: pathlib.Path, error: Exception) -> errors.UserError:
  return errors.UserError(
    f"{file}: not a safetensors file, or truncated or damaged "
    f"({escape.line(error)[:_MAX_PROBLEM_LENGTH]}); download it again"
  )


def _check_header(file: pathlib.Path) -> None:
  """Raises UserError if the header has more values than `MAX_TENSORS` need."""
  with file.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    if length > untrusted.MAX_JSON_BYTES:
      return  # `_opened` refuses it
    try:
      json_limits.check(stream.read(length), _MAX_HEADER_VALUES)
    except ValueError as error:
      raise _damaged(file, error) from error


def _entries(file: pathlib.Path) -> Iterator[tuple[str, _Entry]]:
  _check_header(file)
  with _opened(file) as opened:
    names = opened.keys()
    if len(names) > MAX_TENSORS:
      raise errors.UserError(f"{file}: {len(names):,} tensors; no model has so many")
    for name in names:
      part = opened.get_slice(name)
      yield name, _Entry(file, part.get_dtype(), tuple(part.get_shape()))


def _weight_map(folder: pathlib.Path, single: str) -> dict[str, str]:
  """Tensor name -> file name of the index; {} without one."""
  path = folder / INDEX
  if (folder / single).is_file() or not path.is_file():
    return {}
  index = files.read_json(path, finite=False)
  weight_map = index.get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise errors.UserError(f"{path}: has no weight_map")
  for file_name in weight_map.values():
    plain = isinstance(file_name, str) and len(file_name) <= _MAX_NAME_LENGTH
    if not plain or pathlib.PurePath(escape.line(file_name)).name != file_name:
      raise errors.UserError(
        f"{path}: {repr(file_name)[:100]} is not a file of this folder"
      )
  return weight_map


def _weight_files(
  folder: pathlib.Path, index: dict[str, str], single: str
) -> list[pathlib.Path]:
  if index:
    shards = [folder / name for name in sorted(set(index.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
      raise errors.UserError(
        f"{folder}: {len(missing)} of {len(shards)} shards are missing: "
        f"{escape.listed(missing)}. Finish the download"
      )
    return shards
  if (folder / single).is_file():
    return [folder / single]
  found = sorted(p.name for p in folder.iterdir() if p.suffix == ".safetensors")
  if found:
    raise errors.UserError(
      f"{folder}: has {escape.listed(found)} but neither {SINGLE} nor {INDEX}"
    )
  pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
  if pickles:
    raise errors.UserError(
      f"{folder}: has only pickled weights ({escape.listed(pickles, 3)}). Unpickling "
      "can run foreign code, so they are never opened; save the model with "
      "save_pretrained(..., safe_serialization=True) first"
    )
  raise errors.UserError(f"{folder}: no {SINGLE} and no {INDEX}")


def write_tensors(
  folder: pathlib.Path,
  tensors: Iterable[tuple[str, np.ndarray]],
  max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> int:
  """Streams tensors into `folder`, at most one shard in memory.

  Args:
    folder: exists already.
    tensors: (HF name, array) in the order of the files.
    max_shard_bytes: of one shard, unless a single tensor is larger.

  Returns:
    Bytes of all tensors together.
  """
  held: dict[str, np.ndarray] = {}
  held_bytes = total = 0
  names_of_shard: list[list[str]] = []

  def flush() -> None:
    part = folder / f"part-{len(names_of_shard)}"
    # "format": transformers insists on the key and "pt" is what every reader,
    # torch or not, accepts.
    safetensors.numpy.save_file(held, part, metadata={"format": "pt"})
    files.set_usual_permissions(part)  # the library makes it private
    names_of_shard.append(list(held))
    held.clear()

  for name, array in tensors:
    if held and held_bytes + array.nbytes > max_shard_bytes:
      flush()
      held_bytes = 0
    # The library writes from the pointer and trusts the memory to be dense.
    held[name] = np.ascontiguousarray(array)
    held_bytes += array.nbytes
    total += array.nbytes
    del array
  flush()
  if len(names_of_shard) == 1:
    (folder / "part-0").rename(folder / SINGLE)
    return total
  weight_map = {}
  for i, shard_names in enumerate(names_of_shard):
    file_name = f"model-{i + 1:05d}-of-{len(names_of_shard):05d}.safetensors"
    (folder / f"part-{i}").rename(folder / file_name)
    weight_map |= dict.fromkeys(shard_names, file_name)
  files.write_json(
    folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}
  )
  return total

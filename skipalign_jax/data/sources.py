"""Where records come from: files, the hub, or the built-in generators."""

import dataclasses
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from skipalign_jax.data import prose, recall
from skipalign_jax.hf import hub
from skipalign_jax.runtime import errors, untrusted

FORMS = (
  "builtin:recall[:N], builtin:text[:N], hub:NAME[:SPLIT], or a .jsonl, .ndjson, "
  ".json, .parquet or .txt file (all but .parquet may be .gz); *w after it repeats it "
  "w times per epoch"
)
_TEXTS = (".txt", ".txt.gz")  # one document per file
_LINES = (".jsonl", ".ndjson", ".json")  # a record per line, or an array of records
_SUFFIXES = (*_LINES, *(f"{suffix}.gz" for suffix in _LINES), ".parquet", *_TEXTS)
_ROWS = 16  # of a parquet table, decoded at a time
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16  # of a file, for its identity
_BUILTIN = {"recall": recall.record, "text": prose.record}


@dataclasses.dataclass(frozen=True)
class Source:
  """One source of records.

  Attributes:
    name: as the user wrote it, without the weight.
    weight: how often an epoch repeats it; may be fractional.
  """

  name: str
  weight: float = 1.0

  def identity(self) -> str:
    """A text that changes when the file does: its size, time and parts of it."""
    if self.name.startswith("builtin:"):
      return self.name
    if self.name.startswith(hub.PREFIX):
      return f"{self.name} {self.revision()}"
    path = self._path()
    stat = path.stat()
    digest = _content_sample(path, stat.st_size)
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {digest}"

  def revision(self) -> str:
    """The commit of a data set of the hub; "" for other sources."""
    if not self.name.startswith(hub.PREFIX):
      return ""
    return hub.dataset_revision(self._hub_name()[0])

  def records(self) -> Iterator[tuple[int, Any]]:
    """(number of the line or table row from 1, raw record).

    A record is a JSON value, or the bytes of a line with one.

    Raises:
      UserError: the source does not exist, or its content is not in the format of its
        name.
    """
    if self.name.startswith("builtin:"):
      return self._builtin()
    if self.name.startswith(hub.PREFIX):
      return self._hub()
    path = self._path()
    if path.name.lower().endswith(_TEXTS):
      return _document(path)
    return _parquet(path) if path.suffix.lower() == ".parquet" else _lines(path)

  def check(self) -> None:
    """Raises UserError if the name is not valid or names no file."""
    if self.name.startswith("builtin:"):
      self._builtin_name()
    elif self.name.startswith(hub.PREFIX):
      self._hub_name()
    else:
      self._path()

  def _builtin_name(self) -> tuple[str, int]:
    match = re.fullmatch(r"builtin:(\w+?)(?::(\d+))?", self.name)
    if not match or match[1] not in _BUILTIN or match[2] == "0":
      raise errors.UserError(f"data source {self.name!r} is unknown; give {FORMS}")
    return match[1], int(match[2] or 1000)

  def _builtin(self) -> Iterator[tuple[int, Any]]:
    name, count = self._builtin_name()
    return ((i + 1, _BUILTIN[name](0, i)) for i in range(count))

  def _hub_name(self) -> tuple[str, str]:
    """The data set, and its split."""
    name, _, split = self.name.removeprefix(hub.PREFIX).partition(":")
    if not hub.is_id(name):
      raise errors.UserError(f"data source {self.name!r} is unknown; give {FORMS}")
    return name, split or "train"

  def _hub(self) -> Iterator[tuple[int, Any]]:
    import datasets

    name, split = self._hub_name()
    revision = self.revision()
    with hub.downloading(
      f"data source {self.name}", "name a local .jsonl or .parquet file"
    ):
      # By its name alone, a local folder would be read instead.
      remote = f"hf://datasets/{name}"
      return enumerate(datasets.load_dataset(remote, split=split, revision=revision), 1)

  def _path(self) -> pathlib.Path:
    path = pathlib.Path(self.name).expanduser()
    if not path.name.lower().endswith(_SUFFIXES):
      raise errors.UserError(f"data source {self.name!r} is unknown; give {FORMS}")
    if not path.is_file():
      problem = "is a directory" if path.is_dir() else "no such file"
      raise errors.UserError(f"data source {self.name}: {problem}")
    return path


def parse(spec: str | Sequence[str]) -> list[Source]:
  """The sources of `data.train` or `data.eval`.

  Args:
    spec: one source, several separated by commas, or a sequence of sources.

  Raises:
    UserError: a source has no valid name or weight, or is a file that does not exist.
  """
  texts = spec.split(",") if isinstance(spec, str) else list(spec)
  found = []
  for text in texts:
    name, star, weight = text.strip().rpartition("*")
    try:
      source = Source(name, float(weight)) if star else Source(text.strip())
    except ValueError as error:
      raise errors.UserError(
        f"data source {text!r}: {weight!r} after * is not a number; give a weight"
      ) from error
    if not 0 < source.weight < 1000:
      raise errors.UserError(
        f"data source {text!r}: the weight after * must be above 0 and below 1000"
      )
    source.check()
    found.append(source)
  return found


def _content_sample(path: pathlib.Path, size: int) -> str:
  """A digest of parts of a file: all of a small one.

  Copying tools can keep the time of a file that has other content of the same size.
  """
  digest = hashlib.sha256()
  with path.open("rb") as file:
    for i in range(_SAMPLES):  # the first one begins the file, the last one ends it
      file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
      digest.update(file.read(_SAMPLE_BYTES))
  return digest.hexdigest()[:16]


def _lines(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
  """Lines that are not blank, or the items of an array, with their numbers."""
  try:
    is_array = untrusted.is_array(path)
    yield from untrusted.array_items(path) if is_array else untrusted.lines(path)
  except untrusted.BROKEN as error:
    raise errors.UserError(
      f"data source {path} cannot be read to its end: {error}"
    ) from error


def _document(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """The whole file as one record; its line breaks become \\n."""
  try:
    data = io.BytesIO(untrusted.read(path))
    document = io.TextIOWrapper(data, encoding="utf-8-sig").read()
  except untrusted.BROKEN as error:
    raise errors.UserError(f"data source {path} cannot be read: {error}") from error
  if document.strip():
    yield 1, {"text": document}


def _parquet(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  import pyarrow
  import pyarrow.parquet

  number = unpacked = 0
  try:
    file, file_size = pyarrow.parquet.ParquetFile(path), path.stat().st_size
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    untrusted.check_growth(sum(group.total_byte_size for group in groups), file_size)
    # Few rows at a time: dictionary encoding can give all of them one huge text.
    for batch in file.iter_batches(_ROWS):
      for record in batch.to_pylist():
        number += 1
        unpacked += untrusted.size(record)
        untrusted.check_growth(unpacked, file_size)
        yield number, record
  # pyarrow raises its own errors and those of Python's dates and numbers.
  except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
    raise errors.UserError(f"data source {path} cannot be read: {error}") from error


def example(record: Any) -> str:
  """A record for an error message: its first 80 characters."""
  if isinstance(record, bytes):
    return record[:80].decode("utf-8", "backslashreplace").strip()
  return json.dumps(record, default=str, ensure_ascii=True)[:80]

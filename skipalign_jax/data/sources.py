"""Where records come from: files, the hub, or the built-in generators."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from skipalign_jax.data import json_files, prose, recall, source_names, tables
from skipalign_jax.hf import hub
from skipalign_jax.runtime import errors, extras, untrusted

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16  # of a file, for its identity
_BUILTIN = {"recall": recall.record, "text": prose.record, "pairs": recall.pair}


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
    """A text that changes when a file does: its size, time and parts of it."""
    if self.name.startswith("builtin:"):
      return self.name
    if self.name.startswith(hub.PREFIX):
      return f"{self.name} {self.revision()}"
    return "\n".join(map(_identity, self._files))

  def revision(self) -> str:
    """The commit of a data set of the hub; "" for other sources."""
    if not self.name.startswith(hub.PREFIX):
      return ""
    return hub.dataset_revision(self._hub_name()[0])

  def parts(self) -> Iterator[tuple[str, Iterator[tuple[int, Any]]]]:
    """Per file its name and its records, see `records`; others have one part."""
    if self.name.startswith("builtin:"):
      yield self.name, self._builtin()
    elif self.name.startswith(hub.PREFIX):
      yield self.name, self._hub()
    else:
      for path in self._files:
        yield str(path), _records(path)

  def records(self) -> Iterator[tuple[int, Any]]:
    """(number of the line or table row of its file from 1, raw record).

    A record is a JSON value, the bytes of a line with one, or a BadSample in place of
    one that is too large to be read.

    Raises:
      UserError: the source does not exist, or its content is not in the format of its
        name.
    """
    for _, records in self.parts():
      yield from records

  def check(self) -> None:
    """Raises UserError if the name is not valid or names no file."""
    if self.name.startswith("builtin:"):
      self._builtin_name()
    elif self.name.startswith(hub.PREFIX):
      self._hub_name()
      extras.need("datasets", f"data source {self.name}", "name a local file")
    else:
      _ = self._files

  def describe(self) -> str:
    """The name, and what it means: a commit, or which files."""
    if commit := self.revision():
      return f"{self.name} at commit {commit[:12]}"
    if self.name.startswith("builtin:") or len([*self._files, *self._others]) == 1:
      return self.name
    text = f"{self.name} ({len(self._files):,} files"
    if self._others:
      names = ", ".join(path.name for path in self._others[:3])
      more = f" and {len(self._others) - 3:,} more" if len(self._others) > 3 else ""
      text += f"; not read: {names}{more}"
    return text + ")"

  def _builtin_name(self) -> tuple[str, int]:
    match = re.fullmatch(r"builtin:(\w+?)(?::(\d+))?", self.name)
    if not match or match[1] not in _BUILTIN or match[2] == "0":
      raise errors.UserError(
        f"data source {self.name!r} is unknown; give {source_names.FORMS}"
      )
    return match[1], int(match[2] or 1000)

  def _builtin(self) -> Iterator[tuple[int, Any]]:
    name, count = self._builtin_name()
    return ((i + 1, _BUILTIN[name](0, i)) for i in range(count))

  def _hub_name(self) -> tuple[str, str | None, str]:
    """The data set, its configuration if one is named, and its split."""
    name, _, rest = self.name.removeprefix(hub.PREFIX).partition(":")
    # A split may have colons of its own: train[:1000].
    config, split = re.fullmatch(r"(?:([^:\[\]]+):)?(.*)", rest, re.DOTALL).groups()
    if not hub.is_id(name):
      raise errors.UserError(
        f"data source {self.name!r} is unknown; give {source_names.FORMS}"
      )
    return name, config, split or "train"

  def _hub(self) -> Iterator[tuple[int, Any]]:
    import datasets

    name, config, split = self._hub_name()
    revision = self.revision()
    with hub.downloading(
      f"data source {self.name}",
      "name a configuration, hub:NAME:CONFIG:SPLIT, or a local .jsonl file",
    ):
      # By its name alone, a local folder would be read instead.
      remote = f"hf://datasets/{name}"
      try:
        rows = datasets.load_dataset(remote, config, split=split, revision=revision)
      except ValueError as error:  # its second line lists the configurations
        raise ValueError(" ".join(str(error).splitlines()[:2])) from error
    return tables.of_dataset(rows, self.name)

  @functools.cached_property
  def _files(self) -> list[pathlib.Path]:
    return source_names.files_of(self.name)[0]

  @functools.cached_property
  def _others(self) -> list[pathlib.Path]:
    return source_names.files_of(self.name)[1]


def parse(spec: str | Sequence[str]) -> list[Source]:
  """The sources of `data.train` or `data.eval`.

  Args:
    spec: one source, several separated by commas, or a sequence of sources.

  Raises:
    UserError: a source has no valid name or weight, or is a file that does not exist.
  """
  texts = source_names.split(spec) if isinstance(spec, str) else spec
  found = [Source(*source_names.weigh(text.strip())) for text in texts]
  for source in found:
    source.check()
  return found


def _identity(path: pathlib.Path) -> str:
  stat = path.stat()
  digest = _content_sample(path, stat.st_size)
  return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {digest}"


def _records(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
  if path.name.lower().endswith(source_names.TEXTS):
    return _document(path)
  if path.name.lower().endswith(source_names.TABLES):
    return tables.records(path)
  return _json(path)


def _content_sample(path: pathlib.Path, size: int) -> str:
  """A digest of parts of a file: all of a small one.

  Copying tools can keep the time of a file that has other content of the same size.
  """
  digest = hashlib.sha256()
  samples = _SAMPLES if size > _SAMPLE_BYTES else 1
  with path.open("rb") as file:
    for i in range(samples):  # the first one begins the file, the last one ends it
      file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
      digest.update(file.read(_SAMPLE_BYTES))
  return digest.hexdigest()[:16]


def _json(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
  try:
    yield from json_files.records(path)
  except untrusted.BROKEN as error:
    raise errors.UserError(
      f"data source {path} cannot be read to its end: {error}"
    ) from error


def _document(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """The whole file as one record."""
  try:
    document = untrusted.read_text(path)
  except untrusted.BROKEN as error:
    raise errors.UserError(f"data source {path} cannot be read: {error}") from error
  if document.strip():
    yield 1, {"text": document}


def example(record: Any) -> str:
  """A record for an error message: its first 80 characters."""
  if isinstance(record, bytes):
    return record[:80].decode("utf-8", "backslashreplace").strip()
  return json.dumps(record, default=str, ensure_ascii=True)[:80]

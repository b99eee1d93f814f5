"""Records of a JSON file: a record per line, an array, or an object around a list."""

import contextlib
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from skipalign_jax.data import record_keys, schemas
from skipalign_jax.runtime import json_limits, untrusted

_MAX_VALUES = 8_000_000  # of one object with all records, about 1 GiB in memory
# Keys next to the list of records that say what the file is.
_ABOUT = frozenset(
  "author citation count description homepage info length num_rows size total "
  "version".split()
)


def records(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
  """Records with their numbers from 1: of a line, or of an item of a list.

  What the file holds is recognised by its content, whatever its name: lines that are
  not blank (their bytes), one array, or one object, which is a record or has one list
  of records, as in {"version": 1, "data": […]}.

  Raises:
    OSError, EOFError, zlib.error, ValueError: it cannot be read to its end.
  """
  first = untrusted.first_character(path)
  if first == b"[":
    return untrusted.array_items(path)
  whole = _object(path) if first == b"{" else None
  if whole is None:
    return untrusted.lines(path)
  return enumerate(_listed(whole), 1)


def _object(path: pathlib.Path) -> Mapping[str, Any] | None:
  """The one object that is the whole file; None if it has lines with one each."""
  lines = [line for _, line in itertools.islice(untrusted.lines(path), 2)]
  if len(lines) == 2:
    with contextlib.suppress(ValueError):  # it does not end here, or is damaged
      untrusted.parse_json(lines[0])
      return None
  try:
    data = untrusted.read(path)
    json_limits.check(data, _MAX_VALUES)
  except ValueError as error:
    if len(lines) == 2 and lines[0].strip() != b"{":
      return None
    raise ValueError(f"{error}; write its records one per line (.jsonl)") from error
  try:
    value = untrusted.parse_json(data, _MAX_VALUES)
  except ValueError:
    return None
  return value if isinstance(value, dict) else None


def _listed(whole: Mapping[str, Any]) -> list[Any]:
  """The records of the one list in an object; the object itself if it is a record."""
  if schemas.has_dialogue(whole) or "text" in whole:
    return [whole]
  lists = [key for key, value in whole.items() if _is_list_of_records(value)]
  about = [key for key in whole if record_keys.is_neutral(key) or key in _ABOUT]
  if len(lists) != 1 or {*lists, *about} != set(whole):
    return [whole]  # refused as a record, by the names of its keys
  return whole[lists[0]]


def _is_list_of_records(value: Any) -> bool:
  is_list = isinstance(value, list) and bool(value)
  return is_list and all(isinstance(one, Mapping) for one in value)

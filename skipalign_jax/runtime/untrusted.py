"""Reads files of unknown origin without trusting the sizes that they claim.

No file, compressed or not, and no line of one is kept in memory beyond a limit. Damage
is an OSError, EOFError, zlib.error or ValueError (`BROKEN`), which callers turn into a
message that says what the file was for.
"""

import gzip
import io
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from skipalign_jax.runtime import json_limits

MAX_RECORD_BYTES = 64 << 20  # of a line, or of a text file
MAX_JSON_BYTES = 100 << 20  # of a config or an index
# Text is compressed to a third or a fifth of its size. A file that grows more than this
# was made to fill a disk.
_MAX_GROWTH = 200
_ALWAYS_ALLOWED_BYTES = 16 << 20  # that a compressed file of any size may contain

BROKEN = (OSError, EOFError, zlib.error, ValueError)


def read(path: pathlib.Path, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
  """The content of a file, decompressed if it is gzip.

  Raises:
    ValueError: it has more than `max_bytes`.
    OSError, EOFError, zlib.error: it cannot be read.
  """
  with _open(path) as file:
    data = file.read(max_bytes + 1)
  if len(data) > max_bytes:
    raise ValueError(f"it has more than {max_bytes >> 20} MiB, the limit")
  return data


def read_text(path: pathlib.Path) -> str:
  """The text of a file in UTF-8, decompressed if it is gzip.

  Without a byte order mark; its line breaks become \\n. So a text is the same on every
  system.

  Raises: as `read`; ValueError also where it is not UTF-8.
  """
  return io.TextIOWrapper(io.BytesIO(read(path)), encoding="utf-8-sig").read()


def lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """Lines that are not blank, with their numbers from 1; decompressed if gzip.

  Of a line longer than `MAX_RECORD_BYTES` only the first `MAX_RECORD_BYTES` + 1 bytes,
  so that its length shows it. The rest is skipped.

  Raises:
    ValueError: the file decompresses to implausibly many bytes.
    OSError, EOFError, zlib.error: it cannot be read to its end.
  """
  compressed = _is_gzip(path)
  file_size, total = path.stat().st_size, 0
  with _open(path) as file:
    for number in itertools.count(1):
      line = part = file.readline(MAX_RECORD_BYTES + 1)
      if not line:
        return
      total += len(line)
      while part and not part.endswith(b"\n"):  # to the end of the line or file
        part = file.readline(1 << 20)
        total += len(part)
        if compressed:
          check_growth(total, file_size)
      if compressed:
        check_growth(total, file_size)
      if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
      if line.strip() or len(line) > MAX_RECORD_BYTES:
        yield number, line


def array_items(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
  """The items of a file that holds one JSON array, with their numbers from 1.

  About `MAX_RECORD_BYTES` characters of it are in memory at a time.

  Raises:
    ValueError: it is not an array, an item is longer than that or not within
      `json_limits`, or the file decompresses to implausibly many bytes.
    OSError, EOFError, zlib.error: it cannot be read to its end.
  """
  compressed = path.stat().st_size if _is_gzip(path) else None
  with io.TextIOWrapper(_open(path), encoding="utf-8-sig") as file:
    text, total = file.read(_BLOCK), 0
    at = _SPACE.match(text).end()
    if not text.startswith("[", at):
      raise ValueError("it does not begin with a JSON array")
    at += 1
    for number in itertools.count(1):
      while (found := _item(text, at, number)) is None:
        block = file.read(max(_BLOCK, len(text) - at))
        text, at, total = text[at:] + block, 0, total + len(block)
        if not block:
          raise ValueError(f"item {number} of its JSON array is not valid JSON")
        if compressed is not None:
          check_growth(total, compressed)
        if len(text) > MAX_RECORD_BYTES:
          raise ValueError(
            f"item {number} of its JSON array is not valid JSON, or has more than "
            f"{MAX_RECORD_BYTES >> 20} MiB"
          )
        if len(text) > 2 * _BLOCK:  # the item is longer than a block
          json_limits.check(text)
      item, at = found
      if item is _END:
        if (text[at:] + file.read(_BLOCK)).strip():
          raise ValueError(
            "something follows its JSON array; in a file with a record per line, each "
            "is an object"
          )
        return
      yield number, item


_BLOCK = 1 << 20  # characters
_END = object()  # of an array
_SPACE = re.compile(r"[ \t\n\r]*")  # of JSON
_DECODER = json.JSONDecoder(parse_int=json_limits.integer)


def _item(text: str, at: int, number: int) -> tuple[Any, int] | None:
  """The next item of an array from index `at`, and the index after it.

  None if the text may end inside it.
  """
  at = _SPACE.match(text, at).end()
  if text.startswith("]", at):
    return _END, at + 1
  try:
    item, at = _DECODER.raw_decode(text, at)
    json_limits.check_depth(item)
  except json.JSONDecodeError:
    return None
  except (RecursionError, ValueError) as error:
    raise ValueError(
      f"item {number} of its JSON array: {error or 'nested too deeply'}"
    ) from error
  at = _SPACE.match(text, at).end()
  if text.startswith(",", at):
    return item, at + 1
  return (item, at) if text.startswith("]", at) else None


def first_character(path: pathlib.Path) -> bytes:
  """The first byte of a text file after spaces; empty if it has no other."""
  with _open(path) as file:
    return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _open(path: pathlib.Path) -> BinaryIO:
  return gzip.open(path) if _is_gzip(path) else path.open("rb")


def _is_gzip(path: pathlib.Path) -> bool:
  """By its name or its first bytes."""
  if path.suffix.lower() == ".gz":
    return True
  with path.open("rb") as file:
    return file.read(2) == b"\x1f\x8b"


def check_growth(decompressed: int, compressed: int) -> None:
  """Raises ValueError if real data does not compress to so few bytes."""
  if decompressed > max(_ALWAYS_ALLOWED_BYTES, _MAX_GROWTH * compressed):
    raise ValueError(
      f"its {compressed:,} bytes decompress to {decompressed:,} or more, which no text "
      "does"
    )


def read_json(
  path: pathlib.Path, max_values: int = json_limits.MAX_VALUES
) -> dict[str, Any]:
  """The JSON object of a file.

  Raises:
    ValueError: it has more than `MAX_JSON_BYTES`, is not a JSON object, or has text
      that is not UTF-8; or as `parse_json`.
    OSError, EOFError, zlib.error: it cannot be read.
  """
  text = read(path, MAX_JSON_BYTES)
  value = parse_json(text, max_values)
  if not isinstance(value, dict):
    raise ValueError("it is not a JSON object")
  if _SURROGATE.search(text):
    json.dumps(value, ensure_ascii=False).encode("utf-8")
  return value


# JSON can spell half a surrogate pair, which can be neither printed nor written.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(text: str | bytes, max_values: int = json_limits.MAX_VALUES) -> Any:
  """A JSON value.

  Raises:
    ValueError: the text is not JSON, has more than `max_values` values, is nested
      deeper than `json_limits.MAX_DEPTH`, or has longer integers than it allows.
  """
  json_limits.check(text, max_values)
  try:
    value = json.loads(text, parse_int=json_limits.integer)
  except RecursionError as error:
    raise ValueError("nested too deeply") from error
  json_limits.check_depth(value)
  return value


def size(value: Any) -> int:
  """Total length of all texts in a record, in bytes or characters."""
  if isinstance(value, str | bytes):
    return len(value)
  if isinstance(value, dict):
    return sum(map(size, value.values()))
  return sum(map(size, value)) if isinstance(value, list | tuple) else 0

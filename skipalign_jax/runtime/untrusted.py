"""Reads files of unknown origin without trusting what they say about their size.

No file is read further than a limit, packed or not, and no line is held that is longer
than one. Damage is an OSError, EOFError, zlib.error or ValueError (`BROKEN`), which the
callers turn into a message that says what the file was for.
"""

import gzip
import itertools
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

MOST_RECORD = 64 << 20  # bytes of a line, or of a text file
MOST_JSON = 100 << 20  # bytes of a config or header, as in the safetensors library
# Text shrinks to a third or a fifth. What grows more than this is made to fill a disk.
_MOST_GROWTH = 200
_ALWAYS_FINE = 16 << 20  # bytes that a packed file may hold however small it is

BROKEN = (OSError, EOFError, zlib.error, ValueError)


def read(path: pathlib.Path, most: int = MOST_RECORD) -> bytes:
  """The whole file, unpacked if its name ends in .gz.

  Raises:
    ValueError: it holds more than `most` bytes.
    OSError, EOFError, zlib.error: it cannot be read.
  """
  with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
    data = file.read(most + 1)
  if len(data) > most:
    raise ValueError(f"it holds more than {most >> 20} MiB, which is the most")
  return data


def lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """Lines that are not blank, with their numbers from 1; unpacked if .gz.

  Of a line longer than `MOST_RECORD`, its first `MOST_RECORD` + 1 bytes; so its length
  tells. The rest of it is passed over.

  Raises:
    ValueError: packed text that unpacks to implausibly much.
    OSError, EOFError, zlib.error: it cannot be read to its end.
  """
  packed = path.suffix == ".gz"
  file_size, total = path.stat().st_size, 0
  with gzip.open(path) if packed else path.open("rb") as file:
    for number in itertools.count(1):
      line = part = file.readline(MOST_RECORD + 1)
      if not line:
        return
      total += len(line)
      while part and not part.endswith(b"\n"):  # the rest of it, or the file's end
        part = file.readline(1 << 20)
        total += len(part)
        if packed:
          check_growth(total, file_size)
      if packed:
        check_growth(total, file_size)
      if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
      if line.strip() or len(line) > MOST_RECORD:
        yield number, line


def check_growth(unpacked: int, packed: int) -> None:
  """ValueError where so many bytes cannot have come from honest packing."""
  if unpacked > max(_ALWAYS_FINE, _MOST_GROWTH * packed):
    raise ValueError(
      f"its {packed:,} bytes unpack to {unpacked:,} or more; no text shrinks like that"
    )


def parse_json(text: str | bytes) -> Any:
  """A JSON value; ValueError for all that is none, too deep nesting included."""
  try:
    return json.loads(text)
  except RecursionError as error:
    raise ValueError("nested too deeply") from error


def size(value: Any) -> int:
  """Bytes and characters of all texts in a record."""
  if isinstance(value, str | bytes):
    return len(value)
  if isinstance(value, dict):
    return sum(map(size, value.values()))
  return sum(map(size, value)) if isinstance(value, list | tuple) else 0

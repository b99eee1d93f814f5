"""Checks the header of a .gguf file before it is read.

The gguf package trusts the counts that it reads: an array that claims 2^60 elements
keeps it busy until memory is full. Here every count is compared with the bytes of the
file and with the most that a model needs.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import pathlib
import struct

MAX_ENTRIES = 100_000  # of metadata, and of tensors
MAX_ELEMENTS = 4_000_000  # of all metadata arrays; vocabularies have 300,000 at most
MAX_DIMENSIONS = 8
VERSIONS = (2, 3)

_ARRAY, _STRING = 9, 8
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def check(path: pathlib.Path) -> None:
  """Checks the whole header of a file.

  Raises:
    ValueError: the header does not follow the format, claims more than the file has, or
      more than any model needs. Big-endian files are refused too.
    OSError: it cannot be read.
  """
  try:
    with (
      path.open("rb") as file,
      mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data,
    ):
      _Walk(data).header()
  except struct.error as error:
    raise ValueError("the file ends within its header") from error


class _Walk:
  """A position in the header that only moves forward."""

  def __init__(self, data: mmap.mmap):
    self._data, self._at, self._elements = data, 4, 0

  def header(self) -> None:
    version = self._integer("<I")
    if version not in VERSIONS:
      raise ValueError(f"version {version}; {VERSIONS[0]} and {VERSIONS[1]} are read")
    tensors, entries = self._integer("<Q"), self._integer("<Q")
    if max(tensors, entries) > MAX_ENTRIES:
      raise ValueError(f"it claims {tensors:,} tensors and {entries:,} entries")
    for _ in range(entries):
      self._text()
      self._value(self._integer("<I"))
    for _ in range(tensors):
      self._text()
      dimensions = self._integer("<I")
      if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions:,} dimensions")
      self._skip(8 * dimensions + 4 + 8)  # sizes, type, offset

  def _value(self, kind: int) -> None:
    if kind == _STRING:
      self._text()
    elif kind != _ARRAY:
      self._skip(_size(kind))
    else:
      kind, count = self._integer("<I"), self._integer("<Q")
      self._elements += count
      if self._elements > MAX_ELEMENTS:
        raise ValueError(f"its arrays claim {self._elements:,} elements or more")
      if kind == _STRING:
        for _ in range(count):
          self._text()
      else:
        self._skip(count * _size(kind))

  def _integer(self, form: str) -> int:
    (value,) = struct.unpack_from(form, self._data, self._at)
    self._at += struct.calcsize(form)
    return value

  def _text(self) -> None:
    self._skip(self._integer("<Q"))

  def _skip(self, count: int) -> None:
    if count > len(self._data) - self._at:
      raise ValueError(f"something of {count:,} bytes does not fit into the file")
    self._at += count


def _size(kind: int) -> int:
  if kind not in _SIZES:  # no model uses arrays of arrays
    raise ValueError(f"a value of the unknown type {kind}")
  return _SIZES[kind]

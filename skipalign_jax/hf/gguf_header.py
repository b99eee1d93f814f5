"""Reads the header of a .gguf file: metadata, and where the tensors are.

Every count is compared with the bytes of the file and with the most that a model needs,
before anything is read for it. The gguf package checks neither, and makes several
arrays of each metadata value: half a minute and 1.7 GiB for a vocabulary of 260,000.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import pathlib
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  import gguf

MAX_BYTES = 100 << 20  # of the header; those of large vocabularies have 20 MiB
MAX_ENTRIES = 100_000  # of metadata, and of tensors
MAX_ELEMENTS = 4_000_000  # of all metadata arrays; vocabularies have 300,000 at most
MAX_TEXTS = 2_000_000  # of these; vocabularies of 260,000 have 520,000 merges
MAX_DIMENSIONS = 8
VERSIONS = (2, 3)

_ALIGNMENT = 32  # of tensors, where the metadata names no other one
_ARRAY, _STRING = 9, 8
_NUMBERS = {
  0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
  10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of the file.

  Attributes:
    kind: its storage type.
    shape: sizes in the order of HF, which is the reverse of the file's.
    data: its bytes as numbers, or as uint8 where these are quantised; memory-mapped.
  """

  kind: gguf.GGMLQuantizationType
  shape: tuple[int, ...]
  data: np.ndarray


@dataclasses.dataclass(frozen=True)
class Header:
  """Metadata, key → value, and tensors, name → tensor."""

  metadata: dict[str, Any]
  tensors: dict[str, Tensor]


def read(path: pathlib.Path) -> Header:
  """The header of a file.

  Raises:
    ValueError, LookupError: the header does not follow the format, claims more than the
      file has, or more than any model needs. Big-endian files are refused too.
    OSError: it cannot be read.
  """
  try:
    with (
      path.open("rb") as file,
      mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data,
    ):
      metadata, found, end = _Walk(data).header()
  except struct.error as error:
    raise ValueError("the file ends within its header") from error
  alignment = metadata.get("general.alignment", _ALIGNMENT)
  if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
    raise ValueError(f"general.alignment is {alignment!r}")
  begin = -(-end // alignment) * alignment
  whole = np.memmap(path, mode="r").view(np.ndarray)
  return Header(
    metadata,
    {name: _tensor(whole, begin, name, *info) for name, info in found.items()},
  )


def _tensor(
  whole: np.ndarray, begin: int, name: str, shape: tuple[int, ...], raw: int, at: int
) -> Tensor:
  """A tensor of type `raw`, `at` bytes after `begin`."""
  import gguf  # takes 0.2 s to load

  kind = gguf.GGMLQuantizationType(raw)
  block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
  if not all(shape):
    raise ValueError(f"tensor {name[:100]!r} has no elements")
  count = math.prod(shape) * block_bytes // block
  if begin + at + count > len(whole):
    raise ValueError(f"tensor {name[:100]!r} does not fit into the file")
  plain = {"F16": "<f2", "F32": "<f4", "F64": "<f8",
           "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}  # fmt: skip
  dtype, stored = np.dtype(plain.get(kind.name, "u1")), shape
  if kind.name not in plain:
    stored = gguf.quants.quant_shape_to_byte_shape(shape, kind)
  data = whole[begin + at : begin + at + count].view(dtype).reshape(stored)
  return Tensor(kind, shape, data)


class _Walk:
  """A position in the header that only moves forward."""

  def __init__(self, data: mmap.mmap):
    self._data, self._at = data, 4
    self._elements = self._texts = 0

  def header(self) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Metadata; shape, type and offset of each tensor; and where the header ends."""
    version = self._integer(_U32)
    if version not in VERSIONS:
      raise ValueError(f"version {version}; {VERSIONS[0]} and {VERSIONS[1]} are read")
    tensors, entries = self._integer(_U64), self._integer(_U64)
    if max(tensors, entries) > MAX_ENTRIES:
      raise ValueError(f"it claims {tensors:,} tensors and {entries:,} entries")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
      key = self._new_name(metadata)
      metadata[key] = self._value(self._integer(_U32))
    found: dict[str, Any] = {}
    for _ in range(tensors):
      name = self._new_name(found)
      dimensions = self._integer(_U32)
      if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions:,} dimensions")
      shape = tuple(self._integer(_U64) for _ in range(dimensions))
      found[name] = (shape[::-1], self._integer(_U32), self._integer(_U64))
    return metadata, found, self._at

  def _new_name(self, known: dict[str, Any]) -> str:
    name = self._text()
    if name in known:
      raise ValueError(f"{name[:100]!r} is there twice")
    return name

  def _value(self, kind: int) -> Any:
    if kind == _STRING:
      return self._text()
    if kind != _ARRAY:
      return self._numbers(kind, 1)[0]
    kind, count = self._integer(_U32), self._integer(_U64)
    self._elements += count
    if self._elements > MAX_ELEMENTS:
      raise ValueError(f"its arrays claim {self._elements:,} elements or more")
    if kind != _STRING:
      return self._numbers(kind, count)
    self._texts += count
    if self._texts > MAX_TEXTS:
      raise ValueError(f"its arrays claim {self._texts:,} texts or more")
    return [self._text() for _ in range(count)]

  def _numbers(self, kind: int, count: int) -> list[int | float | bool]:
    if kind not in _NUMBERS:  # no model uses arrays of arrays
      raise ValueError(f"a value of the unknown type {kind}")
    dtype = np.dtype(_NUMBERS[kind])
    return np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()

  def _integer(self, form: struct.Struct) -> int:
    (value,) = form.unpack_from(self._data, self._at)
    self._at += form.size
    return value

  def _text(self) -> str:
    return self._bytes(self._integer(_U64)).decode("utf-8")

  def _bytes(self, count: int) -> bytes:
    end = self._at + count
    if end > len(self._data):
      raise ValueError(f"something of {count:,} bytes does not fit into the file")
    if end > MAX_BYTES:
      raise ValueError(f"its header has more than {MAX_BYTES >> 20} MiB")
    part = self._data[self._at : end]
    self._at = end
    return part

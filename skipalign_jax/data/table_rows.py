"""Rows of Arrow tables: how large they are, known before any becomes Python objects.

A list of ten million nulls takes a few bytes in a file, and half a gigabyte as a Python
list. So values are counted while they are still arrays.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from skipalign_jax.data import record_keys, schemas
from skipalign_jax.runtime import json_limits, untrusted

if TYPE_CHECKING:
  import pyarrow

ROWS = 16  # of a table, decoded at a time
TOO_MANY = f"record over {json_limits.MAX_VALUES:,} values"
TOO_LONG = f"record over {untrusted.MAX_RECORD_BYTES >> 20} MiB"


def used(schema: pyarrow.Schema) -> list[str]:
  """The columns that can change what a row becomes; all if it has no dialogue.

  Raises:
    ValueError: two columns have the same name.
  """
  names = schema.names
  for name, count in collections.Counter(names).items():
    if count > 1:
      raise ValueError(f"it has {count} columns called {record_keys.shown(name)}")
  if schemas.may_have_dialogue(names):
    return [name for name in names if not record_keys.is_neutral(name)]
  if "text" in names and _is_text(schema.field("text").type):
    return [name for name in names if not record_keys.is_about_text(name)]
  return names


def _is_text(kind: pyarrow.DataType) -> bool:
  from pyarrow import types

  kind = kind.value_type if types.is_dictionary(kind) else kind
  return types.is_string(kind) or types.is_large_string(kind)


def parts(batch: pyarrow.RecordBatch) -> Iterator[pyarrow.RecordBatch | str]:
  """The batch in parts that fit into memory as Python objects.

  Instead of a row that does not, the reason: `TOO_MANY` or `TOO_LONG`.
  """
  import pyarrow

  plain = pyarrow.schema(
    [field.with_type(without_dictionaries(field.type)) for field in batch.schema]
  )
  is_plain = plain.equals(batch.schema)
  if is_plain and not (_is_many(batch) or _is_long(batch)):
    yield batch
    return
  for number in range(batch.num_rows):
    row = batch.slice(number, 1)
    if _is_many(row):
      yield TOO_MANY
      continue
    if not is_plain:  # each row alone: all may refer to the same huge text
      row = row.cast(plain)
    yield TOO_LONG if _is_long(row) else row


def _is_many(batch: pyarrow.RecordBatch) -> bool:
  return sum(map(values, batch.columns)) > json_limits.MAX_VALUES


def _is_long(batch: pyarrow.RecordBatch) -> bool:
  # With its offsets and other columns a row has more bytes than its texts.
  return batch.nbytes > 2 * untrusted.MAX_RECORD_BYTES


def values(array: pyarrow.Array) -> int:
  """How many Python objects an array becomes."""
  import pyarrow
  from pyarrow import types

  kind = array.type
  if isinstance(kind, pyarrow.BaseExtensionType):
    return values(array.storage)
  if types.is_struct(kind):
    return len(array) + sum(map(values, array.flatten()))
  if _is_list(kind):
    return len(array) + values(array.flatten())
  return len(array)


def _is_list(kind: pyarrow.DataType) -> bool:
  import pyarrow
  from pyarrow import types

  return types.is_map(kind) or isinstance(
    kind,
    pyarrow.ListType
    | pyarrow.LargeListType
    | pyarrow.FixedSizeListType
    | pyarrow.ListViewType
    | pyarrow.LargeListViewType,
  )


def without_dictionaries(kind: pyarrow.DataType) -> pyarrow.DataType:
  """The type with the values of dictionaries in their place."""
  import pyarrow
  from pyarrow import types

  if types.is_dictionary(kind):
    return without_dictionaries(kind.value_type)
  if types.is_struct(kind):
    return pyarrow.struct(
      [field.with_type(without_dictionaries(field.type)) for field in kind]
    )
  if types.is_large_list(kind):
    return pyarrow.large_list(_without(kind.value_field))
  if types.is_fixed_size_list(kind):
    return pyarrow.list_(_without(kind.value_field), kind.list_size)
  if types.is_list(kind):
    return pyarrow.list_(_without(kind.value_field))
  return kind


def _without(field: pyarrow.Field) -> pyarrow.Field:
  return field.with_type(without_dictionaries(field.type))


def check_values(counts: Sequence[int], size: int) -> None:
  """Raises ValueError if columns claim more values than data of their size has.

  Args:
    counts: values of each column, nulls and those in lists included.
    size: bytes of the file.
  """
  total = sum(counts)
  if total > max(_ALWAYS_ALLOWED_VALUES, _VALUES_PER_BYTE * size):
    raise ValueError(
      f"its {size:,} bytes claim {total:,} values, which no data does; write its "
      "records as .jsonl, or without the columns that are not chats or texts"
    )


_VALUES_PER_BYTE = 200
_ALWAYS_ALLOWED_VALUES = 16 << 20  # in a file of any size

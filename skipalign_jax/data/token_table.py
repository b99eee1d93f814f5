"""The table of a tokenized source: an Arrow file, written row by row, memory-mapped."""

from __future__ import annotations

import bisect
import itertools
import pathlib
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  import pyarrow

LISTS = ("tokens", "block_starts", "target_spans")  # spans: begin, end, begin, …
# Numbers of replies that are not learned.
NOT_LEARNED = ("rewritten", "calls", "excluded")
_BATCH, _BATCH_TOKENS = 1000, 1 << 22  # rows that are written at a time


def schema() -> pyarrow.Schema:
  """The columns and their types."""
  import pyarrow

  columns = dict.fromkeys(LISTS, pyarrow.list_(pyarrow.int32()))
  columns |= dict.fromkeys(("length", "targets", "turns"), pyarrow.int32())
  columns |= dict.fromkeys(NOT_LEARNED, pyarrow.int32())
  columns |= {
    "split": pyarrow.int32(),  # replies encoded apart from their headers
    "named": pyarrow.int32(),  # 1: a document with names of special tokens begins
    "lost": pyarrow.int64(),  # tokens beyond seq_len
    "lost_targets": pyarrow.int64(),
    "rejected_start": pyarrow.int32(),  # of a pair; 0 of other samples
    "sample_id": pyarrow.uint32(),
    "held_id": pyarrow.uint32(),  # of a pair, that of its chosen dialogue
    "is_text": pyarrow.bool_(),
    "status": pyarrow.string(),
    "number": pyarrow.int64(),  # of the record in the source, from 1
    "example": pyarrow.string(),  # place and start of an unusable record
  }
  return pyarrow.schema(columns.items())


class Writer:
  """Writes rows to a file; used with `with`."""

  def __init__(self, stream: IO[bytes]):
    """Begins the file.

    Args:
      stream: of the file; it is left open.
    """
    import pyarrow

    self._schema, self._rows, self._tokens = schema(), [], 0
    self._batch_of = pyarrow.RecordBatch.from_pylist
    self._writer = pyarrow.ipc.new_stream(stream, self._schema)

  def __enter__(self) -> Writer:
    return self

  def write(self, row: Mapping[str, Any]) -> None:
    """Adds a row, which has every column."""
    self._rows.append(row)
    self._tokens += len(row["tokens"])
    if len(self._rows) == _BATCH or self._tokens >= _BATCH_TOKENS:
      self._flush()

  def _flush(self) -> None:
    self._writer.write_batch(self._batch_of(self._rows, self._schema))
    self._rows, self._tokens = [], 0

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    if kind is None and self._rows:
      self._flush()
    self._writer.close()


class Rows:
  """The rows of a file, memory-mapped.

  Attributes:
    table: all of them, as pyarrow's table.
    rejected_start: of each row [N]: where the second sample of a pair begins.
  """

  def __init__(self, path: pathlib.Path):
    """Opens a file.

    Raises:
      pyarrow.ArrowException: it is not such a file, for this version of pyarrow.
    """
    import pyarrow

    self._path = path
    with pyarrow.memory_map(str(path)) as file:
      self.table = pyarrow.ipc.open_stream(file).read_all()
    self.rejected_start = self.column("rejected_start")
    batches = self.table.to_batches()
    self._lists = [{name: batch[name] for name in LISTS} for batch in batches]
    self._ends = list(itertools.accumulate(map(len, batches)))

  def __reduce__(self) -> tuple[type[Rows], tuple[pathlib.Path]]:
    return Rows, (self._path,)  # processes that load data map the file themselves

  def __len__(self) -> int:
    return len(self.table)

  def column(self, name: str) -> np.ndarray:
    """A column of numbers or texts [N]."""
    return self.table.column(name).to_numpy()

  def blocks(self) -> np.ndarray:
    """How many blocks each row has [N]; those of both replies of a pair."""
    import pyarrow.compute

    return pyarrow.compute.list_value_length(self.table["block_starts"]).to_numpy()

  def lists(self, row: int) -> dict[str, np.ndarray]:
    """The lists of a row, as views of the memory map."""
    batch = bisect.bisect_right(self._ends, row)
    at = row - (self._ends[batch - 1] if batch else 0)
    return {
      name: column[at].values.to_numpy() for name, column in self._lists[batch].items()
    }

"""Reads Parquet and Arrow files of strangers: a program, which `tables` starts.

A request is a path. The replies are messages whose first byte says what they are: the
schema, rows, one row that is left out, an error, or the end of the file. A batch that
takes too long to decode ends the whole process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from skipalign_jax.data import table_rows
from skipalign_jax.runtime import child_side, untrusted

if TYPE_CHECKING:
  import pyarrow

SCHEMA, ROWS, LEFT_OUT, ERROR, END = b"s", b"r", b"o", b"e", b"."
MAX_SECONDS = 30.0  # of computing, for rows that are decoded together
MAX_BYTES = 4 << 30  # of memory
# This process may start no thread, and libraries would print that they cannot.
_ONE_THREAD = {
  **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
  "ARROW_DEFAULT_MEMORY_POOL": "system",
  "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
  """Replies to requests until their end."""
  os.environ.update(_ONE_THREAD)
  import pyarrow

  pyarrow.set_cpu_count(1)
  child_side.limit_memory(child_side.mapped() + MAX_BYTES)
  child_side.send(replies, b"")  # ready
  while (path := child_side.receive(requests)) is not None:
    child_side.limit_seconds(MAX_SECONDS)
    try:
      for kind, message in _answers(os.fsdecode(path)):
        child_side.limit_seconds(0)
        child_side.send(replies, kind, message)
        child_side.limit_seconds(MAX_SECONDS)
      reply = END, b""
    except MemoryError:
      text = f"its rows take more than {MAX_BYTES >> 20:,} MiB of memory"
      reply = ERROR, text.encode()
    # pyarrow raises its own errors and those of Python's dates and numbers.
    except (pyarrow.ArrowException, OSError, ArithmeticError, ValueError) as error:
      text = f"{error or type(error).__name__}"
      reply = ERROR, text.encode("utf-8", "backslashreplace")
    except RecursionError:
      reply = ERROR, b"its columns are nested too deeply"
    child_side.limit_seconds(0)
    child_side.send(replies, *reply)


def _answers(path: str) -> Iterator[tuple[bytes, bytes]]:
  is_first = True
  for batch in _batches(path):
    for part in table_rows.parts(batch):
      if isinstance(part, str):
        yield LEFT_OUT, part.encode()
        continue
      if is_first:
        yield SCHEMA, part.schema.serialize().to_pybytes()
        is_first = False
      yield ROWS, part.serialize()


def _batches(path: str) -> Iterator[pyarrow.RecordBatch]:
  if path.lower().endswith(".arrow"):
    return _of_arrow(path)
  return _of_parquet(path)


def _of_arrow(path: str) -> Iterator[pyarrow.RecordBatch]:
  """Batches of a stream, the form in which the datasets library keeps tables."""
  import pyarrow.ipc

  size, count = os.path.getsize(path), 0
  with pyarrow.OSFile(path) as file, pyarrow.ipc.open_stream(file) as stream:
    names = table_rows.used(stream.schema)
    for batch in stream:
      batch.validate(full=True)  # its offsets may be anything
      chosen = batch.select(names).replace_schema_metadata(None)
      count += sum(map(table_rows.values, chosen.columns))
      table_rows.check_values([count], size)
      for first in range(0, len(chosen), table_rows.ROWS):
        yield chosen.slice(first, table_rows.ROWS)


def _of_parquet(path: str) -> Iterator[pyarrow.RecordBatch]:
  import pyarrow.parquet

  with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
    size, metadata = os.path.getsize(path), file.metadata
    names = table_rows.used(file.schema_arrow)
    groups = list(map(metadata.row_group, range(metadata.num_row_groups)))
    untrusted.check_growth(sum(group.total_byte_size for group in groups), size)
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    chosen = set(names)
    table_rows.check_values(
      [one.num_values for one in columns if one.path_in_schema.split(".")[0] in chosen],
      size,
    )
    # Few rows at a time: dictionary encoding can give all of them one huge text.
    for batch in file.iter_batches(table_rows.ROWS, columns=names, use_threads=False):
      yield batch.replace_schema_metadata(None)


if __name__ == "__main__":
  if child_side.begin():
    serve(sys.stdin.buffer, sys.stdout.buffer)

"""Records of Parquet and Arrow files, decoded in a process that can be ended."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from skipalign_jax.data import dialogues, table_child, table_rows
from skipalign_jax.runtime import child_process, errors, untrusted

if TYPE_CHECKING:
  import datasets
  import pyarrow

_PATIENCE = 6  # times the limit: time that may pass where other processes compute
_REMEDY = "write its records as .jsonl"
Record = dict[str, Any] | dialogues.BadSample


def records(path: pathlib.Path) -> Iterator[tuple[int, Record]]:
  """The rows of a Parquet or Arrow file, with their numbers from 1.

  Columns that change nothing are not read, see `table_rows.used`. A BadSample stands
  for a row that is too large.

  Raises:
    UserError: the file cannot be read, or not within the limits of `table_child`.
  """
  try:
    size = path.stat().st_size
    number = unpacked = 0
    for record in itertools.chain.from_iterable(_rows(path)):
      number += 1
      unpacked += untrusted.size(record)
      untrusted.check_growth(unpacked, size)
      yield number, record
  except errors.UserError:
    raise
  except (OSError, ValueError) as error:
    raise _unreadable(path, str(error)) from error


def of_dataset(rows: datasets.Dataset, name: str) -> Iterator[tuple[int, Record]]:
  """As `records`, of a data set that the datasets library has downloaded.

  Raises:
    UserError: a row cannot be read; `name` says of what.
  """
  try:
    yield from enumerate(itertools.chain.from_iterable(_rows_of(rows)), 1)
  except ValueError as error:
    raise _unreadable(name, str(error)) from error


def _rows_of(rows: datasets.Dataset) -> Iterator[list[Record]]:
  names = table_rows.used(rows.features.arrow_schema)
  # As Arrow tables: features such as images are not decoded.
  chosen = rows.select_columns(names).with_format("arrow")
  for table in chosen.iter(table_rows.ROWS):
    for batch in table.combine_chunks().to_batches():
      for part in table_rows.parts(batch):
        is_left_out = isinstance(part, str)
        yield [dialogues.BadSample(part)] if is_left_out else _records_of(part)


def _rows(path: pathlib.Path) -> Iterator[list[Record]]:
  """Rows that were decoded together."""
  import pyarrow

  seconds, schema = table_child.MAX_SECONDS, None
  with _child() as child:
    child_process.send(child, os.fsencode(path.absolute()))
    while True:
      try:
        reply = child_process.receive(child, seconds * _PATIENCE)
      except child_process.TooSlowError as error:
        raise _too_slow(path, seconds) from error
      if reply is None:
        status = child_process.end(child)
        if status == -signal.SIGPROF:
          raise _too_slow(path, seconds)
        raise _unreadable(path, f"the process that decodes it ends (status {status})")
      kind, message = reply[:1], memoryview(reply)[1:]
      if kind == table_child.END:
        return
      if kind == table_child.ERROR:
        raise _unreadable(path, str(message, "utf-8"))
      if kind == table_child.LEFT_OUT:
        yield [dialogues.BadSample(str(message, "utf-8"))]
      elif kind == table_child.SCHEMA:
        schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(message))
      else:
        batch = pyarrow.ipc.read_record_batch(pyarrow.py_buffer(message), schema)
        yield _records_of(batch)


def _too_slow(path: pathlib.Path, seconds: float) -> errors.UserError:
  return _unreadable(
    path, f"some rows take more than {seconds:g} s of computing; {_REMEDY}"
  )


def _unreadable(source: pathlib.Path | str, problem: str) -> errors.UserError:
  return errors.UserError(f"data source {source} cannot be read: {problem}")


def _records_of(batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
  """The rows as Python objects; ValueError if there is none for a date or number."""
  import pyarrow

  try:
    return list(map(_without_nulls, batch.to_pylist()))
  except (pyarrow.ArrowException, ArithmeticError) as error:
    raise ValueError(str(error)) from error


def _without_nulls(value: Any) -> Any:
  """A record without keys that are null: tables give all records the keys of any."""
  if isinstance(value, dict):
    return {k: _without_nulls(one) for k, one in value.items() if one is not None}
  return [_without_nulls(one) for one in value] if isinstance(value, list) else value


_idle: list[tuple[int, subprocess.Popen[bytes]]] = []  # of which process, the child


@contextlib.contextmanager
def _child() -> Iterator[subprocess.Popen[bytes]]:
  """A child that no other file is read with; kept for the next one if all went well."""
  child = None
  while _idle and child is None:
    owner, child = _idle.pop()
    if owner != os.getpid() or child.poll() is not None:  # a fork has its parent's
      child = None
  child = child or child_process.start(
    table_child.__file__, "reads Parquet files", _REMEDY
  )
  try:
    yield child
  except BaseException:  # also where the reader stops
    child_process.end(child)
    raise
  if _idle:
    child_process.end(child)
  else:
    _idle.append((os.getpid(), child))

"""The records of a run: metrics.jsonl, TensorBoard and loggers."""

import json
import os
import pathlib
from typing import Any

from skipalign_jax.runtime import files
from skipalign_jax.training import loggers

Record = dict[str, float | int | bool]


def read(path: pathlib.Path) -> list[Record]:
  """The records of a metrics.jsonl, without half a last line of a killed run.

  Raises:
    UserError: it cannot be read, or is damaged.
  """
  return files.read_json_lines(path, _check)


def _check(record: Any) -> None:
  if not isinstance(record, dict) or not isinstance(record.get("step"), int):
    raise ValueError("not the record of a step")


def held_out(path: pathlib.Path) -> dict[int, float]:
  """Step → held-out loss of the records of a run; empty where there is no file."""
  found = read(path) if path.exists() else []
  return {one["step"]: one["eval_loss"] for one in found if "eval_loss" in one}


class Writer:
  """Appends records to workdir/metrics.jsonl, TensorBoard files and loggers."""

  def __init__(
    self,
    workdir: pathlib.Path,
    resume_step: int,
    others: loggers.Loggers | None = None,
  ):
    """Drops the records of steps after `resume_step`: these steps will run again.

    Args:
      workdir: of the run.
      resume_step: steps that a checkpoint holds; -1 starts from nothing.
      others: get each record once, also if its step runs twice.
    """
    # tensorboardX loads torch, where that is installed, which takes seconds.
    from skipalign_jax.training import board

    path = workdir / "metrics.jsonl"
    self._others, self._sent = others, set()
    if path.exists():
      found = read(path)
      kept = [record for record in found if record["step"] <= resume_step]
      self._sent = {_what(record) for record in found[len(kept) :]}
      with files.replacing(path) as new:
        new.write_text("".join(map(_line, kept)), encoding="utf-8")
    self._file = path.open("a", encoding="utf-8")
    self._board = board.Board(workdir / "tensorboard", resume_step + 1)

  def write(self, record: Record) -> None:
    """Writes one record; `step` is its key."""
    self._file.write(_line(record))
    self._file.flush()  # so that `tail -f` sees it
    for name, value in record.items():
      if name != "step":
        self._board.add(record["step"], name, float(value))
    if self._others is not None and _what(record) not in self._sent:
      self._others.write(record)

  def flush(self) -> None:
    """Puts what was written on disk."""
    self._file.flush()
    os.fsync(self._file.fileno())
    self._board.flush()

  def close(self, failed: bool = False) -> None:
    """Flushes and closes. `failed`: an error ends the run, which loggers show."""
    self.flush()
    self._file.close()
    self._board.close()
    if self._others is not None:
      self._others.close(failed)


def _what(record: Record) -> tuple[int, ...]:
  """The step and the names of the values."""
  return record["step"], *record


def _line(record: Record) -> str:
  return json.dumps(record) + "\n"


class NoWriter:
  """The writer of processes that write nothing."""

  def write(self, record: Record) -> None:
    """Drops the record."""

  def flush(self) -> None:
    """Has nothing to do."""

  def close(self, failed: bool = False) -> None:
    """Has nothing to do."""

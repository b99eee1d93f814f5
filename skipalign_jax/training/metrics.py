"""Where numbers go: metrics.jsonl, TensorBoard and the terminal."""

import json
import os
import pathlib
import time

import tensorboardX
from rich import console as rich_console
from rich import progress

from skipalign_jax.runtime import errors, untrusted

Record = dict[str, float | int | bool]


def read(path: pathlib.Path) -> list[Record]:
  """The records of a metrics.jsonl; half a last line, of a killed run, is left out.

  Raises:
    UserError: it cannot be read, or is damaged.
  """
  return [record for _, record in _lines(path)]


def _lines(path: pathlib.Path) -> list[tuple[bytes, Record]]:
  try:
    lines = path.read_bytes().splitlines(keepends=True)
  except OSError as error:
    raise errors.UserError(f"{path} cannot be read ({error.strerror})") from error
  if lines and not lines[-1].endswith(b"\n"):
    del lines[-1]
  found = []
  for number, line in enumerate(lines, 1):
    try:
      record = untrusted.parse_json(line)
      if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError("no record of a step")
    except ValueError as error:
      raise errors.UserError(
        f"{path}, line {number}, is damaged ({error}); remove that line"
      ) from error
    found.append((line, record))
  return found


class Writer:
  """Appends records to workdir/metrics.jsonl and to TensorBoard event files."""

  def __init__(self, workdir: pathlib.Path, resume_step: int):
    """Drops records of steps after `resume_step`: they will be made again.

    Args:
      workdir: of the run.
      resume_step: steps that a checkpoint holds; -1 starts from nothing.
    """
    path = workdir / "metrics.jsonl"
    self._drop_after(path, resume_step)
    self._file = path.open("a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=resume_step + 1
    )

  @staticmethod
  def _drop_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
      return
    kept = [line for line, record in _lines(path) if record["step"] <= step]
    new = path.with_suffix(".new")
    new.write_bytes(b"".join(kept))
    new.replace(path)

  def write(self, record: Record) -> None:
    """Writes one record; `step` is its key."""
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()  # so that `tail -f` sees it
    for name, value in record.items():
      if name != "step":
        self._board.add_scalar(name, float(value), record["step"])

  def flush(self) -> None:
    """Puts what was written on disk."""
    self._file.flush()
    os.fsync(self._file.fileno())
    self._board.flush()

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    self._file.close()
    self._board.close()


class NoWriter:
  """What the processes have that write nothing."""

  def write(self, record: Record) -> None:
    """Drops the record."""

  def flush(self) -> None:
    """Has nothing to do."""

  def close(self) -> None:
    """Has nothing to do."""


class Progress:
  """A progress bar on a terminal; elsewhere a line every few seconds."""

  SECONDS_BETWEEN_LINES = 10

  def __init__(self, console: rich_console.Console, start: int, steps: int):
    self._console = console
    self._steps = steps
    self._last_line = 0.0
    self._bar = progress.Progress(
      progress.TextColumn("training"),
      progress.BarColumn(),
      progress.MofNCompleteColumn(),
      progress.TextColumn("loss {task.fields[loss]}"),
      progress.TextColumn("{task.fields[rate]} tok/s"),
      progress.TimeRemainingColumn(),
      console=console,
      disable=console.quiet or not console.is_terminal,
    )
    self._task = self._bar.add_task(
      "train", total=steps, completed=start, loss="-", rate="-"
    )

  def __enter__(self) -> "Progress":
    self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    self._bar.stop()

  def update(self, record: Record) -> None:
    """Shows the record of a finished step."""
    loss = f"{record['loss']:.4f}"
    rate = f"{record['tokens_per_second']:,.0f}"
    step = int(record["step"])
    self._bar.update(self._task, completed=step, loss=loss, rate=rate)
    due = time.monotonic() - self._last_line > self.SECONDS_BETWEEN_LINES
    if not self._console.is_terminal and (due or step == self._steps):
      self._last_line = time.monotonic()
      self._console.print(
        f"step {step}/{self._steps}  loss {loss}  "
        f"lr {record['learning_rate']:.2e}  {rate} tok/s"
      )

"""Losses that are not finite, and losses that jump."""

import collections
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping

import numpy as np

from skipalign_jax.runtime import errors, files
from skipalign_jax.training import metrics

FOLDER = "nonfinite"
MAX_BATCHES = 8  # that a workdir keeps


class Nonfinite:
  """Counts steps whose update was skipped, keeps their batches; stops the run."""

  def __init__(self, workdir: pathlib.Path, limit: int, process: int):
    """`limit`: consecutive steps that stop the run; `process`: index of this one."""
    self._workdir, self._limit, self._process = workdir, limit, process
    self._consecutive = 0
    self.total = 0

  def check(
    self,
    record: metrics.Record,
    batch: Mapping[str, np.ndarray],
    report: Callable[[str], None],
  ) -> None:
    """Checks a finished step.

    Args:
      record: its numbers.
      batch: this process' rows of it.
      report: takes a line for the terminal.

    Raises:
      UserError: the limit is reached.
    """
    if record["finite"]:
      self._consecutive = 0
      return
    self._consecutive += 1
    self.total += 1
    kept = self._keep(int(record["step"]), batch)
    report(
      f"step {record['step']}: loss {record['loss']}, gradient norm "
      f"{record['grad_norm']}: not finite, so the update was skipped"
      + (f"; its batch is in {kept}" if kept else "")
    )
    if self._consecutive >= self._limit:
      raise errors.UserError(
        f"{self._consecutive} consecutive steps without a finite loss, the last one "
        f"{record['step']}. Look at the batches in {self._workdir / FOLDER}, or start "
        "a new --workdir with a lower optim.learning_rate and model.init_from on this "
        "one; its checkpoints are untouched."
      )

  def _keep(self, step: int, batch: Mapping[str, np.ndarray]) -> pathlib.Path | None:
    folder = self._workdir / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"step_{step}_process_{self._process}.npz"
    mine = list(folder.glob(f"*_process_{self._process}.npz"))
    if len(mine) >= MAX_BATCHES and path not in mine:
      return None
    with files.replacing(path) as new, new.open("wb") as stream:
      np.savez_compressed(stream, step=step, **batch)
    return path


class Spikes:
  """Finds a loss that is far above those before it.

  A loss is a spike when it exceeds the mean of the last `WINDOW` recorded ones by
  `SIGMAS` standard deviations, of at least 1 % of the mean.
  """

  WINDOW = 50
  MIN_LOSSES = 20  # before the rule applies
  SIGMAS = 6.0

  def __init__(self, before: pathlib.Path | None = None):
    """`before`: the metrics.jsonl of a run that is resumed; its losses count."""
    self._losses: collections.deque[float] = collections.deque(maxlen=self.WINDOW)
    if before is not None and before.exists():
      for record in metrics.read(before):
        self._add(record.get("loss", math.nan))

  def sigmas(self, loss: float) -> float | None:
    """How far a spike is above the mean; None for any other loss."""
    found = None
    if len(self._losses) >= self.MIN_LOSSES and math.isfinite(loss):
      mean = statistics.fmean(self._losses)
      deviation = max(statistics.pstdev(self._losses), 0.01 * abs(mean), 1e-12)
      found = (loss - mean) / deviation
    self._add(loss)
    return found if found is not None and found > self.SIGMAS else None

  def _add(self, loss: float) -> None:
    if math.isfinite(loss):
      self._losses.append(loss)

"""Curves of training runs, from their metrics.jsonl."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.runtime import errors, paths
from skipalign_jax.training import metrics

MAX_POINTS = 400  # of a curve; neighbours are averaged where there are more steps
PER_STEP = ("loss", "grad_norm", "learning_rate", "tokens_per_second")


def read(workdirs: Sequence[str]) -> dict[str, Any]:
  """The curves of each run, as [steps, values].

  Args:
    workdirs: of `train`; each with a metrics.jsonl.

  Raises:
    UserError: a file does not exist, has no records, or is damaged.
  """
  if not workdirs:
    raise errors.UserError("training needs the workdirs of runs")
  runs = {}
  names = [pathlib.Path(workdir).name for workdir in workdirs]
  for workdir, name in zip(workdirs, names, strict=True):
    path = paths.given(workdir, workdir) / "metrics.jsonl"
    if not path.exists():
      raise errors.UserError(f"{path} does not exist; name workdirs of `train`")
    records = metrics.read(path)
    if not records:
      raise errors.UserError(f"{path} has no records yet")
    runs[name if names.count(name) == 1 else workdir] = curves(records)
  return {"kind": "training", "title": "Training", "runs": runs}


def curves(records: Sequence[dict[str, Any]]) -> dict[str, list[list[float]]]:
  """Name → [steps, values]; of many steps, means of neighbours for per-step numbers."""
  known = ("step", *PER_STEP, "eval_loss")
  names = [*PER_STEP, "eval_loss"]
  names += sorted({k for r in records for k in r if "/" in k and k not in known})
  found = {}
  for name in names:
    points = [
      (r["step"], r[name])
      for r in records
      if isinstance(r.get(name), int | float) and math.isfinite(r[name])
    ]
    if not points:
      continue
    array = np.array(points, np.float64)
    if name in PER_STEP:
      parts = np.array_split(array, min(MAX_POINTS, len(array)))
      array = np.array([part.mean(0) for part in parts])
    found[name] = [[float(f"{x:.6g}") for x in row] for row in array.T.tolist()]
  return found

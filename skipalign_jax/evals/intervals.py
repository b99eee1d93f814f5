"""Means with 95 % confidence intervals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z = 1.959964  # of 95 %


def of_scores(scores: Sequence[float]) -> dict[str, Any]:
  """Mean of scores in [0, 1] and Wilson's interval.

  Exact in spirit for hits and misses; for scores in between it is too wide, never too
  narrow: no distribution on [0, 1] varies more than hits and misses of the same mean.
  """
  n, mean = len(scores), float(np.mean(scores))
  center = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
  half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
  low, high = max(0.0, center - half), min(1.0, center + half)
  return {"mean": mean, "low": low, "high": high, "n": n}


def of_values(values: Sequence[float]) -> dict[str, Any]:
  """Mean of any values and Student's interval; one value has none."""
  from scipy import special  # slow to load, scipy.stats even more

  n, mean = len(values), float(np.mean(values))
  if n == 1:
    return {"mean": mean, "low": None, "high": None, "n": 1}
  error = float(np.std(values, ddof=1)) / math.sqrt(n)
  half = float(special.stdtrit(n - 1, 0.975)) * error
  return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}

"""Means with 95 % confidence intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Z = 1.959964  # of 95 %


def of_scores(scores: Sequence[float]) -> dict[str, Any]:
  """Mean of scores in [0, 1] and Wilson's interval.

  It is meant for hits and misses. For scores between 0 and 1 it is too wide, never too
  narrow: no distribution on [0, 1] varies more than hits and misses of the same mean.
  """
  n, mean = len(scores), float(np.mean(scores))
  center = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
  half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
  low, high = max(0.0, center - half), min(1.0, center + half)
  return {"mean": mean, "low": low, "high": high, "n": n}


def of_values(values: Sequence[float]) -> dict[str, Any]:
  """Mean of any values and Student's interval; a single value has no interval."""
  from scipy import special  # slow to load, scipy.stats even more

  n, mean = len(values), float(np.mean(values))
  if n == 1:
    return {"mean": mean, "low": None, "high": None, "n": 1}
  error = float(np.std(values, ddof=1)) / math.sqrt(n)
  half = float(special.stdtrit(n - 1, 0.975)) * error  # Student's t
  return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def of_shares(values: Sequence[float]) -> dict[str, Any]:
  """Mean of values in [0, 1] and Student's interval, which is cut off at 0 and 1.

  Several values that are all equal have Wilson's: Student's has no width, as if the
  next one were known.
  """
  if len(values) > 1 and len(set(values)) == 1:
    return of_scores(values)
  return within_shares(of_values(values))


def within_shares(interval: dict[str, Any]) -> dict[str, Any]:
  """An interval of values in [0, 1], cut off there."""
  cut = lambda bound: None if bound is None else min(max(bound, 0.0), 1.0)
  return interval | {"low": cut(interval["low"]), "high": cut(interval["high"])}


def by(
  key: str,
  records: Sequence[Mapping[str, Any]],
  value: str = "score",
  interval: Callable[[Sequence[float]], dict[str, Any]] = of_scores,
) -> dict[str, dict[str, Any]]:
  """The interval of the records of each `key`, in the order in which keys appear.

  Args:
    key: of the records, such as "length".
    records: with `key` and `value`.
    value: the number to average.
    interval: of the numbers.
  """
  groups: dict[str, list[float]] = {}
  for record in records:
    groups.setdefault(str(record[key]), []).append(record[value])
  return {name: interval(values) for name, values in groups.items()}

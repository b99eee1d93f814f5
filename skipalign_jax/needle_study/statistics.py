"""Means over seeds, paired differences, and what chance would do."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

# 97.5 % quantiles of Student's t, by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306,
     9: 2.262}  # fmt: skip
FLIPS = 20_000  # random sign flips of the test over haystacks


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
  """Mean and Student's 95 % interval; one seed has none, ten are the most."""
  n, mean = len(values), float(np.mean(values))
  if n == 1:
    return {"mean": mean, "low": None, "high": None, "n": 1}
  half = T[n - 1] * float(np.std(values, ddof=1)) / math.sqrt(n)
  return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def sign_flip(differences: Sequence[float]) -> float:
  """Two-sided p of a mean of paired differences, exact.

  All 2^n signs are as likely if the pairs do not differ; p is the share of signs whose
  mean is as far from 0. With five seeds it is at least 1/16.
  """
  d = np.asarray(differences, float)
  signs = np.array(list(itertools.product((-1, 1), repeat=len(d))))
  return float(np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12))


def sign_flip_of_items(differences: np.ndarray, seed: int = 0) -> float:
  """The same for many pairs, by random signs; at least 1 / (FLIPS + 1).

  Args:
    differences: of hits of two rows, one entry a haystack: its questions are not
      independent, haystacks are.
    seed: of the signs.
  """
  d = differences[differences != 0].astype(float)  # the others never count
  rng = np.random.default_rng(seed)
  found = 0
  for _ in range(0, FLIPS, 1000):
    signs = rng.integers(2, size=(1000, len(d)), dtype=np.int8) * 2 - 1
    found += int(np.sum(np.abs(signs @ d) >= abs(d.sum()) - 1e-9))
  return (found + 1) / (FLIPS + 1)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
  """Rank correlation; equal values share their mean rank."""

  def ranks(values: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

  return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def compare(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
  """one − other, paired by seed, and the verdict that the study has agreed on."""
  d = np.subtract(one, other)
  found = over_seeds(d.tolist()) | {"p_seeds": sign_flip(d.tolist())}
  verdict = "open"
  if len(d) > 1 and found["low"] > 0 and (d > 0).all():
    verdict = "holds"
  if len(d) > 1 and found["high"] < 0:
    verdict = "fails"
  return found | {"by_seed": d.tolist(), "verdict": verdict}

"""Paired differences, and what chance would do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from skipalign_jax.evals import intervals

FLIPS = 20_000  # random sign flips of the test over haystacks


def sign_flip(differences: Sequence[float]) -> float:
  """Two-sided p of a mean of paired differences, exact.

  All 2^n signs are as likely if the pairs do not differ; p is the share of signs whose
  mean is as far from 0. With five seeds it is at least 1/16.
  """
  if len(differences) == 1:
    return 1.0
  test = stats.permutation_test(
    (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
  )
  return float(test.pvalue)


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


def compare(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
  """one − other, paired by seed, and the verdict that the study has agreed on."""
  d = np.subtract(one, other)
  found = intervals.of_values(d.tolist()) | {"p_seeds": sign_flip(d.tolist())}
  verdict = "open"
  if len(d) > 1 and found["low"] > 0 and (d > 0).all():
    verdict = "holds"
  if len(d) > 1 and found["high"] < 0:
    verdict = "fails"
  return found | {"by_seed": d.tolist(), "verdict": verdict}

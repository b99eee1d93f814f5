"""Paired differences, and their sign-flip tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from skipalign_jax.evals import intervals

FLIPS = 20_000  # signs that the test tries at most


def sign_flip(differences: Sequence[float]) -> float:
  """Two-sided p of the mean of paired differences.

  All 2^n signs are equally likely if the pairs do not differ; p is the share of them
  whose mean is as far from 0. With five seeds it is at least 1/16. Exact if there are
  at most FLIPS signs, otherwise of FLIPS random ones and at least 1 / (FLIPS + 1).
  """
  d = np.asarray(differences, float)
  d = d[d != 0]  # the others never count
  if len(d) < 2:
    return 1.0
  test = stats.permutation_test(
    (d,),
    lambda d, axis: np.abs(d.sum(axis)),
    permutation_type="samples",
    alternative="greater",
    n_resamples=FLIPS,
    batch=1000,
    vectorized=True,
    rng=0,
  )
  return float(test.pvalue)


def compare(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
  """one − other, paired by seed, and the verdict by the study's rule."""
  d = np.subtract(one, other)
  found = intervals.of_values(d.tolist()) | {"p_seeds": sign_flip(d.tolist())}
  verdict = "open"
  if len(d) > 1 and found["low"] > 0 and (d > 0).all():
    verdict = "holds"
  if len(d) > 1 and found["high"] < 0:
    verdict = "fails"
  return found | {"by_seed": d.tolist(), "verdict": verdict}

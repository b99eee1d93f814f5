"""What a run says of itself before it starts."""

import dataclasses

import pytest
import tiny

from skipalign_jax.method import long_short
from skipalign_jax.training import report


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    (dict(strategy="contiguous"), "contiguous"),
    (
      dict(skip_below=900),
      "skip_outer up to 2,000, p=1.0 per block, sequential gaps, samples of 900 tokens "
      "or more stay contiguous",
    ),
    (dict(strategy="pose", chunks=3), "pose up to 2,000, 3 chunks"),
    (dict(strategy="randpos"), "randpos up to 2,000"),
    (
      dict(strategy="cream", resample="epoch"),
      "cream up to 2,000, drawn again each epoch",
    ),
  ],
)
def test_positions_tell_the_parameters_that_the_strategy_has(changes, told):
  fixed = dataclasses.replace(tiny.SKIPS, resample="never")
  assert report.describe_positions(dataclasses.replace(fixed, **changes)) == told


@pytest.mark.parametrize(("alpha", "lines"), [(0.0, 0), (0.3, 1), (0.5, 2)])
def test_a_strong_regulariser_is_told(alpha, lines):
  told = report.describe_long_short(long_short.LongShortConfig(alpha, "none", 0))
  assert len(told) == lines
  assert all(f"alpha {alpha}" in line for line in told[:1])
  assert all("NOTE" in line and "worse" in line for line in told[1:])

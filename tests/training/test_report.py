"""What a run says of itself before it starts."""

import dataclasses

import pytest
import tiny

from skipalign_jax.method import long_short
from skipalign_jax.training import report


@pytest.mark.parametrize(
  ("changes", "reported"),
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
def test_positions_are_described_with_the_parameters_of_the_strategy(changes, reported):
  fixed = dataclasses.replace(tiny.SKIPS, resample="never")
  assert report.describe_positions(dataclasses.replace(fixed, **changes)) == reported


@pytest.mark.parametrize(("alpha", "lines"), [(0.0, 0), (0.3, 1), (0.5, 2)])
def test_a_strong_regulariser_is_reported(alpha, lines):
  reported = report.describe_long_short(long_short.LongShortConfig(alpha, "none", 0))
  assert len(reported) == lines
  assert all(f"alpha {alpha}" in line for line in reported[:1])
  assert all("NOTE" in line and "worse" in line for line in reported[1:])

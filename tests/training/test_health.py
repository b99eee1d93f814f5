"""Losses that jump, and steps that are not finite."""

import json

import numpy as np
import pytest

from skipalign_jax.runtime import errors
from skipalign_jax.training import health


def naive(losses):
  """The rule over a plain list."""
  found = {}
  for i, loss in enumerate(losses):
    before = [x for x in losses[:i] if np.isfinite(x)][-50:]
    if len(before) >= 20 and np.isfinite(loss):
      spread = max(np.std(before), 0.01 * abs(np.mean(before)))
      if loss > np.mean(before) + 6 * spread:
        found[i] = (loss - np.mean(before)) / spread
  return found


def curve():
  rng = np.random.default_rng(0)
  losses = 2 + 0.1 * rng.standard_normal(200) + np.linspace(1, 0, 200)
  losses[[5, 60, 150]] += 3  # the first one comes before there is a rule
  losses[100] = np.nan
  losses[180:] = 1.5
  losses[199] = 1.6
  return losses.tolist()


def test_spikes_are_those_of_the_rule():
  losses, spikes = curve(), health.Spikes()
  found = {i: spikes.sigmas(loss) for i, loss in enumerate(losses)}
  found = {i: sigmas for i, sigmas in found.items() if sigmas is not None}
  assert found == pytest.approx(naive(losses))
  assert {60, 150} <= found.keys() and 5 not in found


@pytest.mark.parametrize(
  ("before", "loss", "sigmas"),
  [
    (20, 2.2, pytest.approx(10)),  # of 1 % of the mean: these do not differ
    (20, 2.1, None),
    (20, 1.0, None),  # no spike: below them
    (19, 9.0, None),  # too few to know
  ],
)
def test_spikes_after_a_loss_that_stays(before, loss, sigmas):
  spikes = health.Spikes()
  assert [spikes.sigmas(2.0) for _ in range(before)] == [None] * before
  assert spikes.sigmas(loss) == sigmas


def test_a_resumed_run_finds_spikes_as_an_uninterrupted_one(tmp_path):
  losses, whole = curve(), health.Spikes()
  expected = [whole.sigmas(loss) for loss in losses]
  lines = [{"step": i, "loss": loss} for i, loss in enumerate(losses[:140])]
  lines.insert(3, {"step": 2, "eval_loss": 99.0})
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  again = health.Spikes(path)
  assert [again.sigmas(loss) for loss in losses[140:]] == expected[140:]


def test_bad_steps_are_kept_and_counted_up_to_the_limit(tmp_path):
  seen, reported = health.Nonfinite(tmp_path, limit=3, process=1), []
  record = lambda step, finite: {
    "step": step, "finite": finite, "loss": np.nan, "grad_norm": 1.0
  }  # fmt: skip
  batch = {"sample_ids": np.arange(6, dtype=np.uint32).reshape(2, 3)}
  for step, finite in enumerate([False, False, True, False, False]):
    seen.check(record(step, finite), batch, reported.append)
  with pytest.raises(errors.UserError, match="3 consecutive steps"):
    seen.check(record(7, False), batch, reported.append)
  assert seen.total == 5 and len(reported) == 5
  with np.load(tmp_path / "nonfinite" / "step_7_process_1.npz") as kept:
    assert kept["step"] == 7
    np.testing.assert_array_equal(kept["sample_ids"], batch["sample_ids"])
  lenient = health.Nonfinite(tmp_path, limit=99, process=1)
  for step in range(20, 40):
    lenient.check(record(step, False), batch, reported.append)
  assert len(list((tmp_path / "nonfinite").iterdir())) == health.MAX_BATCHES
  assert reported[-1].endswith("the update was skipped")  # step 39 is not kept
  lenient.check(record(20, False), batch, reported.append)  # again, after a resume
  assert reported[-1].endswith("step_20_process_1.npz")

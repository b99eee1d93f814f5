"""What the same seed gives: the same bits, and where it does not, how far apart."""

import numpy as np
import pytest
import test_processes
import tiny
import tiny_runs

pytestmark = pytest.mark.slow
STEPS = 30


@pytest.fixture(scope="module")
def one(tmp_path_factory, cache_dir):
  folder = tmp_path_factory.mktemp("one") / "run"
  status, printed = tiny_runs.run(tiny_runs.arguments(folder, cache_dir, steps=STEPS))
  assert status == 0, printed
  return folder


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_no_bit(workers, one, cache_dir, tmp_path):
  changes = {"data.workers": workers}
  args = tiny_runs.arguments(tmp_path / "run", cache_dir, steps=STEPS, **changes)
  assert tiny_runs.run(args)[0] == 0
  tiny_runs.assert_same_run(tmp_path / "run", one)


def test_two_devices_are_close_and_the_same_in_one_or_two_processes(
  one, cache_dir, tmp_path, monkeypatch
):
  pair = test_processes.start_pair(tmp_path / "pair", cache_dir, steps=STEPS)
  printed = [process.communicate(timeout=300)[0] for process in pair]
  assert [process.returncode for process in pair] == [0, 0], printed
  monkeypatch.setenv("XLA_FLAGS", tiny.environment(devices=2)["XLA_FLAGS"])
  args = tiny_runs.arguments(tmp_path / "two", cache_dir, steps=STEPS)
  assert tiny_runs.run(args)[0] == 0
  losses = {
    name: np.array([r["loss"] for r in tiny.records(folder) if "loss" in r])
    for name, folder in (
      ("one", one), ("two", tmp_path / "two"), ("pair", tmp_path / "pair")
    )
  }  # fmt: skip
  apart = lambda a, b: np.max(np.abs(losses[a] / losses[b] - 1))
  print(
    f"two devices against one: {apart('two', 'one'):.1e}; "
    f"two processes against two devices of one: {apart('pair', 'two'):.1e}"
  )
  assert apart("two", "one") < 1e-4
  assert apart("pair", "two") < 1e-4

"""SIGKILL at 23 seeded moments, then the same command: the run as without a kill.

Records (except timings), weights, optimizer state and the order of the data are those
of an uninterrupted run, bit for bit.
"""

import random
import signal

import pytest
import tiny_runs

pytestmark = pytest.mark.slow

# Moments of a run of 14 steps, saved every third: between and inside steps, inside
# asynchronous saves, while their checksums are written, inside evaluations, while a
# workdir is claimed.
RNG = random.Random(20)
TRAINING = [
  *((f"step:{RNG.randint(1, 14)}:{RNG.uniform(0, 0.02):.4f}", 0) for _ in range(6)),
  *((f"save:{RNG.randint(1, 5)}:{RNG.uniform(0, 0.25):.4f}", 0) for _ in range(5)),
  *((f"step:{RNG.randint(1, 14)}:{RNG.uniform(0, 0.02):.4f}", 2) for _ in range(3)),
  *((f"evaluate:{RNG.randint(1, 8)}:{RNG.uniform(0, 0.01):.4f}", 0) for _ in range(2)),
  (f"checksums:{RNG.randint(3, 60)}:0", 0),
  ("claim:1:0.0005", 0),
]
# Of data workers themselves, in a run that is longer than what they have in store.
LONGER = {"data.workers": 2, "steps": 60}
WORKERS = [f"worker:{RNG.randint(1, 30)}:{RNG.uniform(0, 0.05):.4f}" for _ in range(3)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache_dir):
  """The uninterrupted run: its folder, and the batches that it read."""
  return uninterrupted(tmp_path_factory.mktemp("whole"), cache_dir)


@pytest.fixture(scope="module")
def longer(tmp_path_factory, cache_dir):
  return uninterrupted(tmp_path_factory.mktemp("longer"), cache_dir, **LONGER)


def uninterrupted(folder, cache_dir, **changes):
  args = tiny_runs.arguments(folder / "run", cache_dir, **changes)
  status, printed = tiny_runs.run(args, batches=folder / "batches")
  assert status == 0, printed
  return folder


@pytest.mark.parametrize(("moment", "workers"), TRAINING)
def test_a_killed_training_resumes_exactly(moment, workers, whole, cache_dir, tmp_path):
  args = tiny_runs.arguments(tmp_path / "run", cache_dir, **{"data.workers": workers})
  # It returns when no process has the pipe open: workers end with their parent.
  status, printed = tiny_runs.run(args, moment, batches=tmp_path / "batches")
  assert status == -9, printed  # else nothing was killed
  status, printed = tiny_runs.run(args, batches=tmp_path / "batches")
  assert status == 0, printed
  tiny_runs.assert_same_run(tmp_path / "run", whole / "run")
  tiny_runs.assert_same_order(tmp_path / "batches", whole / "batches")


@pytest.mark.parametrize("moment", WORKERS)
def test_a_killed_data_worker_is_reported_and_the_run_resumes(
  moment, longer, cache_dir, tmp_path
):
  args = tiny_runs.arguments(tmp_path / "run", cache_dir, **LONGER)
  status, printed = tiny_runs.run(args, moment, batches=tmp_path / "batches")
  assert status == 2 and "error: a data worker was killed" in printed, printed
  status, printed = tiny_runs.run(args, batches=tmp_path / "batches")
  assert status == 0, printed
  tiny_runs.assert_same_run(tmp_path / "run", longer / "run")
  tiny_runs.assert_same_order(tmp_path / "batches", longer / "batches")


@pytest.mark.parametrize("moment", ["export:1:0", "renamed:4:0"])
def test_a_killed_export_leaves_nothing_that_looks_whole(moment, whole, tmp_path):
  args = ["export", f"--model={whole / 'run'}"]
  status, printed = tiny_runs.run([*args, f"--out={tmp_path / 'a'}"], moment, "convert")
  assert status == -9, printed
  assert not (tmp_path / "a").exists()
  for name in "ab":
    status, printed = tiny_runs.run(
      [*args, f"--out={tmp_path / name}"], module="convert"
    )
    assert status == 0, printed
  contents = lambda folder: {p.name: p.read_bytes() for p in folder.iterdir()}
  assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT", "SIGKILL"])
@pytest.mark.parametrize(
  ("command", "moment"),
  [
    ("export", "export:1:0"),
    ("export", "renamed:4:0"),
    ("import", "import:3:0"),
    ("import", "renamed:4:0"),
  ],
)
def test_a_stopped_conversion_leaves_nothing(command, moment, number, whole, tmp_path):
  """After SIGKILL only until the next one, which the files of others survive."""
  out = tmp_path / "out"
  args = [command, f"--model={whole / 'run'}", f"--out={out}"]
  run = lambda moment: tiny_runs.run(args, moment, "convert")
  (tmp_path / ".other.0123abcd.partial").mkdir()
  status, printed = run(f"{moment}:{number}")
  left = [path.name for path in tmp_path.iterdir()]
  if number == "SIGKILL":
    assert status == -signal.SIGKILL and len(left) == 2 and not out.exists(), left
  else:
    assert status == 128 + getattr(signal, number), printed
    assert left == [".other.0123abcd.partial"] and "Traceback" not in printed, printed
  status, printed = run("never")
  assert status == 0, printed
  left = sorted(path.name for path in tmp_path.iterdir())
  assert left == [".other.0123abcd.partial", "out"]

"""Thousands of steps with data workers: memory, file descriptors and time stay flat.

STEPS of them; half a minute of warming up is left out.
"""

import os
import pathlib
import statistics
import time

import pytest
import tiny_runs

pytestmark = pytest.mark.slow
STEPS = int(os.environ.get("SOAK_STEPS", "4000"))


def tree(pid):
  """The process and all below it."""
  found = [pid]
  for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
    for child in (task / "children").read_text().split():
      found += tree(int(child))
  return found


def measure(pid):
  """(MiB of the process, MiB of its workers, its file descriptors)."""
  resident = lambda p: (
    int(pathlib.Path(f"/proc/{p}/statm").read_text().split()[1]) / 256
  )
  workers = sum(resident(p) for p in tree(pid)[1:])
  return resident(pid), workers, len(os.listdir(f"/proc/{pid}/fd"))


def test_soak(cache_dir, tmp_path):
  changes = {"data.workers": 2, "checkpoint.every": 500, "eval.every": 500}
  args = tiny_runs.arguments(tmp_path / "run", cache_dir, steps=STEPS, **changes)
  process = tiny_runs.start([*args, "--config.data.train=builtin:recall:2000"])
  seen = []
  path = tmp_path / "run" / "metrics.jsonl"
  while process.poll() is None:
    time.sleep(2)
    try:
      if path.exists():
        seen.append((len(path.read_text().splitlines()), *measure(process.pid)))
    except OSError:
      break  # it has just ended
  printed = process.communicate()[0]
  assert process.returncode == 0, printed
  seen = [s for s in seen if s[0] > STEPS // 8]
  quarter = max(1, len(seen) // 4)
  early, late = seen[:quarter], seen[-quarter:]
  middle = lambda rows, i: statistics.median(row[i] for row in rows)
  # Rates need the timings, which `records` leaves out.
  import json

  lines = [json.loads(line) for line in path.read_text().splitlines()]
  seconds = [r["tokens"] / r["tokens_per_second"] for r in lines if "tokens" in r]
  seconds = seconds[STEPS // 8 :]
  n = len(seconds) // 4
  step_early, step_late = (
    1000 * statistics.median(part) for part in (seconds[:n], seconds[-n:])
  )
  for name, i in (("process MiB", 1), ("workers MiB", 2), ("descriptors", 3)):
    print(f"{name}: {middle(early, i):.0f} -> {middle(late, i):.0f}")
  print(f"step: {step_early:.2f} -> {step_late:.2f} ms, {STEPS} steps")
  assert middle(late, 1) < middle(early, 1) * 1.05
  assert middle(late, 2) < middle(early, 2) * 1.05
  assert middle(late, 3) <= middle(early, 3) + 4
  assert step_late < step_early * 1.25

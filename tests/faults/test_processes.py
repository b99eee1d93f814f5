"""Two processes, one of which dies, stops answering, or trains another run."""

import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny
import tiny_files
import tiny_runs

from skipalign_jax import config as config_lib
from skipalign_jax.runtime import distributed

pytestmark = pytest.mark.slow


def free_port():
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


def start_one(folder, cache_dir, steps, port, index, home=None, **changes):
  args = tiny_runs.arguments(folder, cache_dir, steps=steps, **changes)
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "skipalign_jax.train",
      *args,
      f"--distributed=127.0.0.1:{port},2,{index}",
    ],
    cwd=tiny.ROOT,
    env=tiny_runs.environment() | ({} if home is None else {"HOME": str(home)}),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def start_pair(folder, cache_dir, steps, **changes):
  port = free_port()
  return [
    start_one(folder, cache_dir, steps, port, index, **changes) for index in range(2)
  ]


def wait_for_checkpoint(folder, processes):
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    found = pathlib.Path(folder / "checkpoints").glob("*/seal.json")
    if len([p for p in found if p.parent.name.isdecimal()]) >= 2:
      return
    assert all(p.poll() is None for p in processes), processes[0].stdout.read()
    time.sleep(0.05)
  raise AssertionError("no checkpoint in time")


@pytest.mark.parametrize("dead", [0, 1])
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_the_other_process_ends_with_a_reason(how, dead, cache_dir, tmp_path):
  """A killed one closes its connections; a stopped one is silent, as a lost host is."""
  folder = tmp_path / "run"
  # Seldom, so that no save begins meanwhile: it would wait for the heartbeats.
  pair = start_pair(folder, cache_dir, steps=100_000, **{"checkpoint.every": 30})
  try:
    wait_for_checkpoint(folder, pair)
    pair[dead].send_signal(getattr(signal, how))
    began = time.monotonic()
    printed = pair[1 - dead].communicate(timeout=4 * distributed.HEARTBEAT)[0]
    took = time.monotonic() - began
  finally:
    for process in pair:
      process.kill()
  print(f"{how} of process {dead}: the other ended after {took:.1f} s with status "
        f"{pair[1 - dead].returncode}\n{printed[-1500:]}")  # fmt: skip
  assert pair[1 - dead].returncode != 0
  assert took < (10 if how == "SIGKILL" else 2 * distributed.HEARTBEAT)
  assert "cannot continue" in printed or "distributed service" in printed


def test_the_other_process_does_not_wait_for_its_save(cache_dir, tmp_path, monkeypatch):
  """Which only ends with the one that was killed, or when heartbeats miss that one."""
  monkeypatch.setenv("SLOW_SAVES", "5")
  folder, port = tmp_path / "run", free_port()
  changes = {"steps": 100_000, "checkpoint.every": 100, "data.eval": ""}
  args = tiny_runs.arguments(folder, cache_dir, **changes)
  start = lambda i: tiny_runs.start([*args, f"--distributed=127.0.0.1:{port},2,{i}"])
  pair = [start(index) for index in range(2)]
  try:
    deadline = time.monotonic() + 240
    while not list(folder.glob("checkpoints/*tmp*")):
      assert time.monotonic() < deadline and pair[0].poll() is None
      time.sleep(0.05)
    time.sleep(2)
    pair[1].kill()
    began = time.monotonic()
    printed = pair[0].communicate(timeout=4 * distributed.HEARTBEAT)[0]
    took = time.monotonic() - began
  finally:
    for process in pair:
      process.kill()
  print(f"the other ended after {took:.1f} s\n{printed[-1500:]}")
  assert pair[0].returncode == 1 and took < 10 and "cannot continue" in printed


def test_after_one_is_killed_both_resume_exactly(cache_dir, tmp_path):
  """The caches of compiled programs are warm in the second and third pair."""
  pair = start_pair(tmp_path / "killed", cache_dir, steps=200)
  wait_for_checkpoint(tmp_path / "killed", pair)
  pair[1].kill()
  pair[0].communicate(timeout=60)
  assert len(tiny.records(tmp_path / "killed")) < 200
  for name in ("whole", "killed"):
    pair = start_pair(tmp_path / name, cache_dir, steps=200)
    printed = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], printed[0][-2500:]
  assert "continuing after step" in printed[0]
  tiny_runs.assert_same_run(tmp_path / "killed", tmp_path / "whole")


STRANGERS = {
  "all of another run": [("other", 0), ("other", 1)],
  "process 1 of another run": [("other", 1)],
  "process 1 of the same run again": [("run", 1)],
  "all of the same run again": [("run", 0), ("run", 1)],
}


@pytest.mark.parametrize("which", STRANGERS)
def test_another_launch_on_the_port_of_a_run_is_refused(which, cache_dir, tmp_path):
  """The first run continues; each process of the other ends with one message."""
  port = free_port()
  start = lambda name, index: start_one(
    tmp_path / name, cache_dir, 100_000, port, index
  )
  pair = [start("run", index) for index in range(2)]
  strangers = []
  try:
    wait_for_checkpoint(tmp_path / "run", pair)
    began = time.monotonic()
    strangers = [start(*one) for one in STRANGERS[which]]
    for stranger in strangers:
      printed = stranger.communicate(timeout=90)[0]
      print(f"{time.monotonic() - began:.0f} s, {stranger.returncode}: {printed}")
      assert stranger.returncode == 2
      assert printed.count("error: ") == 1 and "its own port" in printed
      assert "Traceback" not in printed and "Check failure" not in printed
    assert not (tmp_path / "other").exists()
    reached = len(tiny.records(tmp_path / "run"))
    deadline = time.monotonic() + 60
    while len(tiny.records(tmp_path / "run")) < reached + 20:
      assert time.monotonic() < deadline
      assert [process.poll() for process in pair] == [None, None]
      time.sleep(0.1)
  finally:
    for process in (*pair, *strangers):
      process.kill()


def test_a_process_of_another_run_that_comes_first_is_refused(cache_dir, tmp_path):
  """While process 0 still waits for its own process 1."""
  port = free_port()
  first = [start_one(tmp_path / "run", cache_dir, 4, port, 0)]
  other = start_one(tmp_path / "other", cache_dir, 4, port, 1)
  try:
    printed = other.communicate(timeout=90)[0]
    assert other.returncode == 2 and printed.count("error: ") == 1, printed
    assert f"there --workdir={tmp_path / 'run'}" in printed
    first.append(start_one(tmp_path / "run", cache_dir, 4, port, 1))
    printed = [process.communicate(timeout=200)[0] for process in first]
    assert [process.returncode for process in first] == [0, 0], printed
  finally:
    for process in (*first, other):
      process.kill()


DIFFERENCES = {
  "optim.learning_rate": 0.01,
  "seed": 7,
  "steps": 9,
  "data.train": "builtin:recall:50",
  "data.eval": "holdout:4",
  "positions.strategy": "pose",
  "checkpoint.every": 4,
  "optim.weight_decay": 0.1,
}


@pytest.mark.parametrize("key", DIFFERENCES)
def test_processes_that_differ_end_with_one_message(key, cache_dir, tmp_path):
  """Before the first step, and before anything is written."""
  port, began = free_port(), time.monotonic()
  pair = [
    start_one(tmp_path / "run", cache_dir, port=port, index=index, **settings)
    for index, settings in enumerate(
      [{"steps": 12}, {"steps": 12, key: DIFFERENCES[key]}]
    )
  ]
  both = ended_with_one_message(pair)
  print(f"{key}: {time.monotonic() - began:.0f} s with both starts\n{both}")
  assert f"  {key}: process 0 has " in both and not (tmp_path / "run").exists()


def test_processes_with_other_copies_of_the_model_end_with_one_message(
  cache_dir, tmp_path
):
  port, pair = free_port(), []
  keys = config_lib.flatten(config_lib.default())
  changes = {key: keys[key] for key in keys if key.startswith("model.")}
  changes |= {"model.init_from": "~/model", "rope.theta": None, "data.tokenizer": ""}
  for index in range(2):
    home = tmp_path / f"host-{index}"
    home.mkdir()
    tiny_files.hf_folder(home / "model", seed=index)
    one = {"steps": 12, "port": port, "index": index, "home": home}
    pair.append(start_one(tmp_path / "run", cache_dir, **one, **changes))
  both = ended_with_one_message(pair)
  assert "  model.weights: process 0 has " in both and not (tmp_path / "run").exists()


def ended_with_one_message(pair):
  """What two processes have printed that each ended with status 2."""
  try:
    printed = [process.communicate(timeout=200)[0] for process in pair]
  finally:
    for process in pair:
      process.kill()
  assert [process.returncode for process in pair] == [2, 2], printed
  both = "".join(printed)
  assert both.count("error: ") == 1 and "Traceback" not in both, both
  return both

"""A run resumes with other numbers of processes and devices, as if nothing happened.

The chain: one device; then two processes of two devices, which one signal stops;
then one process with one or four devices. All against one run on one device.
"""

import importlib.util
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from rich import console as rich_console

from skipalign_jax.training import run

pytestmark = pytest.mark.multidevice

CONFIG = "configs/smollm2_ntk.py"
OVERRIDES = {
  "data.seq_len": 128,
  "positions.resample": "epoch",
  "optim.eps": 1e-3,  # so that Adam does not blow up rounding
  "steps": 10,
  "eval.every": 0,
  "checkpoint.every": 3,
  "checkpoint.keep": 9,
}


def command_line(folder, cache_dir, **changes):
  values = OVERRIDES | {"data.cache_dir": cache_dir} | changes
  overrides = [f"--config.{key}={value}" for key, value in values.items()]
  return [f"--config={CONFIG}:tiny", f"--workdir={folder}", *overrides]


def run_here(folder, cache_dir):
  """The run on the one device of this process."""
  spec = importlib.util.spec_from_file_location("config", tiny.ROOT / CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config("tiny")
  config.update_from_flattened_dict(OVERRIDES | {"data.cache_dir": cache_dir})
  assert run.run(config, folder, rich_console.Console(quiet=True)) == 0


def start_local(folder, cache_dir, **changes):
  """launch/local.sh with two processes of two devices."""
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = str(found.getsockname()[1])
  environment = tiny.environment(devices=2)
  environment |= {"PYTHON": sys.executable, "PORT": port, "DEVICES": "2"}
  return subprocess.Popen(
    ["launch/local.sh", "2", *command_line(folder, cache_dir, **changes)],
    cwd=tiny.ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process, seconds=600):
  try:
    return process.communicate(timeout=seconds)[0]
  finally:
    for pid in children(process):
      pid_dead(pid)
    process.kill()


def children(process):
  """Process ids of the processes that local.sh has started."""
  try:
    return (
      pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
      .read_text()
      .split()
    )
  except OSError:
    return []


def pid_dead(pid):
  subprocess.run(["kill", "-KILL", pid], check=False)


def copy_until(source, target, step):
  """The workdir as it was when `step` had been saved."""
  shutil.copytree(source, target)
  for saved in (target / "checkpoints").iterdir():
    if int(saved.name) > step:
      shutil.rmtree(saved)
  return target


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache_dir):
  """The uninterrupted run on one device."""
  folder = tmp_path_factory.mktemp("elastic") / "whole"
  run_here(folder, cache_dir)
  return folder


@pytest.fixture(scope="module")
def by_two(whole, cache_dir):
  """(workdir, output, status): steps from 4 on by two processes, one of them asked to
  stop."""
  folder = copy_until(whole, whole.parent / "by_two", 3)
  process = start_local(folder, cache_dir)
  deadline = time.monotonic() + 600
  # The old records of later steps are dropped first, then made again.
  while process.poll() is None and time.monotonic() < deadline:
    steps = [line[:12] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if steps and steps[-1] in ('{"step": 4, ', '{"step": 5, '):
      for pid in children(process):
        arguments = pathlib.Path(f"/proc/{pid}/cmdline").read_text()
        if arguments.rstrip("\0").endswith(",2,1"):
          subprocess.run(["kill", "-TERM", pid], check=True)
      break
    time.sleep(0.005)
  printed = finish(process)
  return folder, printed, process.returncode


def test_a_signal_to_one_process_stops_both_at_the_same_step(by_two):
  folder, printed, status = by_two
  assert status == 128 + signal.SIGTERM, printed
  assert "4 x cpu of 2 processes" in printed
  assert printed.count("run the same command again to resume") == 1
  last = tiny.records(folder)[-1]["step"]
  assert 4 <= last < 10
  assert max(int(p.name) for p in (folder / "checkpoints").iterdir()) == last


@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_resumes_with_other_numbers_of_processes_and_devices(
  whole, by_two, cache_dir, tmp_path, devices
):
  folder = shutil.copytree(by_two[0], tmp_path / "next")
  if devices == 1:
    run_here(folder, cache_dir)
  else:
    subprocess.run(
      [sys.executable, "-m", "skipalign_jax.train", *command_line(folder, cache_dir)],
      cwd=tiny.ROOT,
      env=tiny.environment(devices),
      check=True,
      timeout=600,
    )
  got, expected = tiny.records(folder), tiny.records(whole)
  assert [r["step"] for r in got] == [r["step"] for r in expected]
  for one, other in zip(got, expected, strict=True):
    for name in {"loss", "eval_loss"} & one.keys():
      np.testing.assert_allclose(one[name], other[name], rtol=1e-5)
    for name in {"largest_position", "tokens", "target_fraction"} & one.keys():
      assert one[name] == other[name]  # the very same rows and draws


def test_a_refusal_ends_all_processes_and_is_reported_once(cache_dir, tmp_path):
  (tmp_path / "thesis.tex").write_text("dear")
  process = start_local(tmp_path, cache_dir)
  printed = finish(process)
  assert process.returncode == 2, printed
  assert printed.count("has files but no run in it") == 1
  assert "Traceback" not in printed

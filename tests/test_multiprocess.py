"""Two processes that see half of each batch against one that sees it all."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from skipalign_jax import sharding

STEPS = 3


def losses(run, process=0, processes=1):
  """Process p reads the rows p, p + processes, …"""
  local = lambda t: {
    name: x[process::processes] for name, x in tiny.batch(seed=t).items()
  }
  metrics = [run.step(local(t)) for t in range(STEPS)]
  return [[float(m["loss"]), float(m["grad_norm"])] for m in metrics]


def train_as_one_of_two(process, port):
  """What each of the processes does; prints its losses."""
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
  assert len(jax.local_devices()) == 4 and len(jax.devices()) == 8
  run = tiny.Run(sharding.make_mesh(dict(data=1, fsdp=-1, tensor=1, context=1)))
  assert not run.state.params["embed"]["weight"].is_fully_addressable
  print(json.dumps(losses(run, process, 2)), flush=True)


@pytest.mark.multidevice
def test_two_processes_equal_one():
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, __file__, str(i), str(port)],
      env=tiny.environment(devices=4),
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    expected = losses(tiny.Run())
    printed = [process.communicate(timeout=120)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0]
  for text in printed:
    got = json.loads(text.splitlines()[-1])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


if __name__ == "__main__":
  train_as_one_of_two(int(sys.argv[1]), int(sys.argv[2]))

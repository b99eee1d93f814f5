"""Two processes that see half of each batch against one that sees it all: packed
rows, parameters spread over the devices of both. (`test_elastic.py` has the quick one.)
"""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from skipalign_jax.hf import locations, reference, weights
from skipalign_jax.model import decoder, sharding
from skipalign_jax.runtime import compile_cache

STEPS = 10
# For context a head for each of eight devices.
SHAPES = {"fsdp": tiny.config(), "context": tiny.config(num_heads=8)}


def losses(run, process=0, processes=1):
  """Each process feeds its share of the rows."""
  local = lambda t: {
    name: x[process::processes] for name, x in tiny.batch(seed=t).items()
  }
  metrics = [run.step(local(t)) for t in range(STEPS)]
  return [[float(m["loss"]), float(m["grad_norm"])] for m in metrics]


def train_as_one_of_two(process, port, split):
  """What each of the processes does; prints its losses."""
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
  compile_cache.enable()
  assert len(jax.local_devices()) == 4 and len(jax.devices()) == 8
  sizes = dict(data=1, fsdp=1, tensor=1, context=1) | {split: 8}
  run = tiny.Run(sharding.make_mesh(sizes), model=SHAPES[split])
  assert not run.state.params["embed"]["weight"].is_fully_addressable
  share = sharding.process_share(run.mesh)
  # With context both hold the same rows, and half of the places each.
  assert share == {"fsdp": (process, 2), "context": (0, 1)}[split]
  if split == "fsdp":
    check_initial_weights(run)
  print(json.dumps(losses(run, *share)), flush=True)


def check_initial_weights(run):
  """Drawn weights are those of one process; given ones are read in shards."""
  from skipalign_jax.training import initial_weights

  shape, shardings = run.recipe.model, run.shardings.params
  drawn = initial_weights.full(None, shape, 3, shardings)
  compare = lambda array, whole: [
    np.testing.assert_allclose(shard.data, np.asarray(whole)[shard.index], rtol=1e-6)
    for shard in array.addressable_shards
  ]
  with jax.default_device(jax.local_devices()[0]):
    jax.tree.map(compare, drawn, decoder.init(shape, 3))

  given, blocks = tiny.params(shape), {}
  flat = jax.tree_util.tree_leaves_with_path(given)
  parameters = {}
  for path, value in ((sharding.path_of(path), value) for path, value in flat):

    def read(index, dtype, path=path, value=value):
      blocks.setdefault(path, set()).add(str(index))
      return value[index].astype(dtype)

    parameters[path] = weights.Parameter(path, value.shape, value.dtype, read)
  location = locations.Location("hf", pathlib.Path())
  opened = reference.Model("stub", location, shape, {}, None, parameters)
  jax.tree.map(compare, initial_weights.full(opened, shape, 3, shardings), given)
  for path, at in ((sharding.path_of(p), x) for p, x in
                   jax.tree_util.tree_leaves_with_path(shardings)):  # fmt: skip
    spread = any(at.spec)
    assert len(blocks[path]) == (4 if spread else 1), path  # of 8 blocks, its own


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.parametrize("split", ["fsdp", "context"])
def test_two_processes_equal_one(split):
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, __file__, str(i), str(port), split],
      env=tiny.environment(devices=4),
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    expected = losses(tiny.Run(model=SHAPES[split]))
    printed = [process.communicate(timeout=300)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0]
  for text in printed:
    got = json.loads(text.splitlines()[-1])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


if __name__ == "__main__":
  train_as_one_of_two(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

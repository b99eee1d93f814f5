"""Tiny runs as commands, and what is compared of them."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import tiny

from skipalign_jax.hf import native, reference

CHILD = pathlib.Path(__file__).parent / "child.py"
OVERRIDES = {
  "batch_size": 4,
  "data.seq_len": 256,
  "data.packing": True,
  "positions.resample": "epoch",
  "steps": 14,
  "eval.every": 5,
  "checkpoint.every": 3,
}


def arguments(folder, cache_dir, **changes):
  values = OVERRIDES | {"data.cache_dir": str(cache_dir)} | changes
  overrides = [f"--config.{key}={value}" for key, value in values.items()]
  return ["--config=configs/llama2_ntk.py:tiny", f"--workdir={folder}", *overrides]


def environment(batches=None):
  ours = {"PYTHONPATH": str(tiny.ROOT), "JAX_PLATFORMS": "cpu"}
  return os.environ | ours | ({"BATCHES": str(batches)} if batches else {})


def run(args, moment="never", module="train", batches=None, **kwargs):
  """Runs a command to its end, which may be a kill; (status, what it printed)."""
  with start(args, moment, module, batches, **kwargs) as process:
    try:
      printed = process.communicate(timeout=500)[0]
    except subprocess.TimeoutExpired:
      process.kill()
      raise
  return process.returncode, printed


def start(args, moment="never", module="train", batches=None, **kwargs):
  return subprocess.Popen(
    [sys.executable, str(CHILD), moment, module, *args],
    cwd=tiny.ROOT,
    env=environment(batches),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **kwargs,
  )


def saved(folder):
  """(weights, optimizer state) of the latest checkpoint, as numpy."""
  at = native.find_step(folder, None)
  path = (folder / native.CHECKPOINTS / str(at) / "opt").absolute()
  reader = ocp.PyTreeCheckpointer()
  as_numpy = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)  # of any devices
  opt = reader.restore(
    path, restore_args=jax.tree.map(as_numpy, reader.metadata(path).item_metadata.tree)
  )
  return reference.load_params(reference.open_model(str(folder))), opt


def assert_same_run(folder, whole):
  assert tiny.records(folder) == tiny.records(whole)
  for one, other in zip(
    jax.tree.leaves(saved(folder)), jax.tree.leaves(saved(whole)), strict=True
  ):
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def assert_same_order(batches, whole):
  """Every batch that was read is the one of its number."""
  expected = dict(line.split() for line in whole.read_text().splitlines())
  found = [line.split() for line in batches.read_text().splitlines()]
  assert {number for number, _ in found} >= expected.keys()
  assert all(expected[number] == digest for number, digest in found)

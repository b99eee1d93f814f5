"""Seconds of a save with and without the checks before "saved", in one process.

python benchmarks/saving.py [--rounds=5] [--model=REF]

A save writes parameters and Adam's moments in fp32. `checksums` are those of
`seal.json`; `opened` then opens every array again. All three take turns. Without
--model the state is that of the tests' tiny checkpoints.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import harness
import jax
import jax.numpy as jnp

from skipalign_jax.hf import reference
from skipalign_jax.model import decoder
from skipalign_jax.training import checkpoint
from skipalign_jax.training import state as state_lib

CHECKS = {"none": (), "checksums": ("write",), "opened": ("write", "open")}


def state(model: str) -> state_lib.TrainState:
  """A state of the shapes of a model; with "" of 2,000 weights."""
  shapes = {"norm": {"weight": jax.ShapeDtypeStruct((2000,), jnp.float32)}}
  if model:
    shapes = decoder.definition(reference.open_model(model).config)[1]
  full = lambda: jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), shapes)
  return state_lib.TrainState(jnp.int32(0), full(), {"mu": full(), "nu": full()})


def seconds(saved: state_lib.TrainState, checks: tuple[str, ...]) -> float:
  """Of one save into a new folder, to its end."""
  write, opened = checkpoint.checksums.write, checkpoint._open_again
  nothing = lambda *_: None
  checkpoint.checksums.write = write if "write" in checks else nothing
  checkpoint._open_again = opened if "open" in checks else nothing
  try:
    with tempfile.TemporaryDirectory() as folder:
      manager = checkpoint.Checkpoints(pathlib.Path(folder), 1, False)
      start = time.perf_counter()
      manager.save(saved, 1, {"next": 1}, None)
      manager.wait()
      took = time.perf_counter() - start
      manager.close()
      return took
  finally:
    checkpoint.checksums.write, checkpoint._open_again = write, opened


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--model", default="")
  args = parser.parse_args(argv)
  saved = state(args.model)
  size = sum(x.nbytes for x in jax.tree.leaves((saved.params, saved.opt)))
  seconds(saved, CHECKS["opened"])  # imports and caches
  took = {name: [] for name in CHECKS}
  for _ in range(args.rounds):
    for name, checks in CHECKS.items():
      took[name].append(seconds(saved, checks))
  print(f"{args.model or 'tiny'}, {size / 2**20:,.0f} MiB")
  for name, all_of_them in took.items():
    found = harness.spread(all_of_them)
    print(f"  {name}: {found['median']:.3f} s ({found['min']:.3f}-{found['max']:.3f})")
  for one, other in (("checksums", "none"), ("opened", "checksums")):
    print(f"  {harness.compare(one, took[one], other, took[other])['text']}")


if __name__ == "__main__":
  main(sys.argv[1:])

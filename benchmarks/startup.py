"""Seconds from the command to the first step, with cold and warm compilation cache.

python benchmarks/startup.py [--config=configs/smollm2_ntk.py] [--runs=3]
  [--set=key=value …] [--out=FILE]

Runs `python -m skipalign_jax.train`, without evaluation, in a new folder and with an
empty JAX_COMPILATION_CACHE_DIR (cold), then with the one that the cold run filled
(warm), alternating, and stops after the first step. Tokenized samples are cached by an
untimed run before: input_pipeline.py measures their cost. Files are in the page cache.
Phases are the times of functions that `train` calls:

  imports      interpreter and modules
  model        opening the model and its tokenizer
  data         planning rows from the cached samples
  weights      reading the weights and making the state, small programs included
  trace        tracing and lowering the training step
  compile      XLA, or reading from its cache
  first step   one step, to its end
  other        the rest: the workdir, the picture of the positions, …
"""

import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time


class FirstStepDone(BaseException):
  """Ends the training loop."""


def child(started: float) -> None:
  """The command in this process, timed; prints the phases as JSON."""
  import jax

  from skipalign_jax import train
  from skipalign_jax.data import pipeline
  from skipalign_jax.data import tokenizer as tokenizer_lib
  from skipalign_jax.hf import reference
  from skipalign_jax.training import initial_weights, run, step
  from skipalign_jax.training import state as state_lib

  assert run  # `train` imports it after its command line; here it counts as imports
  phases = {"imports": time.time() - started}

  def timed(phase: str, function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
      begin = time.time()
      result = function(*args, **kwargs)
      phases[phase] = phases.get(phase, 0) + time.time() - begin
      return result

    return wrapper

  for phase, module, name in (
    ("model", reference, "open_model"),
    ("model", tokenizer_lib, "resolve"),
    ("model", reference, "check_vocabulary"),
    ("data", pipeline, "build"),
    ("weights", initial_weights, "full"),
    ("weights", state_lib, "create"),
  ):
    setattr(module, name, timed(phase, getattr(module, name)))

  compile_steps = step.compile_steps

  def compile_steps_timed(*args, **kwargs):
    train_step, *others = compile_steps(*args, **kwargs)

    def first_step(state, batch):
      lowered = timed("trace", train_step.lower)(state, batch)
      compiled = timed("compile", lowered.compile)()
      timed("first step", lambda: jax.block_until_ready(compiled(state, batch)))()
      raise FirstStepDone

    return (first_step, *others)

  step.compile_steps = compile_steps_timed
  with contextlib.suppress(FirstStepDone):
    train.main()
  total = time.time() - started
  phases["other"] = total - sum(phases.values())
  print(json.dumps({"total": total} | phases))


def run(args, folder: pathlib.Path, name: str, cache: pathlib.Path) -> dict:
  """One start; seconds of each phase, and the total until the first step."""
  started = time.time()
  command = [sys.executable, __file__, "--child", repr(started)]
  command += [f"--config={args.config}", f"--workdir={folder / name}"]
  command += ["--config.steps=2", "--config.data.eval=", "--config.eval.every=0"]
  command += ["--config.checkpoint.every=0", f"--config.data.cache_dir={folder}/data"]
  command += [f"--config.{setting}" for setting in args.set]
  environment = {
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
  }
  result = subprocess.run(
    command, env=os.environ | environment, stdout=subprocess.PIPE, text=True
  )
  if result.returncode:
    raise SystemExit(f"the command failed:\n{result.stdout}")
  return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
  if sys.argv[1:2] == ["--child"]:
    started = float(sys.argv[2])
    sys.argv[1:3] = []
    child(started)
    return
  import harness  # not in the child, whose imports are timed

  parser = harness.arguments(__doc__)
  parser.add_argument("--config", default="configs/smollm2_ntk.py")
  parser.add_argument("--runs", type=int, default=3)
  parser.add_argument("--set", action="append", default=[], help="key=value of it")
  args = parser.parse_args()
  del args.model  # the config names it
  before = harness.environment()
  runs = {"cold": [], "warm": []}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    run(args, folder, "before", folder / "cache")  # tokenizes; not timed
    for i in range(args.runs):
      cache = folder / f"cache_{i}"
      for kind, results in runs.items():
        results.append(run(args, folder, f"{kind}_{i}", cache))
  spreads = {
    kind: {phase: harness.spread([r[phase] for r in results]) for phase in results[0]}
    for kind, results in runs.items()
  }
  rows = [
    [phase, *(harness.show(spreads[kind][phase], ".2f") for kind in runs)]
    for phase in spreads["cold"]
  ]
  print(f"\n{args.config}: seconds from the command to the first step")
  print(harness.table(["phase", "cold cache", "warm cache"], rows))
  harness.report(args, before, spreads)


if __name__ == "__main__":
  main()

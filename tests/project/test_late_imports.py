"""Libraries that load slowly are imported by the functions that need them.

One process imports the modules step by step, lightest first. A step sees what the steps
before it have loaded: what it must not load, they must not load either.
"""

import json
import pkgutil
import subprocess
import sys

import pytest
import tiny

from skipalign_jax import analysis, data, evals, hf, planning, runtime, sweep
from skipalign_jax.evals import tasks

SLOW = {
  "datasets", "gguf", "grain", "huggingface_hub", "lm_eval", "matplotlib", "orbax",
  "pandas", "pyarrow", "scipy", "torch", "transformers",
}  # fmt: skip
WITHOUT_JAX = SLOW | {"flax", "jax", "optax", "tensorstore"}
LIGHT = WITHOUT_JAX | {"numpy", *tasks.TASKS.values()}
NEED_LM_EVAL = ("lm_eval.adapter", "lm_eval.tasks")  # a package that may be missing

HELP = """
import contextlib, io
from studies.{study} import __main__
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
  __main__.main(["--help"])
assert "--out" in out.getvalue()
"""
RUN = """
import json, sys
for step in json.loads(sys.argv[1]):
  exec(step, {})
  print(json.dumps([*sys.modules]))
"""


def modules(*packages):
  """The names of all modules of packages, without those that need lm_eval."""
  found = [
    module.name
    for package in packages
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
  ]
  return [name for name in found if not name.endswith((*NEED_LM_EVAL, "__main__"))]


def importing(*names):
  return f"import {', '.join(names)}"


# Step → its code, and what is not loaded after it.
STEPS = {
  "help of studies.length": (HELP.format(study="length"), LIGHT),
  "help of studies.needles": (HELP.format(study="needles"), LIGHT),
  "the table of tasks": (importing(tasks.__name__), LIGHT),
  "topologies": (importing("skipalign_jax.runtime.hardware"), LIGHT),
  "options of tasks": (
    importing(*tasks.TASKS.values(), "skipalign_jax.evals.scheduled"), WITHOUT_JAX,
  ),
  "data": (importing(*modules(data)), WITHOUT_JAX),
  "positions": (importing("skipalign_jax.method.positions"), SLOW),
  "hf and runtime": (importing(*modules(hf, runtime)), SLOW),
  "evals": (importing(*modules(evals)), SLOW),
  "planning, analysis and sweep": (
    importing(*modules(planning, analysis, sweep)), SLOW,
  ),
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded():
  """Step → all modules that the process has loaded after it."""
  steps = [code for code, _ in STEPS.values()]
  command = [sys.executable, "-c", RUN, json.dumps(steps)]
  done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return dict(zip(STEPS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("step", STEPS)
def test_nothing_slow_is_loaded(loaded, step):
  assert not STEPS[step][1] & set(loaded[step])


def test_every_module_was_loaded(loaded):
  every = modules(data, hf, runtime, evals, planning, analysis, sweep)
  assert len(every) > 90 and {*every, "jax"} <= set(
    loaded["planning, analysis and sweep"]
  )
  assert "jax" in loaded["positions"] and "jax" not in loaded["data"]

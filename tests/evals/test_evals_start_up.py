"""Imports of the evaluations load no heavy library before it is needed."""

import pathlib
import subprocess
import sys

import pytest

from skipalign_jax.evals import tasks

ROOT = pathlib.Path(__file__).parents[2]
HEAVY = {"transformers", "datasets", "matplotlib", "lm_eval", "orbax", "scipy"}
NEED_LM_EVAL = {"adapter", "tasks"}  # of the package lm_eval

LOADED = """
import importlib, sys
for module in sys.argv[2:]:
  importlib.import_module(module)
heavy = sys.argv[1].split(",")
print(",".join(sorted({name.split(".")[0] for name in sys.modules} & set(heavy))))
"""


def loaded(modules, heavy):
  """Which of `heavy` a fresh interpreter has loaded after it imported `modules`."""
  command = [sys.executable, "-c", LOADED, ",".join(sorted(heavy)), *modules]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  return set(filter(None, done.stdout.strip().split(",")))


def modules():
  for path in sorted((ROOT / "skipalign_jax" / "evals").rglob("*.py")):
    if not (path.parent.name == "lm_eval" and path.stem in NEED_LM_EVAL):
      name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
      yield name.removesuffix(".__init__")


def test_modules_load_no_heavy_library():
  assert len(list(modules())) > 25
  assert loaded(modules(), HEAVY) == set()


def test_options_are_read_without_jax():
  assert loaded(tasks.TASKS.values(), HEAVY | {"jax"}) == set()
  assert loaded(["skipalign_jax.evals.scheduled"], HEAVY | {"jax"}) == set()


def test_a_task_is_imported_when_it_is_needed():
  others = {"skipalign_jax.evals.keys", "skipalign_jax.evals.needle"}
  code = "import sys; from skipalign_jax.evals import tasks; print(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert not others & set(done.stdout.split())
  assert tasks.module("needle").__name__ == "skipalign_jax.evals.needle"


def test_every_task_has_options_with_a_comment_each():
  for name in tasks.TASKS:
    fields = tasks.module(name).Options.__dataclass_fields__
    assert tasks.comments(name).keys() == fields.keys()


@pytest.mark.parametrize("name", ["haystack", "lm_eval.task"])
def test_a_module_is_not_a_task(name):
  with pytest.raises(Exception, match=f"no task {name!r}"):
    tasks.module(name)

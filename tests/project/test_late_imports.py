"""Libraries that load slowly are imported by the functions that need them."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SLOW = {"matplotlib", "scipy.stats", "transformers", "datasets", "orbax"}
GROUPS = ("planning", "analysis", "sweep")


def loaded_by(modules: list[str]) -> set[str]:
  """Modules that a fresh process has loaded after these imports."""
  code = f"import sys, {', '.join(modules)}\nprint(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  return set(done.stdout.split())


@pytest.mark.parametrize("group", GROUPS)
def test_groups_load_nothing_slow(group):
  paths = sorted((ROOT / "skipalign_jax" / group).glob("[!_]*.py"))
  modules = [f"skipalign_jax.{group}.{path.stem}" for path in paths]
  assert len(modules) > 2 and not loaded_by(modules) & SLOW


def test_topologies_are_known_without_jax():
  assert "jax" not in loaded_by(["skipalign_jax.planning.hardware"])

"""The studies load their libraries after they have read the command line."""

import subprocess
import sys

import pytest
import tiny

HEAVY = {"jax", "matplotlib", "numpy", "scipy", "transformers"}


@pytest.mark.parametrize("study", ["length", "needles"])
def test_help_loads_no_heavy_library(study):
  program = f"""
import sys
from studies.{study} import __main__
try:
  __main__.main(["--help"])
except SystemExit:
  print(*sys.modules, file=sys.stderr)
"""
  command = [sys.executable, "-c", program]
  done = subprocess.run(
    command, cwd=tiny.ROOT, capture_output=True, text=True, check=True
  )
  assert "--out" in done.stdout and not HEAVY & set(done.stderr.split())

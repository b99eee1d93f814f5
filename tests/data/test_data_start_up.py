"""Loading the data modules is cheap: commands do it before they print their help."""

import pkgutil
import subprocess
import sys

import tiny

from skipalign_jax import data

HEAVY = {
  "datasets", "flax", "grain", "jax", "matplotlib", "orbax", "pandas", "pyarrow",
  "scipy", "transformers",
}  # fmt: skip


def test_no_module_loads_a_heavy_library():
  names = [f"{data.__name__}.{m.name}" for m in pkgutil.iter_modules(data.__path__)]
  assert len(names) > 5
  program = f"import sys, {', '.join(names)}; print(*sys.modules)"
  command = [sys.executable, "-c", program]
  loaded = subprocess.run(
    command, cwd=tiny.ROOT, capture_output=True, text=True, check=True
  )
  assert not HEAVY & set(loaded.stdout.split())

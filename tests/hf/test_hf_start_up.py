"""Loading the modules of hf and runtime is cheap: commands do it before --help."""

import pkgutil
import subprocess
import sys

import tiny

from skipalign_jax import hf, runtime

HEAVY = {
  "datasets", "gguf", "huggingface_hub", "matplotlib", "orbax", "pandas", "torch",
  "transformers",
}  # fmt: skip


def test_no_module_loads_a_heavy_library():
  names = [
    f"{package.__name__}.{module.name}"
    for package in (hf, runtime)
    for module in pkgutil.iter_modules(package.__path__)
  ]
  assert len(names) > 20
  program = f"import sys, {', '.join(names)}; print(*sys.modules)"
  command = [sys.executable, "-c", program]
  loaded = subprocess.run(
    command, cwd=tiny.ROOT, capture_output=True, text=True, check=True
  )
  assert not HEAVY & set(loaded.stdout.split())

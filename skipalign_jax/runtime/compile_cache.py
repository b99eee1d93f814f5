"""Compiled programs are kept on disk, so that the same command starts faster."""

import os
import pathlib

import jax

from skipalign_jax.runtime import terminal

FOLDER = "~/.cache/skipalign_jax/xla"


def enable() -> None:
  """Turns on JAX's persistent cache, unless the environment names its folder.

  Several processes use it only if JAX_COMPILATION_CACHE_DIR names a folder that they
  share: only process 0 writes, and on GPUs a process that finds its program would leave
  the others waiting for its part of their tuning. On CPUs they never use it: a loaded
  program runs its collectives in any order, and gloo confuses them (jaxlib 0.10.2;
  `tests/faults/test_processes.py`).
  """
  if jax.process_count() > 1 and jax.default_backend() == "cpu":
    jax.config.update("jax_enable_compilation_cache", False)
    return
  if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.process_count() > 1:
    return
  folder = pathlib.Path(FOLDER).expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise PermissionError(f"{folder} is read-only")
  except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
    terminal.print_to_stderr(
      f"warning: compiled programs are not kept ({error}); set "
      "JAX_COMPILATION_CACHE_DIR to another folder"
    )
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))

"""Compiled programs are kept on disk, so that the same command starts faster."""

import contextlib
import os

import jax
from jax._src import lru_cache

from skipalign_jax.runtime import caches, storage, terminal

_put = lru_cache.LRUCache.put  # private: lru_cache.LRUCache.put


def enable() -> None:
  """Turns on JAX's persistent cache, unless the environment names its folder.

  Several processes use it only if JAX_COMPILATION_CACHE_DIR names a folder that they
  share: only process 0 writes, and on GPUs a process that finds its program would leave
  the others waiting for its part of their tuning. On CPUs they never use it: a loaded
  program runs its collectives in any order, and gloo confuses them (jaxlib 0.10.2;
  `tests/faults/test_processes.py`).

  A damaged entry is replaced by the program that is compiled instead of it. Where
  entries cannot be written, the command continues without and reports it once.
  """
  lru_cache.LRUCache.put = _replacing_put
  if jax.process_count() > 1 and jax.default_backend() == "cpu":
    jax.config.update("jax_enable_compilation_cache", False)
    return
  if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.process_count() > 1:
    return
  try:
    folder = caches.folder("xla")
  except OSError as error:
    _note(storage.explain(error))
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))


def _replacing_put(cache: lru_cache.LRUCache, key: str, value: bytes) -> None:
  """Writes an entry, also where there is one: JAX could not read that.

  JAX compiles a program again when its entry is damaged, and then keeps the damaged
  one, so that every later start would compile it again.
  """
  entry = cache.path / f"{key}-cache"
  try:
    entry.unlink(missing_ok=True)
    _put(cache, key, value)
  except OSError as error:
    with contextlib.suppress(OSError):
      entry.unlink(missing_ok=True)  # half of it
    _note(storage.explain(error))


_noted: list[str] = []


def _note(problem: str) -> None:
  """Reports the first entry that is not written."""
  if not _noted:
    terminal.print_to_stderr(
      f"note: compiled programs are not kept ({problem}); the next start compiles them "
      "again. Set JAX_COMPILATION_CACHE_DIR for another folder"
    )
  _noted.append(problem)

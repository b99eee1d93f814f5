"""Damaged entries of JAX's cache of programs are replaced."""

import pathlib
import warnings

import jax
import numpy as np
import pytest

from skipalign_jax.runtime import compile_cache


@pytest.fixture
def folder(monkeypatch):
  """The folder of the cache, which takes all programs."""
  key = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, key)
  jax.config.update(key, 0.0)
  yield pathlib.Path(jax.config.jax_compilation_cache_dir)
  jax.config.update(key, before)


def compiled(name):
  """Compiles a new function and returns what was warned of."""

  def program(x):
    return x * 3 + 1

  program.__name__ = name
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert jax.jit(program)(np.float32(2)) == 7
  return [str(one.message) for one in caught if name in str(one.message)]


@pytest.mark.parametrize(
  "damage",
  [
    lambda whole: b"",
    lambda whole: whole[: len(whole) // 2],
    lambda whole: whole[:99] + bytes([whole[99] ^ 4]) + whole[100:],
    lambda whole: b"x" * len(whole),
  ],
  ids=["empty", "cut", "flipped", "other"],
)
def test_damaged_entries_are_replaced(folder, damage, request):
  compile_cache.enable()
  name = f"damaged_{request.node.callspec.id}"
  assert compiled(name) == []
  (entry,) = folder.glob(f"jit_{name}-*-cache")
  entry.write_bytes(damage(entry.read_bytes()))
  assert "Error reading" in compiled(name)[0]
  assert compiled(name) == []  # a hit: the entry is whole

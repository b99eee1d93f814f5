"""The digest of a base: every weight counts, and nothing but the weights."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import tiny

from skipalign_jax.hf import adapters, native, weights
from skipalign_jax.runtime import errors


def of_arrays(arrays):
  """Lazy parameters of arrays that may change later."""

  def reader(path):
    return lambda index, dtype: arrays[path][index].astype(dtype)

  return {
    path: weights.Parameter(path, x.shape, x.dtype, reader(path))
    for path, x in arrays.items()
  }


@pytest.fixture
def arrays():
  base = adapters.random_base(tiny.config(), 0)
  return {path: one.read() for path, one in base.items()}


def test_a_change_of_any_one_weight_is_seen(arrays):
  base = of_arrays(arrays)
  known, count = adapters.digest(base), 0
  for x in arrays.values():
    for place in (0, x.size // 2, x.size - 1):
      at = np.unravel_index(place, x.shape)
      before = x[at]
      x[at] = np.nextafter(before, np.float32(9))
      assert adapters.digest(base) != known
      x[at], count = before, count + 1
  assert adapters.digest(base) == known and count >= 30


def test_places_names_and_shapes_count(arrays):
  known, path = adapters.digest(of_arrays(arrays)), "layers/mlp/down/weight"
  swapped = arrays[path].copy()
  swapped[-1, 0], swapped[-1, 1] = swapped[-1, 1].copy(), swapped[-1, 0].copy()
  other_shape = arrays[path].reshape(arrays[path].shape[0], -1)
  for x in (swapped, other_shape):
    assert adapters.digest(of_arrays(arrays | {path: x})) != known
  renamed = {name.replace("down", "gown"): x for name, x in arrays.items()}
  assert adapters.digest(of_arrays(renamed)) != known


def test_blocks_layers_and_types_do_not_count(arrays, monkeypatch):
  rounded = {path: x.astype(ml_dtypes.bfloat16) for path, x in arrays.items()}
  wide = {path: x.astype(np.float32) for path, x in rounded.items()}
  known = adapters.digest(of_arrays(wide))
  assert adapters.digest(of_arrays(rounded)) == known
  monkeypatch.setattr(adapters, "_BLOCK_BYTES", 1000)
  assert adapters.digest(of_arrays(wide)) == known
  grouped = {
    path: dataclasses.replace(one, chunk_layers=2)
    for path, one in of_arrays(wide).items()
  }
  assert adapters.digest(grouped) == known


def test_a_run_of_an_earlier_version_keeps_its_own_digest(arrays, tmp_path):
  """It has only a corner of the first layers, which says what it can."""
  base, last = of_arrays(arrays), arrays["layers/mlp/down/weight"]
  old = native.Description(tiny.config(), base="b", base_digest="7d1acb9ba1e8b4a5")
  new = dataclasses.replace(old, base_digest=adapters.digest(base))
  with pytest.raises(errors.UserError, match="restore them"):
    adapters.check_base(tmp_path, old, base)
  old = dataclasses.replace(old, base_digest=adapters.digest_of("7d1a")(base))
  for one in (old, new):
    adapters.check_base(tmp_path, one, base)
  last[-1, -1, -1] += 1
  adapters.check_base(tmp_path, old, base)
  with pytest.raises(errors.UserError, match="restore them"):
    adapters.check_base(tmp_path, new, base)
  last[0, 0, 0] += 1
  with pytest.raises(errors.UserError, match="restore them"):
    adapters.check_base(tmp_path, old, base)

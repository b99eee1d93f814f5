import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from skipalign_jax import checkpoint, errors
from skipalign_jax import step as step_lib


def state(value):
  params = {"norm": {"weight": jnp.full(3, value, jnp.float32)}}
  return step_lib.TrainState(jnp.int32(value), params, {"mu": jnp.full(3, -value)})


def save_all(folder, losses, keep, keep_best):
  saved = checkpoint.Checkpoints(folder, keep, keep_best)
  for at, loss in losses.items():
    saved.save(state(float(at)), at, {"next": at}, loss)
  saved.close()
  return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def restore(folder, at):
  saved = checkpoint.Checkpoints(folder, 2, True)
  abstract = jax.eval_shape(lambda: state(0.0))
  here = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), abstract)
  return saved.restore(abstract, here, at)


def test_keeps_the_latest_and_the_best(tmp_path):
  losses = {1: 1.0, 2: 0.5, 3: None, 4: 0.9, 5: 0.8}
  assert save_all(tmp_path, losses, keep=1, keep_best=True) == [2, 5]


def test_keeps_the_latest_only(tmp_path):
  losses = {1: 0.1, 2: 0.5, 3: 0.9}
  assert save_all(tmp_path, losses, keep=2, keep_best=False) == [2, 3]


def test_restores_state_and_iterator(tmp_path):
  save_all(tmp_path, {7: None}, keep=1, keep_best=True)
  found, iterator = restore(tmp_path, 7)
  assert iterator == {"next": 7}
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(state(7.0)), strict=True
  ):
    np.testing.assert_array_equal(one, other)
    assert one.dtype == other.dtype


def test_a_missing_step_is_told(tmp_path):
  save_all(tmp_path, {7: None}, keep=1, keep_best=True)
  with pytest.raises(errors.UserError, match="8 cannot be read"):
    restore(tmp_path, 8)

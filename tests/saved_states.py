"""Small training states in checkpoints."""

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from skipalign_jax.training import checkpoint
from skipalign_jax.training import state as state_lib


def state(value):
  # So many that Orbax gives them a file of their own.
  params = {"norm": {"weight": value * jnp.sqrt(jnp.arange(2000, dtype=jnp.float32))}}
  return state_lib.TrainState(jnp.int32(value), params, {"mu": jnp.full(3, -value)})


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


def arrays(folder, at):
  """The largest file of the parameters, which Orbax reads without a check."""
  files = (folder / "checkpoints" / str(at) / "params").rglob("d/*")
  return max((p for p in files if p.is_file()), key=lambda p: p.stat().st_size)

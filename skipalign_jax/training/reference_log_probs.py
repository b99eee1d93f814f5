"""log π0 of all replies of the training pairs: what DPO compares with.

π0 is the model that the run starts from: new adapters change nothing in their base, and
those of lora.init_from belong to it. It reads each pair once, before the first step.
reference.safetensors in the workdir keeps the numbers, with their checksum and the
model, data and recipe that they belong to. A start that finds them does not load π0.

Shapes: P pairs per row; the last axis of [B, P, 2] is (chosen, rejected).
"""

import hashlib
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from skipalign_jax.hf import adapters
from skipalign_jax.method import positions
from skipalign_jax.model import decoder, sharding
from skipalign_jax.runtime import distributed, errors, files, progress
from skipalign_jax.training import initial_weights, objective, step
from skipalign_jax.training import setup as setup_lib
from skipalign_jax.training import state as state_lib

FILE = "reference.safetensors"


def of_start(setup: setup_lib.Setup) -> list[np.ndarray]:
  """log π0 of both replies, [table rows, 2] fp32 per source; from the file if it can.

  All processes must call it.

  Raises:
    UserError: the file is of another model, other data or another recipe, or damaged.
  """
  path = setup.folder / FILE
  if distributed.exchange(str(path.exists()))[0] == "True":
    with distributed.together():
      return _read(path, setup)
  found = compute(setup)
  with distributed.together():
    if distributed.is_first():
      arrays = {f"source_{i}": one for i, one in enumerate(found)}
      with files.replacing(path) as new:
        about = {"key": _key(setup), "checksum": _checksum(found)}
        safetensors.numpy.save_file(arrays, new, about)
  return found


def compute(setup: setup_lib.Setup) -> list[np.ndarray]:
  """What `of_start` returns, by reading all pairs."""
  data, found = setup.data.train_rows, setup.data.train_rows.empty_reference()
  plan = data.each_once()
  size = setup.config.batch_size // setup.config.grad_accum
  rows_at = sharding.batch_sharding(setup.mesh)
  bar = progress.Progress(setup.console, "reference", len(plan))
  with jax.set_mesh(setup.mesh), bar:
    params, read = _start(setup), _reader(setup)
    for start in range(0, len(plan), size):
      some = plan[start : start + size]
      batch = data.assemble(some + [[]] * (size - len(some)))
      placed = {
        name: jax.make_array_from_callback(x.shape, rows_at, x.__getitem__)
        for name, x in batch.items()
      }
      log_p_BP2 = np.asarray(read(params, placed))
      for members, log_p_P2 in zip(some, log_p_BP2, strict=False):
        for (source, row), pair in zip(members, log_p_P2, strict=False):
          found[source][row] = pair
      done = start + len(some)
      bar.update(done, f"reference: {done:,} of {len(plan):,} rows")
  if not all(np.isfinite(one).all() for one in found):
    raise errors.UserError(
      f"{setup.config.model.init_from}: the log-probability of a reply is not finite; "
      "its weights are damaged, or rope.kind does not fit positions.max_position"
    )
  return found


def _start(setup: setup_lib.Setup) -> decoder.Params:
  """The weights that the run starts from."""
  recipe = setup.recipe
  _, at = state_lib.shardings(
    setup.mesh, setup.optimizer, recipe.model, recipe.adapters
  )
  params, base = initial_weights.of_run(recipe, setup.opened, setup.adapters, at)
  state = state_lib.TrainState(jnp.int32(0), params, None, base)
  return state_lib.full_params(recipe, state)


def _reader(setup: setup_lib.Setup) -> Callable[..., jax.Array]:
  """(params, batch) → log π0 of its replies, on all devices; compiled."""
  recipe = setup.recipe

  def read(params, batch):
    if recipe.loss.reference == "contiguous":
      batch = batch | {"positions": positions.contiguous(batch["segment_ids"])}
    else:
      batch = step.draw_positions(recipe, batch, jnp.int32(0))
    return objective.reply_log_probs(recipe, params, batch)

  return jax.jit(read, out_shardings=sharding.replicated(setup.mesh))


def _key(
  setup: setup_lib.Setup,
  digest: Callable[[adapters.Parameters], str] = adapters.digest,
) -> str:
  """All that the numbers depend on; `digest` identifies weights."""
  recipe, opened = setup.recipe, setup.opened
  parts = (
    digest(opened.weights) if opened else "random",
    digest(setup.adapters),
    setup.data.fingerprint,
    recipe.model,
    recipe.adapters and recipe.adapters.base,
    recipe.compute_dtype,
    recipe.seed,
    recipe.loss.reference,
    recipe.positions,
  )
  return repr(parts)


def _checksum(found: list[np.ndarray]) -> str:
  return hashlib.sha256(b"".join(one.tobytes() for one in found)).hexdigest()


def _read(path: pathlib.Path, setup: setup_lib.Setup) -> list[np.ndarray]:
  """The numbers of the file; the first process checks that they are this run's."""
  try:
    with safetensors.safe_open(path, framework="np") as opened:
      about = opened.metadata() or {}
      found = [opened.get_tensor(f"source_{i}") for i in range(len(opened.keys()))]
    if about.get("checksum") != _checksum(found):
      raise ValueError("its checksum is another one")
    known = about.get("key", "")
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise errors.UserError(
      f"{path} is damaged ({errors.first_line(error)}); delete it, and the same "
      "command makes it again"
    ) from error
  if not distributed.is_first() or known == _key(setup, adapters.digest_of(known)):
    return found
  raise errors.UserError(
    f"{path} has the reference of another model or other data, so the run would not "
    "continue as it began. Bring back model.init_from and data.train, or give a new "
    "--workdir"
  )

"""Checkpoints: trained weights, optimizer and data iterator, written in the background.

A workdir holds `checkpoints/<step>/{params,opt,data}`, Orbax items that appear under
their final name only when complete, with the checksums of their files. Conversion and
generation read only `params`. The frozen base under adapters is not saved: it is read
again from where the run took it.
"""

import contextlib
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from skipalign_jax.hf import native
from skipalign_jax.runtime import checksums, distributed, errors, terminal
from skipalign_jax.training import state as state_lib

# So that an export reads one layer of a stacked parameter, not all of them.
CHUNK_BYTES = 2**28
DAMAGED = "damaged"
_NOT_FOR_ORBAX = "[\\"  # it takes a path for a pattern in one place


def check_path(workdir: pathlib.Path) -> None:
  """Raises UserError for a path under which Orbax cannot find what it wrote."""
  if found := sorted(set(_NOT_FOR_ORBAX) & set(str(workdir.absolute()))):
    raise errors.UserError(
      f"--workdir={workdir}: the library that writes checkpoints cannot open them "
      f"again in a path with {' or '.join(found)}; give a path without"
    )


def set_damaged_aside(workdir: pathlib.Path, console: terminal.Console) -> None:
  """Moves damaged checkpoints away until the latest one is as it was written.

  Raises:
    UserError: all are damaged.
  """
  found = (workdir / native.CHECKPOINTS).glob("*")
  steps = sorted((int(p.name) for p in found if p.name.isdecimal()), reverse=True)
  for at in steps:
    folder = workdir / native.CHECKPOINTS / str(at)
    if not (found := checksums.damage(folder)):
      return
    kept = workdir / DAMAGED / str(at)
    while kept.exists():
      kept = kept.with_name(f"{kept.name}_")
    kept.parent.mkdir(exist_ok=True)
    folder.rename(kept)
    console.print(f"checkpoint {at} is damaged and now in {kept}: {found}")
  if steps:
    raise errors.UserError(
      f"--workdir={workdir} has no undamaged checkpoint left; the damaged ones are "
      f"in {workdir / DAMAGED}. The same command starts from the beginning."
    )


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: pathlib.Path, keep: int, keep_best: bool):
    """Keeps the latest `keep` and, with `keep_best`, the one of the lowest loss."""
    managers = ocp.checkpoint_managers
    policies = [managers.LatestN(keep)]
    if keep_best:
      best = managers.BestN(
        get_metric_fn=lambda metrics: metrics["eval_loss"],
        reverse=True,  # the lowest loss sorts last, and the last one stays
        n=1,
        keep_checkpoints_without_metrics=False,
      )
      policies.append(best)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=managers.AnyPreservationPolicy(policies),
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
    )
    self._saving = 0
    self._manager = ocp.CheckpointManager(
      (workdir / native.CHECKPOINTS).absolute(),
      options=options,
      item_names=(native.PARAMS, "opt", "data"),
    )

  def latest(self) -> int | None:
    """The latest complete step."""
    return self._manager.latest_step()

  def save(
    self,
    state: state_lib.TrainState,
    at: int,
    iterator_state: Any,
    eval_loss: float | None,
  ) -> None:
    """Starts writing the state after `at` steps; the caller may continue training."""
    if self.latest() == at:
      return
    self.wait()  # as Orbax would; `_write_checksums` reads `_saving`
    self._saving = at
    chunked = jax.tree.map(
      lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), state.params
    )
    with self._reporting():
      self._manager.save(
        at,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(state.params, save_args=chunked),
          opt=ocp.args.StandardSave({"step": state.step, "opt": state.opt}),
          data=ocp.args.JsonSave({"iterator": iterator_state}),
        ),
        # A NaN cannot be ordered.
        metrics={"eval_loss": eval_loss}
        if eval_loss is not None and math.isfinite(eval_loss)
        else None,
        force=True,
      )

  def _write_checksums(self) -> None:
    """Called by Orbax when all files are written, before the folder is renamed."""
    if distributed.is_first():
      pattern = f"{self._saving}.orbax-checkpoint-tmp*"
      for half in pathlib.Path(self._manager.directory).glob(pattern):
        checksums.write(half)

  @contextlib.contextmanager
  def _reporting(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Orbax raises many kinds, none of its own
      raise errors.UserError(
        f"the checkpoint of step {self._saving} in {self._manager.directory} is not "
        f"written: {error}\nEarlier ones are untouched. Fix that (is the disk full?); "
        "the same command resumes from the latest."
      ) from error

  def restore(
    self, abstract: state_lib.TrainState, shardings: state_lib.TrainState, at: int
  ) -> tuple[state_lib.TrainState, Any]:
    """(state, iterator state) after `at` steps, on the devices of `shardings`.

    The state has no base of adapters.
    """
    placed = jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      abstract,
      shardings,
    )
    try:
      found = self._manager.restore(
        at,
        args=ocp.args.Composite(
          params=ocp.args.StandardRestore(placed.params),
          opt=ocp.args.StandardRestore({"step": placed.step, "opt": placed.opt}),
          data=ocp.args.JsonRestore(),
        ),
      )
    except Exception as error:  # damaged files raise nearly anything
      raise errors.UserError(
        f"checkpoint {self._manager.directory / str(at)} cannot be read: {error}\n"
        "Move that folder elsewhere to resume from an earlier one, or give a new "
        "--workdir."
      ) from error
    state = state_lib.TrainState(found.opt["step"], found.params, found.opt["opt"])
    return state, found.data["iterator"]

  def wait(self) -> None:
    """Waits until what was started is on disk; raises its error."""
    with self._reporting():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then closes the manager."""
    with self._reporting():
      self._manager.close()

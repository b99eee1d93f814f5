"""Checkpoints: what is trained, optimizer and data iterator, in the background.

A workdir holds `checkpoints/<step>/{params,opt,data}`, Orbax items that appear
under their final name only when complete. `params` alone is what conversion and
generation read. The frozen base under adapters is not saved: it is read again from
where the run took it.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from skipalign_jax import errors, step
from skipalign_jax.hf import native

# So that an export reads a layer of a stacked parameter, not all of them.
CHUNK_BYTES = 2**28


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: pathlib.Path, keep: int, keep_best: bool):
    """Keeps the latest `keep` and, if asked, the one of the lowest eval loss."""
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
    )
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
    state: step.TrainState,
    at: int,
    iterator_state: Any,
    eval_loss: float | None,
  ) -> None:
    """Starts writing the state after `at` steps; the caller may go on training."""
    if self.latest() == at:
      return
    chunked = jax.tree.map(
      lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), state.params
    )
    self._manager.save(
      at,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params, save_args=chunked),
        opt=ocp.args.StandardSave({"step": state.step, "opt": state.opt}),
        data=ocp.args.JsonSave({"iterator": iterator_state}),
      ),
      metrics=None if eval_loss is None else {"eval_loss": eval_loss},
      force=True,
    )

  def restore(
    self, abstract: step.TrainState, shardings: step.TrainState, at: int
  ) -> tuple[step.TrainState, Any]:
    """(state, iterator state) after `at` steps, laid out as `shardings` say.

    The state comes without the base of adapters.
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
    except (ValueError, KeyError, OSError) as error:
      raise errors.UserError(
        f"checkpoint {self._manager.directory / str(at)} cannot be read: {error}\n"
        "Remove that folder to go on from an earlier one, or use a new --workdir."
      ) from error
    state = step.TrainState(found.opt["step"], found.params, found.opt["opt"])
    return state, found.data["iterator"]

  def wait(self) -> None:
    """Blocks until what was started is on disk; raises what went wrong."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then lets go of the workdir."""
    self._manager.close()

"""Checkpoints: trained weights, optimizer and data iterator, written in the background.

A workdir holds `checkpoints/<step>/{params,opt,data}`, Orbax items that appear under
their final name only when complete, with the checksums of their files. Conversion and
generation read only `params`. The frozen base under adapters is not saved: it is read
again from where the run took it.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from skipalign_jax.hf import native
from skipalign_jax.runtime import (
  checksums,
  distributed,
  errors,
  files,
  storage,
  terminal,
)
from skipalign_jax.training import metrics
from skipalign_jax.training import state as state_lib
from skipalign_jax.training import workdir as workdir_lib

# So that an export reads one layer of a stacked parameter, not all of them.
CHUNK_BYTES = 2**28
# Orbax takes a path with one of the first three for a pattern: it does not find what it
# wrote, or finds files of other folders; and it writes the last one with another slash.
_NOT_FOR_ORBAX = ("[", "*", "?", "gs:/")


def check_path(workdir: pathlib.Path) -> None:
  """Raises UserError for a path under which Orbax does not find what it wrote."""
  native.check_path(workdir, f"--workdir={workdir}")
  inside = str(workdir.absolute() / native.CHECKPOINTS)
  if found := [part for part in _NOT_FOR_ORBAX if part in inside]:
    raise errors.UserError(
      f"--workdir={workdir}: the library that writes checkpoints would not find them "
      f"again in a path with {' or '.join(found)}; give a path without, such as a "
      "symbolic link"
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
    kept = workdir / workdir_lib.DAMAGED / str(at)
    while kept.exists():
      kept = kept.with_name(f"{kept.name}_")
    kept.parent.mkdir(exist_ok=True)
    folder.rename(kept)
    console.print(f"checkpoint {at} is damaged and now in {kept}: {found}")
  if steps:
    raise errors.UserError(
      f"--workdir={workdir} has no undamaged checkpoint left; the damaged ones are "
      f"in {workdir / workdir_lib.DAMAGED}. Give a new --workdir to begin again"
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Path -> shape of every array of a tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): x.shape for path, x in leaves}


def _open_again(folder: pathlib.Path, expected: dict[str, Any]) -> None:
  """Raises UserError unless all of a checkpoint's arrays can be opened.

  Args:
    folder: of the checkpoint.
    expected: shapes by path of `params` and `opt`, and the content of `data`.
  """
  for item in (native.PARAMS, "opt"):
    native.open_stores(folder / item, expected[item], "the state that was saved")
  if files.read_json(folder / "data" / "metadata") != expected["data"]:
    raise errors.UserError(f"{folder / 'data'} is not the state that was saved")


def _is_not_raised(record: logging.LogRecord) -> bool:
  """Whether a message is not about an error that Orbax raises too.

  After one of its tasks has failed, nobody asks the others for their errors, and
  asyncio logs these.
  """
  text = record.getMessage()
  task = "exception was never retrieved" in text and "orbax" in text
  missing = text.startswith("Metadata file does not exist")
  about_error = record.exc_info or missing
  return not (about_error and (task or "orbax" in record.pathname))


@dataclasses.dataclass(frozen=True)
class _Best:
  """Preserves the checkpoint of the lowest held-out loss; of several the latest.

  Orbax' own policy forgets the losses of earlier starts, and deletes what it does not
  know.
  """

  losses: dict[int, float]  # step → held-out loss

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """As Orbax asks its policies."""
    measured = [one.step for one in checkpoints if one.step in self.losses]
    best = min(measured, key=lambda at: (self.losses[at], -at), default=None)
    return [one.step == best for one in checkpoints]


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: pathlib.Path, keep: int, keep_best: bool):
    """Keeps the latest `keep` and, with `keep_best`, the one of the lowest loss."""
    managers = ocp.checkpoint_managers
    policies = [managers.LatestN(keep)]
    self._losses = {
      at: loss
      for at, loss in metrics.held_out(workdir / "metrics.jsonl").items()
      if math.isfinite(loss)
    }
    if keep_best:
      policies.append(_Best(self._losses))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=managers.AnyPreservationPolicy(policies),
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(
        post_finalization_callback=self._finish,
        # Otherwise, where one cannot be made, threads wait for it for five minutes,
        # and the process for them.
        create_directories_asynchronously=False,
      ),
    )
    for name in ("absl", "asyncio"):
      logging.getLogger(name).addFilter(_is_not_raised)
    # So it leaves some of its tasks after one has failed.
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)
    self._saving, self._unreported = 0, None
    self._expected: dict[str, Any] = {}
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
    self.wait()  # as Orbax would; `_finish` reads what is set here
    self._saving = self._unreported = at
    opt, data = {"step": state.step, "opt": state.opt}, {"iterator": iterator_state}
    self._expected = {native.PARAMS: state.params, "opt": opt}
    self._expected = {item: _shapes(tree) for item, tree in self._expected.items()}
    self._expected["data"] = data
    self._losses.pop(at, None)  # of an earlier try of this step
    if eval_loss is not None and math.isfinite(eval_loss):
      self._losses[at] = eval_loss
    chunked = jax.tree.map(
      lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), state.params
    )
    with self._reporting():
      self._manager.save(
        at,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(state.params, save_args=chunked),
          opt=ocp.args.StandardSave(opt),
          data=ocp.args.JsonSave(data),
        ),
        force=True,
      )

  def _finish(self) -> None:
    """Called by Orbax, in a thread of its own, when all files are written.

    They are read again and opened again. Then Orbax renames their folder and deletes
    older checkpoints; it does neither if this raises.
    """
    if not distributed.is_first():
      return
    name = f"{self._saving}.orbax-checkpoint-tmp"
    for half in pathlib.Path(self._manager.directory).iterdir():
      if half.name.startswith(name):
        checksums.write(half)
        _open_again(half, self._expected)

  def newly_saved(self) -> int | None:
    """The step whose checkpoint is complete since the last call; None without one."""
    at = self._unreported
    if at is None or not (self._manager.directory / str(at)).exists():
      return None
    self._unreported = None
    return at

  @contextlib.contextmanager
  def _reporting(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Orbax raises many kinds, none of its own
      if distributed.is_of_peer(error):
        raise
      raise errors.UserError(
        f"the checkpoint of step {self._saving} in {self._manager.directory} is not "
        f"written: {storage.explain(error)}.\nEarlier ones are untouched. Once this is "
        "fixed, the same command resumes from the latest."
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

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, _, error: BaseException | None, __) -> None:
    # A save ends when all processes have taken part in it. Where one of them has gone,
    # the wait would last until heartbeats miss it.
    if not distributed.is_of_peer(error):
      self.close()

  def close(self) -> None:
    """Waits, then closes the manager."""
    with self._reporting():
      self._manager.close()

"""A training run, stage by stage."""

import contextlib
import dataclasses
import pathlib
from typing import Any, TextIO

import jax

from skipalign_jax import config as config_lib
from skipalign_jax.data import pipeline
from skipalign_jax.hf import weights
from skipalign_jax.runtime import distributed, locks, plotting, signals, terminal
from skipalign_jax.training import (
  checkpoint,
  initial_weights,
  loop,
  picture,
  preview,
  reference_log_probs,
  report,
  starts,
  workdir,
)
from skipalign_jax.training import log as log_lib
from skipalign_jax.training import setup as setup_lib
from skipalign_jax.training import state as state_lib
from skipalign_jax.training import trace as trace_lib


def run(
  config: config_lib.ConfigDict, folder: pathlib.Path, console: terminal.Console
) -> int:
  """Trains to the end, or until a signal; returns the exit status.

  Args:
    config: as the user gave it; gets the run's `data.date`.
    folder: the workdir.
    console: of this process.

  Raises:
    UserError: see `setup.prepare` and `workdir.claim`; or writing or data fails.
  """
  with distributed.together():
    checkpoint.check_path(folder)
  config.data.date = date_of(folder, config.data.date)
  with distributed.together():
    setup = setup_lib.prepare(config, folder, console)
  with distributed.together():
    model = describe_model(setup)
  starts.check_processes(config, setup.data.fingerprint, model)
  lock = claim(setup)
  with workdir.writing(folder):
    status = train(setup)
  if lock is not None:
    locks.release(lock)
  return status


def describe_model(setup: setup_lib.Setup) -> dict[str, Any]:
  """What the processes of a run must have alike of the model; JSON."""
  found: dict[str, Any] = {"shape": dataclasses.asdict(setup.recipe.model)}
  if setup.opened is not None:
    found["step"] = setup.opened.location.step
    if jax.process_count() > 1:
      found["weights"] = weights.sample(setup.opened.weights | setup.adapters)
  return found


def date_of(folder: pathlib.Path, given: str) -> str:
  """`workdir.date_of` in the first process, for all."""
  date = given
  with distributed.together():
    if distributed.is_first():
      date = workdir.date_of(folder, given)
  return distributed.exchange(date)[0]


def train(setup: setup_lib.Setup) -> int:
  """Trains in a claimed workdir; returns the exit status."""
  config, folder, steps = setup.config, setup.folder, setup.data.steps
  saved = checkpoint.Checkpoints(
    folder, config.checkpoint.keep, config.checkpoint.keep_best
  )
  # A network filesystem may show another process an older checkpoint as the latest.
  start = int(distributed.exchange(str(saved.latest() or 0))[0])
  with distributed.together():
    workdir.check_start(folder, start, steps)
  announce(setup, start)
  if setup.recipe.loss.kind == "dpo":
    setup.data.train_rows.set_reference(reference_log_probs.of_start(setup))
  if start:
    state, iterator = restore(setup, saved, start)
  else:
    state, iterator = begin(setup)
  log = log_lib.Log(config, setup.recipe, folder, setup.console, start, steps)
  trace = trace_lib.Trace(trace_lib.parse(config.profile), trace_lib.folder_of(folder))
  with (
    signals.Stop(distributed.is_first()) as stop,
    jax.set_mesh(setup.mesh),
    saved,
    contextlib.closing(iterator),
    contextlib.closing(trace),
    log,
  ):
    training = loop.Loop(setup, state, iterator, log, saved, trace)
    status = training.run(start, stop)
  training.report_saved()
  if not status and distributed.is_first():
    recipe = setup.recipe.positions
    skips = recipe.strategy != "contiguous"
    picture.draw_at_end(folder, recipe.max_position if skips else 0, setup.console)
  setup.console.print(log.summary())
  return status


def claim(setup: setup_lib.Setup) -> TextIO | None:
  """Makes the folder this run's workdir, or checks that it is.

  Returns:
    The lock on it, in the first process.
  """
  lock, folder, config = None, setup.folder, setup.config
  with distributed.together(), workdir.writing(folder):
    if distributed.is_first():
      lock = workdir.claim(
        folder,
        config,
        setup.recipe.model,
        setup.opened,
        setup.tokenizer,
        setup.console,
      )
      checkpoint.set_damaged_aside(folder, setup.console)
  claimed = distributed.exchange(workdir.identity(folder))[0]
  with distributed.together():
    workdir.check_shared(folder, claimed)
  return lock


def announce(setup: setup_lib.Setup, start: int) -> None:
  """Prints what is about to be trained, and records this start in the workdir."""
  setup.console.print(report.describe(setup, start))
  with distributed.together(), workdir.writing(setup.folder):
    if distributed.is_first():
      this = starts.describe(setup.config, setup.data.fingerprint, start)
      for change in starts.add(setup.folder, this):
        setup.console.print(f"NOTE       since the last start, {change}")
      workdir.write_steps(setup.folder, setup.data.steps)


def restore(
  setup: setup_lib.Setup, saved: checkpoint.Checkpoints, start: int
) -> tuple[state_lib.TrainState, pipeline.TrainIterator]:
  """The state and the batches after step `start`, from its checkpoint."""
  recipe = setup.recipe
  abstract, shardings = state_lib.shardings(
    setup.mesh, setup.optimizer, recipe.model, recipe.adapters
  )
  base = initial_weights.frozen_base(recipe, setup.opened, shardings.base)
  state, iterator_state = saved.restore(abstract, shardings, start)
  state = dataclasses.replace(state, base=base)
  return state, setup.data.train_iterator(iterator_state)


def begin(
  setup: setup_lib.Setup,
) -> tuple[state_lib.TrainState, pipeline.TrainIterator]:
  """The state and the batches of a new run."""
  recipe = setup.recipe
  _, shardings = state_lib.shardings(
    setup.mesh, setup.optimizer, recipe.model, recipe.adapters
  )
  params, base = initial_weights.of_run(recipe, setup.opened, setup.adapters, shardings)
  state = state_lib.create(params, setup.optimizer, shardings, base)
  if distributed.is_first():
    show_first_batch(setup)
  return state, setup.data.train_iterator()


def show_first_batch(setup: setup_lib.Setup) -> None:
  """Prints and draws the positions of the first batch."""
  recipe = setup.recipe.positions
  batch = setup.data.first_rows(min(setup.config.batch_size, preview.ROWS))
  batch = preview.as_trained(recipe, setup.recipe.seed, batch, setup.recipe.crop)
  positions_BL = batch["positions"]
  found = preview.samples(batch, positions_BL)
  found.sort(key=len, reverse=True)  # long dialogues show more
  limit = int(positions_BL.max()) + 1
  if recipe.strategy != "contiguous":
    limit = max(recipe.max_position, limit)
  picture = setup.folder / "positions.png"
  title = f"Positions of the first batch: {recipe.strategy}"
  drawn = ""
  if plotting.possible(setup.console, picture):
    preview.draw(found, limit, title, picture)
    drawn = f"drawn in {picture}; "
  what = "text" if preview.is_text(found[0]) else "dialogue"
  setup.console.print(
    f"positions  {drawn}the longest {what} of this batch:\n"
    f"           {preview.describe(found[0])}"
  )

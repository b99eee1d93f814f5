"""The training loop: dispatches step t, then reads the numbers of step t − 1."""

import dataclasses
from collections.abc import Collection

import jax
import numpy as np

from skipalign_jax.data import pipeline
from skipalign_jax.evals import scheduled
from skipalign_jax.model import decoder, sharding
from skipalign_jax.runtime import distributed, signals
from skipalign_jax.training import checkpoint, step, workdir
from skipalign_jax.training import log as log_lib
from skipalign_jax.training import setup as setup_lib
from skipalign_jax.training import state as state_lib
from skipalign_jax.training import trace as trace_lib


@dataclasses.dataclass
class Loop:
  """A run between its first step and its last, or a signal.

  Attributes:
    setup: of the run.
    state: before the next step.
    iterator: the batches of the steps to come.
    log: takes the numbers.
    saved: takes the checkpoints.
    trace: of some steps.
  """

  setup: setup_lib.Setup
  state: state_lib.TrainState
  iterator: pipeline.TrainIterator
  log: log_lib.Log
  saved: checkpoint.Checkpoints
  trace: trace_lib.Trace

  def __post_init__(self):
    setup = self.setup
    self._train_step, self._eval_step = step.compile_steps(
      setup.recipe, setup.optimizer, setup.schedule, setup.mesh
    )
    self._evaluator = scheduled.Evaluator(
      setup.recipe.model,
      setup.recipe.compute_dtype,
      setup.tokenizer,
      setup.opened.eos_ids if setup.opened else (),
      setup.mesh,
      setup.folder,
      setup.console,
    )

  def run(self, start: int, stop: signals.Stop) -> int:
    """Trains the steps after `start`; returns 0, or 128 + the number of a signal."""
    config, steps = self.setup.config, self.setup.data.steps
    if status := self._before(start, steps, stop):
      return status
    votes = distributed.Votes()
    for at in range(start + 1, steps + 1):
      with self.log.clock.waiting("data"):
        batch = next(self.iterator)
      self.trace.before(at)
      self.state, numbers = self._train_step(self.state, self._place(batch))
      if folder := self.trace.after(at, numbers):
        self.setup.console.print(f"step {at}: the trace is in {folder}")
      self.log.dispatched(at, numbers, batch)
      if self._is_due(at, config.eval.every):
        self._measure_held_out(at)
      status = votes.cast(stop.status)
      if self._is_saved(at) or status:
        self._save(at)
      self.report_saved()
      if status:
        return status
      # After the save: a task that fails loses no step.
      if status := self._run_tasks(at, stop):
        return status
    return 0

  def _before(self, start: int, steps: int, stop: signals.Stop) -> int:
    """Evaluations before the first step, and the tasks that a stopped run still lacks.

    Tasks that do not run now are checked, so that a mistake does not end the run later.

    Returns:
      As `_run_tasks`.
    """
    if not start and self.setup.config.eval.at_start:
      self._measure_held_out(0)
      return self._run_tasks(0, stop)
    if start:
      done = self.log.evaluated_tasks(start)
      if status := self._run_tasks(start, stop, done):
        return status
    if start < steps and self.setup.evaluations:
      params = self._merged_params()
      for task in self.setup.evaluations:
        self._evaluator.check(task, params)
    return 0

  def _is_due(self, at: int, every: int) -> bool:
    """Whether an evaluation of this interval runs at a step; all run at the ends."""
    return at in (0, self.setup.data.steps) or _due(at, every)

  def _is_saved(self, at: int) -> bool:
    """Whether a step is saved: also before tasks run, so that none is lost by them."""
    every = self.setup.config.checkpoint.every
    last = at == self.setup.data.steps
    return last or _due(at, every) or (every > 0 and bool(self._tasks(at)))

  def _place(self, batch: pipeline.Batch) -> state_lib.Batch:
    """A batch on all devices; this process has its rows."""
    rows = sharding.batch_sharding(self.setup.mesh)
    return {
      name: jax.make_array_from_process_local_data(rows, x) for name, x in batch.items()
    }

  def _measure_held_out(self, at: int) -> None:
    """The held-out loss, where there are held-out samples."""
    if self.setup.data.eval_batches:
      self.log.read()  # the time of a step is without what follows it
      self.log.held_out(at, self._held_out_loss())

  def _run_tasks(self, at: int, stop: signals.Stop, done: Collection[str] = ()) -> int:
    """The scheduled tasks that are due, except for those that are done.

    Returns:
      0; or, where a signal leaves tasks to the next start, the status of the run.
    """
    tasks = [task for task in self._tasks(at) if task.name not in done]
    if not tasks:
      return 0
    self.log.read()
    params = self._merged_params()
    for task in tasks:
      if status := distributed.highest(stop.status):
        if at:
          self._save(at)
        return status
      self.log.evaluated(at, self._evaluator.run(task, at, params))
    return 0

  def _tasks(self, at: int) -> list[scheduled.Scheduled]:
    """The scheduled tasks that run after a step."""
    return [one for one in self.setup.evaluations if self._is_due(at, one.every)]

  def _merged_params(self) -> decoder.Params:
    return state_lib.merged_params(self.setup.recipe, self.state, self.setup.mesh)

  def _held_out_loss(self) -> float:
    """Mean loss of the held-out targets, nats."""
    params = state_lib.full_params(self.setup.recipe, self.state)
    batches = map(self._place, self.setup.data.eval_batches)
    sums = [self._eval_step(params, batch) for batch in batches]
    # In float32 a large sum would round each batch that is added to it.
    total, weight = np.sum(np.array(jax.device_get(sums), np.float64), axis=0)
    return float(total / weight)

  def report_saved(self) -> None:
    """Prints that a checkpoint is complete, once."""
    if (at := self.saved.newly_saved()) is not None:
      self.setup.console.print(f"step {at}: saved")

  def _save(self, at: int) -> None:
    if distributed.is_first():
      workdir.check_there(self.setup.folder, self.setup.config)
    self.log.flush()  # the records of a saved step are on disk before the state
    self.saved.wait()
    self.report_saved()
    loss = self.log.eval_losses.get(at)
    self.saved.save(self.state, at, self.iterator.get_state(), loss)
    self.log.clock.restart()


def _due(at: int, every: int) -> bool:
  """Whether something that happens every so many steps happens now; 0 is never."""
  return every > 0 and at % every == 0

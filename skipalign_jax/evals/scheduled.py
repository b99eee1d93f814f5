"""Tasks during training: `config.evals`, and the numbers that go to the metrics."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from typing import TYPE_CHECKING, Any

from skipalign_jax.evals import option_values, tasks
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors, terminal

if TYPE_CHECKING:  # checking config.evals needs none of these
  import ml_collections
  import transformers
  from jax.sharding import Mesh

  from skipalign_jax.model import decoder, model_config

DEFAULTS = {"every": 0, "limit": 0, "batch_tokens": 16_384}


@dataclasses.dataclass(frozen=True)
class Scheduled:
  """One entry of config.evals."""

  name: str
  task: str
  every: int
  limit: int
  batch_tokens: int
  options: Any


def schedule(config: ml_collections.ConfigDict) -> list[Scheduled]:
  """Reads config.evals.

  Raises:
    UserError: an unknown task or option, or `every` is missing or negative.
  """
  found = []
  for name, entry in config.evals.items():
    given = dict(entry)
    if type(given.get("every")) is not int or given["every"] < 0:
      raise errors.UserError(
        f"evals.{name}.every must be a number of steps, or 0 to evaluate only at the "
        "end"
      )
    task = given.pop("task", name)
    try:
      own = {
        key: tasks.typed(key, given.pop(key, default), default)
        for key, default in DEFAULTS.items()
      }
      option_values.check_at_least("limit", own["limit"], 0)
      option_values.check_at_least("batch_tokens", own["batch_tokens"], 1)
      found.append(Scheduled(name, task, **own, options=tasks.options(task, given)))
    except errors.UserError as error:
      raise errors.UserError(f"evals.{name}: {error}") from error
  return found


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Runs tasks on the weights of a run: what stays the same from step to step."""

  config: model_config.ModelConfig
  compute_dtype: str
  tokenizer: transformers.PreTrainedTokenizerFast
  eos_ids: tuple[int, ...]
  mesh: Mesh
  workdir: pathlib.Path
  console: terminal.Console

  def check(self, scheduled: Scheduled, params: decoder.Params) -> None:
    """Makes the items of a task as `run` does, and forgets them.

    Raises:
      UserError: an option or a file that the task cannot use.
    """
    from skipalign_jax.runtime import distributed

    task = tasks.module(scheduled.task)
    if not hasattr(task, "items"):  # a library makes them while the task runs
      return
    with distributed.together():
      subject = self._subject(scheduled, params, str(self.workdir))
      task.items(scheduled.options, subject)

  def run(
    self, scheduled: Scheduled, step: int, params: decoder.Params
  ) -> dict[str, int | float]:
    """Runs one task on the weights of a step.

    Results go to workdir/evals/NAME/STEP, whose earlier files are removed: the weights
    of a step that is trained again may differ.

    Returns:
      The numbers of the summary, as "NAME/KEY".
    """
    from skipalign_jax.evals import runner
    from skipalign_jax.runtime import distributed

    folder = self.workdir / "evals" / scheduled.name / str(step)
    if distributed.is_first():
      shutil.rmtree(folder, ignore_errors=True)
    results = runner.run(
      scheduled.task,
      tasks.module(scheduled.task),
      scheduled.options,
      self._subject(scheduled, params, f"{self.workdir}@{step}"),
      folder,
      self.console,
      scheduled.limit,
    )
    return {
      f"{scheduled.name}/{key}": value
      for key, value in results["summary"].items()
      if isinstance(value, (int, float))
    }

  def _subject(
    self, scheduled: Scheduled, params: decoder.Params, name: str
  ) -> subject_lib.Subject:
    """These weights under evaluation."""
    from skipalign_jax.model import inference

    mesh = self.mesh if self.mesh.size > 1 else None
    return subject_lib.Subject(
      inference.Engine(params, self.config, self.compute_dtype, mesh),
      self.tokenizer,
      subject_lib.identity(name, self.config, self.tokenizer, self.compute_dtype),
      scheduled.batch_tokens,
      self.eos_ids,
    )

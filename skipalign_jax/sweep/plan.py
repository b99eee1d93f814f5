"""A sweep in a folder: the commands of each run, and how far it has come.

A run is made by the ordinary commands, `train` and `evaluate`, in folders of its own:

  OUT/rows/RUN          workdir of its training
  OUT/evals/RUN/EVAL    of its evaluations

so a sweep can be run in part here and in part elsewhere, and sweeps with the same OUT
share the runs that have the same name.

Where a sweep has NTK targets, each run is evaluated by `choose` at each of them
(OUT/evals/RUN/CHOOSE@TARGET), and by everything else at the target that did best there:
runs differ in the target they need, and one for all would favour some.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from skipalign_jax import cli
from skipalign_jax import config as config_lib
from skipalign_jax.evals import tasks
from skipalign_jax.hf import native
from skipalign_jax.runtime import errors, files, json_limits
from skipalign_jax.sweep import runs
from skipalign_jax.training import metrics, resolve, same_run, workdir

TRAIN, EVALUATE = "skipalign_jax.train", "skipalign_jax.evaluate"
# Options of evaluations that name files, which other machines have elsewhere.
PLACES = ("data", "files", "haystack", "local_data", "prompts", "qa", "source")
# Flags that `evaluate` has for all tasks and that change results → their defaults.
FLAGS = {
  "dtype": "bfloat16",
  "batch_tokens": 16_384,
  "limit": 0,
  "tokenizer": "",
  "template": "model",
  "template_kwargs": "",
  "date": "",
}
_OTHER_FLAGS = ("mesh", "distributed", "rope.kind", "rope.target_length")


@dataclasses.dataclass(frozen=True)
class Plan:
  """A sweep in a folder, with what its user changes in all runs.

  Attributes:
    sweep: what is to be done.
    out: where.
    overrides: arguments --config.KEY=VALUE for every training; a run's own win.
    options: evaluation → options of `evaluate` that replace the sweep's.
  """

  sweep: runs.Sweep
  out: pathlib.Path
  overrides: Sequence[str] = ()
  options: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name in self.options:
      if name not in self.sweep.evaluations:
        raise errors.UserError(
          f"--eval.{name}: the sweep has no such evaluation; it has "
          f"{', '.join(self.sweep.evaluations)}"
        )

  def workdir(self, name: str) -> pathlib.Path:
    """The folder that a run is trained in."""
    return self.out / "rows" / runs.slug(name)

  def evaluation(self, name: str, evaluation: str) -> pathlib.Path:
    """The folder of an evaluation of a run."""
    return self.out / "evals" / runs.slug(name) / evaluation

  def train_command(self, name: str) -> list[str]:
    """Arguments of Python that train a run; [] for a model as it is."""
    run = self.sweep.runs[name]
    if not run.config:
      return []
    variant = f":{self.sweep.variant}" if self.sweep.variant else ""
    changes = [f"--config.{key}={value}" for key, value in run.changes.items()]
    return [
      *("-m", TRAIN, f"--config={run.config}{variant}"),
      *(f"--workdir={self.workdir(name)}", *self.overrides, *changes),
    ]

  def targets(self, name: str) -> Sequence[int]:
    """NTK targets that a run is evaluated at; none where it has its own rope."""
    own = "rope.kind" in self.sweep.runs[name].evaluate
    return () if own else self.sweep.targets

  def target_scores(self, name: str) -> dict[int, float]:
    """NTK target → mean log p of `choose`, of the targets that are evaluated."""
    scores = {}
    for target in self.targets(name):
      path = self.evaluation(name, f"{runs.CHOOSE}@{target}") / "results.json"
      if path.exists():
        by_length = files.read_json(path, json_limits.MAX_RESULT_VALUES)["summary"][
          "log_p"
        ]
        scores[target] = float(np.mean([cell["mean"] for cell in by_length.values()]))
    return scores

  def target(self, name: str) -> int | None:
    """The run's NTK target, given or chosen.

    None if there is none, or before all are evaluated.
    """
    if given := self.sweep.runs[name].evaluate.get("rope.target_length"):
      return int(given)
    scores = self.target_scores(name)
    if not scores or len(scores) < len(self.targets(name)):
      return None
    return max(scores, key=lambda target: (scores[target], -target))

  def evaluate_command(
    self, name: str, evaluation: str, target: int | None = None
  ) -> list[str]:
    """Arguments of Python that evaluate a run; `target` is of its NTK rope."""
    options = self._options(name, evaluation)
    task = str(options.pop("task"))
    scaled = {"rope.kind": "ntk", "rope.target_length": target} if target else {}
    model = self.sweep.runs[name].model or self.workdir(name)
    return [
      *("-m", EVALUATE, task, f"--model={model}"),
      f"--out={self.evaluation(name, evaluation)}",
      *(f"--{key}={value}" for key, value in (scaled | options).items()),
    ]

  def _options(self, name: str, evaluation: str) -> dict[str, Any]:
    """Options of an evaluation of a run, and its task; not those of an NTK rope."""
    chooses = evaluation.startswith(f"{runs.CHOOSE}@")
    return {
      **(self.sweep.choose if chooses else self.sweep.evaluations[evaluation]),
      **self.sweep.runs[name].evaluate,
      **self.options.get(evaluation, {}),
    }

  def todo(self, name: str) -> Iterator[list[str]]:
    """Commands that a run still needs, each made when those before it have ended.

    A run whose evaluations are all there needs none, even if its workdir is gone.
    """
    if self.sweep.evaluations and all(
      self.is_evaluated(name, evaluation) for evaluation in self.sweep.evaluations
    ):
      return
    if self.sweep.runs[name].config and not self.is_trained(name):
      yield self.train_command(name)
    for target in self.targets(name):
      if not self.is_evaluated(name, f"{runs.CHOOSE}@{target}"):
        yield self.evaluate_command(name, f"{runs.CHOOSE}@{target}", target)
    target = self.target(name)
    if self.targets(name) and target is None:
      return  # a target could not be evaluated
    for evaluation in self.sweep.evaluations:
      if not self.is_evaluated(name, evaluation):
        yield self.evaluate_command(name, evaluation, target)

  def is_trained(self, name: str) -> bool:
    """Whether the last step of a run's training is saved."""
    done, steps = self.progress(name)
    return steps is not None and done >= steps

  def last_metrics(self, name: str) -> dict[str, Any]:
    """The last value of each number in a run's metrics.jsonl; {} before training."""
    path = self.workdir(name) / "metrics.jsonl"
    last: dict[str, Any] = {}
    for record in metrics.read(path) if path.exists() else ():
      last |= record
    return last

  def is_evaluated(self, name: str, evaluation: str) -> bool:
    """Whether an evaluation of a run is finished."""
    return (self.evaluation(name, evaluation) / "results.json").exists()

  def progress(self, name: str) -> tuple[int, int | None]:
    """Steps saved, and steps of the whole run; None if it never started."""
    saved = native.steps(self.workdir(name))
    return (saved[-1] if saved else 0), workdir.read_steps(self.workdir(name))

  def status(self, name: str) -> str:
    """How far a run has come, in a few words."""
    run = self.sweep.runs[name]
    parts = []
    if run.config:
      done, steps = self.progress(name)
      if steps is None:
        parts.append("not started")
      else:
        parts.append("trained" if done >= steps else f"step {done} of {steps}")
    count = len(self.sweep.evaluations)
    evaluated = sum(self.is_evaluated(name, e) for e in self.sweep.evaluations)
    if next(self.todo(name), None) is None:
      return "done"
    if evaluated or not run.config:
      parts.append(f"{evaluated} of {count} evaluated")
    return ", ".join(parts)

  def check(self, name: str) -> config_lib.ConfigDict | None:
    """The run's config; None for a model as it is.

    Raises:
      UserError: it has a key that no config has, or keys that contradict each other;
        or what is there was trained or evaluated in another way.
    """
    config = self.config(name)
    if different := self.differences(name, config):
      raise errors.UserError(
        f"{self.workdir(name)}: {'; '.join(different)}. Give the same --config.KEY, "
        f"{self._remedy(name)}"
      )
    self._check_evaluations(name, config)
    return config

  def _remedy(self, name: str) -> str:
    return f"remove it and {self.evaluation(name, '')}, or use another --out"

  def config(self, name: str) -> config_lib.ConfigDict | None:
    """As `check`; of what was trained it checks only the run's own changes."""
    command = self.train_command(name)
    if not command:
      return None
    usage = "runs change keys of their config"
    arguments = [arg for arg in command[2:] if not arg.startswith("--workdir=")]
    config, _ = cli.parse(["sweep", *arguments], usage)
    resolve.check(config)
    own = tuple(f"{key}:" for key in self.sweep.runs[name].changes)
    changed = [line for line in self.differences(name, config) if line.startswith(own)]
    if changed:
      raise errors.UserError(
        f"{self.workdir(name)}: {'; '.join(changed)}. The sweep has changed: "
        f"{self._remedy(name)}"
      )
    return config

  def differences(self, name: str, config: config_lib.ConfigDict | None) -> list[str]:
    """Keys that a run was trained with other values of; [] before it is trained."""
    folder = self.workdir(name)
    if config is None or not native.is_workdir(folder):
      return []
    trained = native.read_config(folder).config or {}
    names = "trained with", "the sweep says"
    found = same_run.differences(trained, config.to_dict(), same_run.FREE, names)
    return [line.strip() for line in found]

  def _check_evaluations(self, name: str, config: config_lib.ConfigDict | None) -> None:
    """Checks the options of all evaluations, and of results that they are theirs.

    Raises:
      UserError: `evaluate` has no such option; or results are those of other options,
        of another model or of another training.
    """
    names = {evaluation: None for evaluation in self.sweep.evaluations}
    names |= {f"{runs.CHOOSE}@{target}": target for target in self.targets(name)}
    for evaluation, target in names.items():
      self._wanted(name, evaluation)
      folder = self.evaluation(name, evaluation)
      if not self.is_evaluated(name, evaluation):
        continue
      if changed := self.other_options(name, evaluation, target):
        key, before, value = changed[0]
        raise errors.UserError(
          f"{folder}: evaluated with --{key}={before}, now {value}. Give the "
          f"same --eval.{evaluation}.{key}, remove it or use another --out"
        )
      path = folder / "results.json"
      found = files.read_json(path, json_limits.MAX_RESULT_VALUES)
      self._check_subject(name, config, folder, found)

  def other_options(
    self, name: str, evaluation: str, target: int | None = None
  ) -> list[tuple[str, Any, Any]]:
    """Options, with their values then and now, that results were not made with.

    Args:
      name: of the run.
      evaluation: that has ended.
      target: NTK target of the evaluation, if it is not the run's.

    Raises:
      UserError: `evaluate` has no such option.
    """
    path = self.evaluation(name, evaluation) / "results.json"
    there = _known(files.read_json(path, json_limits.MAX_RESULT_VALUES))
    now = self._wanted(name, evaluation) | self._rope(name, target)
    return [
      (key, there[key], value)
      for key, value in now.items()  # None: an older version did not write it
      if there.get(key) not in (None, value) and key not in PLACES
    ]

  def _wanted(self, name: str, evaluation: str) -> dict[str, Any]:
    """Options and `FLAGS` of an evaluation of a run, in their types."""
    given = self._options(name, evaluation)
    task = str(given.pop("task"))
    given = {key: x for key, x in given.items() if key not in _OTHER_FLAGS}
    flags = {
      key: tasks.typed(key, given.pop(key, default), default)
      for key, default in FLAGS.items()
    }
    if not flags["date"]:
      del flags["date"]  # the day of the evaluation
    return dataclasses.asdict(tasks.options(task, given)) | flags

  def _rope(self, name: str, target: int | None) -> dict[str, Any]:
    """The rope that a run is evaluated with; {} for that of the model."""
    given = self.sweep.runs[name].evaluate
    kind = given.get("rope.kind", "ntk" if self.targets(name) else "model")
    target = target or self.target(name)
    if kind in ("model", "none") or target is None:
      return {}
    return {"rope.kind": kind, "rope.target_length": target}

  def _check_subject(
    self,
    name: str,
    config: config_lib.ConfigDict | None,
    folder: pathlib.Path,
    found: dict[str, Any],
  ) -> None:
    """Raises UserError if results are of another model, or of another training."""
    short = lambda model: pathlib.PurePath(model.rpartition("@")[0] or model).name
    model, there = self.sweep.runs[name].model, found["protocol"].get("model", "")
    if model and short(model) != short(there):
      raise errors.UserError(
        f"{folder}: evaluated with --model={there}, now {model}. Remove it or use "
        "another --out"
      )
    trained = found.get("model", {}).get("config")
    if config is None or trained is None:
      return
    names = "evaluated after training with", "the sweep says"
    if lines := same_run.differences(trained, config.to_dict(), same_run.FREE, names):
      different = "; ".join(line.strip() for line in lines)
      raise errors.UserError(
        f"{folder}: {different}. Give the same --config.KEY, remove it or use another "
        "--out"
      )


def _known(found: dict[str, Any]) -> dict[str, Any]:
  """Options and flags that results were made with, of those that their file has."""
  protocol = found["protocol"]
  return protocol["options"] | {
    "dtype": protocol.get("compute_dtype"),
    "rope.kind": (protocol.get("rope") or {}).get("kind"),
    "rope.target_length": protocol.get("window"),
    **{key: protocol.get(key) for key in ("batch_tokens", "limit", "date")},
    **{
      key: found.get("model", {}).get(key)
      for key in ("tokenizer", "template", "template_kwargs")
    },
  }

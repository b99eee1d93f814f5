"""A sweep: rows, the commands that make them, and how far each has come.

A row is a config with changes, or a model that is evaluated as it is. What it does is
done by the ordinary commands, `train` and `evaluate`, in folders of its own:

  OUT/rows/ROW          workdir of its training
  OUT/evals/ROW/EVAL    of its evaluations

so a sweep can be run in part here and in part elsewhere, and sweeps with the same OUT
share the rows that have the same name.

Where a sweep has NTK targets, each row is asked `choose` at each of them
(OUT/evals/ROW/CHOOSE@TARGET), and everything else at the one that did best there: rows
differ in what they need, and one target for all would favour some.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from skipalign_jax import cli
from skipalign_jax import config as config_lib
from skipalign_jax.hf import native
from skipalign_jax.runtime import errors, files
from skipalign_jax.training import metrics, resolve, workdir

Value = str | int | float | bool
CHOOSE = "choose"  # name of the evaluation that decides on a row's NTK target
TRAIN, EVALUATE = "skipalign_jax.train", "skipalign_jax.evaluate"


@dataclasses.dataclass(frozen=True)
class Row:
  """One model of a table.

  Attributes:
    config: file that its training starts from, without a variant; "" for none.
    changes: keys of that config → values, as after --config.
    model: reference of a model that is not trained; "" where `config` is given.
    evaluate: options of `evaluate` that only this row has.
    paper: column → the number that the paper prints.
    point: L and p, for rows that are points of a figure.
  """

  config: str = ""
  changes: Mapping[str, Value] = dataclasses.field(default_factory=dict)
  model: str = ""
  evaluate: Mapping[str, Value] = dataclasses.field(default_factory=dict)
  paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
  point: tuple[float, float] | None = None

  def __post_init__(self):
    assert bool(self.config) != bool(self.model), self


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Rows and what is asked of each.

  Attributes:
    title: of its tables.
    rows: name → row, in the table's order.
    evaluations: name → options of `evaluate`, "task" among them.
    out: folder, unless the command names one.
    variant: of the rows' configs.
    targets: NTK targets, in positions, that each row is tried at; () for none.
    choose: options of the evaluation that decides, by `log_p` over all its lengths.
    window: of the models, tokens.
    claimed: lengths, tokens, whose keys decide about `pairs`.
    pairs: rows whose differences are of interest.
  """

  title: str
  rows: Mapping[str, Row]
  evaluations: Mapping[str, Mapping[str, Value]]
  out: str
  variant: str = ""
  targets: Sequence[int] = ()
  choose: Mapping[str, Value] = dataclasses.field(default_factory=dict)
  window: int = 0
  claimed: tuple[int, ...] = ()
  pairs: Sequence[tuple[str, str]] = ()


# The paper's tests: LongBench of at most 15,500 tokens ("16K"), and short tasks.
LONGBENCH = {"task": "longbench"}
SHORT = {"task": "lm_eval", "tasks": "mmlu,bbh,tydiqa_gold,humaneval"}
# What the byte-level models of :tiny are asked instead: only the path is tried.
TINY = {
  "perplexity": dict(task="perplexity", files="README.md", length=256, documents=2),
  "needle": dict(task="needle", lengths="384,512", depths=2, max_new_tokens=8),
}


def sweep(
  title: str,
  table: Mapping[str, Row],
  evaluations: Mapping[str, Mapping[str, Value]],
  variant: str,
  folder: str = "paper",
) -> Sweep:
  """A sweep with a tiny variant, which has the rows that are trained.

  Args:
    title: of its tables.
    table: name → row.
    evaluations: see `Sweep`; tiny models get their own.
    variant: "" or "tiny".
    folder: in runs/; sweeps of one folder share rows of the same name.

  Raises:
    UserError: another variant.
  """
  if variant == "tiny":
    trained = {name: row for name, row in table.items() if row.config}
    return Sweep(f"{title} (tiny)", trained, TINY, f"runs/{folder}_tiny", variant)
  if variant:
    raise errors.UserError(f"unknown sweep variant {variant!r}; known: tiny")
  return Sweep(title, table, evaluations, f"runs/{folder}")


def load(argument: str) -> Sweep:
  """The sweep of `--config=FILE[:variant]`, by the file's get_sweep(variant).

  Raises:
    UserError: there is no such file, or it is no sweep.
  """
  file, _, variant = argument.partition(":")
  path = pathlib.Path(file)
  if not path.is_file():
    raise errors.UserError(f"--config: {path} does not exist")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise errors.UserError(f"--config: {path} is not a Python file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    raise errors.UserError(f"--config: {path} cannot be loaded: {error!r}") from error
  if not hasattr(module, "get_sweep"):
    raise errors.UserError(
      f"--config: {path} has no get_sweep(); it is a config for skipalign_jax.train"
    )
  sweep = module.get_sweep(variant)
  slugs: dict[str, str] = {}
  for name in sweep.rows:
    other = slugs.setdefault(slug(name), name)
    if other != name:
      raise errors.UserError(f"{path}: {other!r} and {name!r} would share a folder")
  return sweep


def select(sweep: Sweep, names: Sequence[str]) -> Sweep:
  """The sweep with some of its rows, named as their folders.

  Raises:
    UserError: there is no such row.
  """
  known = {slug(name): name for name in sweep.rows}
  if unknown := [name for name in names if name not in known]:
    raise errors.UserError(
      f"--rows: there is no row {unknown[0]!r}; there are {', '.join(known)}"
    )
  chosen = {known[name] for name in names}
  kept = {name: row for name, row in sweep.rows.items() if name in chosen}
  return dataclasses.replace(sweep, rows=kept)


def slug(name: str) -> str:
  """A row's name as a folder: "Yi-6B + SkipAlign" → "yi-6b_skipalign"."""
  return re.sub(r"[^a-z0-9.=-]+", "_", name.lower()).strip("_")


@dataclasses.dataclass(frozen=True)
class Plan:
  """A sweep in a folder, with what its user changes in all rows.

  Attributes:
    sweep: what is to be done.
    out: where.
    overrides: arguments --config.KEY=VALUE for every training; a row's own win.
    options: evaluation → options of `evaluate` that replace the sweep's.
  """

  sweep: Sweep
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
    """Where a row is trained."""
    return self.out / "rows" / slug(name)

  def evaluation(self, name: str, evaluation: str) -> pathlib.Path:
    """Where results of a row go."""
    return self.out / "evals" / slug(name) / evaluation

  def train_command(self, name: str) -> list[str]:
    """Arguments of Python that train a row; [] for a model as it is."""
    row = self.sweep.rows[name]
    if not row.config:
      return []
    variant = f":{self.sweep.variant}" if self.sweep.variant else ""
    changes = [f"--config.{key}={value}" for key, value in row.changes.items()]
    return [
      *("-m", TRAIN, f"--config={row.config}{variant}"),
      *(f"--workdir={self.workdir(name)}", *self.overrides, *changes),
    ]

  def targets(self, name: str) -> Sequence[int]:
    """NTK targets that a row is tried at: none where it has its own rope."""
    own = "rope.kind" in self.sweep.rows[name].evaluate
    return () if own else self.sweep.targets

  def target_scores(self, name: str) -> dict[int, float]:
    """NTK target → mean log p of what `choose` asks, as far as it was asked."""
    scores = {}
    for target in self.targets(name):
      path = self.evaluation(name, f"{CHOOSE}@{target}") / "results.json"
      if path.exists():
        by_length = files.read_json(path)["summary"]["log_p"]
        scores[target] = float(np.mean([cell["mean"] for cell in by_length.values()]))
    return scores

  def target(self, name: str) -> int | None:
    """The row's NTK target, given or chosen; None without, or before all were tried."""
    if given := self.sweep.rows[name].evaluate.get("rope.target_length"):
      return int(given)
    scores = self.target_scores(name)
    if not scores or len(scores) < len(self.targets(name)):
      return None
    return max(scores, key=lambda target: (scores[target], -target))

  def evaluate_command(
    self, name: str, evaluation: str, target: int | None = None
  ) -> list[str]:
    """Arguments of Python that evaluate a row; `target` is of its NTK rope."""
    row = self.sweep.rows[name]
    known = self.sweep.evaluations | {f"{CHOOSE}@{target}": self.sweep.choose}
    scaled = {"rope.kind": "ntk", "rope.target_length": target} if target else {}
    options = {
      **known[evaluation],
      **scaled,
      **row.evaluate,
      **self.options.get(evaluation, {}),
    }
    task = str(options.pop("task"))
    return [
      *("-m", EVALUATE, task, f"--model={row.model or self.workdir(name)}"),
      f"--out={self.evaluation(name, evaluation)}",
      *(f"--{key}={value}" for key, value in options.items()),
    ]

  def todo(self, name: str) -> Iterator[list[str]]:
    """Commands that a row still needs, each made when those before it have run.

    A row whose evaluations are all there needs none, even if its workdir is gone.
    """
    if self.sweep.evaluations and all(
      self.is_evaluated(name, evaluation) for evaluation in self.sweep.evaluations
    ):
      return
    if self.sweep.rows[name].config and not self.is_trained(name):
      yield self.train_command(name)
    for target in self.targets(name):
      if not self.is_evaluated(name, f"{CHOOSE}@{target}"):
        yield self.evaluate_command(name, f"{CHOOSE}@{target}", target)
    target = self.target(name)
    if self.targets(name) and target is None:
      return  # a target could not be tried
    for evaluation in self.sweep.evaluations:
      if not self.is_evaluated(name, evaluation):
        yield self.evaluate_command(name, evaluation, target)

  def is_trained(self, name: str) -> bool:
    """Whether the last step of a row's training is saved."""
    done, steps = self.progress(name)
    return steps is not None and done >= steps

  def last_metrics(self, name: str) -> dict[str, Any]:
    """What a row's metrics.jsonl says last of each number; {} before its training."""
    path = self.workdir(name) / "metrics.jsonl"
    last: dict[str, Any] = {}
    for record in metrics.read(path) if path.exists() else ():
      last |= record
    return last

  def is_evaluated(self, name: str, evaluation: str) -> bool:
    """Whether an evaluation of a row is finished."""
    return (self.evaluation(name, evaluation) / "results.json").exists()

  def progress(self, name: str) -> tuple[int, int | None]:
    """Steps saved, and steps of the run; None if it never started."""
    saved = native.steps(self.workdir(name))
    return (saved[-1] if saved else 0), workdir.read_steps(self.workdir(name))

  def status(self, name: str) -> str:
    """How far a row has come, in a few words."""
    row = self.sweep.rows[name]
    parts = []
    if row.config:
      done, steps = self.progress(name)
      if steps is None:
        parts.append("not started")
      else:
        parts.append("trained" if done >= steps else f"step {done} of {steps}")
    count = len(self.sweep.evaluations)
    evaluated = sum(self.is_evaluated(name, e) for e in self.sweep.evaluations)
    if next(self.todo(name), None) is None:
      return "done"
    if evaluated or not row.config:
      parts.append(f"{evaluated} of {count} evaluated")
    return ", ".join(parts)

  def check(self, name: str) -> config_lib.ConfigDict | None:
    """The row's config; None for a model as it is.

    Raises:
      UserError: it has a key that no config has, or keys that contradict each other;
        or its workdir was trained before the row was changed.
    """
    command = self.train_command(name)
    if not command:
      return None
    usage = "rows change keys of their config"
    arguments = [arg for arg in command[2:] if not arg.startswith("--workdir=")]
    config, _ = cli.parse(["sweep", *arguments], usage)
    resolve.check(config)
    folder = self.workdir(name)
    if native.is_workdir(folder):
      trained = native.read_config(folder).config or {}
      for key, value in self.sweep.rows[name].changes.items():
        if (found := _value(trained, key)) != value:
          raise errors.UserError(
            f"{folder} was trained with {key}={found}, the row says {value}; remove it "
            "or use another --out"
          )
    return config


def _value(tree: Mapping[str, Any], key: str) -> Any:
  """The value of a dotted key; None if it is not there."""
  return functools.reduce(
    lambda tree, part: (tree or {}).get(part), key.split("."), tree
  )


def describe(values: Mapping[str, Any]) -> str:
  """ "positions.strategy=skip_all data.seq_len=16384"."""
  return " ".join(f"{key}={value}" for key, value in values.items())

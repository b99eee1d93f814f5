"""A sweep: the table of runs that a sweep file describes.

A run is a config with changes, or a model that is evaluated as it is. `plan` says what
commands it needs, and where its results are.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from skipalign_jax.runtime import config_files, errors, python_files

Value = str | int | float | bool
CHOOSE = "choose"  # name of the evaluation that decides on a run's NTK target


@dataclasses.dataclass(frozen=True)
class Run:
  """One model of a table.

  Attributes:
    config: file that its training starts from, without a variant; "" for none.
    changes: keys of that config → values, as after --config.
    model: reference of a model that is not trained; "" where `config` is given.
    evaluate: options of `evaluate` that only this run has.
    paper: column → the number that the paper prints.
    point: L and p, for runs that are points of a figure.
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
  """Runs, and the evaluations of each.

  Attributes:
    title: of its tables.
    runs: name → run, in the table's order.
    evaluations: name → options of `evaluate`, "task" among them.
    out: folder, unless the command names one.
    variant: of the runs' configs.
    targets: NTK targets, in positions, that each run is evaluated at; () for none.
    choose: options of the evaluation that decides, by `log_p` over all its lengths.
    window: of the models, tokens.
    claimed: lengths, tokens, whose keys decide about `pairs`.
    pairs: runs whose differences are of interest.
  """

  title: str
  runs: Mapping[str, Run]
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
# A text that every installation has.
TEXT = str(config_files.folder() / "methods.py")
# The byte-level models of :tiny are evaluated with these, which only try the path.
TINY = {
  "perplexity": dict(task="perplexity", files=TEXT, length=256, documents=2),
  "needle": dict(task="needle", lengths="384,512", depths=2, max_new_tokens=8),
}


def sweep(
  title: str,
  table: Mapping[str, Run],
  evaluations: Mapping[str, Mapping[str, Value]],
  variant: str,
  folder: str = "paper",
) -> Sweep:
  """A sweep with a tiny variant, which has the runs that are trained.

  Args:
    title: of its tables.
    table: name → run.
    evaluations: see `Sweep`; tiny models get their own.
    variant: "" or "tiny".
    folder: in runs/; sweeps of one folder share runs of the same name.

  Raises:
    UserError: another variant.
  """
  if variant == "tiny":
    trained = {name: run for name, run in table.items() if run.config}
    return Sweep(f"{title} (tiny)", trained, TINY, f"runs/{folder}_tiny", variant)
  if variant:
    raise errors.UserError(f"unknown sweep variant {variant!r}; known: tiny")
  return Sweep(title, table, evaluations, f"runs/{folder}")


def load(argument: str) -> Sweep:
  """The sweep of `--config=FILE[:variant]`, by the file's get_sweep(variant).

  Raises:
    UserError: there is no such file, or it is not a sweep.
  """
  file, _, variant = argument.partition(":")
  path = config_files.find(file, "get_sweep")
  sweep = python_files.call(path, "get_sweep", variant)
  if not isinstance(sweep, Sweep):
    raise errors.UserError(
      f"--config: get_sweep() of {path} returns {type(sweep).__name__}, not a Sweep "
      "(skipalign_jax/sweep/runs.py)"
    )
  slugs: dict[str, str] = {}
  for name in sweep.runs:
    other = slugs.setdefault(slug(name), name)
    if other != name:
      raise errors.UserError(f"{path}: {other!r} and {name!r} would share a folder")
  return sweep


def select(sweep: Sweep, names: Sequence[str]) -> Sweep:
  """The sweep with some of its runs, named as their folders.

  Raises:
    UserError: there is no such run.
  """
  known = {slug(name): name for name in sweep.runs}
  if unknown := [name for name in names if name not in known]:
    raise errors.UserError(
      f"--rows: there is no run {unknown[0]!r}; there are {', '.join(known)}"
    )
  chosen = {known[name] for name in names}
  kept = {name: run for name, run in sweep.runs.items() if name in chosen}
  return dataclasses.replace(sweep, runs=kept)


def slug(name: str) -> str:
  """A run's name as a folder: "Yi-6B + SkipAlign" → "yi-6b_skipalign"."""
  return re.sub(r"[^a-z0-9.=-]+", "_", name.lower()).strip("_")


def describe(values: Mapping[str, Any]) -> str:
  """ "positions.strategy=skip_all data.seq_len=16384"."""
  return " ".join(f"{key}={value}" for key, value in values.items())

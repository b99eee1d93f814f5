"""Units of the study: a row and a seed, trained, asked and written down.

A unit's weights are in OUT and do not survive a machine; its results are JSON files in
RESULTS, one per set of texts, that name machine, commit and seconds. A unit without all
of its files is made; training and evaluations that were stopped resume.
"""

import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import facts
from skipalign_jax.hf import native
from skipalign_jax.runtime import errors, files, json_limits
from skipalign_jax.sweep import runs
from skipalign_jax.training import metrics, workdir
from studies.smollm2_far import plan

TRAIN, EVALUATE = "skipalign_jax.train", "skipalign_jax.evaluate"
MISALIGNMENT = {"source": plan.VALIDATION, "lengths": "2048", "samples": 8, "seed": 41}
KEPT = ("id", "tokens", "length", "depths", "kinds", *facts.SCORES)  # of a text
# (arguments of Python) → exit status, and 128 + its number after a signal.
Call = Callable[[list[str]], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Unit:
  """One row and seed of an arm.

  Attributes:
    folder: of its arm, in OUT and RESULTS.
    row: its name.
    seed: of its training; None for the model as it is.
    arm: how it is trained and asked.
  """

  folder: str
  row: str
  seed: int | None
  arm: plan.Arm

  @property
  def name(self) -> str:
    """Unique in the study."""
    seed = "" if self.seed is None else f"_s{self.seed}"
    return f"{self.folder}/{runs.slug(self.row)}{seed}"


class Failed(Exception):  # noqa: N818 (an exit status)
  """A command of a unit failed or was stopped by a signal; has the exit status."""


@dataclasses.dataclass(frozen=True)
class Study:
  """The folders of a study.

  Attributes:
    out: for weights and evaluations.
    results: for JSON files.
    tiny: runs all code, with models that learn nothing.
  """

  out: pathlib.Path = pathlib.Path("runs/smollm2_far")
  results: pathlib.Path = pathlib.Path("studies/smollm2_far/results")
  tiny: bool = False

  def result(self, unit: Unit, which: str) -> pathlib.Path:
    """The JSON file of a unit's near or far texts."""
    return self.results / f"{unit.name}_{which}.json"

  def is_done(self, unit: Unit) -> bool:
    """Whether all its files are there."""
    return all(self.result(unit, which).exists() for which in unit.arm.texts)

  def workdir(self, unit: Unit) -> pathlib.Path:
    """Of its training."""
    return self.out / "rows" / unit.name

  def is_trained(self, unit: Unit) -> bool:
    """Whether the last step of its training is saved."""
    folder = self.workdir(unit)
    saved, steps = native.steps(folder), workdir.read_steps(folder)
    return bool(saved) and steps is not None and saved[-1] >= steps

  def evaluation(self, unit: Unit, name: str) -> pathlib.Path:
    """The folder of one of its evaluations."""
    return self.out / "evals" / unit.name / name

  def train_command(self, unit: Unit) -> list[str]:
    """Arguments of Python that train it."""
    row, arm = unit.arm.rows[unit.row], unit.arm
    changes = plan.COMMON | arm.rope | row.changes
    changes |= {"positions.max_position": arm.max_position, "seed": unit.seed}
    if self.tiny:  # the tiny config has its own data, sizes and steps
      ours = ("positions", "seed", "long_short", "distill")
      changes = {k: v for k, v in changes.items() if k.split(".")[0] in ours}
    return [
      *("-m", TRAIN, f"--config={plan.CONFIG}{':tiny' * self.tiny}"),
      f"--workdir={self.workdir(unit)}",
      *(f"--config.{key}={value}" for key, value in changes.items()),
    ]

  def evaluate_command(self, unit: Unit, name: str) -> list[str]:
    """Arguments of Python that read its near or far texts, or its misalignment."""
    if name in unit.arm.texts:
      task, options = "facts", unit.arm.texts[name].options()
      tiny = {"lengths": 3000, "samples": 2, "keys": 2}
    else:
      task, options = "misalignment", MISALIGNMENT
      tiny = {"source": "builtin:recall:8", "lengths": 64, "samples": 1}
    if self.tiny:
      options = {k: v for k, v in (options | tiny).items() if k != "haystack"}
    if unit.seed is None:
      model, more = plan.WEIGHTS, dict(unit.arm.rope)
    else:
      model, more = str(self.workdir(unit)), {"template": "tulu"}
    return [
      *("-m", EVALUATE, task, f"--model={model}"),
      f"--out={self.evaluation(unit, name)}",
      *(f"--{key}={value}" for key, value in (more | options).items()),
    ]

  def evaluations(self, unit: Unit) -> Sequence[str]:
    """The names of its evaluations, in order."""
    return (*unit.arm.texts, *(() if unit.seed is None else ("misalignment",)))


def of_arm(folder: str, arm: plan.Arm, planned: bool | None = None) -> list[Unit]:
  """The units of an arm, seed by seed.

  Args:
    folder: of the arm.
    arm: with its rows.
    planned: only primary (True) or exploratory rows (False).
  """
  rows = {n: r for n, r in arm.rows.items() if planned in (None, r.planned)}
  seeds = sorted({seed for row in rows.values() for seed in row.seeds})
  untrained = [Unit(folder, name, None, arm) for name, r in rows.items() if not r.seeds]
  return untrained + [
    Unit(folder, name, seed, arm)
    for seed in seeds
    for name, row in rows.items()
    if seed in row.seeds
  ]


def beyond(target: int) -> str:
  """The folder of the second arm at a target."""
  return f"{plan.ARM_2}_{target}"


def of_gate() -> list[Unit]:
  """The gate's units."""
  found = of_arm("gate_base", plan.BASE_GATE)
  for target in plan.TARGETS:
    found += of_arm(f"gate_{target}", plan.gate(target))
  return found


def of_study(decided: plan.Decided) -> list[Unit]:
  """All other units: the primary rows of both arms, then the exploratory ones."""
  arms = [(plan.ARM_1, plan.INSIDE)]
  arms += [(beyond(t), plan.beyond(decided, t)) for t in decided.targets]
  return [
    unit
    for planned in (True, False)
    for folder, arm in arms
    for unit in of_arm(folder, arm, planned)
  ]


def make(study: Study, unit: Unit, call: Call) -> list[pathlib.Path]:
  """Makes what a unit lacks, then writes its files.

  Returns:
    The files.

  Raises:
    Failed: a command failed, or a signal came.
    UserError: the results cannot be written.
  """
  clock = study.out / "seconds" / f"{unit.name}.json"
  for name, command in _steps(study, unit):
    begin = time.monotonic()
    status, stopped = call([sys.executable, *command])
    seconds = files.read_json(clock) if clock.exists() else {}
    seconds[name] = round(seconds.get(name, 0) + time.monotonic() - begin, 1)
    clock.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(clock, seconds)
    if status or stopped:
      raise Failed(stopped or status)
  seconds = files.read_json(clock) if clock.exists() else {}
  paths = []
  for which in unit.arm.texts:
    path = study.result(unit, which)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = record(study, unit, which, seconds)
    lines = {k: json.dumps(v) for k, v in content.items() if k != "texts"}
    texts = ",\n".join(map(json.dumps, content["texts"]))
    body = ",\n".join(f'"{key}": {value}' for key, value in lines.items())
    files.write_text(path, f'{{\n{body},\n"texts": [\n{texts}\n]\n}}\n')
    paths.append(path)
  return paths


def _steps(study: Study, unit: Unit) -> Iterator[tuple[str, list[str]]]:
  """Names and commands of what a unit lacks."""
  done = lambda name: (study.evaluation(unit, name) / "results.json").exists()
  missing = [name for name in study.evaluations(unit) if not done(name)]
  if unit.seed is not None and missing and not study.is_trained(unit):
    yield "train", study.train_command(unit)
  for name in missing:
    yield name, study.evaluate_command(unit, name)


def record(study: Study, unit: Unit, which: str, seconds: dict) -> dict[str, Any]:
  """The content of a unit's file."""
  read = lambda name: files.read_json(
    study.evaluation(unit, name) / "results.json", json_limits.MAX_RESULT_VALUES
  )
  results = read(which)
  found = {
    "arm": unit.folder,
    "row": unit.row,
    "seed": unit.seed,
    "texts_are": which,
    "length": unit.arm.texts[which].length,
    "machine": machine(),
    "commit": commit(),
    "seconds": seconds,
    "protocol": results["protocol"],
    "summary": results["summary"],
  }
  if unit.seed is not None:
    path = study.workdir(unit) / "metrics.jsonl"
    for one in metrics.read(path) if path.exists() else ():
      found |= {k: one[k] for k in ("eval_loss", "loss") if k in one}
  if "misalignment" in study.evaluations(unit):
    summary = read("misalignment")["summary"]
    found["misalignment"] = {k: summary[k]["mean"] for k in ("sce", "symmetric_kl")}
  by_text = facts.of_texts(results["items"])
  found["texts"] = [
    {key: item[key] for key in KEPT}
    | {"answers": [values[0] for values in item["values"]]}
    | {"owner_margin": round(one["owner_margin"], 4), "found": item["found"]}
    for item, one in zip(results["items"], by_text, strict=True)
  ]
  return found


@functools.cache
def machine() -> dict[str, Any]:
  """The processor and its cores."""
  path = pathlib.Path("/proc/cpuinfo")
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  named = (x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
  return {"processor": next(named, platform.processor()), "cores": cores}


@functools.cache
def commit() -> str:
  """The commit of the code, or "" outside of git."""
  found = subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
  )
  return found.stdout.strip()


def minutes(study: Study, units: Sequence[Unit]) -> dict[str, float]:
  """How long a unit of each arm takes, minutes: by those made on this machine.

  An arm of which there is none takes what the plan says, times how much slower than
  planned other arms are here.
  """
  by_folder: dict[str, list[float]] = {}
  ratios = []
  for unit in units:
    if unit.seed is not None and study.is_done(unit):
      content = files.read_json(study.result(unit, plan.FAR))
      if content["machine"] == machine() and content["seconds"]:
        took = sum(content["seconds"].values()) / 60
        by_folder.setdefault(unit.folder, []).append(took)
        ratios.append(took / unit.arm.minutes)
  slower = float(np.median(ratios)) if ratios else 1.0
  return {
    unit.folder: statistics.median(by_folder[unit.folder])
    if unit.folder in by_folder
    else slower * unit.arm.minutes
    for unit in units
  }


def status(study: Study, units: Sequence[Unit]) -> list[str]:
  """What is done, and how long the rest takes; a line per arm, and what is missing."""
  per_unit = minutes(study, units)
  lines, total = [], 0.0
  for folder, each in per_unit.items():
    ours = [unit for unit in units if unit.folder == folder]
    missing = [unit for unit in ours if not study.is_done(unit)]
    hours = len(missing) * each / 60
    total += hours
    lines.append(
      f"{folder}: {len(ours) - len(missing)} of {len(ours)} units are done; "
      f"{each:.0f} minutes each, {hours:.1f} hours for the rest"
    )
    if missing:
      lines.append("  missing: " + ", ".join(u.name.split("/")[1] for u in missing))
    if missing and each > plan.UNIT_MINUTES:
      lines.append(
        f"  NOTE: on this machine a unit takes more than {plan.UNIT_MINUTES} minutes; "
        "one that is stopped resumes here, not on another machine"
      )
  return [*lines, f"{total:.1f} hours in all"]


def check_data() -> None:
  """Raises UserError if a file that the study needs is not there."""
  for path in (plan.WEIGHTS, plan.CHATS, plan.TEST, plan.OTHER, plan.VALIDATION):
    if not pathlib.Path(path).exists():
      raise errors.UserError(
        f"{path} is missing; `make weights` makes the weights, and "
        "studies/smollm2/study_a.py says what the other files are"
      )

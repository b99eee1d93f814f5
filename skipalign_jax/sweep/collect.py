"""A sweep's results in the paper's tables, next to the paper's numbers.

Reads results.json of the evaluations and metrics.jsonl of the trainings; writes
Markdown, JSON, CSV and, for sweeps whose runs are points, curves over L and p.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from skipalign_jax.evals import compare, compare_table, curves
from skipalign_jax.hf import native
from skipalign_jax.runtime import errors, escape, files, plotting, storage, terminal
from skipalign_jax.sweep import plan as plan_lib
from skipalign_jax.sweep import retrieval, retrieval_tables

TRAINING = ("steps", "loss", "held-out loss")


def run(plan: plan_lib.Plan, stem: str, console: terminal.Console) -> None:
  """Prints the tables, and writes OUT/STEM.md, .json, .csv and .png.

  Raises:
    UserError: there are no results yet, one is damaged, or OUT cannot be written.
  """
  names, refused = usable(plan)
  tables, missing = gather(plan, names)
  missing = refused + missing
  keys = retrieval.gather(plan, names) if plan.sweep.targets else None
  if not tables and not (keys and keys["rows"]):
    raise errors.UserError(f"{plan.out} has no results of this sweep yet; use --run")
  title = f"## {escape.markdown(plan.sweep.title)}"
  text = "\n\n".join([title, *map(compare_table.markdown, tables)])
  if keys:
    text += "\n\n" + retrieval_tables.markdown(keys)
  if missing:
    text += "\n\nMissing: " + "; ".join(map(escape.markdown, missing))
  if others := other_options(plan, names):
    text += "\n\nNot as the sweep says: " + "; ".join(map(escape.markdown, others))
  console.print_markdown(text)
  content = {
    "title": plan.sweep.title,
    "tables": [compare_table.as_json(table) for table in tables],
    "missing": missing,
    "other_options": others,
    "points": points(plan, names),
    **({"keys": retrieval.without_items(keys)} if keys else {}),
  }
  path = lambda ending: plan.out / f"{stem}{ending}"
  written = [".md", ".json", ".csv"]
  try:
    files.write_text(path(".md"), text + "\n")
    files.write_json(path(".json"), content)
    write_csv(content, path(".csv"))
    there = [p for p in content["points"] if p["score"] is not None and p["at"]]
    if there and plotting.possible(console, path(".png")):
      draw(content, path(".png"))
      written.append(".png")
    if keys and keys["rows"] and plotting.possible(console, path("_keys.png")):
      retrieval.draw(keys, path("_keys.png"))
      written.append("_keys.png")
  except OSError as error:
    raise errors.UserError(
      f"--out={plan.out} cannot be written: {storage.explain(error)}"
    ) from error
  console.print(
    f"\nwritten to {plan.out}: {', '.join(stem + ending for ending in written)}"
  )


def usable(plan: plan_lib.Plan) -> tuple[list[str], list[str]]:
  """Runs whose results can be used, and why the others are left out."""
  names, refused = [], []
  for name in plan.sweep.runs:
    try:
      plan.config(name)
      names.append(name)
    except errors.UserError as error:
      refused.append(f"{name} ({str(error).splitlines()[0]})")
  return names, refused


def gather(
  plan: plan_lib.Plan, names: Sequence[str]
) -> tuple[list[compare_table.Table], list[str]]:
  """All tables that have rows, and the evaluations, or whole runs, that are missing."""
  found, trained, missing = [], [], []
  for name in names:
    lacks = []
    for evaluation, options in plan.sweep.evaluations.items():
      if not plan.is_evaluated(name, evaluation):
        lacks.append(evaluation)
      elif not (plan.sweep.targets and options["task"] in retrieval.TASKS):
        found.append(_results(plan, name, evaluation))
    if len(lacks) == len(plan.sweep.evaluations):
      missing.append(name)
    elif lacks:
      missing.append(f"{name} ({', '.join(lacks)})")
    if plan.sweep.runs[name].config and (cells := training_cells(plan, name)):
      trained.append((_results_of_training(plan, name), cells))
  tables = compare.tables(found)
  if trained:
    table = compare_table.join("Training", TRAINING, trained, ".4g")
    tables.append(
      dataclasses.replace(table, notes=table.notes + overrides(plan, names))
    )
  printed = {n: run.paper for n, run in plan.sweep.runs.items() if run.paper}
  if tables and printed:
    columns = list(dict.fromkeys(c for cells in printed.values() for c in cells))
    tables.append(
      compare_table.Table(
        title="As the paper prints them",
        columns=columns,
        rows=[
          compare_table.Row(
            name,
            (name, ""),
            {c: compare_table.Cell(v, c) for c, v in cells.items()},
            [],
          )
          for name, cells in printed.items()
        ],
        notes=[],
        form=".1f",
      )
    )
  return tables, missing


def overrides(plan: plan_lib.Plan, names: Sequence[str]) -> list[str]:
  """Notes on keys of the config that not all runs were trained with alike."""
  trained = [name for name in names if native.is_workdir(plan.workdir(name))]
  found = {name: plan.differences(name, plan.config(name)) for name in trained}
  if len(set(map(tuple, found.values()))) < 2:
    return []
  return [f"{name}: {'; '.join(lines)}" for name, lines in found.items() if lines]


def other_options(plan: plan_lib.Plan, names: Sequence[str]) -> list[str]:
  """Options of evaluations that are not those of the sweep, and the runs with them."""
  found: dict[str, list[str]] = {}
  for name in names:
    for evaluation in plan.sweep.evaluations:
      if plan.is_evaluated(name, evaluation):
        for key, before, now in plan.other_options(name, evaluation):
          what = f"{evaluation} with --{key}={before}, not {now}"
          found.setdefault(what, []).append(name)
  return [f"{what} ({', '.join(runs)})" for what, runs in found.items()]


def _results(plan: plan_lib.Plan, name: str, evaluation: str) -> compare_table.Results:
  """An evaluation under its run's name."""
  one = compare.read(str(plan.evaluation(name, evaluation)))
  return dataclasses.replace(one, protocol=one.protocol | {"model": name})


def _results_of_training(plan: plan_lib.Plan, name: str) -> compare_table.Results:
  return compare_table.Results(
    plan.workdir(name), {"task": "train", "model": name, "options": {}}, {}, [], []
  )


def training_cells(plan: plan_lib.Plan, name: str) -> dict[str, compare_table.Cell]:
  """The last numbers of metrics.jsonl; those of an unfinished run are marked."""
  last = plan.last_metrics(name)
  if not last:
    return {}
  _, steps = plan.progress(name)
  done = last.get("step") == steps
  partial = "" if done else f"step {last.get('step')} of {steps}"
  keys = {"steps": "step", "loss": "loss", "held-out loss": "eval_loss"}
  return {
    column: compare_table.Cell(last[key], column, partial)
    for column, key in keys.items()
    if isinstance(last.get(key), int | float)
  }


def points(plan: plan_lib.Plan, names: Sequence[str]) -> list[dict[str, Any]]:
  """A score per run: its first evaluation's headline; None if it is not there."""
  has_points = any(run.point for run in plan.sweep.runs.values())
  if not plan.sweep.evaluations or not has_points:
    return []
  first = next(iter(plan.sweep.evaluations))
  found = []
  for name in names:
    column, score = "", None
    if plan.is_evaluated(name, first):
      cells = compare.headline(_results(plan, name, first))
      column, score = next(((c, cell.value) for c, cell in cells.items()), ("", None))
    found.append(
      {"row": name, "at": plan.sweep.runs[name].point, "score": score, "what": column}
    )
  return found


def write_csv(content: dict[str, Any], path: pathlib.Path) -> None:
  """A line per number: table, row, column, value, and why it is partial."""
  with (
    files.replacing(path) as new,
    new.open("w", encoding="utf-8", newline="") as file,
  ):
    writer = csv.writer(file)
    writer.writerow(["table", "row", "column", "value", "partial"])
    for table in content["tables"]:
      for row in table["rows"]:
        for column, cell in row["cells"].items():
          writer.writerow(
            [table["title"], row["model"], column, cell["value"], cell["partial"]]
          )


def draw(content: dict[str, Any], path: pathlib.Path) -> pathlib.Path:
  """Scores over L for each p and over p for each L; runs without them as levels."""
  from matplotlib import figure as figure_lib  # slow to load

  there = [p for p in content["points"] if p["score"] is not None]
  at = [p for p in there if p["at"]]
  figure = figure_lib.Figure(figsize=(9, 3.6), layout="tight")
  axes = figure.subplots(1, 2, sharey=True)
  panels = (("L, positions", 0, "p"), ("p, share of blocks that skip", 1, "L"))
  for axis, (label, x, name) in zip(axes, panels, strict=True):
    for i, value in enumerate(sorted({p["at"][1 - x] for p in at})):
      line = sorted((p["at"][x], p["score"]) for p in at if p["at"][1 - x] == value)
      axis.plot(
        *zip(*line, strict=True),
        color=curves.COLORS[i % len(curves.COLORS)],
        marker=curves.MARKERS[i % len(curves.MARKERS)],
        label=f"{name} = {value:,g}",
      )
    for i, level in enumerate(p for p in there if not p["at"]):
      axis.axhline(level["score"], color="black", linewidth=1, label=level["row"],
                   linestyle=("--", ":", "-.")[i % 3])  # fmt: skip
    ticks = sorted({p["at"][x] for p in at})
    axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.set_xlabel(label)
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.legend(fontsize=7)
  axes[0].set_ylabel(at[0]["what"])
  figure.suptitle(content["title"], fontsize=9)
  plotting.save(figure, path, dpi=130)
  return path

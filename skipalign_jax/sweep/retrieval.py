"""What runs retrieve at their own NTK targets, and paired differences.

For sweeps with `targets`. Their evaluations of the task "keys" prompt every run for the
same keys; those with rivals also record whose key is the likeliest. The task "needle"
prompts for the only key of a text. "misalignment" and the held-out loss are correlated
with the keys found.
"""

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import heatmap, intervals, keys
from skipalign_jax.runtime import files, json_limits
from skipalign_jax.sweep import plan as plan_lib
from skipalign_jax.sweep import retrieval_tables

MISALIGNMENT = {"SCE": "sce", "symmetric KL": "symmetric_kl"}  # name → key
TASKS = ("keys", "needle")  # the tasks whose results are shown here
Found = retrieval_tables.Found


def gather(plan: plan_lib.Plan, names: Sequence[str]) -> Found:
  """Results of the runs, and differences of the sweep's pairs, as JSON.

  Evaluations in the haystack of the sweep's first keys are taken together; those in
  another one are separate, in `others`: their names → runs and pairs.

  Args:
    plan: the sweep in its folder.
    names: runs whose results are usable.
  """
  found, others = {}, {}
  first, *further = _by_haystack(plan) or [[]]
  for name in names:
    if answers := _answers(plan, name, first):
      found[name] = answers | {
        "target": plan.target(name),
        "log_p_by_target": {str(t): x for t, x in plan.target_scores(name).items()},
        "needles": [
          {
            "length": item["length"],
            "text": item["id"].rpartition("/")[0],  # samples share it, but for the key
            "key": item["answer"],
            "score": item["score"],
          }
          for item in _items(plan, name, _of_task(plan, "needle"))
        ],
      }
      path = plan.evaluation(name, "misalignment") / "results.json"
      if path.exists():
        summary = files.read_json(path, json_limits.MAX_RESULT_VALUES)["summary"]
        found[name] |= {key: summary[key]["mean"] for key in MISALIGNMENT.values()}
      if "eval_loss" in (last := plan.last_metrics(name)):
        found[name]["held_out_loss"] = last["eval_loss"]
  for evaluations in further:
    there = {name: _answers(plan, name, evaluations) for name in names}
    there = {name: run | {"needles": []} for name, run in there.items() if run}
    if there:
      others[", ".join(evaluations)] = {"rows": there, "pairs": _pairs(plan, there)}
  claimed = plan.sweep.claimed
  return {
    "window": plan.sweep.window,
    "claimed": claimed,
    "rows": found,
    "pairs": _pairs(plan, found),
    "others": others,
    "correlation": _correlations(plan, found),
  }


def without_items(content: Found) -> Found:
  """The content of `gather` without the items of the evaluations' own results."""
  items = ("cells", "whose", "needles")
  short = {
    name: {key: value for key, value in run.items() if key not in items}
    for name, run in content["rows"].items()
  }
  others = {name: {"pairs": x["pairs"]} for name, x in content["others"].items()}
  return content | {"rows": short, "others": others}


def _of_task(plan: plan_lib.Plan, task: str) -> list[str]:
  """The sweep's evaluations of a task."""
  return [name for name, opts in plan.sweep.evaluations.items() if opts["task"] == task]


def _by_haystack(plan: plan_lib.Plan) -> list[list[str]]:
  """The evaluations of the task "keys", those in the same haystack together."""
  together: dict[Any, list[str]] = {}
  for name in _of_task(plan, "keys"):
    options = {**plan.sweep.evaluations[name], **plan.options.get(name, {})}
    together.setdefault(options.get("haystack"), []).append(name)
  return list(together.values())


def _answers(plan: plan_lib.Plan, name: str, evaluations: Sequence[str]) -> Found:
  """A run's results in these evaluations of the task "keys"; {} before any."""
  texts = _items(plan, name, evaluations)
  return {"cells": keys.cells(texts), "whose": keys.whose(texts)} if texts else {}


def _items(
  plan: plan_lib.Plan, name: str, evaluations: Sequence[str]
) -> list[dict[str, Any]]:
  """The items of those of a run's evaluations that have ended."""
  return [
    item
    for evaluation in evaluations
    if plan.is_evaluated(name, evaluation)
    for item in _results(plan, name, evaluation)["items"]
  ]


def _results(plan: plan_lib.Plan, name: str, evaluation: str) -> dict[str, Any]:
  return files.read_json(
    plan.evaluation(name, evaluation) / "results.json", json_limits.MAX_RESULT_VALUES
  )


def _pairs(plan: plan_lib.Plan, found: Found) -> list[Found]:
  """Differences of the sweep's pairs, where both runs have results."""
  return [
    {"rows": [one, other], **differences}
    for one, other in plan.sweep.pairs
    if one in found and other in found
    if (differences := difference(found[one], found[other], plan.sweep.claimed))
  ]


def _correlations(plan: plan_lib.Plan, found: Found) -> Found:
  """Rank correlations with the keys that runs find: measure → `correlation`.

  Losses are compared only between runs that hold out the same dialogues: those with the
  most common settings of data.
  """
  changes = lambda name: plan.sweep.runs[name].changes.items()
  data = {
    name: tuple(sorted((k, v) for k, v in changes(name) if k.startswith("data.")))
    for name, run in found.items()
    if "held_out_loss" in run
  }
  common = statistics.mode(data.values()) if data else ()
  alike = [found[name] for name, settings in data.items() if settings == common]
  claimed = plan.sweep.claimed
  ranks = {
    measure: correlation(list(found.values()), key, claimed)
    for measure, key in MISALIGNMENT.items()
  } | {
    f"{measure}, same data": correlation(alike, key, claimed)
    for measure, key in (MISALIGNMENT | {"held-out loss": "held_out_loss"}).items()
  }
  return {measure: rank for measure, rank in ranks.items() if rank}


def correlation(
  found: Sequence[Found], measure: str, lengths: Sequence[int]
) -> Found | None:
  """Spearman's rank correlation, over runs, of a measure with keys at these lengths.

  None with fewer than four runs, or where all have the same value.
  """
  from scipy import stats  # slow to load

  cells = lambda run: [c for c in run["cells"] if c["length"] in lengths]
  measured = [run for run in found if measure in run and cells(run)]
  if len(measured) < 4:
    return None
  x = [run[measure] for run in measured]
  ranks: Found = {"rows": len(measured)}
  for what in ("score", "log_p"):
    y = [np.mean([c[what] for c in cells(run)]) for run in measured]
    if len(set(x)) == 1 or len(set(y)) == 1:
      return None
    ranks[what] = float(stats.spearmanr(x, y).statistic)
  return ranks


def difference(one: Found, other: Found, lengths: Sequence[int]) -> dict[str, Any]:
  """one − other at these lengths together, paired by key.

  Keys that only one of them was prompted for are left out. Intervals are over texts:
  the keys of one text are not independent.

  Returns:
    score (share found), log_p in nats, and any_key and own_key of `keys.whose`, each
    as of `intervals.of_values`, n texts; needles: at how many places of a text, of `n`,
    `one` and `other` found more, and the two-sided p of the sign test.
    Each where both runs have results; nothing without such keys.
  """
  from scipy import stats  # slow to load

  found: dict[str, Any] = {}
  for cells, what in (
    ("cells", "score"),
    ("cells", "log_p"),
    ("whose", "any_key"),
    ("whose", "own_key"),
  ):
    if by_text := _gains(one[cells], other[cells], what, lengths):
      found[what] = intervals.of_values([np.mean(gains) for gains in by_text.values()])
  by_text = _gains(one["needles"], other["needles"], "score", lengths)
  if gains := [float(np.mean(gains)) for gains in by_text.values()]:
    won, lost = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    p = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    found["needles"] = {"one": won, "other": lost, "n": len(gains), "p": float(p)}
  return found


def _gains(
  ours: Sequence[dict[str, Any]],
  theirs: Sequence[dict[str, Any]],
  what: str,
  lengths: Sequence[int],
) -> dict[str, list[float]]:
  """Text → ours − theirs, for each key at these lengths that both have."""
  a, b = (
    {(c["text"], c["key"]): c[what] for c in cells if c["length"] in lengths}
    for cells in (ours, theirs)
  )
  gains: dict[str, list[float]] = {}
  for (text, key), value in a.items():
    if (text, key) in b:
      gains.setdefault(text, []).append(value - b[text, key])
  return gains


def draw(content: Found, path: pathlib.Path) -> pathlib.Path:
  """A heat map per run, as SkipAlign's Figure 3, and the share at claimed lengths."""
  panels = []
  for name, run in content["rows"].items():
    title = f"{name}\n"
    title += f"NTK to {run['target']:,}" if run["target"] else "own rope"
    if found := retrieval_tables.share(run["cells"], content["claimed"]):
      title += f"; {found}"
    panels.append({"title": title, "window": content["window"], "cells": run["cells"]})
  return heatmap.draw(panels, path)

"""Rows that chose their NTK targets: which, what they found there, paired differences.

For sweeps with `targets`, whose evaluations of the task "keys" ask every row for the
same keys; those with rivals also say whose keys are taken. Beside them "needle" asks
for the only key of a text, and "misalignment" and the held-out loss are held against
what the rows find.
"""

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import heatmap, intervals, keys
from skipalign_jax.runtime import files
from skipalign_jax.sweep import chosen_tables, rows

MISALIGNMENT = {"SCE": "sce", "symmetric KL": "symmetric_kl"}  # as told, and its key
TASKS = ("keys", "needle")  # whose results are shown here
Found = chosen_tables.Found


def gather(plan: rows.Plan, names: Sequence[str]) -> Found:
  """Rows whose keys are asked, and differences of the sweep's pairs, as JSON.

  Evaluations in the haystack of the sweep's first keys are taken together; those in
  another one stand by themselves, in `others`: their names → rows and pairs.

  Args:
    plan: the sweep in its folder.
    names: rows whose results are theirs.
  """
  found, others = {}, {}
  first, *further = _by_haystack(plan) or [[]]
  for name in names:
    if asked := _asked(plan, name, first):
      found[name] = asked | {
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
        summary = files.read_json(path)["summary"]
        found[name] |= {key: summary[key]["mean"] for key in MISALIGNMENT.values()}
      if "eval_loss" in (last := plan.last_metrics(name)):
        found[name]["held_out_loss"] = last["eval_loss"]
  for evaluations in further:
    there = {name: _asked(plan, name, evaluations) for name in names}
    there = {name: row | {"needles": []} for name, row in there.items() if row}
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
  """Of `gather`'s what is not, item by item, in the evaluations' own results."""
  items = ("cells", "whose", "needles")
  short = {
    name: {key: value for key, value in row.items() if key not in items}
    for name, row in content["rows"].items()
  }
  others = {name: {"pairs": x["pairs"]} for name, x in content["others"].items()}
  return content | {"rows": short, "others": others}


def _of_task(plan: rows.Plan, task: str) -> list[str]:
  """The sweep's evaluations of a task."""
  return [name for name, opts in plan.sweep.evaluations.items() if opts["task"] == task]


def _by_haystack(plan: rows.Plan) -> list[list[str]]:
  """The evaluations of the task "keys", those in the same haystack together."""
  together: dict[Any, list[str]] = {}
  for name in _of_task(plan, "keys"):
    options = {**plan.sweep.evaluations[name], **plan.options.get(name, {})}
    together.setdefault(options.get("haystack"), []).append(name)
  return list(together.values())


def _asked(plan: rows.Plan, name: str, evaluations: Sequence[str]) -> Found:
  """What a row answers in these evaluations of the task "keys"; {} before any."""
  texts = _items(plan, name, evaluations)
  return {"cells": keys.cells(texts), "whose": keys.whose(texts)} if texts else {}


def _items(
  plan: rows.Plan, name: str, evaluations: Sequence[str]
) -> list[dict[str, Any]]:
  """The items of those of a row's evaluations that have ended."""
  return [
    item
    for evaluation in evaluations
    if plan.is_evaluated(name, evaluation)
    for item in _results(plan, name, evaluation)["items"]
  ]


def _results(plan: rows.Plan, name: str, evaluation: str) -> dict[str, Any]:
  return files.read_json(plan.evaluation(name, evaluation) / "results.json")


def _pairs(plan: rows.Plan, found: Found) -> list[Found]:
  """Differences of the sweep's pairs, where both rows were asked."""
  return [
    {"rows": [one, other], **differences}
    for one, other in plan.sweep.pairs
    if one in found and other in found
    if (differences := difference(found[one], found[other], plan.sweep.claimed))
  ]


def _correlations(plan: rows.Plan, found: Found) -> Found:
  """What ranks rows as the keys do that they find: measure → `correlation`.

  Losses are compared between rows that hold out the same dialogues only: between those
  whose settings of data are the commonest.
  """
  changes = lambda name: plan.sweep.rows[name].changes.items()
  data = {
    name: tuple(sorted((k, v) for k, v in changes(name) if k.startswith("data.")))
    for name, row in found.items()
    if "held_out_loss" in row
  }
  commonest = statistics.mode(data.values()) if data else ()
  alike = [found[name] for name, settings in data.items() if settings == commonest]
  claimed = plan.sweep.claimed
  ranks = {
    told: correlation(list(found.values()), key, claimed)
    for told, key in MISALIGNMENT.items()
  } | {
    f"{told}, same data": correlation(alike, key, claimed)
    for told, key in (MISALIGNMENT | {"held-out loss": "held_out_loss"}).items()
  }
  return {measure: rank for measure, rank in ranks.items() if rank}


def correlation(
  found: Sequence[Found], measure: str, lengths: Sequence[int]
) -> Found | None:
  """Spearman's, over rows: a measure of theirs against keys of texts of these lengths.

  None with fewer than four rows, or where all are alike.
  """
  from scipy import stats  # slow to load

  asked = lambda row: [c for c in row["cells"] if c["length"] in lengths]
  measured = [row for row in found if measure in row and asked(row)]
  if len(measured) < 4:
    return None
  x = [row[measure] for row in measured]
  ranks: Found = {"rows": len(measured)}
  for what in ("score", "log_p"):
    y = [np.mean([c[what] for c in asked(row)]) for row in measured]
    if len(set(x)) == 1 or len(set(y)) == 1:
      return None
    ranks[what] = float(stats.spearmanr(x, y).statistic)
  return ranks


def difference(one: Found, other: Found, lengths: Sequence[int]) -> dict[str, Any]:
  """one − other at these lengths together, paired by key.

  Keys that only one of them was asked for are left out. Intervals are over texts: the
  keys of one text are not independent.

  Returns:
    score (share found), log_p in nats, and any_key and own_key of `keys.whose`, each
    as of `intervals.of_values`, n texts; needles: at how many places of a text, of `n`,
    `one` and `other` found more, and the two-sided p of the sign test.
    Each where both rows were asked; nothing without such keys.
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
  """Text → ours − theirs for its keys, of these lengths, that both were asked for."""
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
  """A heat map a row, as in SkipAlign's Figure 3, and the share at claimed lengths."""
  panels = []
  for name, row in content["rows"].items():
    told = f"NTK to {row['target']:,}" if row["target"] else "own rope"
    if found := chosen_tables.share(row["cells"], content["claimed"]):
      told += f"; {found}"
    panels.append(
      {
        "title": f"{name}\n{told}",
        "window": content["window"],
        "cells": row["cells"],
      }
    )
  return heatmap.draw(panels, path)

"""Rows that chose their NTK targets: which, what they found there, paired differences.

For sweeps with `targets`, whose evaluations of the task "keys" ask every row for the
same keys. An evaluation "misalignment" beside them is held against what the rows find.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from skipalign_jax.evals import heatmap, intervals, keys
from skipalign_jax.hf import safetensors_io
from skipalign_jax.sweep import rows

MISALIGNMENT = "misalignment"
Found = dict[str, Any]


def gather(plan: rows.Plan, names: Sequence[str]) -> Found:
  """Rows whose keys are asked, and differences of the sweep's pairs, as JSON.

  Args:
    plan: the sweep in its folder.
    names: rows whose results are theirs.
  """
  found = {}
  for name in names:
    cells = [
      cell
      for evaluation, options in plan.sweep.evaluations.items()
      if options["task"] == "keys"
      for cell in _cells(plan.evaluation(name, evaluation) / "results.json")
    ]
    if cells:
      found[name] = {
        "target": plan.target(name),
        "log_p_by_target": {str(t): x for t, x in plan.target_scores(name).items()},
        "cells": cells,
      }
      path = plan.evaluation(name, MISALIGNMENT) / "results.json"
      if path.exists():
        summary = safetensors_io.read_json(path)["summary"]
        found[name]["misalignment"] = summary["symmetric_kl"]["mean"]
  window = plan.sweep.window
  pairs = [
    {"rows": [one, other], **difference(found[one], found[other], window)}
    for one, other in plan.sweep.pairs
    if one in found and other in found
  ]
  return {
    "window": window,
    "rows": found,
    "pairs": pairs,
    "correlation": correlation(list(found.values()), window),
  }


def _cells(path: pathlib.Path) -> list[dict[str, Any]]:
  """A cell a key; none before the evaluation has ended."""
  return keys.cells(safetensors_io.read_json(path)["items"]) if path.exists() else []


def correlation(found: Sequence[Found], window: int) -> dict[str, Any] | None:
  """Spearman's, over rows: misalignment against keys beyond the window.

  None with fewer than four rows, or where all are alike.
  """
  measured = [row for row in found if "misalignment" in row]
  if len(measured) < 4:
    return None
  x = [row["misalignment"] for row in measured]
  ranks: dict[str, Any] = {"rows": len(measured)}
  for what in ("score", "log_p"):
    y = [
      np.mean([c[what] for c in row["cells"] if c["length"] > window])
      for row in measured
    ]
    if len(set(x)) == 1 or len(set(y)) == 1:
      return None
    ranks[what] = float(stats.spearmanr(x, y).statistic)
  return ranks


def difference(one: Found, other: Found, window: int) -> dict[str, Any]:
  """one − other beyond the window, paired by key: share found, and log p in nats.

  Keys that only one of them was asked for are left out.
  """
  beyond = lambda row: {
    (c["length"], c["key"]): c for c in row["cells"] if c["length"] > window
  }
  ours, theirs = beyond(one), beyond(other)
  pairs = [(ours[key], theirs[key]) for key in ours if key in theirs]
  return {
    what: intervals.of_values([a[what] - b[what] for a, b in pairs])
    for what in ("score", "log_p")
  }


def markdown(content: Found) -> str:
  """Keys found by length, log p by length, the choice of targets, differences."""
  found, window = content["rows"], content["window"]
  lengths = sorted({c["length"] for row in found.values() for c in row["cells"]})
  targets = sorted({int(t) for row in found.values() for t in row["log_p_by_target"]})
  spelled = [f"{n:,}" for n in lengths]
  mean = lambda row, what, length: np.mean(
    [c[what] for c in row["cells"] if c["length"] == length]
  )
  tried = lambda row, target: row["log_p_by_target"].get(str(target))
  parts = [
    table(
      "Keys found, %, by tokens of the text",
      ["row", "NTK target", *spelled, f"beyond {window:,}"],
      [
        [
          name,
          f"{row['target']:,}" if row["target"] else "own rope",
          *(f"{100 * mean(row, 'score', n):.0f}" for n in lengths),
          share_beyond(row, window),
        ]
        for name, row in found.items()
      ],
    ),
    table(
      "log p of the keys, nats",
      ["row", *spelled],
      [
        [name, *(f"{mean(row, 'log_p', n):.2f}" for n in lengths)]
        for name, row in found.items()
      ],
    ),
    table(
      "log p of the validation keys by NTK target",
      ["row", *(f"{t:,}" for t in targets)],
      [
        [name, *("" if tried(row, t) is None else f"{tried(row, t):.2f}"
                 for t in targets)]
        for name, row in found.items()
        if row["target"]
      ],
    ),
    table(
      f"Differences beyond {window:,}, paired by key",
      ["rows", "keys found, points", "log p, nats", "keys"],
      [
        [
          " - ".join(pair["rows"]),
          interval(pair["score"], 100, ".0f"),
          interval(pair["log_p"], 1, ".2f"),
          str(pair["score"]["n"]),
        ]
        for pair in content["pairs"]
      ],
    ),
  ]  # fmt: skip
  if ranks := content["correlation"]:
    parts.append(
      f"Long-short misalignment (symmetric KL) against keys beyond {window:,}, rank "
      f"correlation over {ranks['rows']} rows: {ranks['score']:.2f} with keys found, "
      f"{ranks['log_p']:.2f} with log p."
    )
  return "\n\n".join(filter(None, parts))


def share_beyond(row: Found, window: int) -> str:
  """ "40 (22 to 61, n 20)": keys found beyond the window, %; "" if none was asked."""
  scores = [c["score"] for c in row["cells"] if c["length"] > window]
  if not scores:
    return ""
  share = intervals.of_scores(scores)
  mean, low, high = (f"{100 * share[part]:.0f}" for part in ("mean", "low", "high"))
  return f"{mean} ({low} to {high}, n {share['n']})"


def interval(value: dict[str, Any], times: float, form: str) -> str:
  """ "+20 (+3 to +37)"."""
  mean, low, high = (
    f"{times * value[part]:+{form}}" for part in ("mean", "low", "high")
  )
  return f"{mean} ({low} to {high})"


def table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """In Markdown; "" without lines."""
  if not lines:
    return ""
  told = [columns, ["---"] * len(columns), *lines]
  return "\n".join([f"### {title}\n", *(f"| {' | '.join(line)} |" for line in told)])


def draw(content: Found, path: pathlib.Path) -> pathlib.Path:
  """A heat map a row, as in SkipAlign's Figure 3, with the share found beyond."""
  window = content["window"]
  panels = []
  for name, row in content["rows"].items():
    told = [f"NTK to {row['target']:,}" if row["target"] else "own rope"]
    if share := share_beyond(row, window):
      told.append(f"beyond {window:,}: {share}")
    cells = row["cells"]
    panels.append(
      {"title": f"{name}\n{'; '.join(told)}", "window": window, "cells": cells}
    )
  return heatmap.draw(panels, path)

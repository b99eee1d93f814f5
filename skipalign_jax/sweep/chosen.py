"""Rows that chose their NTK targets: which, what they found there, paired differences.

For sweeps with `targets`, whose evaluations of the task "keys" ask every row for the
same keys; those with rivals also say whose keys are taken. Beside them "needle" asks
for the only key of a text, and "misalignment" is held against what the rows find.
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
TASKS = ("keys", "needle")  # whose results are shown here
Found = dict[str, Any]


def gather(plan: rows.Plan, names: Sequence[str]) -> Found:
  """Rows whose keys are asked, and differences of the sweep's pairs, as JSON.

  Args:
    plan: the sweep in its folder.
    names: rows whose results are theirs.
  """
  found = {}
  for name in names:
    texts = _items(plan, name, "keys")
    if texts:
      found[name] = {
        "target": plan.target(name),
        "log_p_by_target": {str(t): x for t, x in plan.target_scores(name).items()},
        "cells": keys.cells(texts),
        "whose": keys.whose(texts),
        "needles": [
          {
            "length": item["length"],
            "text": item["id"].rpartition("/")[0],  # samples share it, but for the key
            "key": item["answer"],
            "score": item["score"],
          }
          for item in _items(plan, name, "needle")
        ],
      }
      path = plan.evaluation(name, MISALIGNMENT) / "results.json"
      if path.exists():
        summary = safetensors_io.read_json(path)["summary"]
        found[name]["misalignment"] = summary["symmetric_kl"]["mean"]
  claimed = plan.sweep.claimed
  pairs = [
    {"rows": [one, other], **differences}
    for one, other in plan.sweep.pairs
    if one in found and other in found
    if (differences := difference(found[one], found[other], claimed))
  ]
  return {
    "window": plan.sweep.window,
    "claimed": claimed,
    "rows": found,
    "pairs": pairs,
    "correlation": correlation(list(found.values()), claimed),
  }


def _items(plan: rows.Plan, name: str, task: str) -> list[dict[str, Any]]:
  """The items of a row's evaluations of a task that have ended."""
  return [
    item
    for evaluation, options in plan.sweep.evaluations.items()
    if options["task"] == task and plan.is_evaluated(name, evaluation)
    for item in safetensors_io.read_json(
      plan.evaluation(name, evaluation) / "results.json"
    )["items"]
  ]


def correlation(
  found: Sequence[Found], lengths: Sequence[int]
) -> dict[str, Any] | None:
  """Spearman's, over rows: misalignment against keys of texts of these lengths.

  None with fewer than four rows, or where all are alike.
  """
  asked = lambda row: [c for c in row["cells"] if c["length"] in lengths]
  measured = [row for row in found if "misalignment" in row and asked(row)]
  if len(measured) < 4:
    return None
  x = [row["misalignment"] for row in measured]
  ranks: dict[str, Any] = {"rows": len(measured)}
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


def markdown(content: Found) -> str:
  """Keys found by length, log p by length, the choice of targets, differences."""
  found, claimed = content["rows"], content["claimed"]
  together = _together(claimed)
  lengths = sorted({c["length"] for row in found.values() for c in row["cells"]})
  targets = sorted({int(t) for row in found.values() for t in row["log_p_by_target"]})
  spelled = [f"{n:,}" for n in lengths]
  tried = lambda row, target: row["log_p_by_target"].get(str(target))
  parts = [
    table(
      "Keys found, %, by tokens of the text",
      ["row", "NTK target", *spelled, together],
      [
        [
          name,
          f"{row['target']:,}" if row["target"] else "own rope",
          *(mean_at(n, row["cells"], "score", 100, ".0f") for n in lengths),
          share(row["cells"], claimed),
        ]
        for name, row in found.items()
      ],
    ),
    table(
      "log p of the keys, nats",
      ["row", *spelled],
      [
        [name, *(mean_at(n, row["cells"], "log_p", 1, ".2f") for n in lengths)]
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
      f"Differences at {together} tokens, paired by key, intervals over texts",
      ["rows", "keys found, points", "log p, nats", "texts", "any key, points",
       "right of the keys, points", "texts", "places where one says more single keys"],
      [
        [
          " - ".join(pair["rows"]),
          interval(pair["score"], 100, ".0f"),
          interval(pair["log_p"], 1, ".2f"),
          str(pair["score"]["n"]),
          interval(pair["any_key"], 100, ".0f") if "any_key" in pair else "",
          interval(pair["own_key"], 100, ".0f") if "own_key" in pair else "",
          str(pair["own_key"]["n"]) if "own_key" in pair else "",
          "{one} : {other} of {n} (p {p:.2g})".format(**pair["needles"])
          if "needles" in pair
          else "",
        ]
        for pair in content["pairs"]
      ],
    ),
    whose_table(found),
    needles_table(found, claimed),
  ]  # fmt: skip
  if ranks := content["correlation"]:
    parts.append(
      f"Long-short misalignment (symmetric KL) against keys at {together}, rank "
      f"correlation over {ranks['rows']} rows: {ranks['score']:.2f} with keys found, "
      f"{ranks['log_p']:.2f} with log p."
    )
  return "\n\n".join(filter(None, parts))


def _together(lengths: Sequence[int]) -> str:
  """ "12,288 + 16,384"."""
  return " + ".join(f"{n:,}" for n in lengths)


def mean_at(
  length: int, cells: Sequence[dict[str, Any]], what: str, times: float, form: str
) -> str:
  """Of the cells of one length; "" if there are none."""
  values = [c[what] for c in cells if c["length"] == length]
  return f"{times * np.mean(values):{form}}" if values else ""


def whose_table(found: Found) -> str:
  """Any key of the text, and the right one of them, by length; "" if none was asked."""
  asked = {name: row["whose"] for name, row in found.items() if row["whose"]}
  lengths = sorted({c["length"] for cells in asked.values() for c in cells})
  return table(
    "Whose key: probability of any key of the text, and how often the right one is the "
    "likeliest of them, %",
    ["row", *(f"any, {n:,}" for n in lengths), *(f"right, {n:,}" for n in lengths)],
    [
      [
        name,
        *(
          mean_at(n, cells, what, 100, ".0f")
          for what in ("any_key", "own_key")
          for n in lengths
        ),
      ]
      for name, cells in asked.items()
    ],
  )


def needles_table(found: Found, claimed: Sequence[int]) -> str:
  """Texts with one key: how many of them were said, by length; "" if none was asked."""
  asked = {name: row["needles"] for name, row in found.items() if row["needles"]}
  lengths = sorted({c["length"] for cells in asked.values() for c in cells})

  def said(cells: Sequence[dict[str, Any]], length: int) -> str:
    scores = [c["score"] for c in cells if c["length"] == length]
    return f"{sum(scores):g} of {len(scores)}" if scores else ""

  return table(
    "Texts with a single key, free reply: keys said",
    ["row", *(f"{n:,}" for n in lengths), f"{_together(claimed)}, %"],
    [
      [name, *(said(cells, n) for n in lengths), share(cells, claimed)]
      for name, cells in asked.items()
    ],
  )


def share(cells: Sequence[dict[str, Any]], lengths: Sequence[int]) -> str:
  """ "40 (22 to 61, n 20)": found at these lengths, %; "" if none was asked."""
  scores = [c["score"] for c in cells if c["length"] in lengths]
  if not scores:
    return ""
  found = intervals.of_scores(scores)
  mean, low, high = (f"{100 * found[part]:.0f}" for part in ("mean", "low", "high"))
  return f"{mean} ({low} to {high}, n {found['n']})"


def interval(value: dict[str, Any], times: float, form: str) -> str:
  """ "+20 (+3 to +37)"; one value has no interval."""
  mean, low, high = (
    "" if value[part] is None else f"{times * value[part]:+z{form}}"
    for part in ("mean", "low", "high")
  )
  return f"{mean} ({low} to {high})" if low else mean


def table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """In Markdown; "" without lines."""
  if not lines:
    return ""
  told = [columns, ["---"] * len(columns), *lines]
  return "\n".join([f"### {title}\n", *(f"| {' | '.join(line)} |" for line in told)])


def draw(content: Found, path: pathlib.Path) -> pathlib.Path:
  """A heat map a row, as in SkipAlign's Figure 3, and the share at claimed lengths."""
  panels = []
  for name, row in content["rows"].items():
    told = f"NTK to {row['target']:,}" if row["target"] else "own rope"
    if found := share(row["cells"], content["claimed"]):
      told += f"; {found}"
    panels.append(
      {
        "title": f"{name}\n{told}",
        "window": content["window"],
        "cells": row["cells"],
      }
    )
  return heatmap.draw(panels, path)

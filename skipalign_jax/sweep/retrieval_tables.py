"""What runs retrieve at their own NTK targets, as Markdown; see `retrieval.gather`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import intervals
from skipalign_jax.runtime import escape

Found = dict[str, Any]


def markdown(content: Found) -> str:
  """Keys found by length, log p by length, the choice of targets, differences."""
  found, claimed = content["rows"], content["claimed"]
  parts = [
    *keys_tables(found, claimed),
    targets_table(found),
    differences_table(content["pairs"], claimed),
    whose_table(found, claimed),
    needles_table(found, claimed),
    *(other_table(name, other, claimed) for name, other in content["others"].items()),
    correlation_table(content["correlation"], claimed),
  ]
  return "\n\n".join(filter(None, parts))


def keys_tables(found: Found, claimed: Sequence[int]) -> tuple[str, str]:
  """The share of keys found, and their log p, by length."""
  lengths = sorted({c["length"] for run in found.values() for c in run["cells"]})
  columns = [*(f"{n:,}" for n in lengths), _together(claimed)]
  shares = table(
    "Keys found, %, by tokens of the text",
    ["run", "NTK target", *columns],
    [
      [
        name,
        f"{run['target']:,}" if run["target"] else "own rope",
        *(mean_at([n], run["cells"], "score", 100, ".0f") for n in lengths),
        share(run["cells"], claimed),
      ]
      for name, run in found.items()
    ],
  )
  log_p = table(
    "log p of the keys, nats",
    ["run", *columns],
    [
      [
        name,
        *(
          mean_at(at, run["cells"], "log_p", 1, ".2f")
          for at in [*([n] for n in lengths), claimed]
        ),
      ]
      for name, run in found.items()
    ],
  )
  return shares, log_p


def targets_table(found: Found) -> str:
  """log p of the keys that each run's NTK target is chosen by."""
  targets = sorted({int(t) for run in found.values() for t in run["log_p_by_target"]})
  lines = []
  for name, run in found.items():
    if by_target := run["log_p_by_target"]:
      known = [by_target.get(str(target)) for target in targets]
      lines.append([name, *("" if x is None else f"{x:.2f}" for x in known)])
  return table(
    "log p of the validation keys by NTK target",
    ["run", *(f"{target:,}" for target in targets)],
    lines,
  )


def correlation_table(correlation: Found, claimed: Sequence[int]) -> str:
  """Spearman's rank correlations of measures with the keys; "" without any."""
  return table(
    f"Spearman's rank correlation, over runs, with the keys at {_together(claimed)}",
    ["measure", "runs", "with keys found", "with log p"],
    [
      [measure, str(rank["rows"]), f"{rank['score']:.2f}", f"{rank['log_p']:.2f}"]
      for measure, rank in correlation.items()
    ],
  )


def differences_table(pairs: Sequence[Found], claimed: Sequence[int]) -> str:
  """Differences of pairs of runs; "" if there are none."""
  columns = [
    "runs", "keys found, points", "log p, nats", "texts", "any key, points",
    "right key, points", "texts",
  ]  # fmt: skip
  lines = [
    [
      " - ".join(pair["rows"]),
      interval(pair["score"], 100, ".0f"),
      interval(pair["log_p"], 1, ".2f"),
      str(pair["score"]["n"]),
      interval(pair["any_key"], 100, ".0f") if "any_key" in pair else "",
      interval(pair["own_key"], 100, ".0f") if "own_key" in pair else "",
      str(pair["own_key"]["n"]) if "own_key" in pair else "",
    ]
    for pair in pairs
  ]
  if any("needles" in pair for pair in pairs):
    columns.append("places where one finds more single keys")
    form = "{one} : {other} of {n} (p {p:.2g})"
    for line, pair in zip(lines, pairs, strict=True):
      line.append(form.format(**pair["needles"]) if "needles" in pair else "")
  return table(
    f"Differences at {_together(claimed)} tokens, paired by key, intervals over texts",
    columns,
    lines,
  )


def other_table(name: str, other: Found, claimed: Sequence[int]) -> str:
  """What runs retrieve from another haystack, and differences there."""
  cells = [cell for run in other["rows"].values() for cell in run["cells"]]
  lengths = sorted({cell["length"] for cell in cells})
  spelled = [*(f"{n:,}" for n in lengths), _together(claimed)]
  of = lambda what: [f"{what}, {length}" for length in spelled]
  at = lambda cells, *what: [
    mean_at(n, cells, *what) for n in [*([n] for n in lengths), claimed]
  ]
  runs_table = table(
    f"In another text ({name}): keys found, log p of keys, any key, the right key",
    ["run", *of("found, %"), *of("log p, nats"), *of("any, %"), *of("right, %"),
     f"same, {spelled[-1]}"],
    [
      [
        run_name,
        *at(run["cells"], "score", 100, ".0f")[:-1],
        share(run["cells"], claimed),
        *at(run["cells"], "log_p", 1, ".2f"),
        *at(run["whose"], "any_key", 100, ".0f"),
        *at(run["whose"], "own_key", 100, ".0f"),
        _same(run["whose"], claimed),
      ]
      for run_name, run in other["rows"].items()
    ],
  )  # fmt: skip
  return "\n\n".join(
    filter(None, [runs_table, differences_table(other["pairs"], claimed)])
  )


def _together(lengths: Sequence[int]) -> str:
  """ "12,288 + 16,384"."""
  return " + ".join(f"{n:,}" for n in lengths)


def mean_at(
  lengths: Sequence[int],
  cells: Sequence[dict[str, Any]],
  what: str,
  times: float,
  form: str,
) -> str:
  """The mean over the cells of these lengths, times `times`; "" if there are none."""
  values = [c[what] for c in cells if c["length"] in lengths]
  return f"{times * np.mean(values):{form}}" if values else ""


def whose_table(found: Found, claimed: Sequence[int]) -> str:
  """Any key of the text, and the right one of them, by length; "" without results."""
  whose = {name: run["whose"] for name, run in found.items() if run["whose"]}
  lengths = sorted({c["length"] for cells in whose.values() for c in cells})
  return table(
    "Which key: probability of any key of the text, and how often the right one is the "
    "likeliest of them, %; questions of a text that have the same likeliest key",
    ["run", *(f"any, {n:,}" for n in lengths), f"any, {_together(claimed)}",
     *(f"right, {n:,}" for n in lengths), f"right, {_together(claimed)}",
     f"same, {_together(claimed)}"],
    [
      [
        name,
        *(
          mean_at(at, cells, what, 100, ".0f")
          for what in ("any_key", "own_key")
          for at in [*([n] for n in lengths), claimed]
        ),
        _same(cells, claimed),
      ]
      for name, cells in whose.items()
    ],
  )  # fmt: skip


def _same(cells: Sequence[dict[str, Any]], claimed: Sequence[int]) -> str:
  """ "3.6": questions of a text that share their likeliest key; "" without texts."""
  likeliest: dict[str, list[str]] = {}
  for cell in cells:
    if cell["length"] in claimed:
      likeliest.setdefault(cell["text"], []).append(cell["likeliest"])
  counts = [max(map(keys.count, keys)) for keys in likeliest.values()]
  return f"{np.mean(counts):.1f}" if counts else ""


def needles_table(found: Found, claimed: Sequence[int]) -> str:
  """Texts with one key: how many were found, by length; "" without results."""
  needles = {name: run["needles"] for name, run in found.items() if run["needles"]}
  lengths = sorted({c["length"] for cells in needles.values() for c in cells})

  def found_at(cells: Sequence[dict[str, Any]], length: int) -> str:
    scores = [c["score"] for c in cells if c["length"] == length]
    return f"{sum(scores):g} of {len(scores)}" if scores else ""

  return table(
    "Texts with a single key, free reply: keys found",
    ["run", *(f"{n:,}" for n in lengths), f"{_together(claimed)}, %"],
    [
      [name, *(found_at(cells, n) for n in lengths), share(cells, claimed)]
      for name, cells in needles.items()
    ],
  )


def share(cells: Sequence[dict[str, Any]], lengths: Sequence[int]) -> str:
  """ "40 (22 to 61, n 20)": found at these lengths, %; "" without any."""
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
  """A titled table in Markdown; "" without lines."""
  if not lines:
    return ""
  head, *others = [[*map(escape.markdown, line)] for line in (columns, *lines)]
  whole = [head, ["---"] * len(columns), *others]
  written = (f"| {' | '.join(line)} |" for line in whole)
  return "\n".join([f"### {escape.markdown(title)}\n", *written])

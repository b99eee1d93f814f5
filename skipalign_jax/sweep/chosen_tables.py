"""What rows at their own NTK targets found, as Markdown; see `chosen.gather`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import intervals

Found = dict[str, Any]


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
          *(mean_at([n], row["cells"], "score", 100, ".0f") for n in lengths),
          share(row["cells"], claimed),
        ]
        for name, row in found.items()
      ],
    ),
    table(
      "log p of the keys, nats",
      ["row", *spelled, together],
      [
        [
          name,
          *(mean_at([n], row["cells"], "log_p", 1, ".2f") for n in lengths),
          mean_at(claimed, row["cells"], "log_p", 1, ".2f"),
        ]
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
        if row["log_p_by_target"]
      ],
    ),
    differences_table(content["pairs"], claimed),
    whose_table(found, claimed),
    needles_table(found, claimed),
    *(other_table(name, other, claimed) for name, other in content["others"].items()),
    table(
      f"What ranks rows as the keys at {together}: Spearman's rank correlation",
      ["measure", "rows", "with keys found", "with log p"],
      [
        [measure, str(rank["rows"]), f"{rank['score']:.2f}", f"{rank['log_p']:.2f}"]
        for measure, rank in content["correlation"].items()
      ],
    ),
  ]  # fmt: skip
  return "\n\n".join(filter(None, parts))


def differences_table(pairs: Sequence[Found], claimed: Sequence[int]) -> str:
  """Of pairs of rows; "" if there are none."""
  columns = [
    "rows", "keys found, points", "log p, nats", "texts", "any key, points",
    "right of the keys, points", "texts",
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
    columns.append("places where one says more single keys")
    form = "{one} : {other} of {n} (p {p:.2g})"
    for line, pair in zip(lines, pairs, strict=True):
      line.append(form.format(**pair["needles"]) if "needles" in pair else "")
  return table(
    f"Differences at {_together(claimed)} tokens, paired by key, intervals over texts",
    columns,
    lines,
  )


def other_table(name: str, other: Found, claimed: Sequence[int]) -> str:
  """What rows answer in another haystack, and differences there."""
  cells = [cell for row in other["rows"].values() for cell in row["cells"]]
  lengths = sorted({cell["length"] for cell in cells})
  spelled = [*(f"{n:,}" for n in lengths), _together(claimed)]
  of = lambda what: [f"{what}, {length}" for length in spelled]
  at = lambda cells, *what: [
    mean_at(n, cells, *what) for n in [*([n] for n in lengths), claimed]
  ]
  rows_table = table(
    f"In another text ({name}): keys found, log p of keys, any key, the right one",
    ["row", *of("found, %"), *of("log p, nats"), *of("any, %"), *of("right, %"),
     f"same, {spelled[-1]}"],
    [
      [
        row_name,
        *at(row["cells"], "score", 100, ".0f")[:-1],
        share(row["cells"], claimed),
        *at(row["cells"], "log_p", 1, ".2f"),
        *at(row["whose"], "any_key", 100, ".0f"),
        *at(row["whose"], "own_key", 100, ".0f"),
        _same(row["whose"], claimed),
      ]
      for row_name, row in other["rows"].items()
    ],
  )  # fmt: skip
  return "\n\n".join(
    filter(None, [rows_table, differences_table(other["pairs"], claimed)])
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
  """Of the cells of these lengths; "" if there are none."""
  values = [c[what] for c in cells if c["length"] in lengths]
  return f"{times * np.mean(values):{form}}" if values else ""


def whose_table(found: Found, claimed: Sequence[int]) -> str:
  """Any key of the text, and the right one of them, by length; "" if none was asked."""
  asked = {name: row["whose"] for name, row in found.items() if row["whose"]}
  lengths = sorted({c["length"] for cells in asked.values() for c in cells})
  return table(
    "Whose key: probability of any key of the text, and how often the right one is the "
    "likeliest of them, %; questions of a text that have the same likeliest key",
    ["row", *(f"any, {n:,}" for n in lengths), f"any, {_together(claimed)}",
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
      for name, cells in asked.items()
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

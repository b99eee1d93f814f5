"""Intervals over seeds, and whether the paper's statements hold.

Errors are compared within a seed (equal start, equal strings). Ratios are averaged as
logarithms, with Student's interval because there are few seeds.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import intervals
from studies.length import tasks, training

INTERVAL = ("mean", "low", "high")
SMALLEST = 1e-12  # smaller errors count as this


def interval(values: Sequence[float]) -> dict[str, float]:
  """Geometric mean of positive values and its 95 % interval; two values or more."""
  logs = intervals.of_values(np.log(np.maximum(values, SMALLEST)))
  # exp() of a wide interval of two seeds may overflow.
  clipped = {part: min(max(logs[part], -700.0), 700.0) for part in INTERVAL}
  return {part: math.exp(x) for part, x in clipped.items()}


def beyond(content: dict[str, Any]) -> list[int]:
  """Indices of the tested lengths that were not trained."""
  tested = content["tested"]
  return [i for i, n in enumerate(tested) if n > tasks.LONGEST_TRAINED]


def far_errors(content: dict[str, Any]) -> dict[training.Cell, np.ndarray]:
  """Cell → mse_S, mean squared errors averaged over the lengths not trained."""
  far = beyond(content)
  return {
    training.Cell(c["task"], c["outrep"], c["encoding"]): np.mean(
      np.array(c["mse"])[:, far], axis=1
    )
    for c in content["cells"]
  }


def summary(content: dict[str, Any]) -> list[dict[str, Any]]:
  """Per cell: errors at trained and other lengths, and relative to the baseline."""
  far = beyond(content)
  near = [i for i in range(len(content["tested"])) if i not in far]
  rows = []
  for cell in content["cells"]:
    mse_ST = np.array(cell["mse"])
    blind = float(np.mean(np.array(content["baselines"][cell["task"]]["mse"])[far]))
    row = {key: cell[key] for key in ("task", "outrep", "encoding")}
    row["near"] = interval(mse_ST[:, near].mean(1))
    row["far"] = interval(mse_ST[:, far].mean(1))
    row["of_blind"] = interval(mse_ST[:, far].mean(1) / blind)
    row["relative"] = interval(_relative(content, cell["task"], mse_ST[:, far].mean(1)))
    if cell["accuracy"] is not None:
      row["accuracy"] = float(np.mean(np.array(cell["accuracy"])[:, far]))
    rows.append(row)
  return rows


def _relative(content: dict[str, Any], task: str, mse_S: np.ndarray) -> np.ndarray:
  """Root mean square of the errors over that of the answers, lengths not trained."""
  lengths = [content["tested"][i] for i in beyond(content)]
  return np.sqrt(mse_S / np.mean([tasks.mean_square(task, n) for n in lengths]))


def claims(content: dict[str, Any]) -> list[dict[str, Any]]:
  """The paper's statements, each with a ratio that is above 1 if it holds."""
  far, found = far_errors(content), []

  def claim(text: str, encoding: str, ratio_S: np.ndarray) -> None:
    ratio = interval(ratio_S)
    verdict = "yes" if ratio["low"] > 1 else "no" if ratio["high"] < 1 else "open"
    found.append({"claim": text, "encoding": encoding, "ratio": ratio,
                  "verdict": verdict})  # fmt: skip

  for encoding in training.ENCODINGS:
    mse = {(c.task, c.outrep): e for c, e in far.items() if c.encoding == encoding}
    relative = {task: _relative(content, task, mse[task, "y"]) for task in tasks.TASKS}
    blind = np.array(content["baselines"]["mean"]["mse"])[beyond(content)].mean()
    claim("mean: better than answering 1/2", encoding, blind / mse["mean", "y"])
    for task in ("length", "sum"):
      claim(f"mean goes further than {task}", encoding,
            relative[task] / relative["mean"])  # fmt: skip
    for task in ("length", "sum"):
      for outrep in tasks.OUTREPS:
        if outrep != "y":
          text = f"{task}: {outrep} better than y"
          claim(text, encoding, mse[task, "y"] / mse[task, outrep])
      for other in ("√y", "log y"):
        text = f"{task}: 1/√y better than {other}"
        claim(text, encoding, mse[task, other] / mse[task, "1/√y"])
  return found


def report(content: dict[str, Any]) -> str:
  """The tables in Markdown, and the verdicts in words."""
  first, last = content["tested"][beyond(content)[0]], content["tested"][-1]
  seeds = content["protocol"]["seeds"]
  rows = [
    ["task", "learned", "positions", f"MSE, 1-{tasks.LONGEST_TRAINED} bits",
     f"MSE, {first}-{last} bits", "of blind", "relative error", "exact"]
  ]  # fmt: skip
  for row in content["summary"]:
    exact = f"{100 * row['accuracy']:.0f} %" if "accuracy" in row else "-"
    shown = [_shown(row[key]) for key in ("near", "far", "of_blind", "relative")]
    rows.append([row["task"], row["outrep"], row["encoding"], *shown, exact])
  by_claim: dict[str, list[str]] = {}
  verdicts: dict[str, list[str]] = {}
  for one in content["claims"]:
    cell = f"{one['verdict']}: {_shown(one['ratio'])}"
    by_claim.setdefault(one["claim"], []).append(cell)
    verdicts.setdefault(one["claim"], []).append(one["verdict"])
  claim_rows = [["does it hold?", *training.ENCODINGS]]
  claim_rows += [[text, *cells] for text, cells in by_claim.items()]
  blind = "; ".join(
    f"{task}: {content['baselines'][task]['blind']}" for task in content["baselines"]
  )
  return "\n".join(
    [
      *_markdown(rows),
      "",
      f"Geometric means of {seeds} seeds and 95 % intervals. Relative error: root mean "
      "square, over that of the answers.",
      "Of blind: MSE over that of a solver that ignores bits beyond "
      f"{tasks.LONGEST_TRAINED} ({blind}).",
      "",
      *_markdown(claim_rows),
      "",
      "Ratios of errors, above 1 if the statement holds; open: 1 is in the interval.",
      "",
      *_in_words(verdicts),
    ]
  )


def _in_words(verdicts: dict[str, list[str]]) -> list[str]:
  def count(texts: list[str]) -> str:
    found = [verdict for text in texts for verdict in verdicts[text]]
    return ", ".join(
      f"{found.count(v)} {v}" for v in ("yes", "no", "open") if v in found
    )

  better = [t for t in verdicts if t.endswith("better than y")]
  lines = {"mean generalises, length does not": ["mean goes further than length"]}
  for task in ("length", "sum"):
    lines[f"OutRep helps ({task})"] = [t for t in better if t.startswith(task)]
    lines[f"1/√y is the best OutRep ({task})"] = [
      t for t in verdicts if t.startswith(f"{task}: 1/√y") and t not in better
    ]
  return [
    f"* {text}: {count(texts)} (of {len(texts) * len(training.ENCODINGS)} comparisons)"
    for text, texts in lines.items()
  ]


def _shown(value: dict[str, float]) -> str:
  return f"{value['mean']:.2g} ({value['low']:.2g} to {value['high']:.2g})"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
    for row in rows
  ]
  lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
  return lines

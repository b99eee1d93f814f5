"""Figures from JSON alone, in colours and dashes that colour-blind readers distinguish.

Every picture has a white background, so it can be read on light and dark pages.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from skipalign_jax.evals import curves
from skipalign_jax.runtime import errors, plotting
from skipalign_jax.training import preview

DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
SMOOTHED = 20  # points in the running mean of losses

Record = Mapping[str, Any]


def draw(record: Record, path: pathlib.Path) -> pathlib.Path:
  """Draws a PNG of a JSON record of `analyze`; returns `path`.

  Raises:
    UserError: the record is not one of `analyze`.
  """
  kind = record.get("kind") if isinstance(record, Mapping) else None
  if kind not in KINDS:
    known = ", ".join(KINDS)
    raise errors.UserError(
      f"a record of kind {kind!r} has no picture; `analyze` writes {known}"
    )
  from matplotlib import figure as figure_lib  # slow to load

  figure = figure_lib.Figure(layout="tight")
  KINDS[kind](figure, record)
  figure.suptitle(record["title"], fontsize=10)
  plotting.save(figure, path, dpi=100, bbox_inches="tight", facecolor="white")
  return path


def _style(i: int) -> dict[str, Any]:
  return {
    "color": curves.COLORS[i % len(curves.COLORS)],
    "linestyle": DASHES[i % len(DASHES)],
    "linewidth": 1.5,
  }


def _line(axes, x: Sequence[float], y: Sequence[float], label: str, i: int) -> None:
  """Line number i; a value between two that are missing is a dot."""
  (line,) = axes.plot(x, y, label=label, **_style(i))
  missing = [True, *(math.isnan(value) for value in y), True]
  alone = [
    n for n in range(len(y)) if missing[n] and not missing[n + 1] and missing[n + 2]
  ]
  at = lambda values: [values[n] for n in alone]
  axes.scatter(at(x), at(y), s=6, color=line.get_color())


def _distances(figure, record: Record) -> None:
  """Left: distances within the length of a sample. Right: all distances."""
  figure.set_size_inches(11, 6.4)
  axes = figure.subplots(2, 2, sharex="col")
  ends = {"near": record["seq_len"], "wide": record["max_position"]}
  labels = {
    "samples": "samples that meet a distance, %",
    "pairs": "pairs at a distance, per million",
  }
  for i, (name, found) in enumerate(record["strategies"].items()):
    whole = found["samples"]
    for row, kind in enumerate(labels):
      if kind == "pairs":
        wide = found["wide"]
        whole = sum(wide["pairs"]) * wide["width"] / 1e4  # but for the last bin
      for column, part in enumerate(ends):
        y = [100 * n / whole or float("nan") for n in found[part][kind]]
        width = found[part]["width"]
        x = [(j + 0.5) * width for j in range(len(y))]
        _line(axes[row, column], x, y, name, i)
  for row, label in enumerate(labels.values()):
    axes[row, 0].set_ylabel(label)
    for column in (0, 1):
      axes[row, column].set_yscale("log")
  for column, (part, end) in enumerate(ends.items()):
    axes[0, column].set_title(
      f"distances within {end:,} tokens" if part == "near" else f"all below {end:,}",
      fontsize=9,
    )
    axes[1, column].set_xlim(0, end)
    axes[1, column].set_xlabel("relative distance, positions")
    axes[1, column].xaxis.set_major_formatter("{x:,.0f}")
  for axis in axes.flat:
    axis.grid(color="#DDDDDD", linewidth=0.6)
  axes[0, 1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _coverage(figure, record: Record) -> None:
  """Left: tokens at each position. Right: gaps per sample."""
  figure.set_size_inches(11, 3.6)
  left, right = figure.subplots(1, 2, width_ratios=(3, 2))
  names = list(record["strategies"])
  max_gaps = 9  # more are drawn together
  for i, (_, found) in enumerate(record["strategies"].items()):
    wide = found["wide"]
    y = [1e6 * n / found["tokens"] or float("nan") for n in wide["tokens"]]
    x = [(j + 0.5) * wide["width"] for j in range(len(y))]
    _line(left, x, y, names[i], i)
    counts = found["gaps_per_sample"]
    shown = (
      counts[:max_gaps] + [sum(counts[max_gaps:])] + [0] * (max_gaps + 1 - len(counts))
    )
    step = 0.8 / len(names)
    at = [n + (i - (len(names) - 1) / 2) * step for n in range(max_gaps + 1)]
    heights = [100 * n / found["samples"] for n in shown[: max_gaps + 1]]
    color = curves.COLORS[i % len(curves.COLORS)]
    hatch = ("", "//", "..", "xx", "\\\\", "--", "++")[i % 7]
    right.bar(at, heights, step, color=color, hatch=hatch, edgecolor="white", lw=0,
              label=names[i])  # fmt: skip
  left.set_yscale("log")
  left.xaxis.set_major_formatter("{x:,.0f}")
  left.set(xlabel="position", ylabel="tokens at a position, per million")
  left.grid(color="#DDDDDD", linewidth=0.6)
  ticks = [*map(str, range(max_gaps)), f"{max_gaps}+"]
  right.set_xticks(range(max_gaps + 1), ticks)
  right.set(xlabel="gaps in a sample", ylabel="samples, %")
  right.legend(fontsize=8)


def _diagram(figure, record: Record) -> None:
  """SkipAlign's Figure 1: samples under each strategy."""
  samples = record["samples"]
  tall = 0.55 + 0.3 * len(samples[0]["strategies"])
  figure.set_size_inches(10, 0.8 + tall * len(samples))
  axes = figure.subplots(len(samples), 1, sharex=True, squeeze=False)
  for axis, sample in zip(axes[:, 0], samples, strict=True):
    rows = [
      [preview.Span(**block) for block in blocks]
      for blocks in sample["strategies"].values()
    ]
    preview.bars(axis, rows, record["max_position"], list(sample["strategies"]))
    axis.set_title(sample["title"], fontsize=9, loc="left")
  last = axes[-1, 0]
  last.set_xlabel("position id (blocks are drawn wider than they are)")
  handles, names = last.get_legend_handles_labels()
  figure.legend(handles, names, loc="upper right", ncols=2, frameon=False, fontsize=9)


def _rope(figure, record: Record) -> None:
  """Left: positions per turn of each pair. Right: its turns over all positions."""
  figure.set_size_inches(13, 4.2)
  waves, axis = figure.subplots(1, 2)
  distances = sorted({line["distance"] for line in record["lines"]})
  ropes = {line["rope"]: line for line in record["lines"]}
  for i, (rope, line) in enumerate(ropes.items()):
    length = [line["distance"] / turns for turns in line["turns"]]
    waves.plot(length, label=rope, **_style(i))
  for distance in distances:
    waves.axhline(distance, color="black", linewidth=0.8)
    waves.annotate(f"{distance:,} positions", (0.3, 1.25 * distance), fontsize=8)
  waves.set(xlabel="rotated pair of a head", ylabel="wavelength, positions per turn")
  for i, line in enumerate(record["lines"]):
    label = (
      f"{line['name']}: {line['distance']:,} positions, {line['rope']}\n"
      f"{line['full_turn']} of {record['pairs']} pairs turn fully, "
      f"{line['beyond_pretraining']} go beyond pretraining"
    )
    axis.plot(line["turns"], label=label, **_style(i))
  axis.axhline(1, color="black", linewidth=0.8)
  axis.annotate("a full turn", (0.3, 1.2), fontsize=8)
  axis.set(xlabel="rotated pair of a head", ylabel="turns over all positions")
  for one in (waves, axis):
    one.set_yscale("log")
    one.grid(color="#DDDDDD", linewidth=0.6)
  waves.legend(fontsize=8)
  axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _training(figure, record: Record) -> None:
  """A panel per number, a line per run."""
  of = {
    "pair" if "rewards/margin" in run else "target" for run in record["runs"].values()
  }
  names = {
    "loss": f"training loss, nats per {' or '.join(sorted(of))}",
    "eval_loss": "held-out loss, nats per target",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
  }
  names |= {n: n for run in record["runs"].values() for n in run if "/" in n}
  shown = [n for n in names if any(n in run for run in record["runs"].values())]
  rows = -(-len(shown) // 2)
  figure.set_size_inches(10, 3 * rows)
  axes = figure.subplots(rows, 2, squeeze=False)
  for axis, name in zip(axes.flat, shown, strict=False):
    for i, (run, found) in enumerate(record["runs"].items()):
      if name not in found:
        continue
      steps, values = found[name]
      style = _style(i)
      if name == "loss" and len(values) > SMOOTHED:
        axis.plot(steps, values, color=style["color"], alpha=0.25, linewidth=0.8)
        values = _running_mean(values)
      few = (
        {"marker": curves.MARKERS[i % 7], "markersize": 4} if len(steps) < 40 else {}
      )
      axis.plot(steps, values, label=run, **style, **few)
    axis.set(xlabel="step", ylabel=names[name])
    values = [v for run in record["runs"].values() for v in run.get(name, [[], []])[1]]
    if name == "grad_norm" and max(values) > 20 * min(values) > 0:
      axis.set_yscale("log")
    axis.grid(color="#DDDDDD", linewidth=0.6)
  for axis in axes.flat[len(shown) :]:
    axis.set_visible(False)
  axes[0, 0].legend(fontsize=7)


def _running_mean(values: list[float]) -> list[float]:
  """The mean of each value and those before it, at most `SMOOTHED` values."""
  return [
    sum(values[max(0, i + 1 - SMOOTHED) : i + 1]) / min(i + 1, SMOOTHED)
    for i in range(len(values))
  ]


KINDS = {
  "distances": _distances,
  "coverage": _coverage,
  "diagram": _diagram,
  "rope": _rope,
  "training": _training,
}

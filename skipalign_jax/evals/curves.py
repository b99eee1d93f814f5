"""Line charts that are readable without colour vision."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from skipalign_jax.runtime import plotting

# Okabe and Ito's palette without its yellow; each line also has its own marker.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
LINES = ("-", ":")
TICKS = 18  # of an axis of lengths, at most

Point = tuple[float, float]


def draw(
  lines: Mapping[str, Sequence[Point]],
  path: pathlib.Path,
  title: str,
  xlabel: str,
  ylabel: str,
  window: int | None = None,
  highest: float | None = None,
) -> pathlib.Path:
  """A PNG with one line per name; x, in tokens, has a logarithmic axis of base two.

  Args:
    lines: name → (x, y) from left to right; at most 14 lines look different.
    path: of the PNG.
    title: above the chart.
    xlabel: of the axis of tokens.
    ylabel: of the other axis.
    window: positions that the model was built for; a dashed line if it is inside the
      range of x.
    highest: upper end of y, which then starts at 0; otherwise y is logarithmic.

  Returns:
    `path`.
  """
  from matplotlib import figure as figure_lib  # slow to load
  from matplotlib import ticker

  figure = figure_lib.Figure(figsize=(6.4, 3.8))
  axes = figure.subplots()
  for i, (name, points) in enumerate(lines.items()):
    x, y = zip(*points, strict=True)
    style = dict(color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)])
    style["linestyle"] = LINES[i // len(COLORS) % len(LINES)]
    axes.plot(x, y, label=name, linewidth=1.4, markersize=4.5, **style)
  axes.set_xscale("log", base=2)
  found = sorted({x for points in lines.values() for x, _ in points})
  shown = ticks(found)
  axes.set_xticks(shown, [f"{x:,}" for x in shown], rotation=45, ha="right")
  axes.minorticks_off()
  if window and found[0] <= window < found[-1]:
    axes.axvline(
      window, color="black", linestyle="--", linewidth=1, label="the model's window"
    )
  if highest is None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    wide = high > 10 * low  # 1, 2 and 5 would leave a narrow axis without a number
    some = ticker.LogLocator(subs=(1, 2, 5)) if wide else ticker.MaxNLocator(6)
    axes.yaxis.set_major_locator(some)
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  else:
    axes.set_ylim(-0.03 * highest, 1.03 * highest)
  axes.set(xlabel=xlabel, ylabel=ylabel)
  axes.set_title(title, fontsize=9)
  axes.grid(color="#DDDDDD", linewidth=0.6)
  if len(axes.lines) > 1:
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
  plotting.save(figure, path, dpi=130, bbox_inches="tight")
  return path


def ticks(values: Sequence[float]) -> list[float]:
  """Those of ascending positive values whose labels fit on a logarithmic axis.

  The last one is among them; each is so much smaller than the next that there are
  about `TICKS` at most.
  """
  shown: list[float] = []
  least = (values[-1] / values[0]) ** (1 / TICKS)
  for value in reversed(values):
    if not shown or value * least <= shown[0]:
      shown.insert(0, value)
  return shown


def draw_table(
  results: Mapping[str, Any], path: pathlib.Path, title: str, score: str
) -> list[pathlib.Path]:
  """A PNG with one line per row of a summary's table, shares by length.

  Args:
    results: with `protocol` and `summary`, whose `table` is name → length → share.
    path: of the PNG.
    title: above the chart, after the model.
    score: what the share is of.

  Returns:
    `path`, or nothing without a length above 0.
  """
  protocol, table = results["protocol"], results["summary"]["table"]
  lines = {
    name: [(int(length), 100 * share) for length, share in row.items() if int(length)]
    for name, row in table.items()
  }
  lines = {name: points for name, points in lines.items() if points}
  if not lines:
    return []
  title, window = f"{protocol['model']}\n{title}", protocol["window"]
  xlabel = "prompt and reply, tokens"
  return [draw(lines, path, title, xlabel, f"{score}, %", window, 100)]

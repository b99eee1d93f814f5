"""A picture of a whole run: loss, held-out loss, and the positions that it used."""

import pathlib
from collections.abc import Sequence

from skipalign_jax.evals import curves
from skipalign_jax.runtime import plotting, terminal
from skipalign_jax.training import metrics

NAME = "training.png"
MAX_MARKED = 40  # points of a curve; more are drawn as a line only


def draw_at_end(
  folder: pathlib.Path, max_position: int, console: terminal.Console
) -> None:
  """Draws `NAME` in the workdir of a finished run, or prints why it does not.

  Args:
    folder: with metrics.jsonl.
    max_position: L of the run, one more than the largest position id; 0 for none.
    console: for that.
  """
  path = folder / NAME
  if not plotting.possible(console, path):
    return
  try:
    draw(metrics.read(folder / "metrics.jsonl"), max_position, path)
  except Exception as error:  # the run is saved, and must not fail for a picture
    console.print(f"note: {path} is not drawn: {error}")
  else:
    console.print(f"picture    loss and positions of the run: {path}")


def draw(
  records: Sequence[metrics.Record], max_position: int, path: pathlib.Path
) -> None:
  """A PNG: on the left loss and held-out loss by step, on the right positions.

  Args:
    records: of the run.
    max_position: see `draw_at_end`.
    path: of the PNG.
  """
  from matplotlib import figure as figure_lib  # slow to load
  from matplotlib import ticker

  figure = figure_lib.Figure(figsize=(9, 3.2), layout="constrained")
  left, right = figure.subplots(1, 2)
  if any("rewards/margin" in record for record in records):  # DPO, SimPO
    labels, unit = ("training, per pair", "held out, per token of chosen"), "nats"
  else:
    labels, unit = ("training", "held out"), "nats per token"
  _line(left, records, "loss", labels[0], 0)
  _line(left, records, "eval_loss", labels[1], 1)
  left.set(xlabel="step", ylabel=f"loss, {unit}")
  _line(right, records, "largest_position", "largest of the step", 0)
  if max_position:
    right.axhline(max_position, color="black", linestyle="--", linewidth=1, label="L")
  right.set(xlabel="step", ylabel="position id")
  largest = max([max_position, *(r.get("largest_position", 0) for r in records)])
  right.set_ylim(0, 1.05 * max(largest, 1))
  right.yaxis.set_major_formatter("{x:,.0f}")
  for axes in (left, right):
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    if axes.get_lines():
      axes.legend(fontsize=8)
  figure.suptitle(str(path.parent), fontsize=9)
  plotting.save(figure, path, dpi=110, facecolor="white")


def _line(axes, records, name: str, label: str, i: int) -> None:
  """Draws the values of one name in the i-th style, where there are any."""
  points = [(r["step"], r[name]) for r in records if name in r]
  if not points:
    return
  style = dict(color=curves.COLORS[i], linewidth=1.4, markersize=4)
  if len(points) <= MAX_MARKED:
    style["marker"] = curves.MARKERS[i]
  axes.plot(*zip(*points, strict=True), label=label, **style)

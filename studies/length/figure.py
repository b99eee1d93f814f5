"""The study's figure, made from results.json alone."""

import pathlib
from typing import Any

import numpy as np
from matplotlib import figure as figure_lib

from skipalign_jax.evals import curves
from skipalign_jax.runtime import plotting
from studies.length import tasks, training

NAMES = {
  "none": "no positions",
  "rope": "rope",
  "skip": "rope, trained with skips",
}
TITLES = {
  "mean": "y: mean of the bits",
  "length": "y: number of bits",
  "sum": "y: sum of the bits",
}


def draw(content: dict[str, Any], path: pathlib.Path) -> pathlib.Path:
  """Draws the errors by length into a PNG.

  First line of panels: the three tasks, by positions. Second line: the task "length",
  by what the models learn.

  Args:
    content: of results.json.
    path: of the PNG.

  Returns:
    `path`.
  """
  figure = figure_lib.Figure(figsize=(9.6, 6.2), layout="tight")
  axes = figure.subplots(2, 3, sharex=True)
  for axis, task in zip(axes[0], tasks.TASKS, strict=True):
    lines = {NAMES[e]: (task, "y", e) for e in training.ENCODINGS}
    _panel(axis, content, lines, TITLES[task])
    baseline = content["baselines"][task]
    tested, mse = np.array(content["tested"]), np.array(baseline["mse"])
    kept = mse > 0
    axis.plot(tested[kept], mse[kept], color="black", linestyle=":", linewidth=1.2,
              label=f"blind: {baseline['blind']}")  # fmt: skip
  for axis, encoding in zip(axes[1], training.ENCODINGS, strict=True):
    lines = {f"learns {f}": ("length", f, encoding) for f in tasks.OUTREPS}
    _panel(axis, content, lines, f"number of bits, {NAMES[encoding]}")
  for axis in axes[1]:
    axis.set_xlabel("length of the string, bits")
  limits = [axis.get_ylim() for axis in axes[1]]
  for axis in axes[1]:
    axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
  for line in axes:
    line[0].set_ylabel("mean squared error of the answer")
  for axis in (*axes[0], axes[1][0]):
    axis.legend(fontsize=6.5, loc="best")
  low, high = axes[0][0].get_ylim()
  axes[0][0].set_ylim(low, 100 * high)  # room for the legend
  seeds, steps = content["protocol"]["seeds"], content["protocol"]["steps"]
  figure.suptitle(
    f"Trained on 1 to {tasks.LONGEST_TRAINED} bits (shaded), {steps} steps; geometric "
    f"mean of {seeds} seeds, bands from the lowest to the highest",
    fontsize=9,
  )
  plotting.save(figure, path, dpi=90, pil_kwargs={"optimize": True})
  return path


def _panel(axis, content, lines, title):
  cells = {(c["task"], c["outrep"], c["encoding"]): c for c in content["cells"]}
  for i, (name, key) in enumerate(lines.items()):
    mse_ST = np.maximum(np.array(cells[key]["mse"]), 1e-7)  # for the logarithm
    color, marker = curves.COLORS[i], curves.MARKERS[i]
    middle_T = np.exp(np.log(mse_ST).mean(0))
    tested = content["tested"]
    axis.plot(tested, middle_T, color=color, marker=marker, markersize=3.5,
              linewidth=1.3, label=name)  # fmt: skip
    axis.fill_between(tested, mse_ST.min(0), mse_ST.max(0), color=color, alpha=0.15,
                      linewidth=0)  # fmt: skip
  axis.axvspan(0.5, tasks.LONGEST_TRAINED + 0.5, color="#EEEEEE", zorder=0)
  axis.set_yscale("log")
  axis.set_title(title, fontsize=9)
  axis.grid(color="#DDDDDD", linewidth=0.6)
  axis.tick_params(labelsize=8)

"""Heat maps of a score over prompt length and depth."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skipalign_jax.runtime import plotting

# As in SkipAlign's Figure 3 deep red is full recall. Failure is blue instead of green,
# for readers who cannot distinguish red and green.
COLORS = "RdYlBu_r"
ACROSS = 4  # maps side by side


def draw(panels: Sequence[dict[str, Any]], path: pathlib.Path) -> pathlib.Path:
  """A PNG with one map per panel, `ACROSS` of them side by side.

  Args:
    panels: each with title, window (positions that the model was built for), and
      cells: dicts of length, depth (0 to 1) and score (0 to 1); cells of the same
      length and depth are averaged.
    path: of the PNG.

  Returns:
    `path`.
  """
  from matplotlib import figure as figure_lib  # slow to load
  from matplotlib import ticker

  columns = max(len({cell["length"] for cell in panel["cells"]}) for panel in panels)
  width = max(3.4, 1.4 + 0.55 * columns)
  across = min(ACROSS, len(panels))
  down = -(-len(panels) // across)
  size = (width * across + 0.9, 3.4 * down)
  figure = figure_lib.Figure(figsize=size, layout="constrained")
  axes = figure.subplots(down, across, squeeze=False)
  for place, panel in zip(axes.flat, panels, strict=False):
    image = _panel(place, panel, int(12 * width))
  for place in axes.flat[len(panels) :]:
    place.set_visible(False)
  for place in axes[:, 0]:
    place.set_ylabel("depth of the needle, %")
  percent = ticker.PercentFormatter(1, symbol="")
  figure.colorbar(
    image, ax=axes, label="score, %", aspect=20 * down, pad=0.02, format=percent
  )
  plotting.save(figure, path, dpi=130, bbox_inches="tight")
  return path


def panel(
  results: Mapping[str, Any], title: str, cells: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """A panel of `draw`.

  Args:
    results: of an evaluation, with `protocol` and `summary`.
    title: of the mean of its scores, after the model.
    cells: as in `draw`.
  """
  protocol, average = results["protocol"], results["summary"]["average"]
  return {
    "title": f"{protocol['model']}\n{title}: {100 * average:.1f}",
    "window": protocol["window"],
    "cells": cells,
  }


def grid(cells: Sequence[Mapping[str, Any]]) -> tuple[list, list, np.ndarray]:
  """Lengths and depths of a map, and score_DL: the means of its cells, NaN for none."""
  lengths = sorted({cell["length"] for cell in cells})
  depths = sorted({cell["depth"] for cell in cells})
  score_DL = np.full((len(depths), len(lengths)), np.nan)
  for d, depth in enumerate(depths):
    for n, length in enumerate(lengths):
      found = [
        c["score"] for c in cells if (c["length"], c["depth"]) == (length, depth)
      ]
      if found:
        score_DL[d, n] = np.mean(found)
  return lengths, depths, score_DL


def _panel(axes, panel, characters: int):
  """A map, with so many characters in a line of its title."""
  lengths, depths, score_DL = grid(panel["cells"])
  image = axes.imshow(score_DL, cmap=COLORS, vmin=0, vmax=1, aspect="auto")
  for (d, n), score in np.ndenumerate(score_DL):
    if np.isfinite(score):
      dark = score > 0.85 or score < 0.2
      axes.text(n, d, f"{100 * score:.0f}", ha="center", va="center", fontsize=8,
                color="white" if dark else "black")  # fmt: skip
  within, xlabel = sum(length <= panel["window"] for length in lengths), ""
  if 0 < within < len(lengths):
    axes.axvline(within - 0.5, color="black", linestyle="--", linewidth=1.2)
    xlabel = "\n(dashed: the model's window)"
  axes.set(
    xticks=range(len(lengths)),
    yticks=range(len(depths)),
    yticklabels=[f"{100 * depth:.3g}" for depth in depths],
    xlabel=f"prompt, tokens{xlabel}",
  )
  axes.set_xticklabels([f"{length:,}" for length in lengths], rotation=45, ha="right")
  lines = [textwrap.fill(line, characters) for line in panel["title"].split("\n")]
  axes.set_title("\n".join(lines), fontsize=9)
  return image

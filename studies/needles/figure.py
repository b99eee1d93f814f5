"""The study's figures, made from study_b.json alone."""

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import figure as figure_lib

from skipalign_jax.evals import curves
from skipalign_jax.runtime import plotting
from studies.needles import recipes, tables

Content = dict[str, Any]
TWICE = "2 x steps"
DEPTHS_OF = (recipes.NORMAL, "PackedSFT", "Skip-Inner", recipes.OUTER)


def draw(content: Content, folder: pathlib.Path) -> list[pathlib.Path]:
  """Draws every figure for which there are results; returns their files."""
  made = []
  for name, draw_one in (
    ("lengths", lengths),
    ("sweeps", sweeps),
    ("depths", depths),
    ("misalignment", misalignment),
  ):
    figure = draw_one(content)
    if figure is not None:
      made.append(folder / f"study_b_{name}.png")
      plotting.save(figure, made[-1], dpi=100, bbox_inches="tight")
  return made


def lengths(content: Content) -> Any:
  """Accuracy by length: the paper's methods, and their variants."""
  table = content["table"]
  if recipes.OUTER not in table or recipes.NORMAL not in table:
    return None
  panels = {
    "the paper's rows": (
      recipes.BASE_NTK,
      recipes.NORMAL,
      "PackedSFT",
      "PackedSFT, masked",
      "Skip-Inner",
      recipes.OUTER,
    ),
    "variants": (
      recipes.OUTER,
      "Skip-Outer + LSA",
      "Skip-All",
      "Skip-Outer, uniform gaps",
      "PoSE",
    ),
    TWICE: tuple(f"{name}, {TWICE}" for name in recipes.FOLLOWED),
  }
  panels = {
    title: rows for title, rows in panels.items() if len(table.keys() & set(rows)) > 1
  }
  figure = figure_lib.Figure(figsize=(4.8 * len(panels), 3.8), layout="tight")
  axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
  styles = iter(range(100))
  style_of: dict[str, int] = {}
  for axis, (title, rows) in zip(axes, panels.items(), strict=True):
    for name in (row for row in rows if row in table):
      cells = table[name][_form(name)]
      method = name.removesuffix(f", {TWICE}")
      if method not in style_of:
        style_of[method] = next(styles) % len(curves.COLORS)
      style = style_of[method]
      label = f"{name}, s = {table[name]['s']}"
      if name == recipes.BASE_NTK:
        label += " (its own format)"
      _line(axis, cells, content, style, label)
    axis.set_title(title, fontsize=9)
    axis.legend(fontsize=7, loc="lower left")
    axis.set_xlabel("haystack, windows of the base")
  axes[0].set_ylabel("needles found, %")
  return figure


def _form(row: str) -> str:
  return "text" if row.startswith(recipes.BASE) else "chat"


def _line(axis, cells: Content, content: Content, style: int, label: str) -> None:
  found = [cells[n] for n in tables.test_lengths(content)]
  x = [int(n) for n in tables.test_lengths(content)]
  shift = 1 + 0.015 * (style - 3)  # so that error bars do not hide each other
  axis.errorbar(
    [n * shift for n in x],
    [100 * c["mean"] for c in found],
    yerr=_bars(found),
    color=curves.COLORS[style],
    marker=curves.MARKERS[style],
    markersize=4.5,
    linewidth=1.3,
    capsize=2,
    label=label,
  )
  axis.set_xscale("log", base=2)
  axis.set_xticks(x, [f"{n} W" for n in x])
  axis.minorticks_off()
  axis.grid(color="#DDDDDD", linewidth=0.6)
  axis.set_ylim(0, 103)


def _bars(cells: Iterable[Content]) -> np.ndarray | None:
  """95 % intervals as percent below and above the means, cut to 0 … 100.

  None with one seed.
  """
  bars = [
    (100 * min(c["mean"], c["mean"] - c["low"]), 100 * (min(c["high"], 1) - c["mean"]))
    for c in cells
    if c["high"] is not None
  ]
  return np.array(bars).T if bars else None


def sweeps(content: Content) -> Any:
  """Accuracy beyond the window, one panel per sweep: means, and a dot per seed."""
  found = content["sweeps"]
  found = {name: rows for name, rows in found.items() if len(rows) > 2}
  if not found:
    return None
  figure = figure_lib.Figure(figsize=(3.1 * len(found), 3.6), layout="tight")
  axes = np.atleast_1d(figure.subplots(1, len(found), sharex=True))
  for axis, (name, rows) in zip(axes, found.items(), strict=True):
    for y, (row, cells) in enumerate(rows.items()):
      cell = cells["beyond"]
      reference = row in (recipes.NORMAL, recipes.OUTER)
      color = curves.COLORS[6 if reference else 0]
      axis.scatter(100 * np.array(cell["by_seed"]), [-y] * cell["n"], s=9, color=color)
      axis.plot(100 * cell["mean"], -y, "|", color=color, markersize=13)
    axis.set_yticks(range(0, -len(rows), -1), rows, fontsize=7)
    axis.set_title(name, fontsize=9)
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.set_xlabel("found beyond W, %", fontsize=8)
    axis.set_xlim(-3, 103)
  return figure


def depths(content: Content) -> Any:
  """Accuracy by length and depth over all seeds, as in the paper's Figure 3."""
  rows = [row for row in DEPTHS_OF if row in content["table"]]
  if not rows:
    return None
  figure = figure_lib.Figure(figsize=(2.5 * len(rows), 2.9), layout="tight")
  axes = np.atleast_1d(figure.subplots(1, len(rows), sharey=True))
  tested = tables.test_lengths(content)
  for axis, row in zip(axes, rows, strict=True):
    models = [
      m
      for m in content["models"]
      if m["row"] == row
      and m["needles"] == "test"
      and m["s"] == content["table"][row]["s"]
    ]
    sums_NDC = np.sum([[m["depths"][n] for n in tested] for m in models], axis=0)
    found_DN = 100 * (sums_NDC[..., 0] / np.maximum(sums_NDC[..., 1], 1)).T
    axis.imshow(found_DN, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    for (d, n), value in np.ndenumerate(found_DN):
      color = "black" if value > 55 else "white"
      axis.text(n, d, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(len(tested)), [f"{n} W" for n in tested], fontsize=8)
    parts = len(found_DN)
    names = [f"{100 * d // parts}-{100 * (d + 1) // parts} %" for d in range(parts)]
    axis.set_yticks(range(parts), names, fontsize=8)
    axis.set_title(f"{row}, s = {content['table'][row]['s']}", fontsize=9)
  axes[0].set_ylabel("depth of the fact (0: first)", fontsize=8)
  return figure


def misalignment(content: Content) -> Any:
  """Long-short misalignment of each tested checkpoint against its accuracy."""
  if not content["correlation"]:
    return None
  figure = figure_lib.Figure(figsize=(6.4, 3.8))
  axis = figure.subplots()
  for i, row in enumerate(recipes.OF_ONE_TASK):
    models = [m for m in content["models"] if m["row"] == row and "sce" in m]
    if not models:
      continue
    axis.scatter(
      [m["symmetric_kl"] for m in models],
      [100 * m["chat_beyond"] for m in models],
      color=curves.COLORS[i % 7],
      marker=curves.MARKERS[(i + i // 7) % 7],
      s=22,
      label=row,
    )
  axis.set_xlabel("long-short misalignment at answers, symmetric KL, nats")
  axis.set_ylabel("needles found beyond W, %")
  axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
  axis.grid(color="#DDDDDD", linewidth=0.6)
  rank = content["correlation"]["symmetric_kl, beyond"]
  axis.set_title(f"Spearman's rank correlation {rank:.2f}", fontsize=9)
  return figure

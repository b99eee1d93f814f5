"""Compared evaluations as one HTML page: tables, heat maps, notes; no other files."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from skipalign_jax.evals import compare_table, heatmap
from skipalign_jax.runtime import escape

SCALE = ((69, 117, 180), (255, 255, 191), (215, 48, 39))  # of scores 0, 0.5 and 1
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1b1b; --dim: #5c5c5c;
  --line: #d5d5d5; --head: #f2f2f0; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181c; --ink: #e8e8e6;
  --dim: #a5a8ad; --line: #3b3f46; --head: #24272d; } }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--ground);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }
th { font-weight: 600; background: var(--head); }
.models th:first-child { position: sticky; left: 0; min-width: 7rem; max-width: 18rem;
  text-align: left; white-space: normal; overflow-wrap: anywhere; }
.map td { text-align: center; border: 1px solid var(--ground); }
.map .beyond { border-left: 3px dashed var(--ink); }
.maps { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; max-width: 100%; }
figcaption { white-space: pre-line; overflow-wrap: anywhere; margin-bottom: .3rem; }
ul, .note { color: var(--dim); font-size: .9rem; overflow-wrap: anywhere; }
""".strip()
HEAD = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluations compared</title>
<style>
{STYLE}
</style>
<h1>Evaluations compared</h1>
"""
MAPS = """<h2>Scores by length and depth, %</h2>
<p class="note">Columns: tokens of the prompt. Rows: depth of the needle, %. Lengths
after the dashed line are beyond what the model was built for.</p>
"""


def page(
  tables: Sequence[compare_table.Table], panels: Sequence[dict[str, Any]]
) -> str:
  """The page; names and notes are shown as they are.

  Args:
    tables: of the evaluations.
    panels: their heat maps, as `heatmap.draw` takes them.
  """
  parts = [HEAD, *map(_table, tables)]
  if panels:
    parts += [MAPS, '<div class="maps">\n', *map(_map, panels), "</div>\n"]
  return "".join([*parts, "</html>\n"])


def _text(text: object) -> str:
  return html.escape(escape.line(text))


def _rows(rows: Iterable[str], kind: str) -> str:
  """A table that scrolls by itself where the screen is narrow."""
  lines = "".join(f"<tr>{row}</tr>\n" for row in rows)
  return f'<div class="scroll"><table class="{kind}">\n{lines}</table></div>\n'


def _table(table: compare_table.Table) -> str:
  rows = ["".join(f"<th>{_text(name)}</th>" for name in ("Model", *table.columns))]
  for row in table.rows:
    shown = (compare_table.shown(row.cells.get(c), table.form) for c in table.columns)
    cells = "".join(f"<td>{_text(value)}</td>" for value in shown)
    rows.append(f"<th>{_text(row.name)}</th>{cells}")
  notes = "".join(f"<li>{_text(note)}</li>\n" for note in table.notes)
  notes = f"<ul>\n{notes}</ul>\n" if notes else ""
  return f"<h2>{_text(table.title)}</h2>\n{_rows(rows, 'models')}{notes}"


def _map(panel: dict[str, Any]) -> str:
  """A heat map: a table with coloured cells."""
  lengths, depths, score_DL = heatmap.grid(panel["cells"])
  within = sum(length <= panel["window"] for length in lengths)
  mark = lambda n: ' class="beyond"' if 0 < n == within else ""
  heads = (f"<th{mark(n)}>{length:,}</th>" for n, length in enumerate(lengths))
  rows = [f"<th></th>{''.join(heads)}"]
  for depth, score_L in zip(depths, score_DL.tolist(), strict=True):
    cells = (f"<td{mark(n)}{_score(score)}</td>" for n, score in enumerate(score_L))
    rows.append(f"<th>{100 * depth:.3g}</th>{''.join(cells)}")
  title = "\n".join(map(_text, str(panel["title"]).split("\n")))
  caption = f"<figcaption>{title}</figcaption>\n"
  return f"<figure>{caption}{_rows(rows, 'map')}</figure>\n"


def _score(score: float) -> str:
  """The end of a cell's tag and its text: a score in percent, on its colour."""
  if not math.isfinite(score):
    return ">-"
  at = 2 * min(max(score, 0), 1)
  pair, share = (SCALE[:2], at) if at < 1 else (SCALE[1:], at - 1)
  rgb = [round(a + share * (b - a)) for a, b in zip(*pair, strict=True)]
  ground, ink = "#" + bytes(rgb).hex(), _ink(rgb)
  return f' style="background: {ground}; color: {ink}">{100 * score:.0f}'


def _ink(rgb: Sequence[int]) -> str:
  """Black or white, whichever has more contrast with a colour (as in WCAG 2)."""
  linear = [
    (x / 255 / 12.92) if x < 11 else ((x / 255 + 0.055) / 1.055) ** 2.4 for x in rgb
  ]
  luminance = sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
  return "#000" if luminance > 0.179 else "#fff"

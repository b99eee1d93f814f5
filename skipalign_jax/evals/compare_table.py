"""Tables of evaluations: one table row per model, and notes on what is not comparable.

Results of one model with one rope share a table row if they are in different columns; a
second result for a column gets its own row, which is named by its folder.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from skipalign_jax.runtime import escape

WHAT = ("datasets", "tasks")  # options that select what is evaluated, not how
# Parts of a protocol that describe the model, or that may differ between comparable
# results.
OF_THE_MODEL = (
  "task", "options", "model", "parameters", "rope", "window", "tokenizer_sha256",
  "weights", "batch_tokens", "items_sha256",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Results:
  """The content of a folder."""

  folder: pathlib.Path
  protocol: dict[str, Any]
  summary: dict[str, Any]
  items: list[dict[str, Any]]
  notes: list[str]

  @property
  def task(self) -> str:
    """The name of the task."""
    return self.protocol["task"]

  @property
  def model(self) -> tuple[str, str]:
    """The model and its rope."""
    return self.protocol["model"], json.dumps(self.protocol.get("rope"))


class Cell(NamedTuple):
  """A number of a table.

  Attributes:
    value: as it is shown.
    kind: numbers of one kind are compared with each other.
    partial: the part of the column's data that it covers; "" if it covers all.
  """

  value: float
  kind: str
  partial: str = ""


@dataclasses.dataclass
class Row:
  """The cells of a model, by column, and the results that they come from."""

  name: str
  model: tuple[str, str]
  cells: dict[str, Cell]
  results: list[Results]


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows under a title, and notes for the reader."""

  title: str
  columns: list[str]
  rows: list[Row]
  notes: list[str]
  form: str


def join(
  title: str,
  columns: Sequence[str],
  found: Sequence[tuple[Results, dict[str, Cell]]],
  form: str = ".1f",
) -> Table:
  """A table of these results.

  Args:
    title: of the table.
    columns: in their order.
    found: results and their cells; results without cells are left out.
    form: format of numbers.
  """
  found = [(one, cells) for one, cells in found if cells]
  ropes: dict[str, set[str]] = {}
  for one, _ in found:
    ropes.setdefault(one.model[0], set()).add(one.model[1])
  rows: list[Row] = []
  for one, cells in found:
    mine = [row for row in rows if row.model == one.model]
    free = [
      row
      for row in mine
      if not row.cells.keys() & cells.keys()
      and all(_of_one_model(one, other) for other in row.results)
    ]
    if free:
      free[0].cells |= cells
      free[0].results.append(one)
      continue
    name, rope = one.model[0], one.protocol.get("rope") or {}
    if len(ropes[name]) > 1:
      name += f", rope {rope.get('kind')} × {rope.get('factor')}"
    if any(row.name == name for row in rows):
      name += f" [{one.folder}]"
    rows.append(Row(name, one.model, dict(cells), [one]))
  return Table(title, list(columns), rows, _notes(rows, found), form)


def _of_one_model(one: Results, other: Results) -> bool:
  """Whether two results of one name have the same weights, as far as it is recorded."""
  there = [r.protocol for r in (one, other) if "weights" in r.protocol]
  known = {p.get("compute_dtype"): p["weights"] for p in there}
  return all(known[p.get("compute_dtype")] == p["weights"] for p in there)


def _notes(
  rows: Sequence[Row], found: Sequence[tuple[Results, dict[str, Cell]]]
) -> list[str]:
  """Notes of the runner, on partial cells and on protocols that differ; each once."""
  notes = [f"{one.folder}: {note}" for one, _ in found for note in one.notes]
  for row in rows:
    columns: dict[str, list[str]] = {}
    for column, cell in row.cells.items():
      if cell.partial:
        columns.setdefault(cell.partial, []).append(column)
    notes += [f"* {row.name}, {', '.join(at)}: {why}" for why, at in columns.items()]
  by_kind: dict[str, list[Results]] = {}
  for one, cells in found:
    for kind in dict.fromkeys(cell.kind for cell in cells.values()):
      by_kind.setdefault(kind, []).append(one)
  for kind, results in by_kind.items():
    notes += [f"{kind}: protocols differ, {text}" for text in differences(results)]
    notes += [f"{kind}: items differ {text}" for text in other_items(results)]
  return list(dict.fromkeys(notes))


def differences(results: Sequence[Results]) -> list[str]:
  """Where the protocols of results differ: "--max_length is 3500 in a, 15500 in b"."""
  protocols = [_protocol(one) for one in results]
  texts = []
  for key in dict.fromkeys(key for protocol in protocols for key in protocol):
    folders: dict[str, list[str]] = {}
    for one, protocol in zip(results, protocols, strict=True):
      value = str(protocol.get(key, "not recorded"))
      folders.setdefault(value, []).append(str(one.folder))
    if len(folders) > 1:
      parts = [f"{value} in {' and '.join(at)}" for value, at in folders.items()]
      texts.append(f"{key} is {', '.join(parts)}")
  return texts


def other_items(results: Sequence[Results]) -> list[str]:
  """Results that should have the same items, as far as their protocols say, and do not.

  What is asked depends on the tokenizer, and what lm_eval cuts off on the window.
  """
  alike: dict[str, dict[str, list[str]]] = {}
  for one in results:
    if "items_sha256" in one.protocol:
      keys = ["options", "tokenizer_sha256", *["window"] * (one.task == "lm_eval")]
      same = [_protocol(one), *(one.protocol.get(key) for key in keys)]
      folders = alike.setdefault(json.dumps(same), {})
      folders.setdefault(one.protocol["items_sha256"], []).append(str(one.folder))
  return [
    f"in {' and in '.join(map(' and '.join, folders.values()))}; files have "
    "changed, or the models end replies with other tokens"
    for folders in alike.values()
    if len(folders) > 1
  ]


def _protocol(one: Results) -> dict[str, Any]:
  """How it was evaluated. Prompts are compared by content, not by their folder."""
  options = {
    f"--{key}": value
    for key, value in one.protocol["options"].items()
    if key not in WHAT
  }
  if "prompts" in one.summary:
    options["--prompts"] = one.summary["prompts"]
  others = {k: v for k, v in one.protocol.items() if k not in OF_THE_MODEL}
  return options | others


def markdown(table: Table) -> str:
  """The table with aligned columns, and its notes."""
  lines = [["Model", *map(escape.markdown, table.columns)]]
  for row in table.rows:
    lines.append(
      [
        escape.markdown(row.name),
        *(shown(row.cells.get(c), table.form) for c in table.columns),
      ]
    )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
  rows = []
  for line in lines:
    cells = [line[0].ljust(widths[0])]
    cells += [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    rows.append("| " + " | ".join(cells) + " |")
  notes = [f"- {escape.markdown(note)}" for note in table.notes]
  title = f"### {escape.markdown(table.title)}"
  return "\n".join([title, "", *rows, *([""] if notes else []), *notes])


def shown(cell: Cell | None, form: str) -> str:
  """A cell as text: "-" without a result, * after a number over a part of the data."""
  return "-" if cell is None else f"{cell.value:{form}}" + "*" * bool(cell.partial)


def as_json(table: Table) -> dict[str, Any]:
  """The table as JSON; numbers that are not finite are left out."""
  return {
    "title": table.title,
    "columns": table.columns,
    "rows": [
      {
        "model": row.name,
        "folders": [str(one.folder) for one in row.results],
        "cells": {
          column: {"value": cell.value, "partial": cell.partial}
          for column, cell in row.cells.items()
          if math.isfinite(cell.value)
        },
      }
      for row in table.rows
    ],
    "notes": table.notes,
  }

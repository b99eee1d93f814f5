"""Evaluations side by side: SkipAlign's Tables 1 and 2, heat maps, other tasks.

Reads only results.json of each folder. A cell without a result is "-"; * marks a number
over a part of the data of its column. Differences of protocols are listed under the
table.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from skipalign_jax.evals import (
  compare_page,
  compare_table,
  facts,
  heatmap,
  keys,
  needle,
)
from skipalign_jax.evals.longbench import task as longbench_task
from skipalign_jax.runtime import (
  errors,
  files,
  json_limits,
  paths,
  plotting,
  storage,
  terminal,
)

# SkipAlign's Table 2: lm_eval's groups and tasks, and the names of their parts. Other
# benchmarks have names that begin alike, such as mmlu_pro and humaneval_plus.
_NOT_MMLU = "pro|prox|redux|flan|cot|continuation|early|generative|llama"
SHORT = {
  "MMLU": ("mmlu", rf"mmlu_(?!(.*_)?({_NOT_MMLU})(_|$)).+"),
  "BBH": ("bbh", r"bbh_cot_fewshot_.+"),
  "TydiQA": ("tydiqa_gold", r"tydiqa_gold_.+"),
  "Codex-Eval (HumanEval)": ("humaneval", ""),
}
MAPS = {"needle": needle, "keys": keys, "facts": facts}  # tasks with a heat map
PERCENTS = ("squadv2", "scrolls_")  # tasks whose scores are percents already
METRICS = ("acc", "f1", "pass@1", "exact_match")  # the first one of a task is shown


def run(folders: Sequence[str], out: str, console: terminal.Console) -> dict[str, Any]:
  """Prints the tables of these evaluations, and writes them if `out` is given.

  Args:
    folders: of evaluations; one that is named twice is shown once.
    out: folder for compare.html, .md, .json and, with results of needle, keys or
      facts, needle.png; empty to write nothing.
    console: for the tables.

  Returns:
    The content of compare.json.

  Raises:
    UserError: results that cannot be read, or a folder that cannot be written.
  """
  if not folders:
    raise errors.UserError("compare needs folders of evaluations")
  results = [read(folder) for folder in paths.different(folders, console.print)]
  found = tables(results)
  text = "\n\n".join(map(compare_table.markdown, found))
  console.print_markdown(text)
  content = {"tables": [compare_table.as_json(table) for table in found]}
  if out:
    names = {
      one.folder: row.name
      for table in found
      for row in table.rows
      for one in row.results
    }
    panels = [
      _panel(one, names.get(one.folder, one.protocol["model"]))
      for one in results
      if one.task in MAPS
    ]
    folder = paths.output(out, f"--out={out}")
    picture, written = folder / "needle.png", "compare.html, .md, .json"
    try:
      folder.mkdir(parents=True, exist_ok=True)
      files.write_text(folder / "compare.html", compare_page.page(found, panels))
      files.write_text(folder / "compare.md", text + "\n")
      files.write_json(folder / "compare.json", content)
      if panels and plotting.possible(console, picture):
        heatmap.draw(panels, picture)
        written += " and needle.png"
    except OSError as error:
      raise errors.UserError(
        f"--out={out} cannot be written: {storage.explain(error)}"
      ) from error
    console.print(f"written to {folder}: {written}")
  return content


def read(folder: str) -> compare_table.Results:
  """The results of one evaluation.

  Raises:
    UserError: there are no results, or they are damaged.
  """
  path = paths.given(folder, folder) / "results.json"
  if not path.exists():
    unfinished = (path.parent / "protocol.json").exists()
    raise errors.UserError(
      f"{path}: no such file; "
      + (
        "the evaluation is not finished; run its command again"
        if unfinished
        else "name folders that `evaluate` wrote"
      )
    )
  try:
    content = files.read_json(path, json_limits.MAX_RESULT_VALUES, finite=False)
  except errors.UserError as error:
    raise errors.UserError(
      f"{error}; delete it and run its evaluation again: its items are saved"
    ) from error
  kinds = {"protocol": dict, "summary": dict, "items": list, "notes": list}
  for key, kind in kinds.items():
    if not isinstance(content.get(key), kind):
      raise errors.UserError(f"{path} has no {key!r}; `evaluate` did not write it")
  for key, kind in {"task": str, "model": str, "options": dict}.items():
    if not isinstance(content["protocol"].get(key), kind):
      raise errors.UserError(f"{path}: its protocol has no {key!r}")
  return compare_table.Results(path.parent, *(content[key] for key in kinds))


def tables(results: Sequence[compare_table.Results]) -> list[compare_table.Table]:
  """All tables that have rows.

  Raises:
    UserError: a summary that is not complete.
  """
  table_1, table_e, table_2, others = [], [], [], []
  for one in results:
    try:
      if one.task == "longbench" and one.protocol["options"]["e"]:
        table_e.append((one, long_e_cells(one)))
      elif one.task == "longbench":
        cells = long_cells(one)
        table_1.append((one, cells))
        table_2.append((one, {"LongBench": cells["Avg."]}))
      elif one.task == "lm_eval":
        short, rest = short_cells(one)
        table_2.append((one, short))
        others.append((one, rest))
      else:
        others.append((one, headline(one)))
      _check_numbers(table_1, table_e, table_2, others)
    except (KeyError, TypeError, AttributeError) as error:
      raise errors.UserError(
        f"{one.folder / 'results.json'}: the summary of {one.task} is not complete "
        f"({repr(error)[:200]}); run the evaluation again in a new folder"
      ) from error
  if not any(one.task == "lm_eval" and cells for one, cells in table_2):
    table_2 = []  # it would repeat Table 1
  rest = sorted({column for _, cells in others for column in cells})
  found = [
    compare_table.join(
      "LongBench (Table 1)", ["Avg.", *longbench_task.CATEGORIES], table_1
    ),
    compare_table.join("LongBench-E", ["Avg.", *longbench_task.BUCKETS], table_e),
    compare_table.join(
      "Long and short tasks (Table 2)", ["LongBench", *SHORT], table_2
    ),
    compare_table.join("Other tasks, as they report", rest, others, ".4g"),
  ]
  return [table for table in found if table.rows]


def _check_numbers(*tables: Sequence[tuple[Any, dict[str, compare_table.Cell]]]):
  """Raises TypeError if the last cells of a table have other values than numbers."""
  for table in tables:
    for column, cell in table[-1][1].items() if table else ():
      _check_number(column, cell.value)


def _check_number(name: str, value: Any) -> None:
  if not isinstance(value, int | float):
    raise TypeError(f"{name} is {str(value)[:20]!r}, not a number")


def long_cells(one: compare_table.Results) -> dict[str, compare_table.Cell]:
  """Columns of Table 1; partial ones average a part of their sets or records."""
  sizes = longbench_task.expected(e=False)
  evaluated = {name: found["n"] for name, found in one.summary["sets"].items()}
  cells = {"Avg.": compare_table.Cell(one.summary["average"], "longbench", _lacks(one))}
  for category in longbench_task.CATEGORIES:
    if category in one.summary["categories"]:
      its = [name for name in sizes if longbench_task.SETS[name].category == category]
      short = [
        f"{name} {evaluated.get(name, 0)} of {sizes[name]} records"
        for name in its
        if evaluated.get(name) != sizes[name]
      ]
      value = one.summary["categories"][category]
      cells[category] = compare_table.Cell(value, "longbench", ", ".join(short))
  return cells


def long_e_cells(one: compare_table.Results) -> dict[str, compare_table.Cell]:
  """Columns of LongBench-E: means over its sets, of all records and by length."""
  lacks = _lacks(one)
  by_length = one.summary["by_length"]
  cells = {"Avg.": compare_table.Cell(one.summary["average"], "longbench-e", lacks)}
  for bucket in longbench_task.BUCKETS:
    if by_length[bucket] is not None:
      cells[bucket] = compare_table.Cell(by_length[bucket], "longbench-e", lacks)
  return cells


def _lacks(one: compare_table.Results) -> str:
  if one.summary["complete"]:
    return ""
  return f"mean of {len(one.summary['sets'])} set(s); {'; '.join(one.summary['lacks'])}"


def short_cells(
  one: compare_table.Results,
) -> tuple[dict[str, compare_table.Cell], dict[str, compare_table.Cell]]:
  """Columns of Table 2 that an lm_eval result has, and its other tasks."""
  tasks, groups = lm_eval_scores(one.summary)
  scores = tasks | groups
  cells = {}
  for column, (name, part) in SHORT.items():
    parts = [task for task in tasks if re.fullmatch(part, task)]
    if name in scores:
      cells[column] = compare_table.Cell(scores[name], column, _limited(one))
    elif parts:
      value = sum(tasks[part] for part in parts) / len(parts)
      some = ", ".join(parts[:3]) + (", …" if len(parts) > 3 else "")
      limited = f"; {_limited(one)}" if _limited(one) else ""
      partial = f"mean of {len(parts)} task(s), {some}{limited}"
      cells[column] = compare_table.Cell(value, column, partial)
    for task in list(scores):
      if task == name or re.fullmatch(part, task):
        del scores[task]
  scores |= lm_eval_others(one.summary)
  return cells, {
    task: compare_table.Cell(score, task, _limited(one))
    for task, score in scores.items()
  }


def lm_eval_scores(
  summary: dict[str, Any],
) -> tuple[dict[str, float], dict[str, float]]:
  """Percent by task and by group: the first of METRICS, with its first filter."""
  found: tuple[dict[str, float], dict[str, float]] = ({}, {})
  for scores, kind in zip(found, ("tasks", "groups"), strict=True):
    for name, metrics in summary.get(kind, {}).items():
      if key := _chosen(metrics):
        mean = metrics[key]["mean"]
        percent = name.startswith(PERCENTS) or mean > 1
        scores[name] = mean if percent else 100 * mean
  return found


def lm_eval_others(summary: dict[str, Any]) -> dict[str, float]:
  """ "task metric" → the first metric, as it is, of tasks with none of METRICS."""
  found = {}
  for kind in ("tasks", "groups"):
    for name, metrics in summary.get(kind, {}).items():
      if metrics and not _chosen(metrics):
        key = next(iter(metrics))
        found[f"{name} {key.partition(',')[0]}"] = metrics[key]["mean"]
  return found


def _chosen(metrics: Mapping[str, Any]) -> str:
  """The key of the first of METRICS, with its first filter; "" without one."""
  plain = {key.partition(",")[0]: key for key in reversed(metrics)}
  return next((plain[metric] for metric in METRICS if metric in plain), "")


def headline(one: compare_table.Results) -> dict[str, compare_table.Cell]:
  """The number of any other task: "average", or the first number of its summary."""
  name = one.task
  if "variant" in one.protocol["options"]:
    name += f" {one.protocol['options']['variant']}"
  for key, value in sorted(one.summary.items(), key=lambda kv: kv[0] != "average"):
    if isinstance(value, dict) and "mean" in value:
      value = value["mean"]
    if isinstance(value, int | float) and not isinstance(value, bool):
      column = name if key in ("average", one.task) else f"{name} {key}"
      return {column: compare_table.Cell(value, column, _limited(one))}
  return {}


def _limited(one: compare_table.Results) -> str:
  """The part of its data that a result covers; "" if it covers all."""
  limit, parts = one.protocol.get("limit"), []
  if limit:
    parts.append(f"only the first {limit}")
  if one.summary.get("lacks"):
    parts.append(f"without {', '.join(map(str, one.summary['lacks']))}")
  return "; ".join(parts)


def _panel(one: compare_table.Results, name: str) -> dict[str, Any]:
  """The heat map of results, with the name of their table row."""
  try:
    panel = MAPS[one.task].panel(
      {"protocol": one.protocol, "summary": one.summary, "items": one.items}
    )
    panel["title"] = name + panel["title"].removeprefix(one.protocol["model"])
    _check_number("window", panel["window"])
    for cell in panel["cells"]:
      for key in ("length", "depth", "score"):
        _check_number(key, cell[key])
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f"{one.folder / 'results.json'} does not have what a heat map needs "
      f"({repr(error)[:200]}); run the evaluation again in a new folder"
    ) from error
  return panel

"""Benchmarks of lm-evaluation-harness: MMLU, BBH, TyDiQA, HumanEval, BABILong, …

--tasks names tasks, groups or tags of the installed lm_eval, tasks of this package
(tydiqa_gold with one task per language), or task files. Prompts, metrics and filters
are the harness's. --limit evaluates the first so many documents of each task.
--local_data reads documents from files instead of the hub, as described in
evals/lm_eval/local_data.py.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipalign_jax.evals import intervals, option_values
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.lm_eval import code_eval, patches, queries
from skipalign_jax.runtime import errors, extras, paths

if TYPE_CHECKING:  # imports jax
  from skipalign_jax.evals import runner

BOOTSTRAPS = 1000  # for metrics that are not means


@dataclasses.dataclass(frozen=True)
class Options:
  """Which tasks, and how they are evaluated."""

  tasks: str = "mmlu"  # names or task files, commas between them
  num_fewshot: int = -1  # examples per prompt; -1: each task's own number
  local_data: str = ""  # folder of benchmarks; by default the hub
  chat: bool = False  # use the chat template, with examples as turns
  unsafe_code: bool = False  # allow tasks that run programs written by the model


def run(
  options: Options,
  subject: subject_lib.Subject,
  evaluation: runner.Evaluation,
  limit: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """One record per document and filter, and the summary.

  Raises:
    UserError: lm_eval is not installed, or a task, its data or its options cannot be
      used.
  """
  option_values.at_least(options, num_fewshot=-1)
  names = _names(options)
  with patches.quiet():  # these imports take seconds: here, not above
    from lm_eval import evaluator

    from skipalign_jax.evals.lm_eval import adapter
    from skipalign_jax.evals.lm_eval import tasks as lm_eval_tasks

    with patches.own_code_eval():
      loaded = lm_eval_tasks.load(
        names,
        options.local_data,
        options.unsafe_code,
        options.num_fewshot,
        evaluation.notes.append,
      )
    lm = adapter.SubjectLM(
      subject,
      lambda items: evaluation.records(
        items,
        lambda batch: queries.measure(subject, batch),
        lm_eval=importlib.metadata.version("lm_eval"),
      ),
      # The harness makes all requests before it sends the first one.
      lambda: [
        request
        for task in loaded["tasks"].values()
        for request in task.instances
        for _ in range(request.repeats)
      ],
    )
    found = evaluator.evaluate(
      lm,
      loaded,
      limit=limit or None,
      bootstrap_iters=BOOTSTRAPS,
      apply_chat_template=options.chat,
      fewshot_as_multiturn=options.chat,
      confirm_run_unsafe_code=options.unsafe_code,
    )
  evaluation.notes.extend(code_eval.notes())
  if lm.truncated:
    evaluation.notes.append(
      f"{lm.truncated} of {lm.planned} requests are longer than the model's window of "
      f"{subject.window} positions, replies included; their beginnings were cut off"
    )
  return records(found["samples"]), summary(found)


def _names(options: Options) -> list[str]:
  """The names in --tasks; raises UserError if they cannot be evaluated."""
  names = [name.strip() for name in options.tasks.split(",") if name.strip()]
  if not names or len(set(names)) < len(names):
    raise errors.UserError(f"--tasks={options.tasks}: give different names, like mmlu")
  extras.need("lm_eval", "evaluate lm_eval")
  # Names of tasks do not begin with ~, so these are files.
  at_home = lambda name: str(paths.given(name, f"--tasks={name}"))
  return [at_home(name) if name.startswith("~") else name for name in names]


def records(samples: dict[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
  """The result of each document, by task.

  Returns:
    For each: id ("task/document", with the filter if a task has several), task, target,
    replies before and after the filter, or log_p and likeliest of each choice, and one
    score per metric.
  """
  found = []
  for task, rows in samples.items():
    several = len({row["filter"] for row in rows}) > 1
    for row in sorted(rows, key=lambda row: row["doc_id"]):
      id = f"{task}/{row['doc_id']}"
      answers = [reply for replies in row["resps"] for reply in replies]
      if isinstance(answers[0], tuple):
        content = {
          "log_p": [log_p for log_p, _ in answers],
          "likeliest": [likeliest for _, likeliest in answers],
        }
      elif isinstance(answers[0], str):
        content = {"replies": answers, "filtered": row["filtered_resps"]}
      else:
        content = {"log_p": answers}
      scores = {metric: row[metric] for metric in row["metrics"]}
      found.append(
        {
          "id": f"{id}/{row['filter']}" if several else id,
          "task": task,
          "target": row["target"],
          **content,
          "scores": scores,
        }
      )
  return json.loads(json.dumps(found, default=_plain))


def _plain(value: Any) -> Any:
  """NumPy's numbers, and anything else as text, for JSON."""
  return value.item() if hasattr(value, "item") else str(value)


def summary(found: dict[str, Any]) -> dict[str, Any]:
  """Means and intervals by task and group, from the harness's standard errors.

  Args:
    found: the result of `lm_eval.evaluator.evaluate`.

  Returns:
    {"tasks": {task: {metric: {"mean", "low", "high", "n"}}}, "groups": the same,
    "average"}: the mean of the first metric of all groups and tasks that are not in
    another group; only if all of these are shares from 0 to 1 for which more is better.
  """
  groups = found["group_subtasks"]
  shown = {}
  for name, values in found["results"].items():
    samples = [found["samples"].get(task, ()) for task in _inside(name, groups)]
    shown[name] = _metrics(values, list(itertools.chain(*samples)))
  inside = {child for children in groups.values() for child in children}
  result: dict[str, Any] = {
    "tasks": {name: shown[name] for name in shown if name not in groups}
  }
  if combined := {n: shown[n] for n in shown if n in groups and shown[n]}:
    result["groups"] = combined
  shares = []
  for name in shown.keys() - inside:
    key, value = next(iter(shown[name].items()), ("", {"mean": -1.0}))
    better = found["higher_is_better"].get(name, {}).get(key.partition(",")[0])
    shares.append(value["mean"] if better and value["mean"] <= 1 else -1.0)
  if min(shares) >= 0:
    result = {"average": sum(shares) / len(shares)} | result
  return result


def _inside(name: str, groups: dict[str, Sequence[str]]) -> list[str]:
  """The tasks of a group and of the groups in it, or the task itself."""
  if not groups.get(name):
    return [name]
  return [task for child in groups[name] for task in _inside(child, groups)]


def _metrics(
  values: dict[str, Any], samples: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
  """metric or metric,filter → mean, 95 % interval and number of documents.

  There is no interval without a standard error, or if all documents have the same
  score: the standard error is then 0, whatever their number. If the scores of all
  documents are from 0 to 1, so is the interval.

  Args:
    values: what the harness found for a task or a group.
    samples: of its documents.
  """
  found = {}
  for key, value in values.items():
    metric, comma, chosen = key.partition(",")
    if not comma or metric.endswith("_stderr"):
      continue
    error = values.get(f"{metric}_stderr,{chosen}", "N/A")
    half = None if error in ("N/A", 0) else intervals.Z * float(error)
    interval = {
      "mean": float(value),
      "low": None if half is None else float(value) - half,
      "high": None if half is None else float(value) + half,
      "n": values["sample_len"],
    }
    scores = [sample[metric] for sample in samples if metric in sample]
    if scores and all(_is_share(score) for score in scores):
      interval = intervals.within_shares(interval)
    found[metric if chosen == "none" else key] = interval
  return found


def _is_share(score: Any) -> bool:
  return isinstance(score, (int, float, np.number)) and 0 <= score <= 1

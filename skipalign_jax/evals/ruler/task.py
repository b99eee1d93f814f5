"""RULER (arXiv 2404.06654): its six tasks that need no external text, at any length.

Retrieval: niah_single_1 (one needle in noise), niah_multikey_2 (only needles, words and
numbers), niah_multikey_3 (only needles, uuids). Tracing: vt (a chain of 4 assignments).
Aggregation: cwe (ten common words among rare ones), fwe (words by a zeta law).

Tasks and scores are RULER's, the wording is our own, so that scores are close to
published ones but not comparable to the point. As in the authors' code, a prompt, chat
template included, and the longest reply together have at most the given number of
tokens; they would exceed it with one more unit (sentence, needle or word). vt and cwe
show a solved example first, and the beginning of the reply is given. The score is the
share of the expected strings that the reply contains.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import curves, intervals, option_values
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.ruler import questions
from skipalign_jax.runtime import errors


@dataclasses.dataclass(frozen=True)
class Options:
  """Which tasks, and at which lengths."""

  tasks: str = ",".join(questions.TASKS)  # commas between them
  lengths: str = "1024,2048,4096"  # tokens of a prompt and its reply, at most
  samples: int = 5  # per task and length
  chat: bool = True  # use the chat template
  seed: int = 0  # of the questions


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """One prompt per task, length and sample.

  Raises:
    UserError: unknown task, numbers out of range, or a length that is too short.
  """
  names = list(dict.fromkeys(name.strip() for name in options.tasks.split(",")))
  unknown = [name for name in names if name not in questions.TASKS]
  if unknown:
    known = ", ".join(questions.TASKS)
    raise errors.UserError(
      f"--tasks={options.tasks}: {unknown[0]!r} is unknown; choose from {known}"
    )
  option_values.at_least(options, samples=1, seed=0)
  lengths = option_values.numbers("lengths", options.lengths)
  return [
    _item(options, subject, name, length, sample)
    for name in names
    for length in lengths
    for sample in range(options.samples)
  ]


def _item(options, subject, name: str, length: int, sample: int) -> items_lib.Item:
  task = questions.TASKS[name]
  key = [options.seed, zlib.crc32(name.encode()), length, sample]

  def make(units: int) -> questions.Question:
    return task.make(np.random.default_rng(key), units, length)

  def prompt(question: questions.Question) -> list[int]:
    lead = question.lead if options.chat else "\n" + question.lead
    before, after = subject.around(options.chat, lead)
    return subject.encode_prompt(before + question.text + after, options.chat)[0]

  room = length - task.max_new_tokens
  units = fill(lambda units: len(prompt(make(units))), room, task.min_units)
  if not units:
    raise errors.UserError(
      f"--lengths={length}: the shortest prompt of {name} has "
      f"{len(prompt(make(task.min_units)))} tokens, and its reply "
      f"{task.max_new_tokens}"
    )
  question = make(units)
  return items_lib.of_prompt(
    f"{name}/{length}/{sample}",
    items_lib.Prompt(tuple(prompt(question)), task.max_new_tokens, subject.stop_ids),
    task=name,
    length=length,
    expected=list(question.expected),
  )


def fill(tokens: Callable[[int], int], length: int, start: int) -> int:
  """The n ≥ start with tokens(n) ≤ length < tokens(n + 1); 0 if `start` is too many.

  `tokens` grows about linearly, so that a few calls suffice.
  """
  low, low_tokens = start, tokens(start)
  if low_tokens > length:
    return 0
  high, high_tokens = 2 * start, tokens(2 * start)
  while high_tokens <= length:
    low, low_tokens = high, high_tokens
    high, high_tokens = 2 * high, tokens(2 * high)
  while high - low > 1:
    share = (length - low_tokens) / (high_tokens - low_tokens)
    n = min(max(low + int(share * (high - low)), low + 1), high - 1)
    n_tokens = tokens(n)
    if n_tokens <= length:
      low, low_tokens = n, n_tokens
    else:
      high, high_tokens = n, n_tokens
  return low


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Replies and their scores."""
  del options
  return [
    {"reply": reply, "score": recall(reply, item.record["expected"])}
    for item, reply in zip(batch, items_lib.replies(subject, batch), strict=True)
  ]


def recall(reply: str, expected: Sequence[str]) -> float:
  """Share of the expected strings that are in the reply, upper or lower case."""
  return sum(text.lower() in reply.lower() for text in expected) / len(expected)


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """The mean over all questions, 0 to 1, by task, by length, and by both."""
  del options
  overall = intervals.of_scores([record["score"] for record in records])
  by_task: dict[str, list[items_lib.Record]] = {}
  for record in records:
    by_task.setdefault(record["task"], []).append(record)
  return {
    "average": overall["mean"],
    "interval": overall,
    "by_task": intervals.by("task", records),
    "by_length": intervals.by("length", records),
    "table": {
      task: {n: found["mean"] for n, found in intervals.by("length", part).items()}
      for task, part in by_task.items()
    },
  }


def draw(
  options: Options, results: dict[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
  """ruler.png: score by length, one line per task."""
  del options
  protocol, summary = results["protocol"], results["summary"]
  lines = {
    task: [(int(length), 100 * score) for length, score in row.items()]
    for task, row in summary["table"].items()
  }
  return [
    curves.draw(
      lines,
      folder / "ruler.png",
      f"{protocol['model']}\nRULER: {100 * summary['average']:.1f}",
      "prompt and reply, tokens",
      "score, %",
      protocol["window"],
      100,
    )
  ]

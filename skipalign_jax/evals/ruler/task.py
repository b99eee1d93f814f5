"""RULER (arXiv 2404.06654): its six tasks that need no outside text, at any length.

Retrieval: niah_single_1 (one needle in noise), niah_multikey_2 (all needles, words and
numbers), niah_multikey_3 (all needles, uuids). Tracing: vt (a chain of 4 assignments).
Aggregation: cwe (ten common words among rare ones), fwe (words by a zeta law).

What is asked and counted is RULER's, the words are ours, so scores do not compare with
published ones to the point. A prompt, template and all, has at most the tokens that it
should have, and would have more with one more unit (sentence, needle or word). As in
the authors' code, vt and cwe show a solved example first, and the beginning of the
answer is given. A score is the share of the expected strings that the answer has.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import curves, intervals, needle
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.ruler import questions
from skipalign_jax.runtime import errors


@dataclasses.dataclass(frozen=True)
class Options:
  """What to ask, and at which lengths."""

  tasks: str = ",".join(questions.TASKS)  # or some of them
  lengths: str = "1024,2048,4096"  # tokens of a prompt, at most
  samples: int = 5  # a task and length
  chat: bool = True  # ask through the chat template
  seed: int = 0  # of what is drawn


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """A prompt a task, length and sample.

  Raises:
    UserError: unknown task, numbers out of range, or a length that is too short.
  """
  names = list(dict.fromkeys(name.strip() for name in options.tasks.split(",")))
  unknown = [name for name in names if name not in questions.TASKS]
  if unknown:
    known = ", ".join(questions.TASKS)
    raise errors.UserError(
      f"--tasks={options.tasks}: {unknown[0]!r} is unknown; choose of {known}"
    )
  if options.samples < 1:
    raise errors.UserError(f"--samples={options.samples}: ask at least one")
  if options.seed < 0:
    raise errors.UserError(f"--seed={options.seed} must be 0 or more")
  lengths = needle.numbers("lengths", options.lengths)
  return [
    _item(options, subject, name, length, sample)
    for name in names
    for length in lengths
    for sample in range(options.samples)
  ]


def _item(options, subject, name: str, length: int, sample: int) -> items_lib.Item:
  task = questions.TASKS[name]
  head, tail = subject.around(options.chat)
  key = [options.seed, zlib.crc32(name.encode()), length, sample]

  def ask(units: int) -> questions.Question:
    return task.ask(np.random.default_rng(key), units, length)

  def prompt(question: questions.Question) -> list[int]:
    lead = question.lead if options.chat else "\n" + question.lead
    return [*head, *subject.encode(question.text), *tail, *subject.encode(lead)]

  units = fill(lambda units: len(prompt(ask(units))), length, task.least)
  if not units:
    raise errors.UserError(
      f"--lengths={length}: the shortest prompt of {name} has "
      f"{len(prompt(ask(task.least)))} tokens"
    )
  question = ask(units)
  return items_lib.asked(
    f"{name}/{length}/{sample}",
    items_lib.Prompt(tuple(prompt(question)), task.max_new_tokens, subject.stop_ids),
    task=name,
    length=length,
    expected=list(question.expected),
  )


def fill(tokens: Callable[[int], int], length: int, least: int) -> int:
  """The n ≥ least with tokens(n) ≤ length < tokens(n + 1); 0 if `least` is too many.

  `tokens` grows about evenly, so a few calls do.
  """
  low, low_tokens = least, tokens(least)
  if low_tokens > length:
    return 0
  high, high_tokens = 2 * least, tokens(2 * least)
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
    for item, reply in zip(batch, items_lib.answers(subject, batch), strict=True)
  ]


def recall(reply: str, expected: Sequence[str]) -> float:
  """Share of the expected strings that stand in the reply, in any case of letters."""
  return sum(text.lower() in reply.lower() for text in expected) / len(expected)


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """The mean over all questions, 0 to 1, by task, by length, and by both."""
  del options
  tasks = list(dict.fromkeys(record["task"] for record in records))
  lengths = sorted({record["length"] for record in records})

  def mean(task: str | None = None, length: int | None = None) -> dict[str, Any]:
    return intervals.of_scores(
      [
        record["score"]
        for record in records
        if task in (None, record["task"]) and length in (None, record["length"])
      ]
    )

  asked = {(record["task"], record["length"]) for record in records}
  overall = mean()
  return {
    "average": overall["mean"],
    "interval": overall,
    "by_task": {task: mean(task) for task in tasks},
    "by_length": {str(length): mean(length=length) for length in lengths},
    "table": {
      task: {str(n): mean(task, n)["mean"] for n in lengths if (task, n) in asked}
      for task in tasks
    },
  }


def draw(
  options: Options, results: dict[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
  """ruler.png: score by length, a line a task."""
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
      "prompt, tokens",
      "score, %",
      protocol["window"],
      100,
    )
  ]

"""RULER (arXiv 2404.06654): its 13 tasks, at any length.

Retrieval: niah_single_1 (one needle in noise), niah_single_2 and _3 (one in books, a
number or a uuid), niah_multikey_1 (four in books), _2 and _3 (only needles, words and
numbers or uuids), niah_multivalue (four values of one key), niah_multiquery (four keys
are asked for). Tracing: vt (a chain of 4 assignments). Aggregation: cwe (ten common
words among rare ones), fwe (words by a zeta law). Questions: qa_1 and qa_2 (SQuAD and
HotpotQA among other documents).

Five tasks need --haystack with books, two need --qa; the summary says of how many tasks
the mean is. Tasks and scores are RULER's. The wording is our own and books take the
place of its essays, so that scores are close to published ones but not comparable to
the point. As in the authors' code, a prompt, chat template included, and the longest
reply together have at most the given number of tokens; they would exceed it with one
more unit (sentence, word, needle or document). vt and cwe show a solved example first,
and the beginning of the reply is given. The score is the share of the expected strings
that the reply contains; for qa_1 and qa_2 whether it contains any of them.
"""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import books as books_lib
from skipalign_jax.evals import curves, fill, intervals, option_values
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.ruler import documents, essays, questions
from skipalign_jax.runtime import errors

NAMES = (
  "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1",
  "niah_multikey_2", "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt",
  "cwe", "fwe", "qa_1", "qa_2",
)  # fmt: skip
_TRIES = 20  # records of qa_1 and qa_2 that may be too long for a sample


@dataclasses.dataclass(frozen=True)
class Options:
  """Which tasks, and at which lengths."""

  tasks: str = "all"  # all that have their data, or names with commas between them
  haystack: str = ""  # books for five tasks: .txt or .txt.gz files
  qa: str = ""  # folder with dev-v2.0.json (qa_1), hotpot_dev_distractor_v1.json (qa_2)
  lengths: str = "1024,2048,4096"  # tokens of a prompt and its reply, at most
  samples: int = 5  # per task and length
  chat: bool = True  # use the chat template
  seed: int = 0  # of the questions


def lacking(options: Options) -> dict[str, str]:
  """Tasks without their data, and what each lacks.

  Raises:
    UserError: `--qa` is not a folder, or has no file of a task.
  """
  found = {} if options.haystack else dict.fromkeys(essays.TASKS, "no --haystack")
  for name, files in documents.FILES.items():
    if not options.qa:
      found[name] = "no --qa"
    elif documents.path_of(options.qa, name) is None:
      found[name] = f"--qa has no {files[0]}"
  if options.qa and documents.FILES.keys() <= found.keys():
    files = " nor ".join(files[0] for files in documents.FILES.values())
    raise errors.UserError(f"--qa={options.qa} has neither {files}")
  return found


def chosen(options: Options) -> list[str]:
  """The tasks to evaluate, in the order in which they are given.

  Raises:
    UserError: an unknown task, or one that is named and lacks its data.
  """
  lacks = lacking(options)
  if options.tasks.strip() == "all":
    return [name for name in NAMES if name not in lacks]
  names = option_values.names("tasks", options.tasks, NAMES)
  for name in names:
    if name in lacks:
      raise errors.UserError(
        f"--tasks={options.tasks}: {name} lacks its data ({lacks[name]}); give them, "
        "or leave it out"
      )
  return names


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """One prompt per task, length and sample.

  Raises:
    UserError: unknown task, data that are missing or damaged, numbers out of range, or
      a length that is too short.
  """
  names = chosen(options)
  option_values.at_least(options, samples=1, seed=0)
  lengths = option_values.numbers("lengths", options.lengths)
  makers = _makers(options, names)
  return [
    _item(options, subject, makers[name], name, length, sample)
    for name in names
    for length in lengths
    for sample in range(options.samples)
  ]


# A maker gives the tasks that a sample may be of; the first that fits is taken.
_Maker = Callable[[int], Iterator[questions.Task]]


def _makers(options: Options, names: Sequence[str]) -> dict[str, _Maker]:
  """The maker of each task."""
  found: dict[str, _Maker] = {}
  books = None
  for name in names:
    if name in questions.TASKS:
      task = questions.TASKS[name]
    elif name in essays.TASKS:
      books = books or books_lib.read(options.haystack)
      task = essays.task(name, books)
    else:
      data = documents.read(documents.path_of(options.qa, name), name)
      found[name] = functools.partial(_of_records, options.seed, name, data)
      continue
    found[name] = lambda sample, task=task: iter((task,))
  return found


def _of_records(
  seed: int, name: str, data: documents.Data, sample: int
) -> Iterator[questions.Task]:
  """The sample's own record, the same at all lengths, and some to replace it."""
  key = [seed, zlib.crc32(name.encode())]
  order = np.random.default_rng(key).permutation(len(data.records))
  yield documents.task(data, data.records[order[sample % len(order)]])
  more = np.random.default_rng([*key, sample]).permutation(len(data.records))
  for number in more[:_TRIES]:
    yield documents.task(data, data.records[number])


def _item(options, subject, maker, name, length, sample) -> items_lib.Item:
  key = [options.seed, zlib.crc32(name.encode()), length, sample]
  shortest = []

  def made(task: questions.Task, units: int) -> tuple[questions.Question, list[int]]:
    question = task.make(np.random.default_rng(key), units, length)
    return question, _tokens(options, subject, question)

  for task in maker(sample):
    count = lambda units, task=task: len(made(task, units)[1])
    if units := fill.most(count, length - task.max_new_tokens, task.min_units):
      question, tokens = made(task, units)
      return items_lib.of_prompt(
        f"{name}/{length}/{sample}",
        items_lib.Prompt(tuple(tokens), task.max_new_tokens, subject.stop_ids),
        task=name,
        length=length,
        expected=list(question.expected),
      )
    shortest.append(count(task.min_units))
  raise errors.UserError(
    f"--lengths={length}: the shortest prompt of {name} has {min(shortest)} tokens, "
    f"and its reply {task.max_new_tokens}"
  )


def _tokens(options, subject, question: questions.Question) -> list[int]:
  """The tokens of a prompt."""
  lead = question.lead if options.chat else "\n" + question.lead
  before, after = subject.around(options.chat, lead)
  return subject.encode_prompt(before + question.text + after, options.chat)[0]


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Replies and their scores."""
  del options
  return [
    {"reply": reply, "score": score(item.record, reply)}
    for item, reply in zip(batch, items_lib.replies(subject, batch), strict=True)
  ]


def score(record: items_lib.Record, reply: str) -> float:
  """The score of a reply, 0 to 1, by the task of its record."""
  share = recall(reply, record["expected"])
  return float(share > 0) if record["task"] in documents.FILES else share


def recall(reply: str, expected: Sequence[str]) -> float:
  """Share of the expected strings that are in the reply, upper or lower case."""
  found = reply.casefold()
  return sum(text.casefold() in found for text in expected) / len(expected)


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """The mean over all questions, 0 to 1, by task, by length, and by both.

  All tasks have as many questions, so that it is the mean over the tasks too. It is
  RULER's only if `lacks` is empty.
  """
  overall = intervals.of_scores([record["score"] for record in records])
  by_task: dict[str, list[items_lib.Record]] = {}
  for record in records:
    by_task.setdefault(record["task"], []).append(record)
  reasons = lacking(options)
  lacks = [
    f"{name} ({reasons.get(name, 'not evaluated')})"
    for name in NAMES
    if name not in by_task
  ]
  return {
    "average": overall["mean"],
    "mean_of": f"{len(by_task)} of {len(NAMES)} tasks",
    "lacks": lacks,
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
  summary = results["summary"]
  title = f"RULER, mean of {summary['mean_of']}: {100 * summary['average']:.1f}"
  return curves.draw_table(results, folder / "ruler.png", title, "score")

"""RULER's two tasks with documents: SQuAD and HotpotQA from a folder of the user.

FOLDER/
  dev-v2.0.json or squad.json                         SQuAD 2.0, as published
  hotpot_dev_distractor_v1.json or hotpotqa.json      HotpotQA, distractor, as published
and the same names with .gz after them.

A prompt has the documents that the answer needs, then those that the data has next to
them (SQuAD: the article's other paragraphs; HotpotQA: the rest of its ten), then
documents of other questions: as many as fit, numbered, in random order. RULER may cut
off a document that HotpotQA's answer needs; here these always stay.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals.ruler import questions
from skipalign_jax.runtime import errors, json_limits, paths, untrusted

FILES = {
  "qa_1": ("dev-v2.0.json", "squad.json"),
  "qa_2": ("hotpot_dev_distractor_v1.json", "hotpotqa.json"),
}
MAX_NEW_TOKENS = 32
ORDER = "Reply with the answer alone, without any other word."


@dataclasses.dataclass(frozen=True)
class Record:
  """A question, and the numbers of documents.

  Attributes:
    question: as in the data.
    answers: each is right.
    needed: documents from which the answer follows.
    near: that the data has next to them.
  """

  question: str
  answers: tuple[str, ...]
  needed: tuple[int, ...]
  near: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Data:
  """Questions with an answer, and all documents."""

  records: tuple[Record, ...]
  documents: tuple[str, ...]


def path_of(folder: str, name: str) -> pathlib.Path | None:
  """The file of a task in the folder `--qa`; None if it is not there.

  Raises:
    UserError: there is no such folder.
  """
  root = paths.given(folder, f"--qa={folder}")
  if not root.is_dir():
    raise errors.UserError(f"--qa={folder} is not a folder")
  found = [root / (file + end) for file in FILES[name] for end in ("", ".gz")]
  return next((path for path in found if path.is_file()), None)


def read(path: pathlib.Path, name: str) -> Data:
  """The data of a task.

  Raises:
    UserError: the file is damaged, is no such data, or has no question with an answer.
  """
  documents: dict[str, int] = {}
  records: list[Record] = []
  readers = {"qa_1": _squad, "qa_2": _hotpot}
  try:
    for question, answers, needed, near in readers[name](path):
      number = lambda text: documents.setdefault(text, len(documents))
      kept = tuple(dict.fromkeys(answer for answer in answers if answer.strip()))
      its = tuple(dict.fromkeys(number(text) for text in needed))
      others = tuple(x for x in dict.fromkeys(map(number, near)) if x not in its)
      if kept and its:
        records.append(Record(question, kept, its, others))
  except (*untrusted.BROKEN, LookupError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f"--qa: {path} cannot be read as {FILES[name][0]} ({error!r}); download it again"
    ) from error
  if not records:
    raise errors.UserError(f"--qa: {path} has no question with an answer")
  return Data(tuple(records), tuple(documents))


_Raw = tuple[str, Sequence[str], Sequence[str], Sequence[str]]


def _squad(path: pathlib.Path) -> Iterator[_Raw]:
  """Question, answers, its paragraph, the article's other ones."""
  content = untrusted.read_json(path, json_limits.MAX_RESULT_VALUES)
  for article in content["data"]:
    texts = [_titled(article["title"], p["context"]) for p in article["paragraphs"]]
    for text, paragraph in zip(texts, article["paragraphs"], strict=True):
      for asked in paragraph["qas"]:
        answers = [_text(answer["text"]) for answer in asked["answers"]]
        if not asked.get("is_impossible", False):
          yield _text(asked["question"]), answers, [text], texts


def _hotpot(path: pathlib.Path) -> Iterator[_Raw]:
  """Question, answer, paragraphs of the supporting facts, all ten."""
  for _, record in untrusted.array_items(path):
    texts = {
      title: _titled(title, "".join(lines)) for title, lines in record["context"]
    }
    needed = [texts[title] for title, _ in record["supporting_facts"] if title in texts]
    answer = _text(record["answer"])
    yield _text(record["question"]), [answer], needed, list(texts.values())


def _titled(title: str, text: str) -> str:
  return f"{_text(title)}\n{_text(text)}"


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise TypeError(f"{str(value)[:40]!r} is not a text")
  return value


def task(data: Data, record: Record) -> questions.Task:
  """The question of a record; its units are documents."""
  make = functools.partial(_question, data, record)
  return questions.Task(make, len(record.needed), MAX_NEW_TOKENS)


def _question(
  data: Data, record: Record, rng: np.random.Generator, units: int, length: int
) -> questions.Question:
  del length
  first = dict.fromkeys((*record.needed, *record.near))
  rest = rng.permutation(len(data.documents)).tolist()
  others = [number for number in rest if number not in first]
  # After the last document the first comes again, as in RULER.
  chosen = list(itertools.islice(itertools.cycle((*first, *others)), units))
  shuffled = [chosen[i] for i in rng.permutation(units)]
  text = "\n\n".join(
    f"Document {i}: {data.documents[number]}" for i, number in enumerate(shuffled, 1)
  )
  return questions.Question(
    f"A question about the documents below follows them. {ORDER}\n\n{text}\n\n"
    f"Answer from these documents. {ORDER}\n\nQuestion: {record.question}",
    "Answer:",
    record.answers,
  )

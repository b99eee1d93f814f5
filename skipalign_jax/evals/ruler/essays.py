"""RULER's five tasks with needles in long texts: books here, essays in RULER.

The text begins at a random sentence of the books. Needles stand before the sentence at
a share of it: as many different shares as needles, of 40 that are spread evenly from 0
to 1. Keys are an adjective and a noun, as in RULER.
"""

import dataclasses
import functools

import numpy as np

from skipalign_jax.evals import books as books_lib
from skipalign_jax.evals import haystack
from skipalign_jax.evals.ruler import questions

# None is the end of another one, so that no key is a part of another one.
ADJECTIVES = (
  "brave", "calm", "clever", "cold", "curious", "dusty", "early", "empty", "famous",
  "gentle", "golden", "happy", "heavy", "hidden", "humble", "icy", "jolly", "kind",
  "late", "little", "loud", "lucky", "modern", "narrow", "noble", "odd", "pale",
  "polite", "proud", "quick", "quiet", "rapid", "round", "rusty", "shy", "simple",
  "slow", "small", "soft", "strange", "strong", "tall", "tiny", "wild", "wise", "young",
)  # fmt: skip
DEPTHS = tuple(np.linspace(0, 100, 40).round().astype(int).tolist())  # percent


@dataclasses.dataclass(frozen=True)
class Needles:
  """What is hidden and what is asked for.

  Attributes:
    keys: number of keys in the text.
    values: number of values of each key.
    asked: number of keys in the question.
    kind: number (seven digits) or code (a uuid).
  """

  keys: int = 1
  values: int = 1
  asked: int = 1
  kind: str = "number"


TASKS = {
  "niah_single_2": Needles(),
  "niah_single_3": Needles(kind="code"),
  "niah_multikey_1": Needles(keys=4),
  "niah_multivalue": Needles(values=4),
  "niah_multiquery": Needles(keys=4, asked=4),
}
MAX_NEW_TOKENS = 128


def task(name: str, books: books_lib.Books) -> questions.Task:
  """One of TASKS; its units are words of the books."""
  make = functools.partial(_question, TASKS[name], books)
  return questions.Task(make, 1, MAX_NEW_TOKENS)


def _question(
  needles: Needles,
  books: books_lib.Books,
  rng: np.random.Generator,
  units: int,
  length: int,
) -> questions.Question:
  del length
  names = _keys(needles.keys, rng)
  draw = questions.number if needles.kind == "number" else questions.code
  values = {name: [draw(rng) for _ in range(needles.values)] for name in names}
  form = "The secret {} of {} is {}." if needles.values == 1 else MANY
  lines = [form.format(needles.kind, name, x) for name in names for x in values[name]]
  lines = [lines[i] for i in rng.permutation(len(lines))]
  asked = [names[i] for i in rng.permutation(len(names))[: needles.asked]]
  first = int(rng.integers(len(books.sentences)))
  depths = sorted(rng.choice(DEPTHS, len(lines), replace=False).tolist())
  sentences = books.words(first, units)
  places = [len(sentences) * depth // 100 for depth in depths]
  text = " ".join(books_lib.put_between(sentences, lines, places))
  expected = [value for name in asked for value in values[name]]
  return _asked(needles.kind, text, asked, expected)


MANY = "One of the secret {}s of {} is {}."


def _keys(count: int, rng: np.random.Generator) -> list[str]:
  found: dict[str, None] = {}
  while len(found) < count:
    adjective, noun = (str(rng.choice(part)) for part in (ADJECTIVES, haystack.PARTS))
    found[f"{adjective}-{noun}"] = None
  return list(found)


def _asked(
  kind: str, text: str, names: list[str], expected: list[str]
) -> questions.Question:
  """The question for these names; in the singular if one value is asked for."""
  *rest, last = names
  listed = f"{', '.join(rest)}, and {last}" if rest else last
  if len(expected) == 1:
    head = f"A secret {kind} is somewhere in the text below. Keep it in mind: you will"
    ask = f"What is the secret {kind} of {listed} in this text?"
    lead = f"According to the text, the secret {kind} of {listed} is"
  else:
    head = f"Secret {kind}s are in the text below. Keep them in mind: you will"
    ask = f"What are all the secret {kind}s of {listed} in this text?"
    lead = f"According to the text, the secret {kind}s of {listed} are"
  return questions.Question(
    f"{head} be asked about the {kind}{'s' * (len(expected) > 1)}.\n\n{text}\n\n{ask}",
    lead,
    tuple(expected),
  )

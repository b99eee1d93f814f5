"""The questions of RULER's six tasks that need no external text, as pure functions.

Each function takes a random generator, a number of units (sentences, needles or words)
and the length in tokens for which the question is made. Tasks and scores are those of
RULER (2404.06654) and its authors' code; the wording is our own. As in that code, vt
and cwe show a solved example.
"""

import dataclasses
import itertools
import string
import uuid
from collections.abc import Callable, Sequence

import numpy as np

from skipalign_jax.evals import haystack

NOISE = "The tide comes in. The tide goes out. Gulls sit on the wall. Nothing happens."
HOPS = 4
COMMON = 10  # words that are the answer of cwe
FREQUENT = 3  # words that are the answer of fwe
LETTERS = 6  # of a word of fwe
ZETA_2 = np.pi**2 / 6  # Σ 1/k², so that RULER's exponent 2.0 gives shares


@dataclasses.dataclass(frozen=True)
class Question:
  """One question.

  Attributes:
    text: the content of the user message.
    lead: the beginning of the reply, which the model continues.
    expected: strings that the reply should contain.
  """

  text: str
  lead: str
  expected: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Task:
  """One of RULER's tasks.

  Attributes:
    make: (random generator, units, length in tokens) → a question with these units.
    min_units: the smallest number of units.
    max_new_tokens: as in RULER.
  """

  make: Callable[[np.random.Generator, int, int], Question]
  min_units: int
  max_new_tokens: int


def number(rng: np.random.Generator, digits: int = 7) -> str:
  """A number without a zero at its beginning."""
  return str(rng.integers(10 ** (digits - 1), 10**digits))


def code(rng: np.random.Generator) -> str:
  """A random uuid of version 4."""
  return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def _needle(kind: str, key: str, value: str) -> str:
  return f"The secret {kind} of {key} is {value}."


def _retrieve(kind: str, lines: list[str], key: str, value: str) -> Question:
  text = "\n".join(lines)
  return Question(
    f"The text below gives away a secret {kind}, or many. Keep them in mind: you will "
    f"be asked for one.\n\n{text}\n\nWhat is the secret {kind} of {key} in this text?",
    f"According to the text, the secret {kind} of {key} is",
    (value,),
  )


def single(rng: np.random.Generator, units: int, length: int) -> Question:
  """One needle, a word and a number, anywhere in `units` copies of the same noise."""
  del length
  (key,) = haystack.words(1, rng)
  value = number(rng)
  lines = [NOISE] * units
  lines.insert(rng.integers(units + 1), _needle("number", key, value))
  return _retrieve("number", lines, key, value)


def multikey_words(rng: np.random.Generator, units: int, length: int) -> Question:
  """One of `units` needles, words and numbers, without any other text."""
  del length
  keys = haystack.words(units, rng)
  return _one_of(rng, "number", keys, [number(rng) for _ in keys])


def multikey_uuids(rng: np.random.Generator, units: int, length: int) -> Question:
  """One of `units` needles, pairs of uuids, without any other text."""
  del length
  keys, values = ([code(rng) for _ in range(units)] for _ in range(2))
  return _one_of(rng, "code", keys, values)


def _one_of(rng, kind: str, keys: list[str], values: list[str]) -> Question:
  one = rng.integers(len(keys))
  lines = [_needle(kind, *pair) for pair in zip(keys, values, strict=True)]
  return _retrieve(kind, lines, keys[one], values[one])


def variables(rng: np.random.Generator, units: int, length: int) -> Question:
  """Which variables have a value, in a chain of assignments."""
  del length
  example, value, names = _chain(rng, 3, 5)
  shown = f"{example} {_chain_lead(value)} {', '.join(names)}"
  text, value, names = _chain(rng, 5, units)
  return Question(f"{shown}\n\n{text}", _chain_lead(value), tuple(names))


def _chain(rng, letters: int, units: int) -> tuple[str, str, list[str]]:
  """Question, value and names of one chain, in `units` lines of noise."""
  names: dict[str, None] = {}
  while len(names) <= HOPS:
    names["".join(rng.choice(list(string.ascii_uppercase), letters))] = None
  value, order = number(rng, 5), list(names)
  chain = [f"SET {order[0]} = {value}"]
  chain += [f"SET {new} = {old}" for old, new in itertools.pairwise(order)]
  lines = [NOISE] * units
  places = sorted(rng.choice(units + 1, len(chain), replace=False), reverse=True)
  for place, line in zip(places, reversed(chain), strict=True):
    lines.insert(place, line)
  text = "\n".join(lines)
  question = (
    "Variables are set in the text below, some to what another one holds. Follow "
    f"them.\n\n{text}\n\nWhich variables hold the value {value} in the end?"
  )
  return question, value, order


def _chain_lead(value: str) -> str:
  return f"Following the text, {HOPS + 1} variables hold the value {value}:"


def common_words(rng: np.random.Generator, units: int, length: int) -> Question:
  """The ten most frequent words of a list; `units` other words are rare.

  Common words occur 30 times and rare words 3 times, below 4096 tokens 6 times and
  once. If there are more words than nouns, all words become longer; a prompt between
  these two lengths is shorter than its target. Its length is in its record.
  """
  often, seldom = (30, 3) if length >= 4096 else (6, 1)
  shown = (10, 3, 30) if length >= 4096 else (3, 1, 10)
  drawn = haystack.words(2 * COMMON + shown[2] + units, rng)
  example, rest = drawn[: COMMON + shown[2]], drawn[COMMON + shown[2] :]
  lead = f"The {COMMON} words that stand most often in the list are:"
  solved = (
    f"{_word_list(rng, example, *shown[:2])} {lead} {_numbered(example[:COMMON])}"
  )
  return Question(
    f"{solved}\n\n{_word_list(rng, rest, often, seldom)}", lead, tuple(rest[:COMMON])
  )


def _word_list(rng, words: list[str], often: int, seldom: int) -> str:
  listed = words[:COMMON] * often + words[COMMON:] * seldom
  shuffled = [listed[i] for i in rng.permutation(len(listed))]
  return (
    "Here is a numbered list of words. Some of them stand in it more often than the "
    f"others; keep those in mind.\n\n{_numbered(shuffled)}\n\nWhich {COMMON} words "
    "stand most often in this list?"
  )


def _numbered(words: Sequence[str]) -> str:
  return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


def frequent_words(rng: np.random.Generator, units: int, length: int) -> Question:
  """The three most frequent coded words of a text, apart from dots.

  The word of rank k has a share k^-2 / ζ(2) of `units` places, rounded down; rank 1
  is the dots. There are length / 50 different words.
  """
  names: dict[str, None] = {"...": None}
  while len(names) < max(length // 50, FREQUENT + 2):
    names["".join(rng.choice(list(string.ascii_lowercase), LETTERS))] = None
  counts = zeta_counts(units, len(names))
  listed = [w for w, n in zip(names, counts, strict=True) for _ in range(n)]
  text = " ".join(listed[i] for i in rng.permutation(len(listed)))
  return Question(
    "Count how often each coded word stands in the text below. Dots are no word; leave "
    f"them out.\n\n{text}\n\nWhich three coded words stand most often in this text? "
    "Name them and explain nothing.",
    "The three coded words that stand most often are:",
    tuple(names)[1 : 1 + FREQUENT],
  )


def zeta_counts(units: int, ranks: int) -> list[int]:
  """How often the word of each rank occurs in a text of about `units` words."""
  return [int(units / (ZETA_2 * k**2)) for k in range(1, ranks + 1)]


TASKS = {
  "niah_single_1": Task(single, 1, 128),
  "niah_multikey_2": Task(multikey_words, 2, 128),
  "niah_multikey_3": Task(multikey_uuids, 2, 128),
  "vt": Task(variables, HOPS, 30),
  "cwe": Task(common_words, COMMON, 120),
  # From 74 units on, rank 4 is more frequent than rank 5 in every text.
  "fwe": Task(frequent_words, 74, 50),
}

"""TyDiQA's gold passages: scores as SQuAD's, and the questions of one language.

The task files beside this (lm_eval_tasks) name these functions. SQuAD's rules for
English serve all languages, as in the evaluation of Tülu, whose figures papers give;
the harness's own tydiqa_goldp_* have rules and prompts for each language.
"""

from __future__ import annotations

import collections
import functools
import re
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # slow to load
  import datasets

LANGUAGES = (
  "arabic", "bengali", "english", "finnish", "indonesian", "korean", "russian",
  "swahili", "telugu",
)  # fmt: skip
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
  """Lower-case words without ASCII punctuation and English articles."""
  text = text.lower().translate(_PUNCTUATION)
  return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(answer: str, expected: str) -> float:
  """Harmonic mean of precision and recall of words, counted with repeats."""
  given, wanted = words(answer), words(expected)
  common = sum((collections.Counter(given) & collections.Counter(wanted)).values())
  return 2 * common / (len(given) + len(wanted)) if common else 0.0


def exact_match(answer: str, expected: str) -> float:
  """Whether both have the same words in the same order."""
  return float(words(answer) == words(expected))


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
  """The best scores over all accepted answers."""
  best: Callable[[Callable[[str, str], float]], float] = lambda metric: max(
    metric(results[0], expected) for expected in doc["answers"]["text"]
  )
  return {"f1": best(f1), "exact_match": best(exact_match)}


def of_language(language: str, data: datasets.Dataset) -> datasets.Dataset:
  """The questions of one language; ids begin with it."""
  return data.filter(lambda id: id.startswith(f"{language}-"), input_columns="id")


arabic, bengali, english, finnish, indonesian, korean, russian, swahili, telugu = (
  functools.partial(of_language, language) for language in LANGUAGES
)

"""TyDiQA's gold passages: SQuAD's scores, and the questions of one language.

The files in task_files name these functions. SQuAD's rules for English are used for all
languages, as in the evaluation of Tülu, whose figures papers report; the harness's own
tydiqa_goldp_* have rules and prompts for each language.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skipalign_jax.evals import squad

if TYPE_CHECKING:  # slow to load
  import datasets

LANGUAGES = (
  "arabic", "bengali", "english", "finnish", "indonesian", "korean", "russian",
  "swahili", "telugu",
)  # fmt: skip


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
  """The best scores over all expected answers."""
  best: Callable[[Callable[[str, str], float]], float] = lambda metric: max(
    metric(results[0], expected) for expected in doc["answers"]["text"]
  )
  return {"f1": best(squad.f1), "exact_match": best(squad.exact_match)}


def of_language(language: str, data: datasets.Dataset) -> datasets.Dataset:
  """The questions of one language; ids begin with it."""
  return data.filter(lambda id: id.startswith(f"{language}-"), input_columns="id")


arabic, bengali, english, finnish, indonesian, korean, russian, swahili, telugu = (
  functools.partial(of_language, language) for language in LANGUAGES
)

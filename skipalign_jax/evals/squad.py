"""SQuAD's scores of an answer (1606.05250): F1 of its words, and exact match."""

import collections
import re
import string

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def words(text: str) -> list[str]:
  """Lower-case words without ASCII punctuation and English articles.

  Punctuation is removed first and leaves no gap: "well-known" is one word, and "a-b"
  becomes "ab", which is not an article.
  """
  return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def f1(answer: str, expected: str) -> float:
  """Harmonic mean of precision and recall of words, in any order, with repeats.

  It is 0 if either text has no words, also if neither has ("the" for "the").
  """
  found, wanted = words(answer), words(expected)
  common = (collections.Counter(found) & collections.Counter(wanted)).total()
  if not common:
    return 0.0
  precision, recall = common / len(found), common / len(wanted)
  return 2 * precision * recall / (precision + recall)


def exact_match(answer: str, expected: str) -> float:
  """Whether both have the same words in the same order."""
  return float(words(answer) == words(expected))

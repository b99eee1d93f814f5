"""LongBench's metrics (2308.14508), with the peculiarities of its own code.

Each takes a prediction and one gold answer and returns 0 to 1. They agree with the
official code in every case, so that numbers can be compared; the docstrings describe
where that is surprising. The metric of questions is `squad.f1`.
"""

import difflib
import re
from collections.abc import Sequence

import rouge

_ROUGE = rouge.Rouge(metrics=["rouge-l"], stats=["f"])
_NUMBER = re.compile(r"\d+")


def first_line(prediction: str) -> str:
  """The part of a few-shot prediction that is scored: models add more examples.

  Newlines before it are dropped, spaces are not.
  """
  return prediction.lstrip("\n").partition("\n")[0]


def rouge_l(prediction: str, gold: str) -> float:
  """F of Rouge-L as the package `rouge` computes it.

  The package splits sentences at every full stop, counts a repeated word once, and
  is case-sensitive; punctuation stays on words. Where it raises an error the score is
  0: if either text is empty or has full stops only, and if sentences are so long that
  its recursion ends (about 900 words in both texts together).
  """
  try:
    return _ROUGE.get_scores([prediction], [gold], avg=True)["rouge-l"]["f"]
  except (ValueError, RecursionError):
    return 0.0


def classification(prediction: str, gold: str, classes: Sequence[str]) -> float:
  """1 / (classes found in the prediction) if the gold one is among them, else 0.

  A class is found if its name is a substring of the prediction; case matters. Names
  that are parts of the gold name are removed, so that they do not count against it.
  The official code removes them from the list over which it iterates, so that the name
  right after a removed one is skipped and stays, even if it is such a part too. This
  function does the same: with gold "abc" and the classes "a", "b", "c" and "abc" found
  in this order, "b" stays and the score is 1/2.
  """
  found = [name for name in classes if name in prediction]
  at = 0
  while at < len(found):
    if found[at] != gold and found[at] in gold:
      del found[at]  # the next name moves here, and `at` moves past it
    at += 1
  return 1 / len(found) if gold in found else 0.0


def code_similarity(prediction: str, gold: str) -> float:
  """Similarity of one line of code to the next line expected, in whole percents.

  The line is the first one without any of `, # and //, after leading newlines are
  dropped. So comments and fences are skipped, but also code with a comment after it,
  and an empty line or a line of spaces counts as code. If there is no such line, the
  empty text is compared. The ratio is difflib's, rounded to a whole percent as
  fuzzywuzzy does without Levenshtein; difflib treats frequent characters of texts with
  more than 200 characters as junk, and is not symmetric.
  """
  lines = prediction.lstrip("\n").split("\n")
  line = next((x for x in lines if not any(mark in x for mark in ("`", "#", "//"))), "")
  return round(100 * difflib.SequenceMatcher(None, line, gold).ratio()) / 100


def count(prediction: str, gold: str) -> float:
  """Share of the numbers in the prediction that equal the gold one, as text.

  "07" is not "7", and "1.5" is the two numbers 1 and 5.
  """
  numbers = _NUMBER.findall(prediction)
  return numbers.count(gold) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, gold: str) -> float:
  """`count` of the number in a gold answer like "Paragraph 12".

  Digits anywhere in the prediction count, not only after "Paragraph".
  """
  return count(prediction, re.search(r"Paragraph (\d+)", gold)[1])

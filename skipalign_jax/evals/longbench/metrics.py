"""LongBench's metrics (2308.14508), with the quirks of its own code.

Each takes a prediction and one gold answer and gives 0 to 1. Where they are odd, they
are odd in the same way as the official ones, so that numbers can be compared; each
docstring says how.
"""

import collections
import difflib
import re
import string
from collections.abc import Sequence

import rouge

_ROUGE = rouge.Rouge(metrics=["rouge-l"], stats=["f"])
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NUMBER = re.compile(r"\d+")


def first_line(prediction: str) -> str:
  """What is scored of a few-shot prediction: models go on with more examples.

  Newlines in front of it are dropped, spaces are not.
  """
  return prediction.lstrip("\n").partition("\n")[0]


def qa_f1(prediction: str, gold: str) -> float:
  """F1 of the words, in any order, each as often as it occurs.

  Words are lower-cased and lose ASCII punctuation, in this order, and then the
  articles a, an and the go. Punctuation leaves nothing behind: "well-known" is
  one word, and "a-b" becomes "ab", which is no article. Where one side has no words
  left the score is 0, also where both have none ("the" for "the").
  """
  words, expected = _words(prediction), _words(gold)
  common = (collections.Counter(words) & collections.Counter(expected)).total()
  if not common:
    return 0.0
  precision, recall = common / len(words), common / len(expected)
  return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
  return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def rouge_l(prediction: str, gold: str) -> float:
  """F of Rouge-L as the package `rouge` computes it.

  It splits sentences at every full stop, counts a repeated word once, and
  is case-sensitive; punctuation stays on words. Where it raises the score is 0:
  on a side without text (full stops alone are none), and on sentences so long
  that its recursion ends (about 900 words on both sides together).
  """
  try:
    return _ROUGE.get_scores([prediction], [gold], avg=True)["rouge-l"]["f"]
  except (ValueError, RecursionError):
    return 0.0


def classification(prediction: str, gold: str, classes: Sequence[str]) -> float:
  """1 / (classes found in the prediction) if the gold one is among them, else 0.

  A class is found where its name is a substring, case and all. Names that are
  parts of the gold name do not count against it: they are removed. The official code
  removes them from the list that it walks through, so what stands right behind a
  removed name is never looked at and stays, even if it should go too. So do we: with
  gold "abc" found together with "a", "b" and "c" (in that order, then "abc"), "b"
  stays and the score is 1/2.
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

  The line is the first one without any of `, # and //, after newlines in front are
  dropped: so comments and fences are passed over, but also code that has a comment
  behind it, and an empty line or one of spaces counts as code. Without such a line
  the empty text is compared. The ratio is difflib's, rounded to a whole percent as
  fuzzywuzzy does without Levenshtein; difflib takes characters that are frequent
  in more than 200 for junk, and is not symmetric.
  """
  lines = prediction.lstrip("\n").split("\n")
  line = next((x for x in lines if not any(mark in x for mark in ("`", "#", "//"))), "")
  return round(100 * difflib.SequenceMatcher(None, line, gold).ratio()) / 100


def count(prediction: str, gold: str) -> float:
  """Share of the numbers in the prediction that are the gold one, as text.

  "07" is not "7", and "1.5" is the numbers 1 and 5.
  """
  numbers = _NUMBER.findall(prediction)
  return numbers.count(gold) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, gold: str) -> float:
  """`count` of the number in a gold answer like "Paragraph 12".

  Digits anywhere in the prediction count, not only behind "Paragraph".
  """
  return count(prediction, re.search(r"Paragraph (\d+)", gold)[1])

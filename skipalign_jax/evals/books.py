"""Sentences of books, for tasks that put other text between them."""

import dataclasses
import re
from collections.abc import Sequence

from skipalign_jax.evals import haystack
from skipalign_jax.runtime import errors

_END = re.compile(r"[.!?][\"'”’)\]_*]*$")
# Words with a full stop after which a sentence continues; initials are found by their
# form.
_SHORT = frozenset(
  "mr mrs ms dr st messrs esq jr sr prof rev col capt lieut vs".split()
)
_MAX_MEAN = 1000  # characters per sentence; novels have about 100
_INITIAL = re.compile(r"[A-Z]\.$")


@dataclasses.dataclass(frozen=True)
class Books:
  """Sentences in order; after the last one comes the first.

  Attributes:
    sentences: at least one; with one space between words.
  """

  sentences: tuple[str, ...]

  def words(self, first: int, count: int) -> list[str]:
    """The sentences from number `first` on that have `count` words together.

    The last one is cut where it has too many.
    """
    found: list[str] = []
    while count > 0:
      sentence = self.sentences[first % len(self.sentences)].split(" ")[:count]
      found.append(" ".join(sentence))
      count -= len(sentence)
      first += 1
    return found


def read(files: str) -> Books:
  """The sentences of .txt or .txt.gz files, commas between them.

  Raises:
    UserError: as `haystack.read`, no files are named, or a text without sentences,
      between which nothing can be put.
  """
  if not files:
    raise errors.UserError("--haystack=FILES is needed: books as .txt or .txt.gz")
  text = haystack.read(files)
  found = split(text)
  if len(text) > _MAX_MEAN * len(found):
    raise errors.UserError(
      f"--haystack={files}: {len(found):,} sentences in {len(text):,} characters; this "
      "task needs sentences that end with a full stop and a space; name other books"
    )
  return Books(tuple(found))


def split(text: str) -> list[str]:
  """The sentences of a text. Each begins after a full stop and has one at its end.

  "Mr." and the like, and single capital letters, end no sentence.
  """
  found: list[str] = []
  begun: list[str] = []
  for word in text.split():
    begun.append(word)
    if _END.search(word) and not _is_short(word):
      found.append(" ".join(begun))
      begun = []
  return [*found, " ".join(begun)] if begun else found


def _is_short(word: str) -> bool:
  bare = word.lstrip("\"'“‘([_")
  return bare.rstrip(".").lower() in _SHORT or bool(_INITIAL.fullmatch(bare))


def put_between(
  sentences: Sequence[str], others: Sequence[str], places: Sequence[int]
) -> list[str]:
  """Sentences with other ones before the numbers `places`, which ascend."""
  found, done = [], 0
  for place, other in zip(places, others, strict=True):
    found += [*sentences[done:place], other]
    done = place
  return [*found, *sentences[done:]]

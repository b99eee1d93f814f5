"""Texts to tokens, a part at a time: a long text takes little more memory than its ids.

The objects of a tokenizer take hundreds of bytes per token. So a text is encoded in
parts that overlap, some of them at a time, and the tokens of the parts are joined where
they are those of the whole text (see `cuts.py`).

Shapes: L tokens of a text or of a part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import processors

from skipalign_jax.data import cuts
from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import tokenizers
  import transformers

_PART = 1 << 16  # characters of a part
_TOGETHER = 1 << 19  # characters that are encoded at a time, about
_MAX_PART = 1 << 21  # characters of a part without a place to cut it
_OVERLAP = 4  # margins that two parts share
UNCUT = "too long for a tokenizer that encodes it as one"  # of a record


class Tokens(NamedTuple):
  """Tokens of a text, or of a part of one.

  Attributes:
    ids: int32 [L].
    places: int32 [L, 2], the characters of the text where each begins and ends.
  """

  ids: np.ndarray
  places: np.ndarray


class UncutError(errors.UserError):
  """A text is too long for a tokenizer that must encode it whole."""

  def __init__(self, text: str):
    super().__init__(
      f"the text that begins with {text[:40]!a} has {len(text):,} characters; this "
      f"tokenizer would have to encode more than {_MAX_PART:,} of them as one. Give it "
      "in shorter files or records"
    )


def parts(
  tokenizer: transformers.PreTrainedTokenizerFast,
  texts: Sequence[str],
  literal: bool = False,
) -> Iterator[Iterator[Tokens]]:
  """Per text its tokens, without special ones around them, in consecutive parts.

  The parts of a text are read before those of the next one.

  Args:
    tokenizer: a fast tokenizer.
    texts: to encode.
    literal: a special token's name in a text is text.

  Raises:
    UncutError: from the parts of a text that is too long to be encoded whole, and
      cannot be cut.
  """
  encoder = _Encoder(tokenizer, literal)
  encoded = encoder.ahead(texts)
  for number, some in itertools.groupby(encoded, key=lambda part: part.number):
    yield encoder.joined(texts[number], some)


def of_texts(
  tokenizer: transformers.PreTrainedTokenizerFast,
  texts: Sequence[str],
  literal: bool = False,
) -> Iterator[Tokens]:
  """Per text its tokens; arguments and errors as of `parts`."""
  return map(whole, parts(tokenizer, texts, literal))


def whole(some: Iterable[Tokens]) -> Tokens:
  """Consecutive parts as one."""
  ids, places = Joined(), Joined()
  for part in some:
    ids.add(part.ids)
    places.add(part.places)
  return Tokens(ids.array(), places.array().reshape(-1, 2))


class Joined:
  """int32 arrays that become one; none of them is kept until then."""

  def __init__(self) -> None:
    self._bytes = bytearray()

  def add(self, array: np.ndarray) -> None:
    """Adds the next numbers."""
    self._bytes += array.tobytes()

  def array(self) -> np.ndarray:
    """int32, all numbers in their order."""
    return np.frombuffer(self._bytes, np.int32)


@dataclasses.dataclass(frozen=True)
class _Part:
  """A part of a text.

  Attributes:
    number: of the text.
    begin, end: its characters.
    tokens: with places in the whole text.
    words: int32 [L], a number that is another one where a word begins; empty of a part
      that is a whole text.
  """

  number: int
  begin: int
  end: int
  tokens: Tokens
  words: np.ndarray

  def sliced(self, first: int, last: int | None = None) -> Tokens:
    """Some of its tokens."""
    ids, places = self.tokens
    return Tokens(ids[first:last], places[first:last])

  def index(self, character: int) -> int:
    """Of the first token that begins there or later."""
    return int(np.searchsorted(self.tokens.places[:, 0], character))


@contextlib.contextmanager
def _whole_places(backend: tokenizers.Tokenizer) -> Iterator[None]:
  """In the block the places of tokens have the spaces that the tokens have.

  Some post-processors leave them out (`trim_offsets`), which changes no token.
  """
  own = backend.post_processor
  backend.post_processor = processors.Sequence([])
  try:
    yield
  finally:
    backend.post_processor = own


class _Encoder:
  """See `parts`."""

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast, literal: bool):
    self._tokenizer, self._literal = tokenizer, literal

  def ahead(self, texts: Sequence[str]) -> Iterator[_Part]:
    """The parts of texts, cut anywhere."""
    group: list[tuple[int, int, int]] = []
    characters = 0
    for number, text in enumerate(texts):
      for begin, end in self._spans(text):
        group.append((number, begin, end))
        characters += end - begin
        if characters >= _TOGETHER:
          yield from self._encode(texts, group)
          group, characters = [], 0
    yield from self._encode(texts, group)

  def _spans(self, text: str) -> Iterable[tuple[int, int]]:
    size = len(text)
    if size <= _PART:
      return [(0, size)]
    margin = cuts.rules_of(self._tokenizer).margin
    if margin is None:
      return [(0, size if size <= _MAX_PART else 0)]
    step, overlap = self._sizes()
    last = max(1, size - overlap)
    return ((at, min(at + step + overlap, size)) for at in range(0, last, step))

  def _sizes(self) -> tuple[int, int]:
    """Characters from one part to the next, and those that two parts share."""
    overlap = _OVERLAP * cuts.rules_of(self._tokenizer).margin
    return max(_PART, 2 * overlap), overlap

  def _encode(
    self, texts: Sequence[str], spans: Sequence[tuple[int, int, int]]
  ) -> Iterator[_Part]:
    """Encodes spans together: number of a text, first character and end."""
    backend = self._tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = self._literal
    with _whole_places(backend):
      encodings = backend.encode_batch(
        [texts[number][begin:end] for number, begin, end in spans],
        add_special_tokens=False,
      )
    encodings.reverse()
    for number, begin, end in spans:
      found = encodings.pop()  # each is freed when it has been read
      ids = np.array(found.ids, np.int32)
      offsets = itertools.chain.from_iterable(found.offsets)
      places = np.fromiter(offsets, np.int32, 2 * len(ids)).reshape(-1, 2) + begin
      is_whole = begin == 0 and end == len(texts[number])
      words = [] if is_whole else [-1 if n is None else n for n in found.word_ids]
      tokens = Tokens(ids, places.astype(np.int32, copy=False))
      yield _Part(number, begin, end, tokens, np.array(words, np.int32))

  def joined(self, text: str, some: Iterator[_Part]) -> Iterator[Tokens]:
    """The tokens of the parts of a text, each token once."""
    left, first = next(some), 0
    if left.end < len(text) and cuts.rules_of(self._tokenizer).margin is None:
      raise UncutError(text)
    for right in some:
      cut = self._cut(left, right)
      if cut is None:
        break
      yield left.sliced(first, cut[0])
      left, first = right, cut[1]
    while left.end < len(text):  # cut at borders of tokens, or in longer parts
      right = self._after(text, left)
      cut = self._cut(left, right)
      if cut is None:
        left = self._longer(text, left, first)
        continue
      yield left.sliced(first, cut[0])
      left, first = right, cut[1]
    yield left.sliced(first)

  def _cut(self, left: _Part, right: _Part) -> tuple[int, int] | None:
    """Indices of the same token in two parts, before which they can be joined."""
    rules = cuts.rules_of(self._tokenizer)
    low, high = right.begin + rules.margin, left.end - rules.margin
    (a, b), (c, d) = ((part.index(low), part.index(high)) for part in (left, right))
    if b - a != d - c or b - a < 2:
      return None
    both = zip(left.sliced(a, b), right.sliced(c, d), strict=True)
    begins = [np.diff(words) != 0 for words in (left.words[a:b], right.words[c:d])]
    if not all(map(np.array_equal, *zip(*both, strict=True))):
      return None
    if not np.array_equal(*begins):
      return None
    places = 1 + (np.flatnonzero(begins[0]) if rules.at_words else np.arange(b - a - 1))
    if not len(places):
      return None
    middle = int(places[len(places) // 2])
    return a + middle, c + middle

  def _after(self, text: str, left: _Part) -> _Part:
    """The part after another one; it begins where a token of that one does."""
    step, overlap = self._sizes()
    begin, index = left.end - overlap, left.index(left.end - overlap)
    if index < len(left.tokens.ids):
      begin = int(left.tokens.places[index, 0])
    return self._one(text, begin, begin + step + overlap)

  def _longer(self, text: str, left: _Part, first: int) -> _Part:
    """A part with twice its characters, and the same tokens up to token `first`."""
    size = 2 * (left.end - left.begin)
    if size > _MAX_PART:
      raise UncutError(text)
    longer = self._one(text, left.begin, left.begin + size)
    both = zip(left.sliced(0, first + 1), longer.sliced(0, first + 1), strict=True)
    if not all(map(np.array_equal, *zip(*both, strict=True))):
      raise UncutError(text)
    return longer

  def _one(self, text: str, begin: int, end: int) -> _Part:
    (found,) = self._encode([text], [(0, begin, min(end, len(text)))])
    return found

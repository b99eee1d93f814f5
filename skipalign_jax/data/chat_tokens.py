"""Text of chats to tokens: those before a reply are those of the prompt for it.

A model that is prompted for a reply gets the tokens of the text up to there. Where the
reply's first characters would be in one token with the header's last ones ("]{", or
several line breaks), or decide how the header's last spaces are divided (a rule of
GPT-2), the text is therefore encoded in parts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from skipalign_jax.data import template_text, tokenization

if TYPE_CHECKING:
  import transformers

# Texts to put before a part, so that the tokenizer adds no space in front of it.
_BEFORE = ("a", "\n", ".", "1", " ", "]", "\u4e00", "|")

_SPACES = 64  # at the end of a header, at most


class Encoder:
  """Texts to tokens and their first characters; the template wrote special tokens.

  Args:
    tokenizer: a fast tokenizer.
  """

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast):
    self._tokenizer = tokenizer
    self._special = frozenset(template_text.special_tokens(tokenizer).values())
    self._alone = functools.lru_cache(maxsize=256)(self._continuation)

  def of_texts(
    self, texts: Sequence[str], literal: bool = False
  ) -> Iterator[tokenization.Tokens]:
    """Per text, int32 [L] tokens and int32 [L, 2] where each begins and ends.

    Args:
      texts: to encode.
      literal: a special token's name in a text is text.

    Raises:
      UncutError: as `tokenization.parts`.
    """
    return tokenization.of_texts(self._tokenizer, texts, literal)

  def changed(
    self, text: str, found: tokenization.Tokens, begins: Sequence[int]
  ) -> list[int]:
    """Those of the places `begins` before which a prompt has other tokens.

    Args:
      text: of a dialogue.
      found: its tokens.
      begins: places.
    """
    at = np.searchsorted(found.places[:, 0], begins, side="left") - 1
    inside = (at >= 0) & (found.places[at, 1] > begins)
    return [
      begin
      for begin, is_inside in zip(begins, inside.tolist(), strict=True)
      if is_inside or self._divides(text, found, begin)
    ]

  def _divides(self, text: str, found: tokenization.Tokens, begin: int) -> bool:
    """Whether what follows a place changes the tokens of the spaces before it."""
    end = text[max(0, begin - _SPACES) : begin]
    spaces = len(end) - len(end.rstrip())
    if spaces < 2:
      return False
    ids, places = found
    first = int(np.searchsorted(places[:, 0], begin - spaces, side="left"))
    last = int(np.searchsorted(places[:, 0], begin, side="left"))
    if first and ids[first - 1] not in self._special:
      first -= 1  # the word before the spaces, which may have some of them
    if first == last:
      return False
    alone, _ = self._alone(text[int(places[first, 0]) : begin])
    return not np.array_equal(alone, ids[first:last])

  def of_parts(
    self, text: str, begins: Sequence[int], literals: Mapping[int, str]
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `of_texts` of one text, with a new token at each of the places `begins`.

    Args:
      text: to encode; its first character is not one of the following.
      begins: places.
      literals: what the character at a place stands for; the name of a special token.
    """
    places = {*begins, *literals, *(at + 1 for at in literals), 0, len(text)}
    parts = []
    for begin, end in itertools.pairwise(sorted(places)):
      if begin in literals:
        tokens, _ = self._continuation(literals[begin], literal=True)
        parts.append((tokens, np.array([[begin, end]] * len(tokens))))
        continue
      encode = self._continuation if begin else lambda one: next(self.of_texts([one]))
      tokens, offsets = encode(text[begin:end])
      parts.append((tokens, offsets + begin))
    tokens, offsets = zip(*parts, strict=True)
    return np.concatenate(tokens), np.concatenate(offsets)

  def _continuation(
    self, text: str, literal: bool = False
  ) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a text that follows another one."""
    for before in _BEFORE:
      found = self.of_texts([before + text, before], literal)
      (tokens, places), (alone, _) = found
      first = len(alone)
      if np.array_equal(tokens[:first], alone) and places[first, 0] == len(before):
        return tokens[first:], places[first:] - len(before)
    return next(self.of_texts([text], literal))  # no text is without a neighbour

"""Text of chats to tokens: a reply never shares a token with its header.

A model that is prompted for a reply gets the tokens of the text up to there. Where the
reply's first characters would be in one token with the header's last ones ("]{", or
several line breaks), the text is therefore encoded in parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from skipalign_jax.data import tokenization

if TYPE_CHECKING:
  import transformers

# Texts to put before a part, so that the tokenizer adds no space in front of it.
_BEFORE = ("a", "\n", ".", "1", " ", "]", "\u4e00", "|")


class Encoder:
  """Texts to tokens and their first characters; the template wrote special tokens.

  Args:
    tokenizer: a fast tokenizer.
  """

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast):
    self._tokenizer = tokenizer

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

  def shared(self, places_L2: np.ndarray, begins: Sequence[int]) -> list[int]:
    """Those of the places `begins` that are inside a token."""
    at = np.searchsorted(places_L2[:, 0], begins, side="left") - 1
    inside = (at >= 0) & (places_L2[at, 1] > begins)
    return np.array(begins)[inside].tolist()

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

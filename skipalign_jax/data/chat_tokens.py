"""Text of chats to tokens: a reply never shares a token with its header.

A model that is prompted for a reply gets the tokens of the text up to there. Where the
reply's first characters would be in one token with the header's last ones ("]{", or
several line breaks), the text is therefore encoded in parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  import transformers

_CHARACTERS = 1 << 22  # counted at a time; offsets take 100 bytes per token
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
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per text, int32 [L] tokens and int64 [L, 2] where each begins and ends.

    Args:
      texts: to encode.
      literal: a special token's name in a text is text.
    """
    encoded = self._tokenizer(
      list(texts),
      add_special_tokens=False,
      return_attention_mask=False,
      return_offsets_mapping=True,
      split_special_tokens=literal,
      verbose=False,
    )
    return [
      (np.array(ids, np.int32), np.array(offsets, np.int64).reshape(-1, 2))
      for ids, offsets in zip(
        encoded["input_ids"], encoded["offset_mapping"], strict=True
      )
    ]

  def counts(self, texts: Sequence[str]) -> list[int]:
    """Tokens of each text by itself; names of special tokens are text."""
    found: list[int] = []
    while len(found) < len(texts):
      sizes = itertools.accumulate(map(len, texts[len(found) :]))
      many = sum(1 for _ in itertools.takewhile(lambda size: size < _CHARACTERS, sizes))
      group = texts[len(found) : len(found) + max(1, many)]
      found += [len(tokens) for tokens, _ in self.of_texts(group, literal=True)]
    return found

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
      encode = self._continuation if begin else lambda one: self.of_texts([one])[0]
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
    return self.of_texts([text], literal)[0]  # no text is without a neighbour

"""One document of plain text to tokenized samples: its pieces and their blocks.

Shapes: L tokens of a document or of a piece, C blocks of a document.

A document is its text, after the bos token if the tokenizer itself adds one, and before
the eos token if the tokenizer has one. It is cut into consecutive pieces; each piece is
a sample. Every token is a target except the first of a piece, because nothing precedes
it. Blocks are the units that skipped positions may move: sentences, paragraphs, or the
whole document. No block is a response: skip_all and skip_outer both move every block
after the first, skip_inner moves no block.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipalign_jax.data import (
  chat,
  dialogues,
  record_keys,
  schemas,
  template_text,
  templates,
  tokenization,
)

if TYPE_CHECKING:
  import transformers

# What is between two blocks; the next block begins after it. A single line break does
# not end a block, because texts are often wrapped. "Mr. Brown" becomes two blocks: a
# block that is too short does no harm.
_PARAGRAPH = r"(?<=\S)[^\S\n]*\n[^\S\n]*\n\s*"
_SENTENCE = r"(?<=[.!?])[\"'”’»)\]]*\s+"
BLOCKS = {
  "none": r"(?!)",
  "sentences": f"{_SENTENCE}|{_PARAGRAPH}",
  "paragraphs": _PARAGRAPH,
}


def text_of(record: Any, ignored: frozenset[str] = frozenset()) -> str | None:
  """The document in a record's `text` column; None for chats and other records.

  Args:
    record: a JSON value.
    ignored: keys that do not matter, besides those that say something about a text.

  Raises:
    BadSample: another key is not understood, or says that nothing is to be learned.
  """
  record = record_keys.without(record, ignored)
  if not isinstance(record, Mapping) or not isinstance(record.get("text"), str):
    return None
  if schemas.has_dialogue(record):
    return None  # some data sets have the rendered chat next to its messages
  about = filter(record_keys.is_about_text, record)
  record_keys.check_record(record, {"text", *about})
  return record["text"]


def block_starts(text: str, blocks: str) -> np.ndarray:
  """[C] the first character of each block; the first is 0.

  Args:
    text: a document.
    blocks: a key of `BLOCKS`.
  """
  ends = (match.end() for match in re.finditer(BLOCKS[blocks], text))
  starts = itertools.chain([0], (end for end in ends if end < len(text)))
  return np.fromiter(starts, np.int32)


class Encoder:
  """Documents to samples.

  Args:
    tokenizer: a fast tokenizer.
    piece: maximum tokens of a piece.
    blocks: a key of `BLOCKS`.
  """

  def __init__(
    self, tokenizer: transformers.PreTrainedTokenizerFast, piece: int, blocks: str
  ):
    self._tokenizer, self._piece, self._blocks = tokenizer, piece, blocks
    self._markup = template_text.markup_tokens(tokenizer)
    self._control = template_text.control_tokens(tokenizer)
    adds_bos = templates.adds_bos(tokenizer)
    eos = tokenizer.eos_token_id
    self._front = np.array([tokenizer.bos_token_id] if adds_bos else [], np.int32)
    self._back = np.array([] if eos is None else [eos], np.int32)

  def __call__(
    self, texts: Sequence[str]
  ) -> Iterator[Iterator[chat.Sample | dialogues.BadSample]]:
    """The pieces of each document, or a BadSample for those without a target.

    The pieces of a document are read before those of the next one.
    """
    bad = [self._refuse(text) for text in texts]
    good = [text for text, reason in zip(texts, bad, strict=True) if not reason]
    # A name of a special token in a text is text.
    found = tokenization.parts(self._tokenizer, good, literal=True)
    for text, reason in zip(texts, bad, strict=True):
      yield iter([reason]) if reason else self._pieces(text, next(found))

  def _refuse(self, text: str) -> dialogues.BadSample | None:
    try:
      text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
      return dialogues.BadSample("not UTF-8")
    if any(name in text for name in self._markup):  # it cannot be encoded as text
      return dialogues.BadSample("control token in content")
    if not text.strip():
      return dialogues.BadSample("empty content")
    return None

  def _pieces(
    self, text: str, parts: Iterable[tokenization.Tokens]
  ) -> Iterator[chat.Sample | dialogues.BadSample]:
    try:
      tokens_L, block_L = self._tokens_and_blocks(text, parts)
    except tokenization.UncutError:
      yield dialogues.BadSample(tokenization.UNCUT)
      return
    if not len(tokens_L):  # a normalizer may remove all characters
      yield dialogues.BadSample("empty content")
      return
    around = len(self._front), len(self._back)
    tokens_L = np.concatenate([self._front, tokens_L, self._back])
    block_L = np.pad(block_L, around, mode="edge")
    name = hashlib.blake2b(text.encode("utf-8"), digest_size=4)
    for number, begin in enumerate(range(0, len(tokens_L), self._piece)):
      kept = slice(begin, begin + self._piece)
      tokens, block = tokens_L[kept], block_L[kept]
      if len(tokens) == 1:
        yield dialogues.BadSample(chat.NO_TARGET)
        continue
      name_of_piece = name.copy()
      name_of_piece.update(b"%d" % number)
      block = np.cumsum(np.diff(block, prepend=block[0]) != 0).astype(np.int32)
      yield chat.Sample(
        tokens=tokens,
        block_ids=block,
        is_response=np.zeros(len(tokens), bool),
        targets=np.arange(len(tokens)) > 0,
        sample_id=int.from_bytes(name_of_piece.digest(), "little"),
        turns=int(block[-1]) + 1,
        truncated=False,
        named=int(number == 0 and self._control.search(text) is not None),
      )

  def _tokens_and_blocks(
    self, text: str, parts: Iterable[tokenization.Tokens]
  ) -> tuple[np.ndarray, np.ndarray]:
    """int32 [L] tokens, and int32 [L] the block of each in the text."""
    starts_C = block_starts(text, self._blocks)
    tokens, blocks = tokenization.Joined(), tokenization.Joined()
    for ids, places in parts:
      # A token belongs to the block where it ends: most begin with the space before.
      last = np.maximum(places[:, 1] - 1, 0)
      tokens.add(ids)
      block = np.searchsorted(starts_C, last, side="right") - 1
      blocks.add(block.astype(np.int32))
    return tokens.array(), blocks.array()

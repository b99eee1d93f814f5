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
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipalign_jax.data import chat, dialogues, schemas, template_text, templates

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

_CHARACTERS = 1 << 22  # tokenized at a time; offsets take 100 bytes per token


def text_of(record: Any) -> str | None:
  """The document in a record's `text` column; None for chats and other records."""
  if not isinstance(record, Mapping) or not isinstance(record.get("text"), str):
    return None
  if schemas.has_dialogue(record):
    return None  # some data sets have the rendered chat next to its messages
  return record["text"]


def block_starts(text: str, blocks: str) -> np.ndarray:
  """[C] the first character of each block; the first is 0.

  Args:
    text: a document.
    blocks: a key of `BLOCKS`.
  """
  ends = (match.end() for match in re.finditer(BLOCKS[blocks], text))
  return np.array([0, *(end for end in ends if end < len(text))])


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
    adds_bos = templates.adds_bos(tokenizer)
    self._front = [tokenizer.bos_token_id] if adds_bos else []
    eos = tokenizer.eos_token_id
    self._back = [] if eos is None else [eos]

  def __call__(
    self, texts: Sequence[str]
  ) -> Iterator[list[chat.Sample | dialogues.BadSample]]:
    """The pieces of each document, or a BadSample for those without a target."""
    group: list[str] = []
    for text in texts:
      group.append(text)
      if sum(map(len, group)) >= _CHARACTERS:
        yield from self._encode(group)
        group = []
    yield from self._encode(group)

  def _encode(
    self, texts: list[str]
  ) -> Iterator[list[chat.Sample | dialogues.BadSample]]:
    bad = [self._refuse(text) for text in texts]
    good = [text for text, reason in zip(texts, bad, strict=True) if not reason]
    encoded = {"input_ids": [], "offset_mapping": []}
    if good:
      encoded = self._tokenizer(
        good,
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        split_special_tokens=True,  # a name of one in the text is text
        verbose=False,
      )
    found = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    for text, reason in zip(texts, bad, strict=True):
      yield [reason] if reason else self._pieces(text, *next(found))

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
    self, text: str, ids: list[int], offsets: list[tuple[int, int]]
  ) -> list[chat.Sample | dialogues.BadSample]:
    if not ids:  # a normalizer may remove all characters
      return [dialogues.BadSample("empty content")]
    tokens_L = np.array([*self._front, *ids, *self._back], np.int32)
    # A token belongs to the block where it ends: most begin with the space before.
    last_L = np.maximum(np.array(offsets)[:, 1] - 1, 0)
    starts_C = block_starts(text, self._blocks)
    block_L = np.searchsorted(starts_C, last_L, side="right") - 1
    block_L = np.pad(block_L, (len(self._front), len(self._back)), mode="edge")
    name = hashlib.blake2b(text.encode("utf-8"), digest_size=4)
    pieces: list[chat.Sample | dialogues.BadSample] = []
    for number, begin in enumerate(range(0, len(tokens_L), self._piece)):
      kept = slice(begin, begin + self._piece)
      tokens, block = tokens_L[kept], block_L[kept]
      if len(tokens) == 1:
        pieces.append(dialogues.BadSample(chat.NO_TARGET))
        continue
      name_of_piece = name.copy()
      name_of_piece.update(b"%d" % number)
      block = np.cumsum(np.diff(block, prepend=block[0]) != 0).astype(np.int32)
      pieces.append(
        chat.Sample(
          tokens=tokens,
          block_ids=block,
          is_response=np.zeros(len(tokens), bool),
          targets=np.arange(len(tokens)) > 0,
          sample_id=int.from_bytes(name_of_piece.digest(), "little"),
          turns=int(block[-1]) + 1,
          truncated=False,
        )
      )
    return pieces

"""One dialogue to one tokenized sample: blocks, replies and loss targets.

Shapes: L tokens of one sample, C blocks of one sample.

Dialogues (see schemas.py) become text through the tokenizer's chat template
(chat_texts.py); spans.py finds their spans in it, so that nothing that a user wrote is
mistaken for a reply.
Each instruction and each response is one block. A role header belongs to the block of
its message, whitespace after a message to the block before it, and the system prompt,
also one that the template inserts by itself, to the first block. Targets are a reply
and the special token that ends it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipalign_jax.data import (
  chat_texts,
  chat_tokens,
  spans,
  template_text,
  tokenization,
)
from skipalign_jax.data import dialogues as dialogues_lib
from skipalign_jax.data import overlong as overlong_lib

if TYPE_CHECKING:
  import transformers

_CHARACTERS = 4  # per token, about
_SEARCHED = 1 << 20  # places that are looked up at a time
_REPLIES = 8  # of a dialogue, encoded at a time
_NOT_LEARNED = {
  spans.CALL: "calls of tools",
  spans.EXCLUDED: "excluded by the data",
  spans.REWRITTEN: "rewritten by the chat template",
}
NO_TARGET = "no target left after truncation"
_TOO_LONG = (NO_TARGET, overlong_lib.DROPPED)


@dataclasses.dataclass(frozen=True)
class Sample:
  """A tokenized dialogue, or a piece of a text (see text.py).

  Attributes:
    tokens: int32 [L] ids.
    block_ids: int32 [L] block of each token, 0 … C−1.
    is_response: bool [L], the token's block is a response (header included).
    targets: bool [L], *predicting this token* is trained.
    sample_id: uint32, the same wherever the same messages appear.
    turns: number of replies that are learned, or not because the template rewrites
      them; of a text, of its blocks.
    truncated: tokens beyond seq_len were cut off.
    lost: how many, about.
    rewritten: number of replies that are not learned because the template rewrites
      them when more messages follow.
    calls: number of replies that are not learned because they call tools.
    excluded: number of replies that the data says are not to be learned.
    split: number of replies whose first characters would change the tokens of their
      header, and are encoded apart from it.
    named: 1 for the first piece of a text that has names of special tokens.
    rejected_start: of a pair (see preferences.py), the first token of the dialogue with
      the rejected reply; 0 of other samples.
    chosen_id: of a pair, the id of the dialogue with the chosen reply.
  """

  tokens: np.ndarray
  block_ids: np.ndarray
  is_response: np.ndarray
  targets: np.ndarray
  sample_id: int
  turns: int
  truncated: bool
  lost: dialogues_lib.Lost = dialogues_lib.NOTHING_LOST
  rewritten: int = 0
  calls: int = 0
  excluded: int = 0
  split: int = 0
  named: int = 0
  rejected_start: int = 0
  chosen_id: int | None = None


Dialogue = dialogues_lib.Dialogue | Sequence[tuple[str, str]]  # or (role, content)
Result = Sample | dialogues_lib.BadSample


@dataclasses.dataclass(frozen=True)
class _Encoded:
  """A dialogue as tokens, with more than are kept.

  Attributes:
    text: what was encoded.
    tokens: int32 [L] ids.
    starts: [L] the first character of each.
    blocks: [L] its block.
    targets: bool [L], it is learned.
    split: places of replies that are encoded apart from their headers.
  """

  text: chat_texts.Text
  tokens: np.ndarray
  starts: np.ndarray
  blocks: np.ndarray
  targets: np.ndarray
  split: Sequence[int]


class Encoder:
  """Dialogues to samples, many at a time.

  Args:
    tokenizer: a fast tokenizer with a chat template.
    seq_len: tokens kept of a sample.
    system_prompt: added to dialogues without one; "" for no prompt.
    rewritten: "last" or "each", see `data.rewritten`.
    learn_calls: replies that call tools are learned too.
    overlong: "truncate", "split" or "drop", see `data.overlong`.
  """

  def __init__(
    self,
    tokenizer: transformers.PreTrainedTokenizerFast,
    seq_len: int,
    system_prompt: str = "",
    rewritten: str = "last",
    learn_calls: bool = False,
    overlong: str = "truncate",
  ):
    self._seq_len, self._overlong = seq_len, overlong
    self._each = rewritten == "each"
    self._texts = chat_texts.Texts(tokenizer, system_prompt, learn_calls)
    special = template_text.special_tokens(tokenizer)
    special |= template_text.markup_tokens(tokenizer)
    self._special = list(special.values())
    self._tokens = chat_tokens.Encoder(tokenizer)

  def samples(self, dialogues: Sequence[Dialogue]) -> list[list[Result]]:
    """The samples of each dialogue; several only with rewritten="each" or "split".

    Raises:
      UserError: as `__call__`.
    """
    found = self._samples(dialogues)
    if self._overlong != overlong_lib.SPLIT:
      return found
    return [
      self._of_pieces(_dialogue(one)) if any(map(_is_long, results)) else results
      for one, results in zip(dialogues, found, strict=True)
    ]

  def _of_pieces(self, dialogue: dialogues_lib.Dialogue) -> list[Result]:
    """The samples of a dialogue that is split."""
    last: list[Any] = []  # a piece that fits, and its tokens

    def kept(part: dialogues_lib.Dialogue) -> float:
      (found,) = self._encode_all([part], times=4)
      if _is_bad(found):
        return 0
      if len(found.tokens) <= self._seq_len:
        last[:] = part, found
        return math.inf
      return found.blocks[self._seq_len - 1] // 2 + 1

    results: list[Result] = []
    for piece in overlong_lib.pieces(dialogue, kept):
      if last and last[0] is piece and not self._each:
        results.append(self._result(last[1]))
      else:
        results += self._samples([piece])[0]
    return results

  def _samples(self, dialogues: Sequence[Dialogue]) -> list[list[Result]]:
    if not self._each:
      return [[one] for one in self(dialogues)]
    return list(map(self._one_or_each, map(_dialogue, dialogues)))

  def _one_or_each(self, dialogue: dialogues_lib.Dialogue) -> list[Result]:
    """The dialogue as one sample, or as one per reply if the template rewrites some."""
    if not self._texts.rewrites(dialogue, _CHARACTERS * self._seq_len):
      (found,) = self._encode_all([dialogue])
      # The first thought that is removed may be after these characters.
      if _is_bad(found) or not _has_rewritten(found):
        return [self._result(found)]
    return self._replies(dialogue)

  def _replies(self, dialogue: dialogues_lib.Dialogue) -> list[Result]:
    """For each reply the dialogue up to it, of which only this reply is learned."""
    ends = [
      i + 1 for i in range(len(dialogue.messages)) if self._texts.may_learn(dialogue, i)
    ]
    if not ends:
      return self([dialogue])  # which says why
    found: list[Result] = []
    for i in range(0, len(ends), _REPLIES):
      parts = [dialogue.until(end) for end in ends[i : i + _REPLIES]]
      found += map(self._result, self._encode_all(parts, last_only=True))
      if _is_bad(found[-1]) and found[-1].reason in _TOO_LONG:
        break  # what follows is even further from the beginning
    rest = overlong_lib.lost_by_each(self._tokens, dialogue, ends[len(found) :])
    last = found[-1]
    return [*found, *(dialogues_lib.BadSample(last.reason, lost) for lost in rest)]

  def __call__(self, dialogues: Sequence[Dialogue]) -> list[Result]:
    """One sample per dialogue, or a BadSample where it cannot be trained on.

    Raises:
      UserError: the chat template is unusable (see `spans.Finder`) or does not end a
        reply with a special token.
    """
    encoded = self._encode_all(list(map(_dialogue, dialogues)))
    return list(map(self._result, encoded))

  def _encode_all(
    self,
    dialogues: Sequence[dialogues_lib.Dialogue],
    last_only: bool = False,
    times: int = 1,
  ) -> list[_Encoded | dialogues_lib.BadSample]:
    """The tokens; of a long dialogue as many are rendered as a sample needs.

    Args:
      dialogues: to encode.
      last_only: only the last reply is learned.
      times: as many characters as usual are rendered first of a long dialogue.
    """
    results: list[Any] = [None] * len(dialogues)
    left, characters = list(range(len(dialogues))), _CHARACTERS * self._seq_len * times
    while left:
      texts = self._texts.of([dialogues[i] for i in left], characters, last_only)
      for i, result in zip(left, self._encode(texts), strict=True):
        results[i] = result
      left = [i for i in left if results[i] is None]
      characters *= 4
    return results

  def _encode(
    self, texts: Sequence[chat_texts.Text | dialogues_lib.BadSample]
  ) -> list[_Encoded | dialogues_lib.BadSample | None]:
    """The tokens; None where the beginning of the dialogue was too short."""
    results: list[Any] = list(texts)
    good = [i for i, text in enumerate(texts) if not _is_bad(text)]
    if not good:
      return results
    found = self._tokens.of_texts([texts[i].rendered.text for i in good])
    for i in good:
      try:
        tokens_L, places_L2, split = self._tokens_of(texts[i].rendered, next(found))
      except tokenization.UncutError:
        results[i] = dialogues_lib.BadSample(tokenization.UNCUT)
        continue
      results[i] = None
      if self._is_enough(texts[i], tokens_L, places_L2):
        starts_L = places_L2[:, 0].astype(np.int32)
        results[i] = self._encoded(texts[i], tokens_L, starts_L, split)
    return results

  def _tokens_of(
    self, rendered: spans.Rendered, found: tokenization.Tokens
  ) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Tokens of a text, their places, and replies encoded apart from their headers.

    Args:
      rendered: the text.
      found: its tokens, with names of special tokens as special tokens.
    """
    (tokens_L, places_L2), text, literals = found, rendered.text, rendered.literals
    begins = [one.begin for one in rendered.replies if one.state == spans.LEARNED]
    if literals:
      tokens_L, places_L2 = self._tokens.of_parts(text, (), literals)
    tokens = tokenization.Tokens(tokens_L, places_L2)
    split = self._tokens.changed(text, tokens, begins)
    if split:
      tokens_L, places_L2 = self._tokens.of_parts(text, split, literals)
    return tokens_L, places_L2, split

  def _is_enough(
    self, text: chat_texts.Text, tokens_L: np.ndarray, places_L2: np.ndarray
  ) -> bool:
    """Whether the kept tokens do not depend on what was left out.

    They do not if a special token follows them in the text that holds: tokenizers
    encode what is before one by itself.
    """
    if text.holds is None:
      return True
    holds_L = places_L2[:, 1] <= text.holds
    special_L = np.isin(tokens_L, self._special) & holds_L
    return bool(special_L[self._seq_len :].any())

  def _encoded(
    self,
    text: chat_texts.Text,
    tokens_L: np.ndarray,
    starts_L: np.ndarray,
    split: Sequence[int],
  ) -> _Encoded:
    # A token that is in two spans belongs to the one where it starts.
    block_L = _last_begun(text.rendered.block_starts, starts_L)
    replies = text.rendered.replies
    end_R = np.array([one.end for one in replies], np.int32)
    learned_R = np.array([one.state == spans.LEARNED for one in replies])
    reply_L = _last_begun([one.begin for one in replies], starts_L)
    target_L = (reply_L >= 0) & (starts_L < end_R[reply_L]) & learned_R[reply_L]

    ends = np.flatnonzero(target_L & ~np.append(target_L[1:], False))
    if np.isin(tokens_L[ends], self._special).sum() < learned_R.sum():
      raise spans.NoStopError()
    return _Encoded(text, tokens_L, starts_L, block_L, target_L, split)

  def _lost(self, encoded: _Encoded, kept: int) -> dialogues_lib.Lost:
    """What is lost if only the first `kept` tokens are not."""
    text, targets_L = encoded.text, encoded.targets
    if text.rest is None:
      lost = len(encoded.tokens) - kept, int(targets_L[kept:].sum())
      return dialogues_lib.Lost(*lost)
    rendered = int(np.searchsorted(encoded.starts, text.rendered.replies[-1].begin))
    more = text.rest.count(self._tokens, rendered)
    targets = int(targets_L[kept:rendered].sum()) + more.targets
    return dialogues_lib.Lost(rendered - kept + more.tokens, targets)

  def _result(self, encoded: _Encoded | dialogues_lib.BadSample) -> Result:
    """The sample of the tokens that are kept."""
    if _is_bad(encoded):
      return encoded
    tokens_L, starts_L, block_L = encoded.tokens, encoded.starts, encoded.blocks
    text, replies = encoded.text, encoded.text.rendered.replies
    kept, is_long = slice(0, self._seq_len), len(tokens_L) > self._seq_len
    if is_long and self._overlong == overlong_lib.DROP:
      return dialogues_lib.BadSample(overlong_lib.DROPPED, self._lost(encoded, 0))
    if not encoded.targets[kept].any():
      if not is_long and not any(one.state == spans.LEARNED for one in replies):
        return _nothing(replies)
      return dialogues_lib.BadSample(NO_TARGET, self._lost(encoded, 0))
    last = starts_L[kept][-1]
    states = [one.state for one in replies if one.begin <= last]
    rewritten = states.count(spans.REWRITTEN)
    return Sample(
      tokens=tokens_L[kept],
      block_ids=block_L[kept],
      is_response=block_L[kept] % 2 == 1,
      targets=encoded.targets[kept],
      sample_id=text.dialogue.id(),
      turns=states.count(spans.LEARNED) + rewritten,
      truncated=is_long,
      lost=self._lost(encoded, min(self._seq_len, len(tokens_L))),
      rewritten=0 if self._each else rewritten,
      calls=states.count(spans.CALL),
      excluded=states.count(spans.EXCLUDED),
      split=sum(begin <= last for begin in encoded.split),
    )


def _has_rewritten(encoded: _Encoded) -> bool:
  return any(one.state == spans.REWRITTEN for one in encoded.text.rendered.replies)


def _nothing(replies: Sequence[spans.Reply]) -> dialogues_lib.BadSample:
  """Why no reply is learned."""
  why = sorted({_NOT_LEARNED[one.state] for one in replies})
  return dialogues_lib.BadSample(f"nothing to learn: replies are {', or '.join(why)}")


def _dialogue(one: Dialogue) -> dialogues_lib.Dialogue:
  is_dialogue = isinstance(one, dialogues_lib.Dialogue)
  return one if is_dialogue else dialogues_lib.plain(one)


def _last_begun(begins: Sequence[int], starts_L: np.ndarray) -> np.ndarray:
  """int32 [L] the last span that begins at each place or before; -1 for none."""
  begins_C, found_L = np.array(begins, np.int32), np.empty(len(starts_L), np.int32)
  for first in range(0, len(starts_L), _SEARCHED):  # numpy's own result has 64 bits
    some = slice(first, first + _SEARCHED)
    found_L[some] = np.searchsorted(begins_C, starts_L[some], side="right") - 1
  return found_L


def _is_long(result: Result) -> bool:
  return result.reason in _TOO_LONG if _is_bad(result) else result.truncated


def _is_bad(result: Any) -> bool:
  return isinstance(result, dialogues_lib.BadSample)

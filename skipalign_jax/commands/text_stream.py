"""Text that grows token by token."""

from collections.abc import Sequence

import transformers


class TextStream:
  """Turns growing token lists into growing text, never half a character.

  A token's text depends on those before it: it may have a part of a character, and some
  tokenizers drop the space before the first word. So each is decoded after those that
  the text before it came from, and after no more: a long reply takes no longer per
  token than a short one.
  """

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
    self._tokenizer = tokenizer
    self._ids: list[int] = []  # those of the last text, and those after it
    self._known = 0  # how many are those of the last text
    self._pieces: list[str] = []

  @property
  def text(self) -> str:
    """What is certain so far."""
    return "".join(self._pieces)

  def add(self, token: int) -> str:
    """The text that became certain with this token."""
    self._ids.append(token)
    text, known = self._decode(self._ids), self._decode(self._ids[: self._known])
    if text.endswith("\ufffd"):  # bytes of a character are still missing
      return ""
    new = text.removeprefix(known)
    if not text.startswith(known):  # bytes after it that are no character change it
      new = self._decode(self._ids[self._known :])
    if new:
      self._pieces.append(new)
      del self._ids[: self._known]
      self._known = len(self._ids)
    return new

  def _decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=True)

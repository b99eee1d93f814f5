"""Text that grows token by token."""

import transformers


class TextStream:
  """Turns growing token lists into growing text, never half a character.

  Attributes:
    text: what is certain so far.
  """

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
    self._tokenizer = tokenizer
    self._ids: list[int] = []
    self.text = ""

  def add(self, token: int) -> str:
    """The text that became certain with this token."""
    self._ids.append(token)
    text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
    if text.endswith("\ufffd"):  # bytes of a character are still missing
      return ""
    new, self.text = text[len(self.text) :], text
    return new

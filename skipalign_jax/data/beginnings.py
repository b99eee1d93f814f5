"""The beginning of a dialogue of which only the first tokens are needed.

A chat of thousands of turns is not rendered whole. Its beginning, with a short reply in
place of all that follows, has the same text, except near its end, where templates write
what they write once: a thought, a system prompt before the last question. How far the
text holds is seen when two more messages follow.
"""

from skipalign_jax.data import dialogues

_OVERHEAD = 8  # characters of a message besides its content, at least
_REPLY = dialogues.Message("assistant", "b")


def of(dialogue: dialogues.Dialogue, characters: int) -> dialogues.Dialogue | None:
  """The beginning with about so many characters; None if the whole has no more."""
  size = 0
  for number, message in enumerate(dialogue.messages):
    if size >= characters and message.role == "assistant":
      before = dialogue.until(number)
      return before.then(_REPLY)
    size += len(message.content) + len(str(message.more or "")) + _OVERHEAD
  return None


def longer(beginning: dialogues.Dialogue) -> dialogues.Dialogue:
  """The beginning with two more messages."""
  return beginning.then(dialogues.Message("user", "a"), _REPLY)


def shared(text: str, other: str) -> int:
  """Characters at the beginning that two texts share."""
  low, high = 0, min(len(text), len(other))
  while low < high:
    middle = (low + high + 1) // 2
    if text[:middle] == other[:middle]:
      low = middle
    else:
      high = middle - 1
  return low

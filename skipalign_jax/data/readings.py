"""A dialogue's text, read from left to right: fixed part, content, fixed part …"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import json
from collections.abc import Sequence

from skipalign_jax.data import dialogues, template_parts, thoughts


@dataclasses.dataclass(frozen=True)
class Reading:
  """A dialogue's text as it was read.

  Attributes:
    dialogue: has the messages.
    text: of the dialogue.
    parts: before each marked content, and the last one.
    numbers: of the messages with these contents.
    spans: of these contents in the text.
  """

  dialogue: dialogues.Dialogue
  text: str
  parts: Sequence[template_parts.Part]
  numbers: Sequence[int]
  spans: Sequence[tuple[int, int]]

  def index_before(self, number: int) -> int:
    """Index of the last content before a message."""
    return bisect.bisect_left(self.numbers, number) - 1

  def block_starts(self) -> tuple[int, ...]:
    """First character of each block: what a user asks, and what answers it."""
    starts = []
    for k, number in enumerate(self.numbers):
      if self.dialogue.messages[number].role == "user":
        before = self.spans[k - 1][1] + self.parts[k].block if k else 0
        starts += [before, self.spans[k][1] + self.parts[k + 1].first]
    return tuple(starts)

  @functools.cached_property
  def thinking(self) -> frozenset[int]:
    """The numbers of the messages whose thoughts are in the text."""
    return frozenset(number for part in self.parts for number in part.thinking)

  def is_stable(self, number: int) -> bool:
    """Whether what precedes a reply is its prompt."""
    k = self.index_before(number) + 1
    part = self.parts[k]
    if number in self.numbers[k : k + 1]:
      return part.stable
    call = part.calls.get(number)
    return call is None or call.stable

  def around_replies(
    self,
  ) -> tuple[list[template_parts.Part], list[template_parts.Part]]:
    """The parts before replies that call nothing, and after them."""
    before, after = [], []
    for k, number in enumerate(self.numbers):
      message = self.dialogue.messages[number]
      if message.role == "assistant" and not self.dialogue.is_call(number):
        before.append(self.parts[k])
        after.append(self.parts[k + 1])
    return before, after


def filled(
  text: str, at: int, part: template_parts.Part, dialogue: dialogues.Dialogue
) -> template_parts.Part:
  """A part with the thoughts that the text has in it.

  Raises:
    UnusableError: it has them in another form.
  """
  if not part.thinking:
    return part
  found = []
  pieces = part.text.split(thoughts.HOLE)
  for piece, after, number in zip(pieces, pieces[1:], part.thinking, strict=False):
    begin = at + len(piece)
    thought = dialogue.messages[number].thought
    fits = (one for one in _forms(thought) if text.startswith(piece + one + after, at))
    found.append(next(fits, None))
    if found[-1] is None:
      raise template_parts.UnusableError(template_parts.DEPENDS)
    at = begin + len(found[-1])
  return part.filled(found)


def _forms(text: str) -> list[str]:
  """How a template may write a text: as it is, or without outer spaces."""
  return [
    text,
    *(f(text, c) for c in (None, "\n") for f in (str.strip, str.lstrip, str.rstrip)),
  ]


def exact_end(
  text: str, begin: int, message: dialogues.Message, after: str, is_last: bool
) -> int | None:
  """The end of a content that is written as it is, perhaps without outer spaces.

  Results of tools may also be written as JSON, in quotes (Llama 3).
  """
  content = message.content
  written = _forms(content)
  if message.role == "tool":
    written.append(json.dumps(content, ensure_ascii=False)[1:-1])
  for form in written:
    end = begin + len(form)
    if text.startswith(form, begin) and text.startswith(after, end):
      if not is_last or end + len(after) == len(text):
        return end
  return None

"""What the fixed parts of a dialogue's text depend on besides their own texts.

Some templates write the system prompt or the tools with the last question only, and no
system prompt at all where a reply follows. So equal parts of two dialogues, or of one,
may mean different things.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from skipalign_jax.data import dialogues, template_text


class Frame(NamedTuple):
  """A marked dialogue, and what its parts depend on.

  Attributes:
    marked: the dialogue.
    text: of it.
    about: what a template may write besides the contents.
    last: number of the last question.
    repeats: some questions are equal; then equal parts may have other places.
  """

  marked: dialogues.Dialogue
  text: str
  about: str
  last: int
  repeats: bool

  def place(self, number: int) -> tuple[Any, ...]:
    """What tells the part before a message from equal ones before others."""
    if self.repeats:
      return self.text, number
    message = self.marked.messages[number]
    return message.role, bool(message.thought), number > self.last


def of(marked: dialogues.Dialogue, text: str) -> Frame:
  """The frame of a marked dialogue with this text."""
  messages = marked.messages
  questions = [one.content for one in messages if one.role == "user"]
  about = [
    text[: text.find(template_text.MARK[0])],
    messages[0].content if marked.has_system else None,
    marked.tools,
    any(one.thought for one in messages),
  ]
  last = marked.asked_by(len(messages) - 1)
  repeats = len(set(questions)) < len(questions)
  return Frame(marked, text, json.dumps(about), last, repeats)

"""Thoughts of replies that data has apart from their contents (`reasoning_content`).

Templates take them by one of several names, or know them only as a part of the content,
between `<think>` and `</think>`. Each gets what it can read.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import TYPE_CHECKING

from skipalign_jax.data import dialogues, rendering

if TYPE_CHECKING:
  import transformers

_OPEN, _CLOSE = dialogues.THOUGHT_MARKUP
_SPACES = 64  # characters after which a thought is not the prompt's any more
# Private use, as template_text.MARK: stands for the thought of a message.
HOLE = "\ue004"
_NUMBERED = re.compile(rf"{HOLE}(\d+){HOLE}")


def placed(
  tokenizer: transformers.PreTrainedTokenizerFast, dialogue: dialogues.Dialogue
) -> dialogues.Dialogue:
  """The dialogue with thoughts where the chat template reads them.

  Raises:
    BadSample: it reads them nowhere.
  """
  if not any(one.thought for one in dialogue.messages):
    return dialogue
  messages = tuple(_placed(tokenizer, one) for one in dialogue.messages)
  return dataclasses.replace(dialogue, messages=messages)


def _placed(
  tokenizer: transformers.PreTrainedTokenizerFast, message: dialogues.Message
) -> dialogues.Message:
  if not message.thought:
    return message
  key = _key(tokenizer, str(tokenizer.chat_template), message.thought_key)
  if key is None:
    raise not_written(message)
  if key:
    return message.with_thought(message.thought, key)
  thought, content = message.thought.strip("\n"), message.content.lstrip("\n")
  more = dict(message.with_thought("").more or {})
  more.pop("content", None)  # it was null
  content = f"{_OPEN}\n{thought}\n{_CLOSE}\n\n{content}"
  return message._replace(content=content, more=more or None)


def not_written(message: dialogues.Message) -> dialogues.BadSample:
  """The reason where a template does not write the thought of a message."""
  return dialogues.BadSample(
    f"turn key {message.thought_key} is not written by the chat template"
  )


@functools.lru_cache(maxsize=16)
def _key(
  tokenizer: transformers.PreTrainedTokenizerFast, template: str, own: str
) -> str | None:
  """The key by which the template takes thoughts.

  Args:
    tokenizer: carries the template.
    template: for the cache; a tokenizer's template can be changed.
    own: key of the data, which is taken if the template reads it. transformers gives
      `reasoning_content` and `thinking` to templates under both names.

  Returns:
    "" if they are parts of contents, None if the template knows none.
  """
  question = dialogues.Message("user", "a")
  for key in (own, *dialogues.THOUGHT_KEYS):
    reply = dialogues.Message("assistant", "b", more={key: HOLE})
    try:
      text = rendering.render(tokenizer, dialogues.Dialogue((question, reply)))
    except dialogues.BadSample:
      continue
    if text.count(HOLE) == 1:
      return key
  return "" if _CLOSE in template else None


def is_closed(text: str, begin: int, content: str) -> bool:
  """Whether a content has a thought, and the text before it has ended one already."""
  before = text[max(0, begin - _SPACES) : begin].rstrip()
  return content.lstrip().startswith(_OPEN) and before.endswith(_CLOSE)


def marked(message: dialogues.Message, number: int) -> dialogues.Message:
  """The message, which has this number, with a mark in place of its thought."""
  if not message.thought:
    return message
  return message.with_thought(f"{HOLE}{number}{HOLE}")


def holes(text: str) -> tuple[int, ...]:
  """The numbers of the messages whose thoughts are in a text with marks."""
  return tuple(int(number) for number in _NUMBERED.findall(text))


def without_numbers(text: str) -> str:
  """A text with `HOLE` in place of each mark."""
  return _NUMBERED.sub(HOLE, text)

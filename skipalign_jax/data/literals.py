"""Names of special tokens that people wrote: `<s>` in HTML, `<filename>` in a manual.

They are text, not control tokens. While a template renders them, one character stands
for each, so that neither the template nor the tokenizer takes them for its own.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Sequence

from skipalign_jax.data import dialogues

STAND_IN = "\ue002"  # private use
_PRIVATE = re.compile("[\ue000-\ue004]")  # characters with a meaning here


def hide(
  dialogue: dialogues.Dialogue,
  control: re.Pattern[str],
  markup: Collection[str],
  template: str,
) -> tuple[dialogues.Dialogue, list[str]]:
  """The dialogue with a character in place of each name; the names in their order.

  Args:
    dialogue: what people wrote.
    control: matches the names.
    markup: those that a tokenizer cannot encode as text.
    template: the chat template. A reply that has a name which the template uses itself
      is not understood: it may be markup, such as a thought.

  Raises:
    BadSample: such a reply, such a name, one in a tool or a call, or the character is
      in the dialogue already.
  """
  _check_tools(dialogue, control)
  names: list[str] = []
  hidden = []
  for message in dialogue.messages:
    texts = message.thought + message.content  # in the order of the templates
    found = control.findall(message.thought) + control.findall(message.content)
    is_markup = any(name in markup for name in found) or (
      message.role == "assistant" and any(name in template for name in found)
    )
    if is_markup or (found and STAND_IN in texts):
      raise dialogues.BadSample("control token in content")
    names += found
    message = message._replace(content=control.sub(STAND_IN, message.content))
    if message.thought:
      message = message.with_thought(control.sub(STAND_IN, message.thought))
    hidden.append(message)
  if names and sum(map(_count, hidden)) != len(names):
    raise dialogues.BadSample("control token in content")
  return dataclasses.replace(dialogue, messages=tuple(hidden)), names


def _count(message: dialogues.Message) -> int:
  return message.content.count(STAND_IN) + message.thought.count(STAND_IN)


def _check_tools(dialogue: dialogues.Dialogue, control: re.Pattern[str]) -> None:
  """Raises BadSample where a tool or a call would not be read as text."""
  found = [("tools", dialogue.tools)]
  found += [
    pair
    for one in dialogue.messages
    for pair in (one.more or {}).items()
    if pair[0] not in dialogues.THOUGHT_KEYS
  ]
  for key, value in found:
    text = json.dumps(value, ensure_ascii=False) if value else ""
    if control.search(text) or _PRIVATE.search(text):
      raise dialogues.BadSample(f"control token in {key}")


def places(text: str, names: Sequence[str]) -> dict[int, str]:
  """Where the characters are in a text, and what each stands for.

  Raises:
    BadSample: the text has not all of them.
  """
  if not names:
    return {}
  found = [match.start() for match in re.finditer(STAND_IN, text)]
  if len(found) != len(names):
    raise dialogues.BadSample("control token in content")
  return dict(zip(found, names, strict=True))


def spelled(text: str, names: Sequence[str]) -> str:
  """The text with the names in place of the characters."""
  left = iter(names)
  return re.sub(STAND_IN, lambda _: next(left), text)

"""Names of special tokens that people wrote: `<s>` in HTML, `<filename>` in a manual.

They are text, not control tokens. While a template renders them, one character stands
for each, so that neither the template nor the tokenizer takes them for its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from skipalign_jax.data import schemas

_STAND_IN = "\ue002"  # private use


def hide(
  messages: Sequence[schemas.Message], control: re.Pattern[str], template: str
) -> tuple[list[schemas.Message], list[str]]:
  """Messages with a character in place of each name, and the names in their order.

  Args:
    messages: of a dialogue.
    control: matches the names.
    template: the chat template. A reply that has a name which the template uses itself
      is not understood: it may be markup, such as a thought.

  Raises:
    BadSample: such a reply, or the character is in the dialogue already.
  """
  names: list[str] = []
  hidden = []
  for role, content in messages:
    found = control.findall(content)
    markup = role == "assistant" and any(name in template for name in found)
    if markup or (found and _STAND_IN in content):
      raise schemas.BadSample("control token in content")
    names += found
    hidden.append((role, control.sub(_STAND_IN, content)))
  if names and sum(content.count(_STAND_IN) for _, content in hidden) != len(names):
    raise schemas.BadSample("control token in content")
  return hidden, names


def places(text: str, names: Sequence[str]) -> dict[int, str]:
  """Where the characters are in a text, and what each stands for.

  Raises:
    BadSample: the text has not all of them.
  """
  if not names:
    return {}
  found = [match.start() for match in re.finditer(_STAND_IN, text)]
  if len(found) != len(names):
    raise schemas.BadSample("control token in content")
  return dict(zip(found, names, strict=True))


def spelled(text: str, names: Sequence[str]) -> str:
  """The text with the names in place of the characters."""
  left = iter(names)
  return re.sub(_STAND_IN, lambda _: next(left), text)

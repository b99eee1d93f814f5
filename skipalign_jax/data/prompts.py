"""Tokens of prompts: names of special tokens in what people wrote are text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from skipalign_jax.data import (
  chat_tokens,
  dialogues,
  literals,
  rendering,
  template_text,
)
from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import transformers


NOT_TEXT = "that cannot be encoded as text"


def front(tokenizer: transformers.PreTrainedTokenizerFast) -> list[int]:
  """What the tokenizer puts before every text, such as bos.

  What it puts after a text, eos for some, belongs after no prompt: the reply would come
  after an end.
  """
  alone, around = (
    tokenizer.encode("a", add_special_tokens=special) for special in (False, True)
  )
  starts = range(len(around) - len(alone) + 1)
  return around[: next(i for i in starts if around[i : i + len(alone)] == alone)]


def of_dialogue(
  tokenizer: transformers.PreTrainedTokenizerFast, dialogue: dialogues.Dialogue
) -> list[int]:
  """The tokens of a dialogue and of the generation prompt after it.

  Raises:
    BadSample: the template refuses the dialogue.
    UserError: the dialogue has a name that cannot be encoded as text.
  """
  whole = rendering.render(tokenizer, dialogue, add_generation_prompt=True)
  contents = [message.content for message in dialogue.messages]
  hidden, names = _hide(tokenizer, contents)
  messages = (
    one._replace(content=content)
    for one, content in zip(dialogue.messages, hidden, strict=True)
  )
  text = rendering.render(
    tokenizer, dialogues.Dialogue(tuple(messages)), add_generation_prompt=True
  )
  if literals.spelled(text, names) != whole:
    raise refused("that the chat template reads itself")
  return _encode(tokenizer, text, names)[0]


def of_text(
  tokenizer: transformers.PreTrainedTokenizerFast, text: str, begin: int, end: int
) -> tuple[list[int], list[int]]:
  """The tokens of a template's text, and the index in `text` at which each ends.

  Args:
    tokenizer: has the template.
    text: of the prompt.
    begin, end: between them it is what people wrote.

  Raises:
    UserError: as `of_dialogue`.
  """
  (content,), names = _hide(tokenizer, [text[begin:end]])
  return _encode(tokenizer, text[:begin] + content + text[end:], names)


def _hide(
  tokenizer: transformers.PreTrainedTokenizerFast, contents: Sequence[str]
) -> tuple[list[str], list[str]]:
  control = template_text.control_tokens(tokenizer)
  names = [name for content in contents for name in control.findall(content)]
  markup = template_text.markup_tokens(tokenizer)
  if any(name in markup for name in names):
    raise refused(NOT_TEXT)
  if names and any(literals.STAND_IN in content for content in contents):
    raise refused(f"and the character {literals.STAND_IN!a}")
  return [control.sub(literals.STAND_IN, content) for content in contents], names


def _encode(
  tokenizer: transformers.PreTrainedTokenizerFast, text: str, names: Sequence[str]
) -> tuple[list[int], list[int]]:
  """The tokens of a text in which a character stands for each name, and their ends."""
  encoder = chat_tokens.Encoder(tokenizer)
  if not names:
    ((tokens, places),) = encoder.of_texts([text])
    return tokens.tolist(), places[:, 1].tolist()
  found = literals.places(text, names)
  tokens, places = encoder.of_parts(text, (), found)
  ends, added = [], 0
  left = iter(sorted(found.items()))
  at, name = next(left)
  for end in places[:, 1].tolist():
    while end > at:
      added += len(name) - 1
      at, name = next(left, (len(text), ""))
    ends.append(end + added)
  return tokens.tolist(), ends


def refused(what: str) -> errors.UserError:
  """The error of a prompt with the name of a special token."""
  return errors.UserError(
    f"the prompt has the name of a special token {what}; write it in another way"
  )

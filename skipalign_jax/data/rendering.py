"""Dialogues to text, by a tokenizer's chat template.

Templates disagree about calls of tools: most take arguments as an object, others as
JSON text, and some want a content. Each gets what it can read.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from skipalign_jax.data import dialogues, record_keys, tool_calls
from skipalign_jax.hf import chat_template

if TYPE_CHECKING:
  import transformers

_ID, _VALUE = "abcdefghi", "probed"  # of a call; Mistral's templates want such an id
_CALL = {"name": "f", "arguments": {"x": _VALUE}}
_TOOL = {
  "name": "f",
  "description": "d",
  "parameters": {
    "type": "object",
    "properties": {"x": {"type": "string", "description": "d"}},
    "required": ["x"],
  },
}
_PROBE = dialogues.Dialogue(
  (
    dialogues.Message("user", "a"),
    dialogues.Message(
      "assistant",
      "",
      more={
        "tool_calls": [{"type": "function", "id": _ID, "function": _CALL}],
        "content": None,
      },
    ),
    dialogues.Message("tool", "c", more={"name": "f", "tool_call_id": _ID}),
    dialogues.Message("assistant", "d"),
  ),
  ({"type": "function", "function": _TOOL},),
)


def render(
  tokenizer: transformers.PreTrainedTokenizerFast,
  dialogue: dialogues.Dialogue,
  add_generation_prompt: bool = False,
) -> str:
  """The text of a dialogue; raises BadSample if the template refuses it."""
  readable = _readable(tokenizer, dialogue)
  return _render(tokenizer, readable, add_generation_prompt)


class Renderer:
  """Renders dialogues, many ahead: a template of a model takes less time then.

  Args:
    tokenizer: carries the template.
  """

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast):
    self._tokenizer = tokenizer
    self._kept: Sequence[dialogues.Dialogue] = ()  # so that no id is used again
    self._done: dict[tuple[int, bool], str | dialogues.BadSample] = {}

  def ahead(self, some: Sequence[dialogues.Dialogue]) -> None:
    """Makes the texts and prompts of these dialogues, which are asked for next."""
    self._kept, self._done = some, {}
    for ask in (False, True):
      parts = [one.until(-1) if ask else one for one in some]
      texts = _render_all(self._tokenizer, parts, ask)
      self._done |= {
        (id(one), ask): text for one, text in zip(some, texts, strict=True)
      }

  def text(self, dialogue: dialogues.Dialogue) -> str:
    """The text of a dialogue; raises BadSample if the template refuses it."""
    return self._get(dialogue, False)

  def prompt(self, dialogue: dialogues.Dialogue) -> str:
    """The text up to the last message, for which it asks; raises BadSample."""
    return self._get(dialogue, True)

  def _get(self, dialogue: dialogues.Dialogue, ask: bool) -> str:
    done = self._done.pop((id(dialogue), ask), None)
    if done is None:
      return render(self._tokenizer, dialogue.until(-1) if ask else dialogue, ask)
    if isinstance(done, dialogues.BadSample):
      raise done
    return done


def _render_all(
  tokenizer: transformers.PreTrainedTokenizerFast,
  some: Sequence[dialogues.Dialogue],
  add_generation_prompt: bool,
) -> list[str | dialogues.BadSample]:
  """`render` of many, those with the same tools together."""
  found: list[str | dialogues.BadSample | None] = []
  readable = []
  for one in some:
    try:
      readable.append(_readable(tokenizer, one))
      found.append(None)
    except dialogues.BadSample as bad:
      found.append(bad)
  texts: list[str | jinja2.TemplateError] = []
  for tools, group in itertools.groupby(readable, key=lambda one: one.tools):
    texts += chat_template.render_all(
      tokenizer,
      [_turns(one) for one in group],
      add_generation_prompt=add_generation_prompt,
      **_options(tools),
    )
  rest = iter(texts)
  found = [next(rest) if one is None else one for one in found]
  return [
    _refused(one) if isinstance(one, jinja2.TemplateError) else one for one in found
  ]


def _readable(
  tokenizer: transformers.PreTrainedTokenizerFast, dialogue: dialogues.Dialogue
) -> dialogues.Dialogue:
  """The dialogue with calls as the template reads them; raises BadSample."""
  calls = [call for one in dialogue.messages for call in one.calls]
  if not calls:
    return dialogue
  has_tools = bool(dialogue.tools)
  form = _form_of_calls(tokenizer, str(tokenizer.chat_template), has_tools)
  if form is None:
    if not all(map(tool_calls.is_empty, calls)):
      raise dialogues.BadSample("tool_calls are not written by the chat template")
    form = (False, True)  # no call has anything to write, as in a reply without calls
  return _with_calls(dialogue, *form)


def _render(
  tokenizer: transformers.PreTrainedTokenizerFast,
  dialogue: dialogues.Dialogue,
  add_generation_prompt: bool = False,
) -> str:
  try:
    return chat_template.render(
      tokenizer,
      _turns(dialogue),
      add_generation_prompt=add_generation_prompt,
      **_options(dialogue.tools),
    )
  except jinja2.TemplateError as error:
    raise _refused(error) from error


def _turns(dialogue: dialogues.Dialogue) -> list[dict[str, Any]]:
  return [message.for_template() for message in dialogue.messages]


def _options(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  return {"tools": list(tools)} if tools else {}


def _refused(error: jinja2.TemplateError) -> dialogues.BadSample:
  why = record_keys.shown(error, 80)
  return dialogues.BadSample(f"refused by the chat template: {why}")


@functools.lru_cache(maxsize=16)
def _form_of_calls(
  tokenizer: transformers.PreTrainedTokenizerFast, template: str, has_tools: bool
) -> tuple[bool, bool] | None:
  """Whether the template wants arguments as JSON text, and "" as a missing content.

  transformers gives objects, and no content; the first form that works is used.

  Args:
    tokenizer: carries the template.
    template: for the cache; a tokenizer's template can be changed.
    has_tools: whether the dialogue has tools next to its messages.

  Returns:
    None if the template writes calls in no form.
  """
  del template
  probe = _PROBE if has_tools else dataclasses.replace(_PROBE, tools=())
  for form in itertools.product((False, True), repeat=2):
    try:
      text = _render(tokenizer, _with_calls(probe, *form))
    except dialogues.BadSample:
      continue
    # As Python prints objects, a model would have to write Python.
    if _VALUE in text and repr(_CALL["arguments"]) not in text:
      return form
  return None


def _with_calls(
  dialogue: dialogues.Dialogue, text_arguments: bool, empty_content: bool
) -> dialogues.Dialogue:
  """The dialogue with its calls in the form that the template wants."""
  messages = []
  for message in dialogue.messages:
    if message.calls:
      more = dict(message.more or {})
      if text_arguments:
        more["tool_calls"] = list(map(_with_text, message.calls))
      if empty_content:
        more.pop("content", None)
      message = message._replace(more=more)
    messages.append(message)
  return dataclasses.replace(dialogue, messages=tuple(messages))


def _with_text(call: Mapping[str, Any]) -> Mapping[str, Any]:
  if tool_calls.is_empty(call):
    return call
  arguments = tool_calls.arguments_of(call)
  return tool_calls.with_arguments(call, json.dumps(arguments, ensure_ascii=False))

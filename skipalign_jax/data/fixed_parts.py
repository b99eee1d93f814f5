"""The text that a chat template writes between the contents of a dialogue.

The dialogue is rendered with a marker in place of each content. What is between two
markers is a fixed part: it ends one message and begins the next, and may have whole
replies that call tools, which are not marked. Thoughts that a message has apart from
its content are in them, as holes.

Where a message ends follows from the beginning of the dialogue, rendered alone, with
and without a generation prompt. This is done once per different fixed part. A part with
calls is nearly always new: there the last exchange is rendered instead of the whole
beginning. So long dialogues take time in proportion to their length.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from skipalign_jax.data import (
  dialogues,
  part_frames,
  rendering,
  template_parts,
  template_text,
  thoughts,
  tool_calls,
)

if TYPE_CHECKING:
  import transformers

_MARKS = re.compile(template_text.MARK.format(r"(\d+)"))
_MAX_KNOWN = 256  # remembered; every system prompt has its own
_NOT_ONCE = "does not contain every message once, in their order"


def is_marked(message: dialogues.Message) -> bool:
  """Whether a marker stands for the message's content."""
  return message.role != "system" and bool(message.content)


class Splitter:
  """Finds the fixed parts of dialogues.

  Args:
    tokenizer: carries the chat template.
    calls: find also where replies that call tools begin and end.
  """

  def __init__(
    self, tokenizer: transformers.PreTrainedTokenizerFast, calls: bool = False
  ):
    self._render_numbered = functools.partial(rendering.render, tokenizer)
    self._control = template_text.control_tokens(tokenizer)
    self._stop = template_text.stop_token(tokenizer)
    self._calls = calls
    self._texts: dict[str, str] = {}
    self._known: dict[tuple[Any, ...], template_parts.Part] = {}

  def __call__(self, dialogue: dialogues.Dialogue) -> list[template_parts.Part]:
    """The parts before each marked content, and the last part.

    Raises:
      BadSample: the template refuses the dialogue, or does not write what belongs to
        tools.
      UnusableError: the parts cannot be found.
    """
    self._check_tools(dialogue)
    marked = self._with_repeats(dialogue, _marked(dialogue))
    self._check_arguments(marked)
    numbered = self._text_of(marked)
    thinking = list(map(thoughts.holes, _MARKS.split(numbered)[::2]))
    text = thoughts.without_numbers(numbered)
    pieces = _MARKS.split(text)
    texts, order = pieces[::2], [int(number) for number in pieces[1::2]]
    numbers = [i for i, one in enumerate(dialogue.messages) if is_marked(one)]
    expected = [int(_MARKS.split(marked.messages[i].content)[1]) for i in numbers]
    if order != expected:
      _check_missing(dialogue, set(expected) - set(order))
      raise template_parts.UnusableError(_NOT_ONCE)
    parts, frame = [template_parts.Part(texts[0], 0)], part_frames.of(marked, text)
    for part, (before, after) in zip(
      texts[1:-1], itertools.pairwise(numbers), strict=True
    ):
      parts.append(self._part(frame, part, before, after))
    end = len(dialogue.messages)
    parts.append(self._with_calls(marked, text, texts[-1], numbers[-1], end))
    return [
      dataclasses.replace(part, thinking=found)
      for part, found in zip(parts, thinking, strict=True)
    ]

  def _render(
    self, marked: dialogues.Dialogue, add_generation_prompt: bool = False
  ) -> str:
    """The text of a marked dialogue, in which all holes are alike."""
    text = self._render_numbered(marked, add_generation_prompt=add_generation_prompt)
    return thoughts.without_numbers(text)

  def _text_of(self, marked: dialogues.Dialogue) -> str:
    """The text; most dialogues have the same marks, and many the same tools."""
    key = json.dumps([marked.messages, marked.tools])
    if key not in self._texts:
      if len(self._texts) >= _MAX_KNOWN:
        self._texts.clear()
      self._texts[key] = self._render_numbered(marked)
    return self._texts[key]

  def _with_repeats(
    self, dialogue: dialogues.Dialogue, marked: dialogues.Dialogue
  ) -> dialogues.Dialogue:
    """The marked dialogue, in which equal questions are equal if that matters.

    Some templates write the tools before each message that equals the user's last one
    (Mistral Small 3.1).
    """
    last = dialogue.asked_by(len(dialogue.messages) - 1)
    question, mark = dialogue.messages[last], marked.messages[last].content
    repeats = [i for i in range(last) if dialogue.messages[i] == question]
    if not repeats or not dialogue.tools:
      return marked
    messages, text = list(marked.messages), self._text_of(marked)
    for i in repeats:
      text = text.replace(messages[i].content, mark)
      messages[i] = messages[i]._replace(content=mark)
    same = dataclasses.replace(marked, messages=tuple(messages))
    return marked if self._text_of(same) == text else same

  def _check_tools(self, dialogue: dialogues.Dialogue) -> None:
    """Raises BadSample if the template does not write the tools."""
    if not dialogue.tools:
      return
    question = dialogues.Message("user", template_text.MARK.format(0))
    text = self._text_of(dataclasses.replace(dialogue, messages=(question,)))
    if not all(name in text for name in tool_calls.names_of(dialogue.tools)):
      raise dialogues.BadSample("key tools is not read by the chat template")

  def _check_arguments(self, marked: dialogues.Dialogue) -> None:
    """Raises BadSample if the template writes no arguments of calls without names."""
    marks = map(template_text.MARK.format, itertools.count(len(marked.messages)))
    probed, asked = [], []
    for one in marked.messages:
      calls = list(one.calls)
      for i, call in enumerate(calls):
        if tool_calls.is_nameless(call) and tool_calls.arguments_of(call):
          asked.append(next(marks))
          calls[i] = tool_calls.with_arguments(call, {"x": asked[-1]})
      more = {**(one.more or {}), "tool_calls": calls} if calls else one.more
      probed.append(one._replace(more=more))
    if not asked:
      return
    text = self._render_numbered(dataclasses.replace(marked, messages=tuple(probed)))
    if not all(mark in text for mark in asked):
      raise dialogues.BadSample("tool_calls are not written by the chat template")

  def _part(
    self, frame: part_frames.Frame, part: str, before: int, after: int
  ) -> template_parts.Part:
    """The part between the marks of two messages."""
    marked, text = frame.marked, frame.text
    if after > before + 1 or marked.messages[before].calls:
      return self._with_calls(marked, text, part, before, after)
    message = marked.messages[after]
    if message.role == marked.messages[before].role:  # results: nothing ends between
      return template_parts.Part(part, len(part), first=len(part))
    key = (frame.about, part, *frame.place(after))
    if key not in self._known:
      if len(self._known) >= _MAX_KNOWN:
        self._known.clear()
      self._known[key] = self._plain(text, part, marked, after)
    return self._known[key]

  def _plain(
    self, text: str, part: str, marked: dialogues.Dialogue, after: int
  ) -> template_parts.Part:
    """A part without calls inside `text`, before the marked message `after`."""
    before, reply = marked.until(after), marked.messages[after]
    mark = _last_mark(before)
    alone, found, tail = self._render(before).rpartition(mark)
    if not found:
      raise template_parts.UnusableError(_NOT_ONCE)
    if reply.role != "assistant":
      end = self._end_of_reply(part, tail, before)
      return template_parts.Part(part, end, first=end)
    try:
      asked = self._before_reply(text, part, before, alone, tail)
      stable = asked.stable and part == self._between(before, reply)
      return dataclasses.replace(asked, stable=stable)
    except template_parts.UnusableError:
      if before.messages[-1].role != "tool" or thoughts.HOLE in part:
        raise
      # Results end differently where nothing follows, so that no prompt is like this.
      return template_parts.Part(part, len(part), part, stable=False, first=len(part))

  def _between(self, before: dialogues.Dialogue, reply: dialogues.Message) -> str:
    """What is before a reply if it is the last message."""
    text = self._render(before.then(reply))
    return text.rpartition(_last_mark(before))[2].partition(reply.content)[0]

  def _before_reply(
    self, text: str, part: str, before: dialogues.Dialogue, alone: str, tail: str
  ) -> template_parts.Part:
    """As `_plain`; `alone` and `tail` are what `before` is around its last mark."""
    mark = _last_mark(before)
    prompt = self._render(before, add_generation_prompt=True)
    asked, _, prompt = prompt.rpartition(mark)
    stable = text.startswith(alone + mark) and text.startswith(asked + mark)
    if tail == prompt:
      # No generation prompt (as in Llama 2), or one after every text.
      if part[len(prompt) :].strip() or not part.startswith(prompt):
        raise template_parts.UnusableError(
          "does not put a reply right after its generation prompt"
        )
      stop = self._control.search(tail)
      end = _after_spaces(tail, stop.end()) if stop else len(tail)
      return template_parts.Part(part, end, prompt, stable, end)
    end = self._end_of_message(part, tail)
    pairs = zip(part, prompt, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    if shared < min(len(part), len(prompt.rstrip())):
      raise template_parts.UnusableError(
        "does not put a reply right after its generation prompt"
      )
    if shared < len(part):  # otherwise the prompt may be longer than the part
      prompt = prompt[:shared]
    return template_parts.Part(part, end, prompt, stable, end)

  def _end_of_reply(self, part: str, tail: str, before: dialogues.Dialogue) -> int:
    """As `_end_of_message`; the last reply may have an end of its own (gpt-oss).

    Then earlier ones end as the marked messages of the user do.
    """
    try:
      return self._end_of_message(part, tail)
    except template_parts.UnusableError:
      number = before.asked_by(len(before.messages) - 1)
      asked = self._tail(before.until(number + 1))
      if not self._control.search(asked):
        raise
      return self._end_of_message(part, asked)

  def _end_of_message(self, part: str, tail: str) -> int:
    """Characters of `part` that end a message which ends with `tail` if it is last."""
    stop = self._control.search(tail)
    if part.startswith(tail) and not (stop and stop.end() == len(tail)):
      return len(tail)
    # More may follow the last message, such as an eos token, or less, without a line
    # break (OLMo 2, Tulu 3).
    if stop and part.startswith(tail[: stop.end()]):
      return _after_spaces(part, stop.end())
    raise template_parts.UnusableError(
      "ends a message differently when more messages follow"
    )

  def _tail(
    self, dialogue: dialogues.Dialogue, add_generation_prompt: bool = False
  ) -> str:
    """What the template writes after the last mark."""
    text = self._render(dialogue, add_generation_prompt=add_generation_prompt)
    _, found, tail = text.rpartition(_last_mark(dialogue))
    if not found:
      raise template_parts.UnusableError(_NOT_ONCE)
    return tail

  def _with_calls(
    self, marked: dialogues.Dialogue, text: str, part: str, before: int, after: int
  ) -> template_parts.Part:
    """The part after a mark; `after` is the next marked message, or the last end."""
    messages = marked.messages
    calls = [i for i in range(before, after) if messages[i].calls]
    for i in calls:
      if not all(name in part for name in tool_calls.names_of(messages[i].calls)):
        raise dialogues.BadSample("tool_calls are not written by the chat template")
    found = template_parts.Part(part, len(part), first=len(part))
    if after < len(messages) and messages[after].role == "assistant":
      found = self._plain(text, part, marked, after)
    elif after < len(messages) and messages[after].role == "user":
      end = self._end_of(marked, part, after - 1)
      found = template_parts.Part(part, end, first=end)
    if messages[before].role == "user":
      found = dataclasses.replace(found, first=self._end_of(marked, part, before))
    if self._calls:
      spans = {i: self._call(marked, part, i) for i in calls}
      found = dataclasses.replace(found, calls=spans)
    return found

  def _end_of(self, marked: dialogues.Dialogue, part: str, number: int) -> int:
    """Characters of `part` up to the end of a message."""
    is_call = marked.messages[number].role == "assistant"
    for dialogue in _beginnings(marked, number):
      tail = self._tail(dialogue)
      if part.startswith(tail):
        return len(tail)
      if not is_call:
        with contextlib.suppress(template_parts.UnusableError):
          return self._end_of_message(part, tail)
    raise template_parts.UnusableError(
      "ends a message differently when more messages follow"
    )

  def _call(
    self, marked: dialogues.Dialogue, part: str, number: int
  ) -> template_parts.Call | None:
    """Where a call and its stop token are in a part, if it follows a prompt's header.

    A call after a content begins before this, at 0.
    """
    own = is_marked(marked.messages[number])
    for dialogue in _beginnings(marked, number):
      tail = self._tail(dialogue)
      end = self._stop_of_call(tail)
      if not end or not part.startswith(tail[:end]):
        continue
      if own:
        return template_parts.Call(0, end)
      asked = self._tail(dialogue.until(-1), add_generation_prompt=True)
      if tail.startswith(asked):
        return template_parts.Call(len(asked), end)
      # Results end differently where nothing follows (Hermes).
      heads = [match.start() for match in self._control.finditer(asked)]
      header = asked[heads[-1] :] if heads else ""
      if header and (place := tail.rfind(header, 0, end)) >= 0:
        return template_parts.Call(place + len(header), end, stable=False)
    return None

  def _stop_of_call(self, tail: str) -> int:
    """The end of the stop token in the text that ends with a call; 0 without one."""
    found = list(self._control.finditer(tail))
    known = [match for match in found if match[0] == self._stop]
    return (known or found)[-1].end() if found else 0


def _marked(dialogue: dialogues.Dialogue) -> dialogues.Dialogue:
  """The dialogue with marks in place of contents."""
  messages = (
    one._replace(content=template_text.MARK.format(i)) if is_marked(one) else one
    for i, one in enumerate(dialogue.messages)
  )
  messages = (thoughts.marked(one, i) for i, one in enumerate(messages))
  return dataclasses.replace(dialogue, messages=tuple(messages))


def _last_mark(marked: dialogues.Dialogue) -> str:
  return next(one.content for one in reversed(marked.messages) if is_marked(one))


def _beginnings(
  marked: dialogues.Dialogue, number: int
) -> Iterator[dialogues.Dialogue]:
  """Dialogues that end with a message: with the last exchange only, and the whole."""
  messages = marked.messages
  asked = marked.asked_by(number)
  start = number
  if messages[start].role == "assistant" and start > asked + 1:
    start -= 1  # results of tools, which answer an earlier call
  while start > asked and messages[start].role == "tool":
    start -= 1
  system = messages[:1] if marked.has_system else ()
  exchange = messages[max(start, asked + 1) : number + 1]
  short = (*system, messages[asked], *(exchange if number > asked else ()))
  if len(short) < number + 1:
    yield dataclasses.replace(marked, messages=short)
  yield marked.until(number + 1)


def _check_missing(dialogue: dialogues.Dialogue, missing: set[int]) -> None:
  """Raises BadSample if the template leaves out only what belongs to tools."""
  found = [dialogue.messages[i] for i in missing]
  if found and all(one.role == "tool" for one in found):
    raise dialogues.BadSample("turns of tool are not written by the chat template")
  if found and all(one.calls for one in found):
    raise dialogues.BadSample(
      "content next to tool_calls is not written by the chat template"
    )


def _after_spaces(text: str, start: int) -> int:
  return start + len(text[start:]) - len(text[start:].lstrip())

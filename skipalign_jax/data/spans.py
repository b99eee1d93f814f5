"""Where the blocks and replies of a dialogue are in its text.

A chat template is a program, so its text is never searched for what a user may have
written. The dialogue is rendered as it is, and its fixed parts, which the template
writes between the contents, are found apart (fixed_parts.py). The text is then read
from left to right: fixed part, content, fixed part, and so on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from skipalign_jax.data import (
  beginnings,
  dialogues,
  fixed_parts,
  readings,
  rendering,
  template_parts,
  template_text,
  thoughts,
  tool_calls,
)
from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import transformers

LEARNED = "learned"
REWRITTEN = "rewritten"  # by the template, when more messages follow
CALL = "call"  # of tools
EXCLUDED = "excluded"  # by the data


class Reply(NamedTuple):
  """A reply, or a call of tools.

  Attributes:
    begin: its first character.
    end: of its stop token; `begin` if it is not known.
    state: LEARNED if it is learned, or why it is not. A learned reply has this text
      before it when a model is prompted for it, and is what the model writes then.
  """

  begin: int
  end: int
  state: str


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A dialogue as text, with character offsets.

  Attributes:
    text: the whole dialogue.
    block_starts: first character of each block, C; the first is 0.
    replies: in their order; in a block of an answer at least one.
    literals: what characters of `text` stand for, see `literals.py`.
  """

  text: str
  block_starts: tuple[int, ...]
  replies: tuple[Reply, ...]
  literals: Mapping[int, str] = dataclasses.field(default_factory=dict)

  def with_last_only(self) -> Rendered:
    """The same; only the last reply is learned."""
    replies = (
      one._replace(state=REWRITTEN) if one.state == LEARNED else one
      for one in self.replies[:-1]
    )
    return dataclasses.replace(self, replies=(*replies, self.replies[-1]))


class NoStopError(errors.UserError):
  """A template after whose replies no special token follows."""

  def __init__(self) -> None:
    super().__init__(
      "the tokenizer's chat template does not end every reply with a special token, so "
      "the model would never learn to stop; set data.template=tulu"
    )


class Finder:
  """Renders dialogues and finds their spans.

  Args:
    tokenizer: carries the chat template.
    learn_calls: replies that call tools are learned too.
  """

  def __init__(
    self, tokenizer: transformers.PreTrainedTokenizerFast, learn_calls: bool = False
  ):
    self._renderer = rendering.Renderer(tokenizer)
    self._control = template_text.control_tokens(tokenizer)
    self._split = fixed_parts.Splitter(tokenizer, learn_calls)
    self._learn_calls = learn_calls

  def render_ahead(self, some: Sequence[dialogues.Dialogue]) -> None:
    """Renders what the next calls need, if these are with the same objects."""
    self._renderer.ahead(some)

  def __call__(self, dialogue: dialogues.Dialogue) -> Rendered:
    """The dialogue's text and where its blocks and replies are in it.

    Raises:
      BadSample: the template refuses this dialogue, does not write a part of it, or
        removes a part of its last reply; a call that is to be learned has no name.
      NoStopError: no special token follows a reply.
      UnusableError: the spans cannot be found.
    """
    if self._learn_calls:
      _check_names(dialogue)
    text = self._renderer.text(dialogue)
    parts = self._split(dialogue)
    numbers = [
      i for i, one in enumerate(dialogue.messages) if fixed_parts.is_marked(one)
    ]
    marked = [dialogue.messages[i] for i in numbers]
    parts, spans, changed = self._contents(text, dialogue, marked, parts)
    found = readings.Reading(dialogue, text, parts, numbers, spans)
    rendered = Rendered(text, found.block_starts(), tuple(self._replies(found)))
    if changed or not self._stable(found):
      rendered = rendered.with_last_only()
    self._check_thoughts(found, rendered.replies)
    if rendered.replies[-1].state != LEARNED:
      return rendered
    return self._with_last_whole(rendered, dialogue, spans[-1][1])

  def _replies(self, found: readings.Reading) -> list[Reply]:
    replies = []
    for number, message in enumerate(found.dialogue.messages):
      if message.role != "assistant":
        continue
      is_call = found.dialogue.is_call(number)
      begin, end = self._span(found, number, is_call and not self._learn_calls)
      is_whole = not message.thought or number in found.thinking
      state = LEARNED if begin < end and is_whole else REWRITTEN
      is_last = number == len(found.dialogue.messages) - 1
      if not is_last and not found.is_stable(number):
        state = REWRITTEN
      if is_call and not self._learn_calls:
        state = CALL
      if not message.learned:
        state = EXCLUDED
      if state == REWRITTEN and is_last and not is_whole:
        raise thoughts.not_written(message)
      replies.append(Reply(begin, end, state))
    return replies

  def _check_thoughts(self, found: readings.Reading, replies: Sequence[Reply]) -> None:
    """Raises BadSample if a learned reply has a thought that no model would finish."""
    messages = found.dialogue.messages
    places = dict(zip(found.numbers, found.spans, strict=True))
    numbers = (i for i, one in enumerate(messages) if one.role == "assistant")
    for number, reply in zip(numbers, replies, strict=True):
      if reply.state != LEARNED or number not in places:
        continue
      begin, end = places[number]
      if thoughts.is_closed(found.text, begin, messages[number].content):
        raise dialogues.BadSample("a thought after a prompt that closes it")
      *_, stop = self._control.findall(found.text, end, reply.end)
      if messages[number].thought and stop in found.text[reply.begin : begin]:
        raise dialogues.BadSample(
          "a thought that ends with the token that ends replies"
        )

  def _span(
    self, found: readings.Reading, number: int, only_place: bool
  ) -> tuple[int, int]:
    """Where a reply begins and its stop token ends; the same where not known."""
    message = found.dialogue.messages[number]
    k = found.index_before(number)
    at, part = found.spans[k][1], found.parts[k + 1]
    if fixed_parts.is_marked(message):
      begin = at + part.prompt_in(found.text, at)
      at, part = found.spans[k + 1][1], found.parts[k + 2]
      if only_place:
        return begin, begin
      if not message.calls:
        return begin, at + self._stop(part)
      call = part.calls[number]
      return (begin, at + call.end) if call else (begin, begin)
    call = part.calls.get(number)
    return (at + call.begin, at + call.end) if call else (at, at)

  def _stop(self, part: template_parts.Part) -> int:
    """Characters of a part after a reply up to the end of the reply's stop token."""
    stop = self._control.search(part.text)
    if not stop or stop.end() > part.block:
      raise NoStopError()
    return stop.end()

  def _stable(self, found: readings.Reading) -> bool:
    """Whether earlier replies are framed as the last one is."""
    before, after = found.around_replies()
    if not before:
      return True
    stop = after[-1].text[: self._stop(after[-1])]
    return all(part.stable for part in before) and all(
      part.text.startswith(stop) for part in after
    )

  def _contents(
    self,
    text: str,
    dialogue: dialogues.Dialogue,
    marked: Sequence[dialogues.Message],
    parts: Sequence[template_parts.Part],
  ) -> tuple[list[template_parts.Part], list[tuple[int, int]], bool]:
    """Where the contents are, and whether one before the last is not as it was.

    The parts come back with the thoughts that they have in the text.
    """
    spans, changed, at, read = [], False, 0, []
    for i, message in enumerate(marked):
      part, after = readings.filled(text, at, parts[i], dialogue), parts[i + 1]
      read.append(part)
      begin = at + len(part.text)
      if not text.startswith(part.text, at):
        # The part depends on the reply, such as an empty thought.
        begin = at + len(part.prompt)
        if not part.prompt or not text.startswith(part.prompt, at):
          raise template_parts.UnusableError(template_parts.DEPENDS)
      is_last = i == len(marked) - 1 and not after.thinking
      exact = readings.exact_end(text, begin, message, after.beginning(), is_last)
      if exact is None:
        changed = changed or not is_last
        at = self._changed_end(text, begin, after.beginning(), is_last)
      else:
        at = exact
      spans.append((begin, at))
    read.append(readings.filled(text, at, parts[-1], dialogue))
    if text[at:] != read[-1].text:
      raise template_parts.UnusableError(template_parts.DEPENDS)
    return read, spans, changed

  def _changed_end(self, text: str, begin: int, after: str, is_last: bool) -> int:
    """The end of a content that the template has changed."""
    if is_last:
      end = len(text) - len(after)
      if end >= begin and text.endswith(after):
        return end
    # No content has a special token, so this finds the template's own.
    elif self._control.search(after) and (end := text.find(after, begin)) >= 0:
      return end
    raise template_parts.UnusableError(template_parts.DEPENDS)

  def _with_last_whole(
    self, rendered: Rendered, dialogue: dialogues.Dialogue, end: int
  ) -> Rendered:
    """The dialogue with its last reply as a model that is prompted for it writes it.

    Where the template drops a thought that its generation prompt opens (DeepSeek-R1),
    the prompt and the rest of the reply are the text.

    Args:
      rendered: the dialogue as the template writes it.
      dialogue: its last reply is learned.
      end: of the last content in the text.

    Raises:
      BadSample: the template drops another part, or the reply is not after its prompt.
    """
    prompt, content = self._renderer.prompt(dialogue), dialogue.messages[-1].content
    begin = rendered.replies[-1].begin
    if thoughts.is_closed(prompt, len(prompt), content):
      raise dialogues.BadSample("a thought after a prompt that closes it")
    if prompt[:begin] != rendered.text[:begin]:
      rendered = self._after_prompt(rendered, prompt)
      end += len(prompt) - begin
    text, last = rendered.text, rendered.replies[-1]
    if last.begin < len(prompt) <= end and text.startswith(prompt):
      last = last._replace(begin=len(prompt))  # the text of a plain reply has less
      rendered = dataclasses.replace(rendered, replies=(*rendered.replies[:-1], last))
    if not content or _is_whole(content, text[last.begin : end], prompt):
      return rendered
    opened, content = prompt[last.begin :], content.lstrip()
    if not opened.strip() or not content.startswith(opened.strip()):
      raise dialogues.BadSample("changed by the chat template")
    rest = content.removeprefix(opened.strip())
    rest = rest.lstrip() if opened[-1].isspace() else rest
    stop = len(prompt) + len(rest) + last.end - end
    return dataclasses.replace(
      rendered,
      text=prompt + rest + text[end:],
      replies=(*rendered.replies[:-1], Reply(len(prompt), stop, last.state)),
    )

  def _after_prompt(self, rendered: Rendered, prompt: str) -> Rendered:
    """The dialogue with a prompt as its text up to the last reply.

    Some templates write what precedes a reply in another way where they ask for it:
    the end of a tool's result (Hermes), a system prompt (Mistral).

    Args:
      rendered: the dialogue as the template writes it.
      prompt: for its last reply.

    Raises:
      BadSample: they do not end with the same header, or a block begins where they
        differ.
    """
    begin, last = rendered.replies[-1].begin, rendered.replies[-1]
    before = rendered.text[:begin]
    first = beginnings.shared(before, prompt)
    same = beginnings.shared(before[first:][::-1], prompt[first:][::-1])
    headers = [match.start() for match in self._control.finditer(before)]
    if not headers or headers[-1] < begin - same:
      raise dialogues.BadSample("changed by the chat template")
    moved = len(prompt) - begin
    starts = [
      start + moved * (start >= begin - same) for start in rendered.block_starts
    ]
    if any(first < start < begin - same for start in rendered.block_starts):
      raise dialogues.BadSample("changed by the chat template")
    rest = (
      one._replace(begin=min(one.begin, first), end=min(one.end, first))
      for one in rendered.with_last_only().replies[:-1]
    )
    return dataclasses.replace(
      rendered,
      text=prompt + rendered.text[begin:],
      block_starts=tuple(starts),
      replies=(*rest, last._replace(begin=len(prompt), end=last.end + moved)),
    )


def _check_names(dialogue: dialogues.Dialogue) -> None:
  """Raises BadSample if a reply that is learned does not say what it calls."""
  calls = (call for one in dialogue.messages if one.learned for call in one.calls)
  if any(map(tool_calls.is_nameless, calls)):
    raise dialogues.BadSample("a call without a name cannot be learned")


def _is_whole(content: str, written: str, prompt: str) -> bool:
  """Whether a reply is written whole; its beginning may be in the prompt."""
  content, written = _squeezed(content), _squeezed(written)
  lead = content[: max(0, len(content) - len(written))]
  return written.endswith(content[len(lead) :]) and _squeezed(prompt).endswith(lead)


def _squeezed(text: str) -> str:
  return "".join(text.split())

"""Where the blocks and replies of a dialogue are in its text.

A chat template is a program, so its text is never searched for what a user may have
written. The dialogue is rendered twice: as it is, and with a marker in place of each
user's and assistant's content. What is between two markers is the template's own text,
its fixed parts; the dialogue's text is then read from left to right, fixed part,
content, fixed part, and so on.

A fixed part between two messages ends one of them and begins the other. Where the one
ends follows from the beginning of the dialogue, rendered alone, with and without a
generation prompt. This is done once per different fixed part, so long dialogues take
time in proportion to their length.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from skipalign_jax.data import schemas
from skipalign_jax.hf import chat_template
from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import transformers

_MARK = "\ue000{}\ue001"  # private use: not in any template or usual text
_MARKS = re.compile(_MARK.format(r"(\d+)"))
_MAX_SPLITS = 256  # remembered; every system prompt has its own


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A dialogue as text, with character offsets.

  Attributes:
    text: the whole dialogue.
    block_starts: first character of each block, C; the first is 0.
    replies: (first character of the reply, end of its stop token) per response
      block, i.e. of blocks 1, 3, 5, …
    learned: per reply, whether a model that is prompted for it sees this text before
      it and writes this text. If not, the template rewrites it when more messages
      follow.
    literals: what characters of `text` stand for, see `literals.py`.
  """

  text: str
  block_starts: tuple[int, ...]
  replies: tuple[tuple[int, int], ...]
  learned: tuple[bool, ...]
  literals: Mapping[int, str] = dataclasses.field(default_factory=dict)

  def with_last_only(self) -> Rendered:
    """The same; only the last reply is learned."""
    learned = (*[False] * (len(self.learned) - 1), True)
    return dataclasses.replace(self, learned=learned)


class UnusableError(errors.UserError):
  """A template in whose text spans cannot be found."""

  def __init__(self, problem: str):
    super().__init__(
      f"the tokenizer's chat template {problem}, so replies cannot be separated from "
      "the rest; set data.template=tulu"
    )


class NoStopError(errors.UserError):
  """A template after whose replies no special token follows."""

  def __init__(self) -> None:
    super().__init__(
      "the tokenizer's chat template does not end every reply with a special token, so "
      "the model would never learn to stop; set data.template=tulu"
    )


@dataclasses.dataclass(frozen=True)
class _Split:
  """A fixed part before a message.

  Attributes:
    text: the whole part.
    block: its first characters end the message before.
    prompt: the text up to the end of the generation prompt, which may differ from the
      beginning of `text`. Before a reply only.
    stable: what precedes is the same when nothing follows.
  """

  text: str
  block: int
  prompt: str = ""
  stable: bool = True

  def beginning(self) -> str:
    """What every text has here: `text`, or `prompt` where a reply may add to it."""
    return self.prompt if self.text.startswith(self.prompt or "\0") else self.text

  def prompt_in(self, text: str, at: int) -> int:
    """Characters of the generation prompt that `text` has at `at`."""
    return len(self.prompt if text.startswith(self.prompt, at) else self.text)


def special_tokens(
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> dict[str, int]:
  """Every special token and its id, also those without a role such as eos."""
  added = tokenizer.added_tokens_decoder
  return {token.content: id_ for id_, token in added.items() if token.special}


def control_tokens(
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> re.Pattern[str]:
  """Matches every special token: the tokenizer finds them anywhere in a text."""
  contents = sorted(special_tokens(tokenizer), key=len, reverse=True)
  return re.compile("|".join(map(re.escape, contents)) or r"(?!)")


def stop_token(tokenizer: transformers.PreTrainedTokenizerFast) -> str | None:
  """The special token that ends a reply in the tokenizer's chat template.

  Returns:
    None if the template refuses a short dialogue, or no special token follows its
    reply.
  """
  mark = _MARK.format(0)
  try:
    text = render(tokenizer, [("user", "a"), ("assistant", mark)])
  except schemas.BadSample:
    return None
  found = control_tokens(tokenizer).search(text.rpartition(mark)[2])
  return found[0] if found and mark in text else None


def opened(tokenizer: transformers.PreTrainedTokenizerFast) -> str:
  """What the generation prompt has and the text of a plain reply has not.

  Such as a thought that is opened (DeepSeek-R1); "" in most templates.
  """
  ask, mark = [("user", "a")], _MARK.format(0)
  try:
    prompt = render(tokenizer, ask, add_generation_prompt=True)
    before, found, _ = render(tokenizer, [*ask, ("assistant", mark)]).partition(mark)
  except schemas.BadSample:
    return ""
  return prompt.removeprefix(before) if found and prompt.startswith(before) else ""


def render(
  tokenizer: transformers.PreTrainedTokenizerFast,
  messages: Sequence[schemas.Message],
  add_generation_prompt: bool = False,
) -> str:
  """The text of messages; raises BadSample if the template refuses them."""
  try:
    return chat_template.render(
      tokenizer, _turns(messages), add_generation_prompt=add_generation_prompt
    )
  except jinja2.TemplateError as error:
    raise _refused() from error


def _turns(messages: Sequence[schemas.Message]) -> list[dict[str, str]]:
  return [{"role": role, "content": content} for role, content in messages]


def _refused() -> schemas.BadSample:
  return schemas.BadSample("refused by the chat template")


class Finder:
  """Renders dialogues and finds their spans.

  Args:
    tokenizer: carries the chat template.
  """

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast):
    self._tokenizer = tokenizer
    self._control = control_tokens(tokenizer)
    self._splits: dict[tuple[str, str, bool], _Split] = {}
    self._marked: dict[tuple[schemas.Message, ...], str] = {}
    self._ahead: dict[tuple[tuple[schemas.Message, ...], bool], Any] = {}

  def render_ahead(self, dialogues: Sequence[Sequence[schemas.Message]]) -> None:
    """Renders what the next calls need, if these are with the same dialogues."""
    self._ahead = {}
    for ask, end in ((False, None), (True, -1)):
      parts = [tuple(messages[:end]) for messages in dialogues]
      turns = [_turns(messages) for messages in parts]
      texts = chat_template.render_all(
        self._tokenizer, turns, add_generation_prompt=ask
      )
      self._ahead |= zip(((part, ask) for part in parts), texts, strict=True)

  def _render(
    self, messages: Sequence[schemas.Message], add_generation_prompt: bool = False
  ) -> str:
    """The function `render`, perhaps done before."""
    found = self._ahead.pop((tuple(messages), add_generation_prompt), None)
    if found is None:
      return render(self._tokenizer, messages, add_generation_prompt)
    if isinstance(found, jinja2.TemplateError):
      raise _refused() from found
    return found

  def __call__(self, messages: Sequence[schemas.Message]) -> Rendered:
    """The dialogue's text and where its blocks and replies are in it.

    Args:
      messages: as `schemas.messages_of` returns them.

    Raises:
      BadSample: the template refuses this dialogue, or removes a part of its last
        reply.
      NoStopError: no special token follows a reply.
      UnusableError: the spans cannot be found.
    """
    system = int(messages[0][0] == "system")
    text = self._render(messages)
    parts = self._fixed_parts(messages, system)
    contents = [content for _, content in messages[system:]]
    spans, changed = self._contents(text, contents, parts)
    ends = [end for _, end in spans]
    replies = [
      (end + before.prompt_in(text, end), reply_end + self._stop(after))
      for end, before, reply_end, after in zip(
        ends[::2], parts[1::2], ends[1::2], parts[2::2], strict=True
      )
    ]
    rendered = Rendered(
      text,
      (0, *(end + part.block for end, part in zip(ends, parts[1:-1], strict=False))),
      tuple(replies),
      (True,) * len(replies),
    )
    stable = self._stable(parts) and not changed
    rendered = rendered if stable else rendered.with_last_only()
    return self._with_last_whole(rendered, messages, ends[-1])

  def _fixed_parts(
    self, messages: Sequence[schemas.Message], system: int
  ) -> list[_Split]:
    """The parts before each user's and assistant's content, and the last part."""
    marked = tuple(
      (role, content if role == "system" else _MARK.format(i - system))
      for i, (role, content) in enumerate(messages)
    )
    if marked not in self._marked:  # most dialogues have the same one
      if len(self._marked) >= _MAX_SPLITS:
        self._marked.clear()
      self._marked[marked] = render(self._tokenizer, marked)
    text = self._marked[marked]
    pieces = _MARKS.split(text)
    texts, order = pieces[::2], pieces[1::2]
    if order != [str(i) for i in range(len(messages) - system)]:
      raise UnusableError("does not contain every message once, in their order")
    parts = [_Split(texts[0], 0)]
    for i, part in enumerate(texts[1:-1], 1):
      key = (texts[0], part, i % 2 == 1)
      if key not in self._splits:
        if len(self._splits) >= _MAX_SPLITS:
          self._splits.clear()
        self._splits[key] = self._split(text, part, marked[: i + system], i % 2 == 1)
      parts.append(self._splits[key])
    return [*parts, _Split(texts[-1], len(texts[-1]))]

  def _split(
    self, text: str, part: str, before: Sequence[schemas.Message], is_reply: bool
  ) -> _Split:
    """A fixed part after the marked messages `before`, inside the marked `text`."""
    mark = before[-1][1]
    alone, found, tail = render(self._tokenizer, before).rpartition(mark)
    if not found:
      raise UnusableError("does not contain every message once, in their order")
    if not is_reply:
      return _Split(part, self._end_of_reply(part, tail, before))
    prompt = render(self._tokenizer, before, add_generation_prompt=True)
    asked, _, prompt = prompt.rpartition(mark)
    stable = text.startswith(alone + mark) and text.startswith(asked + mark)
    if tail == prompt:
      # No generation prompt (as in Llama 2), or one after every text.
      if part[len(prompt) :].strip() or not part.startswith(prompt):
        raise UnusableError("does not put a reply right after its generation prompt")
      stop = self._control.search(tail)
      end = _after_spaces(part, stop.end()) if stop else len(tail)
      return _Split(part, end, prompt, stable)
    end = self._end_of_message(part, tail)
    pairs = zip(part, prompt, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    if shared < min(len(part), len(prompt.rstrip())):
      raise UnusableError("does not put a reply right after its generation prompt")
    if shared < len(part):  # otherwise the prompt may be longer than the part
      prompt = prompt[:shared]
    return _Split(part, end, prompt, stable)

  def _end_of_reply(
    self, part: str, tail: str, before: Sequence[schemas.Message]
  ) -> int:
    """As `_end_of_message`; the last reply may have an end of its own (gpt-oss).

    Then earlier ones end as the marked messages of the user do, of which `before` has
    at least one.
    """
    try:
      return self._end_of_message(part, tail)
    except UnusableError:
      asked = render(self._tokenizer, before[:-1]).rpartition(before[-2][1])[2]
      if not self._control.search(asked):
        raise
      return self._end_of_message(part, asked)

  def _end_of_message(self, part: str, tail: str) -> int:
    """Characters of `part` that end a message which ends with `tail` if it is last."""
    if part.startswith(tail):
      return len(tail)
    # More may follow the last message, such as an eos token.
    stop = self._control.search(tail)
    if stop and part.startswith(tail[: stop.end()]):
      return _after_spaces(part, stop.end())
    raise UnusableError("ends a message differently when more messages follow")

  def _stop(self, part: _Split) -> int:
    """Characters of a part after a reply up to the end of the reply's stop token."""
    stop = self._control.search(part.text)
    if not stop or stop.end() > part.block:
      raise NoStopError()
    return stop.end()

  def _stable(self, parts: Sequence[_Split]) -> bool:
    """Whether earlier replies are framed as the last one is."""
    replies, after = parts[1::2], parts[2::2]
    stop = parts[-1].text[: self._stop(parts[-1])]
    return all(part.text == replies[-1].text and part.stable for part in replies) and (
      all(part.text.startswith(stop) for part in after)
    )

  def _contents(
    self, text: str, contents: Sequence[str], parts: Sequence[_Split]
  ) -> tuple[list[tuple[int, int]], bool]:
    """Where the contents are, and whether one before the last is not as it was."""
    spans, changed, at = [], False, 0
    for i, content in enumerate(contents):
      part, after = parts[i], parts[i + 1]
      begin = at + len(part.text)
      if not text.startswith(part.text, at):
        # The part depends on the reply, such as an empty thought.
        begin = at + len(part.prompt)
        if not part.prompt or not text.startswith(part.prompt, at):
          raise UnusableError("writes a message depending on its content")
      is_last = i == len(contents) - 1
      exact = _exact_end(text, begin, content, after.beginning(), is_last)
      if exact is None:
        changed = changed or not is_last
        at = self._changed_end(text, begin, after.beginning(), is_last)
      else:
        at = exact
      spans.append((begin, at))
    return spans, changed

  def _changed_end(self, text: str, begin: int, after: str, is_last: bool) -> int:
    """The end of a content that the template has changed."""
    if is_last:
      end = len(text) - len(after)
      if end >= begin and text.endswith(after):
        return end
    # No content has a special token, so this finds the template's own.
    elif self._control.search(after) and (end := text.find(after, begin)) >= 0:
      return end
    raise UnusableError("writes a message depending on its content")

  def _with_last_whole(
    self, rendered: Rendered, messages: Sequence[schemas.Message], end: int
  ) -> Rendered:
    """The dialogue with its last reply as a model that is prompted for it writes it.

    Where the template drops a thought that its generation prompt opens (DeepSeek-R1),
    the prompt and the rest of the reply are the text.

    Args:
      rendered: the dialogue as the template writes it.
      messages: of the dialogue.
      end: of the last content in the text.

    Raises:
      BadSample: the template drops another part, or the reply is not after its prompt.
    """
    text, (begin, stop), content = rendered.text, rendered.replies[-1], messages[-1][1]
    prompt = self._render(messages[:-1], add_generation_prompt=True)
    if prompt[:begin] != text[:begin]:
      raise schemas.BadSample("changed by the chat template")
    if _is_whole(content, text[begin:end], prompt):
      return rendered
    opened, content = prompt[begin:], content.lstrip()
    if not opened.strip() or not content.startswith(opened.strip()):
      raise schemas.BadSample("changed by the chat template")
    rest = content.removeprefix(opened.strip())
    rest = rest.lstrip() if opened[-1].isspace() else rest
    last = (len(prompt), len(prompt) + len(rest) + stop - end)
    return dataclasses.replace(
      rendered,
      text=prompt + rest + text[end:],
      replies=(*rendered.replies[:-1], last),
    )


def _is_whole(content: str, written: str, prompt: str) -> bool:
  """Whether a reply is written whole; its beginning may be in the prompt."""
  content, written = _squeezed(content), _squeezed(written)
  lead = content[: max(0, len(content) - len(written))]
  return written.endswith(content[len(lead) :]) and _squeezed(prompt).endswith(lead)


def _exact_end(
  text: str, begin: int, content: str, after: str, is_last: bool
) -> int | None:
  """The end of a content that is written as it is, perhaps without outer spaces."""
  forms = (
    f(content, c) for c in (None, "\n") for f in (str.strip, str.lstrip, str.rstrip)
  )
  for form in (content, *forms):
    end = begin + len(form)
    if text.startswith(form, begin) and text.startswith(after, end):
      if not is_last or end + len(after) == len(text):
        return end
  return None


def _squeezed(text: str) -> str:
  return "".join(text.split())


def _after_spaces(text: str, start: int) -> int:
  return start + len(text[start:]) - len(text[start:].lstrip())

"""One dialogue to its text: with its system prompt, and no more of it than is needed.

Names of special tokens that people wrote are hidden from the template (literals.py),
thoughts are put where it reads them (thoughts.py), and of a dialogue that is far longer
than a sample only the beginning is rendered (beginnings.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skipalign_jax.data import (
  beginnings,
  dialogues,
  literals,
  overlong,
  rendering,
  spans,
  template_parts,
  template_text,
  thoughts,
)

if TYPE_CHECKING:
  import transformers

_PLAIN = dialogues.plain(
  [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
)


@dataclasses.dataclass(frozen=True)
class _Asked:
  """A dialogue that is to be rendered.

  Attributes:
    dialogue: the whole one.
    part: it, or its beginning, with the system prompt that it gets.
    hidden: the part without names of special tokens, see `literals.py`.
    names: what was hidden.
    is_cut: whether the part is only the beginning.
  """

  dialogue: dialogues.Dialogue
  part: dialogues.Dialogue
  hidden: dialogues.Dialogue
  names: Sequence[str]
  is_cut: bool = False


@dataclasses.dataclass(frozen=True)
class Text:
  """The text of a dialogue, or of as much of it as a sample needs.

  Attributes:
    dialogue: the whole one.
    rendered: the text of the part.
    holds: characters of the text that do not depend on what was left out; None if
      nothing was.
    rest: what was left out, if anything; `rendered` has a short reply in its place.
  """

  dialogue: dialogues.Dialogue
  rendered: spans.Rendered
  holds: int | None
  rest: overlong.Rest | None


class Texts:
  """Dialogues to texts, many at a time.

  Args:
    tokenizer: carries the chat template.
    system_prompt: added to dialogues without one; "" for no prompt.
    learn_calls: replies that call tools are learned too.
  """

  def __init__(
    self,
    tokenizer: transformers.PreTrainedTokenizerFast,
    system_prompt: str,
    learn_calls: bool,
  ):
    self._tokenizer = tokenizer
    self._system_prompt = system_prompt
    self._learn_calls = learn_calls
    self._find = spans.Finder(tokenizer, learn_calls)
    self._markup = template_text.markup_tokens(tokenizer)
    self._control = template_text.control_tokens(tokenizer)

  def of(
    self,
    some: Sequence[dialogues.Dialogue],
    characters: int,
    last_only: bool,
  ) -> list[Text | dialogues.BadSample]:
    """The texts of dialogues, or of the beginnings of those with more characters.

    Args:
      some: the dialogues.
      characters: of a dialogue that are rendered, about.
      last_only: only the last reply is learned.

    Raises:
      UserError: as `spans.Finder`.
    """
    asked = [self._ask(one, characters) for one in some]
    self._find.render_ahead([one.hidden for one in asked if not _is_bad(one)])
    return [one if _is_bad(one) else self._text(one, last_only) for one in asked]

  def rewrites(self, dialogue: dialogues.Dialogue, characters: int) -> bool:
    """Whether the template rewrites replies of a dialogue; False of an unusable one.

    Args:
      dialogue: to render.
      characters: as in `of`.
    """
    try:
      dialogue = self._whole(dialogue)
      beginning = beginnings.of(dialogue, characters)
      longer = beginnings.longer(beginning) if beginning else dialogue
      rendered = self._render(self._hide(dialogue, longer))
    except (dialogues.BadSample, template_parts.UnusableError):
      return False
    return any(reply.state == spans.REWRITTEN for reply in rendered.replies)

  def may_learn(self, dialogue: dialogues.Dialogue, number: int) -> bool:
    """Whether a message is a reply that is learned, if the template allows it."""
    message = dialogue.messages[number]
    is_left_out = dialogue.is_call(number) and not self._learn_calls
    return message.role == "assistant" and message.learned and not is_left_out

  def _ask(
    self, dialogue: dialogues.Dialogue, characters: int
  ) -> _Asked | dialogues.BadSample:
    try:
      whole = self._whole(dialogue)
      beginning = beginnings.of(whole, characters)
      asked = self._hide(dialogue, beginning or whole)
      return dataclasses.replace(asked, is_cut=beginning is not None)
    except dialogues.BadSample as bad:
      return bad

  def _hide(self, dialogue: dialogues.Dialogue, part: dialogues.Dialogue) -> _Asked:
    template = str(self._tokenizer.chat_template)
    hidden = literals.hide(part, self._control, self._markup, template)
    return _Asked(dialogue, part, *hidden)

  def _whole(self, dialogue: dialogues.Dialogue) -> dialogues.Dialogue:
    """With its system prompt, and thoughts where the template reads them."""
    dialogue = thoughts.placed(self._tokenizer, dialogue)
    if not self._system_prompt or dialogue.has_system:
      return dialogue
    system = dialogues.Message("system", self._system_prompt)
    return dataclasses.replace(dialogue, messages=(system, *dialogue.messages))

  def _text(self, asked: _Asked, last_only: bool) -> Text | dialogues.BadSample:
    try:
      rendered = self._render(asked)
    except dialogues.BadSample as bad:
      return bad
    except template_parts.UnusableError:
      # Some templates change some contents. If a plain dialogue can be read, the
      # template is usable and only this dialogue is bad.
      with contextlib.suppress(dialogues.BadSample):  # it may want tools
        self._find(_PLAIN)
      return dialogues.BadSample("changed by the chat template")
    rendered = rendered.with_last_only() if last_only else rendered
    holds = self._holds(rendered, asked.hidden) if asked.is_cut else None
    rewrites = any(one.state == spans.REWRITTEN for one in rendered.replies)
    rest = self._rest(asked, last_only or rewrites) if asked.is_cut else None
    return Text(asked.dialogue, rendered, holds, rest)

  def _rest(self, asked: _Asked, last_only: bool) -> overlong.Rest:
    """What follows the beginning of a dialogue."""
    before = asked.part.messages[:-1]
    whole = self._whole(asked.dialogue)
    numbers = range(len(before), len(whole.messages))
    learned = [
      self.may_learn(whole, i) and (not last_only or i == numbers[-1]) for i in numbers
    ]
    return overlong.Rest(before, whole.messages[len(before) :], learned)

  def _holds(self, rendered: spans.Rendered, hidden: dialogues.Dialogue) -> int:
    """Characters of a beginning's text that stay when more messages follow."""
    try:
      more = rendering.render(self._tokenizer, beginnings.longer(hidden))
    except dialogues.BadSample:
      return 0
    return min(beginnings.shared(rendered.text, more), rendered.replies[-1].begin)

  def _render(self, asked: _Asked) -> spans.Rendered:
    """The part with its spans; names of special tokens in it are text.

    Raises:
      BadSample: as `spans.Finder`, or the template itself reads such a name.
      UnusableError: as `spans.Finder`.
    """
    rendered, names = self._find(asked.hidden), asked.names
    if not names:
      return rendered
    if literals.spelled(rendered.text, names) != rendering.render(
      self._tokenizer, asked.part
    ):
      raise dialogues.BadSample("control token in content")
    places = literals.places(rendered.text, names)
    return dataclasses.replace(rendered, literals=places)


def _is_bad(result: _Asked | dialogues.BadSample) -> bool:
  return isinstance(result, dialogues.BadSample)

"""Renders chat templates, which are programs of unknown origin, within limits.

Jinja's sandbox protects files, modules and attributes, but does not stop endless loops
or full memory. So templates of models are rendered in another process, with limits on
its time and memory; those of this project are not (`trust`). The same messages always
give the same text: the clock of a template has one date (`template_dates`), and what it
draws at random is always the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from skipalign_jax.hf import template_dates, template_process
from skipalign_jax.runtime import child_process, errors

if TYPE_CHECKING:
  import transformers

MAX_SECONDS = 10.0  # of computing; a usual rendering takes a tenth of a millisecond
MAX_BYTES = 1 << 30  # of memory, in addition to that of the dialogue
_MAX_ADDED = 1 << 20  # characters that the template itself may write
_TRIAL = [
  {"role": "user", "content": "a"},
  {"role": "assistant", "content": "b"},
  {"role": "user", "content": "c"},
]
_TOGETHER = 64  # dialogues of a request
_Job = dict[str, Any]  # variables, and the characters of the longest text
_trusted: set[str] = set()
_LOCK = threading.RLock()


def trust(template: str) -> str:
  """The same template, which is one of this project: it is rendered right here."""
  _trusted.add(template)
  return template


def render(
  tokenizer: transformers.PreTrainedTokenizerBase,
  messages: Sequence[dict[str, Any]],
  **options: Any,
) -> str:
  """The dialogue as text, equal to that of `apply_chat_template`.

  Args:
    tokenizer: carries the template.
    messages: dicts with role and content.
    **options: of `apply_chat_template`, such as add_generation_prompt.

  Raises:
    TemplateError: the template refuses the dialogue, or fails in any way.
    UserError: it takes more than `MAX_SECONDS` or `MAX_BYTES`, or writes far more than
      the dialogue.
  """
  return _render(tokenizer, messages, options, _origin(tokenizer))


def render_all(
  tokenizer: transformers.PreTrainedTokenizerBase,
  dialogues: Sequence[Sequence[dict[str, Any]]],
  **options: Any,
) -> list[str | jinja2.TemplateError]:
  """`render` of many dialogues, in less time; errors of the template are returned.

  Args:
    tokenizer: as in `render`.
    dialogues: messages of each.
    **options: as in `render`, without continue_final_message.

  Raises:
    UserError: as `render`.
  """
  found: list[str | jinja2.TemplateError] = []
  asked: list[tuple[int, str, _Job]] = []

  def note(template: str, job: _Job) -> str:
    asked.append((len(found), template, job))
    return ""

  for messages in dialogues:
    try:
      found.append(_apply(tokenizer, messages, options, note))
    except jinja2.TemplateError as error:
      found.append(error)
  for first in range(0, len(asked), _TOGETHER):
    some = asked[first : first + _TOGETHER]
    texts = _ask(some[0][1], [job for *_, job in some], _origin(tokenizer))
    for (i, *_), text in zip(some, texts, strict=True):
      found[i] = text
  return found


def try_out(tokenizer: transformers.PreTrainedTokenizerBase, where: str) -> None:
  """Renders a short dialogue; templates may refuse it.

  Args:
    tokenizer: carries the template.
    where: it comes from, for messages.

  Raises:
    UserError: the template takes too much time or memory, or writes too much.
  """
  if tokenizer.chat_template:
    with contextlib.suppress(jinja2.TemplateError):
      _render(tokenizer, _TRIAL, {"add_generation_prompt": True}, where)


def _origin(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
  return tokenizer.name_or_path or "the tokenizer"


def _render(
  tokenizer: transformers.PreTrainedTokenizerBase,
  messages: Sequence[dict[str, Any]],
  options: dict[str, Any],
  where: str,
) -> str:
  def ask(template: str, job: _Job) -> str:
    (text,) = _ask(template, [job], where)
    if isinstance(text, jinja2.TemplateError):
      raise text
    return text

  return _apply(tokenizer, messages, options, ask)


def _apply(
  tokenizer: transformers.PreTrainedTokenizerBase,
  messages: Sequence[dict[str, Any]],
  options: dict[str, Any],
  stranger: Callable[[str, _Job], str],
) -> str:
  """`apply_chat_template`, in which `stranger` renders what is not trusted."""
  length = len(str(messages)) + len(str(options.get("tools")))
  render = lambda template, variables: stranger(
    template, {"variables": variables, "characters": _MAX_ADDED + 4 * length}
  )
  try:
    template = template_dates.with_date(tokenizer, **options)
    with _rendered_by(render):
      return tokenizer.apply_chat_template(
        list(messages), chat_template=template, tokenize=False, **options
      )
  except (jinja2.TemplateError, errors.UserError):
    raise
  except Exception as error:  # of transformers, such as several templates
    raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error


def _ask(
  template: str, jobs: Sequence[_Job], where: str
) -> list[str | jinja2.TemplateError]:
  """The texts of a template, from the other process."""
  unfit = lambda problem: errors.UserError(
    f"the chat template of {where} {problem}; it is broken or hostile. Take another "
    "tokenizer, or set data.template=tulu and remove the template"
  )
  try:
    replies = template_process.SHARED.ask(template, jobs, MAX_SECONDS, MAX_BYTES)
  except child_process.TooSlowError as error:
    raise unfit(f"takes more than {MAX_SECONDS:g} s of computing") from error
  except template_process.EndedError as error:
    raise unfit(f"ends the process that renders it ({error})") from error
  found: list[str | jinja2.TemplateError] = []
  for job, reply in zip(jobs, replies, strict=True):
    if "memory" in reply:
      raise unfit(f"takes more than {MAX_BYTES >> 20:,} MiB of memory")
    if "length" in reply:
      raise unfit(
        f"makes {reply['length']:,} characters of a dialogue for which "
        f"{job['characters']:,} are allowed"
      )
    is_text = "text" in reply
    found.append(reply["text"] if is_text else jinja2.TemplateError(reply["error"]))
  return found


class _Compiled:
  """What transformers takes for a compiled template."""

  def __init__(self, template: str, render: Callable[[str, dict[str, Any]], str]):
    self._template, self._render = template, render

  def render(self, **variables: Any) -> str:
    """The text."""
    return self._render(self._template, variables)


@contextlib.contextmanager
def _rendered_by(render: Callable[[str, dict[str, Any]], str]) -> Iterator[None]:
  """In the block transformers lets `render` make the texts of other templates."""
  from transformers.utils import chat_template_utils

  # private: transformers.utils.chat_template_utils._compile_jinja_template
  name = "_compile_jinja_template"

  def choose(text: Any) -> Any:
    is_stranger = isinstance(text, str) and text not in _trusted
    return _Compiled(text, render) if is_stranger else own(text)

  with _LOCK:
    own = getattr(chat_template_utils, name)
    setattr(chat_template_utils, name, choose)
    try:
      yield
    finally:
      setattr(chat_template_utils, name, own)

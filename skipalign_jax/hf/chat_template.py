"""Renders chat templates, which are programs of strangers, within limits.

transformers runs them in Jinja's sandbox, which keeps them from files, modules and
attributes of ours, but not from looping for ever or from filling memory. Every
rendering here ends in time; a template that a tokenizer brings is first tried with a
bound of memory too.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import transformers

MOST_SECONDS = 10.0  # of one rendering; a usual one takes a tenth of a millisecond
MOST_TRIAL_BYTES = 1 << 30  # more than the process has when the trial begins
_MOST_ADDED = 1 << 20  # characters that a template itself may write
_TRIAL = [
  {"role": "user", "content": "a"},
  {"role": "assistant", "content": "b"},
  {"role": "user", "content": "c"},
]


def render(
  tokenizer: transformers.PreTrainedTokenizerBase,
  messages: Sequence[dict[str, Any]],
  **options: Any,
) -> str:
  """The dialogue as text.

  Args:
    tokenizer: carries the template.
    messages: dicts with role and content.
    **options: of `apply_chat_template`, such as add_generation_prompt.

  Raises:
    TemplateError: the template refuses the dialogue, or fails in whatever way.
    UserError: it takes longer than `MOST_SECONDS`, or writes far more than it was
      given. Time is bounded in the main thread only, which gets Python's signals.
  """
  try:
    with _seconds(MOST_SECONDS):
      text = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
  except jinja2.TemplateError:
    raise
  except _TooSlow as error:
    raise _unfit(f"takes longer than {MOST_SECONDS:g} s") from error
  except MemoryError as error:
    raise _unfit("takes too much memory") from error
  except Exception as error:  # division by zero, a missing key, endless recursion …
    raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error
  given = sum(len(str(message.get("content"))) for message in messages)
  if not isinstance(text, str) or len(text) > _MOST_ADDED + 4 * given:
    raise _unfit(f"makes {len(text):,} characters of {given:,}")
  return text


def try_out(tokenizer: transformers.PreTrainedTokenizerBase, where: str) -> None:
  """Renders a short dialogue, within memory too; templates may refuse it.

  Args:
    tokenizer: as it was loaded.
    where: for messages.

  Raises:
    UserError: the template takes too much time or memory, or writes too much.
  """
  if not tokenizer.chat_template:
    return
  try:
    with _memory(MOST_TRIAL_BYTES), contextlib.suppress(jinja2.TemplateError):
      render(tokenizer, _TRIAL, add_generation_prompt=True)
  except errors.UserError as error:
    raise errors.UserError(f"{where}: {error}") from error


def _unfit(problem: str) -> errors.UserError:
  return errors.UserError(
    f"the tokenizer's chat template {problem}; it is broken or not meant well. Take "
    "another tokenizer, or set data.template=tulu and remove the template"
  )


class _TooSlow(BaseException):
  """No Exception, which Jinja or a library might catch."""


@contextlib.contextmanager
def _seconds(most: float) -> Iterator[None]:
  """Raises _TooSlow in the block when it takes longer; another timer goes on behind."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def stop(*_: Any) -> None:
    raise _TooSlow

  before = signal.signal(signal.SIGALRM, stop)
  left, interval = signal.setitimer(signal.ITIMER_REAL, most)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, left, interval)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _memory(most: int) -> Iterator[None]:
  """Allocations fail in the block when the process grows by more bytes than that."""
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  with open("/proc/self/statm", encoding="ascii") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
  limit = mapped + most
  if soft != resource.RLIM_INFINITY:
    limit = min(limit, soft)
  resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

"""Renders chat templates, which are programs of unknown origin, within limits.

transformers runs them in Jinja's sandbox, which protects files, modules and attributes,
but does not stop endless loops or full memory. Every rendering here has a time limit. A
tokenizer's template is first tried with a memory limit too. The same messages always
give the same text: the clock of a template has one date (`template_dates`), and what it
draws at random is always the same.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from skipalign_jax.hf import template_dates
from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import transformers

MAX_SECONDS = 10.0  # of one rendering; a usual one takes a tenth of a millisecond
MAX_TRIAL_BYTES = 1 << 30  # that a trial may allocate
_MAX_ADDED = 1 << 20  # characters that the template itself may write
_RANDOM = ("random", "lipsum")  # Jinja's names that draw
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
    TemplateError: the template refuses the dialogue, or fails in any way.
    UserError: it takes longer than `MAX_SECONDS`, or writes far more than the
      dialogue. Time is limited in the main thread only, which gets Python's signals.
  """
  try:
    template = template_dates.with_date(tokenizer, **options)
    with _seconds(MAX_SECONDS), _same_draws(tokenizer):
      text = tokenizer.apply_chat_template(
        list(messages), chat_template=template, tokenize=False, **options
      )
  except jinja2.TemplateError:
    raise
  except _TooSlow as error:
    raise _unfit(f"takes longer than {MAX_SECONDS:g} s") from error
  except MemoryError as error:
    raise _unfit("takes too much memory") from error
  except Exception as error:  # division by zero, a missing key, endless recursion …
    raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error
  length = sum(len(str(message.get("content"))) for message in messages)
  if not isinstance(text, str) or len(text) > _MAX_ADDED + 4 * length:
    raise _unfit(f"makes {len(text):,} characters of {length:,}")
  return text


def try_out(tokenizer: transformers.PreTrainedTokenizerBase, where: str) -> None:
  """Renders a short dialogue with limits on time and memory; templates may refuse it.

  Args:
    tokenizer: carries the template.
    where: for messages.

  Raises:
    UserError: the template takes too much time or memory, or writes too much.
  """
  if not tokenizer.chat_template:
    return
  try:
    with _memory(MAX_TRIAL_BYTES), contextlib.suppress(jinja2.TemplateError):
      render(tokenizer, _TRIAL, add_generation_prompt=True)
  except errors.UserError as error:
    raise errors.UserError(f"{where}: {error}") from error


def _unfit(problem: str) -> errors.UserError:
  return errors.UserError(
    f"the tokenizer's chat template {problem}; it is broken or hostile. Take "
    "another tokenizer, or set data.template=tulu and remove the template"
  )


class _TooSlow(BaseException):
  """Not an Exception, which Jinja or a library might catch."""


@contextlib.contextmanager
def _seconds(limit: float) -> Iterator[None]:
  """Raises _TooSlow if the block takes longer; an earlier timer runs on afterwards."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def stop(*_: Any) -> None:
    raise _TooSlow

  before = signal.signal(signal.SIGALRM, stop)
  left, interval = signal.setitimer(signal.ITIMER_REAL, limit)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, left, interval)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _same_draws(tokenizer: transformers.PreTrainedTokenizerBase) -> Iterator[None]:
  """What the template draws at random in the block is always the same."""
  template = str(tokenizer.chat_template)
  if not any(name in template for name in _RANDOM):
    yield
    return
  before = random.getstate()
  random.seed(0)
  try:
    yield
  finally:
    random.setstate(before)


@contextlib.contextmanager
def _memory(max_bytes: int) -> Iterator[None]:
  """Allocations fail in the block when the process grows by more than `max_bytes`."""
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  with open("/proc/self/statm", encoding="ascii") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
  limit = mapped + max_bytes
  if soft != resource.RLIM_INFINITY:
    limit = min(limit, soft)
  resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

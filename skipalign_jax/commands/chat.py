"""A conversation with a model in the terminal."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

import transformers

from skipalign_jax.commands import text_stream
from skipalign_jax.data import dialogues, prompts
from skipalign_jax.runtime import errors, escape, signals, terminal

MARK = "> "
NEW = "/new"  # a line that begins another conversation
Reply = Callable[[Sequence[Sequence[int]]], Iterable[Sequence[int | None]]]


def typed(file: TextIO) -> Iterator[str]:
  """The lines of a person or of a file, until they end.

  A terminal gets a mark before each and can edit it.

  Raises:
    UserError: a line is not UTF-8.
  """
  if file.isatty():
    import readline  # noqa: F401  (input then has arrow keys and a history)
  read = functools.partial(input, MARK) if file.isatty() else file.readline
  while True:
    try:
      line = read()
    except signals.Stopped:
      raise
    except (EOFError, KeyboardInterrupt):
      terminal.write("\n")
      return
    except UnicodeDecodeError as error:
      raise errors.UserError("a line of the conversation is not UTF-8") from error
    if not line and not file.isatty():
      return
    if escape.is_broken(line):
      raise errors.UserError("a line of the conversation is not UTF-8")
    yield line.rstrip("\n")


def hold(
  lines: Iterable[str],
  reply: Reply,
  tokenizer: transformers.PreTrainedTokenizerFast,
  system: str,
  window: int,
) -> None:
  """Replies to each line after all that was said before it.

  Ctrl-C ends a reply; what was printed of it stays part of the conversation. A line
  that the template refuses is reported and is not part of it, nor is one whose reply
  has no text.

  Args:
    lines: what the user says; an empty line says nothing, /new begins again.
    reply: prompts → the next token of each, step by step; see `Engine.generate`.
    tokenizer: has a chat template.
    system: system prompt; empty for none.
    window: positions that the model was built for; more are noted.

  Raises:
    NotFiniteError: as `Engine.generate`.
  """
  start = [("system", system)] if system else []
  said = list(start)
  for line in lines:
    if line.strip() == NEW:
      said = list(start)
      continue
    if not line.strip():
      continue
    try:
      prompt = _encode(tokenizer, [*said, ("user", line)])
    except errors.UserError as error:
      terminal.print_to_stderr(f"error: {error}")
      continue
    if len(prompt) > window:
      terminal.print_to_stderr(
        f"note: the conversation has {len(prompt)} tokens, more than the model's "
        f"window of {window}; {NEW} begins another one"
      )
    # Some templates refuse a reply without text, and then all that follows it.
    if text := _print(reply([prompt]), tokenizer):
      said += [("user", line), ("assistant", text)]


def _encode(
  tokenizer: transformers.PreTrainedTokenizerFast, said: list[tuple[str, str]]
) -> list[int]:
  try:
    return prompts.of_dialogue(tokenizer, dialogues.plain(said))
  except dialogues.BadSample as bad:
    raise errors.UserError(f"the conversation is {bad.reason}") from bad


def _print(
  steps: Iterable[Sequence[int | None]],
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> str:
  """Prints a reply while it is generated; returns its text."""
  stream = text_stream.TextStream(tokenizer)
  try:
    with signals.as_exceptions():  # so that a later Ctrl-C is not the command's second
      for (token,) in steps:
        if token is not None:
          terminal.write(stream.add(token))
  except signals.Stopped:
    raise
  except KeyboardInterrupt:
    pass
  terminal.write("\n")
  return stream.text

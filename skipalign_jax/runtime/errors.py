"""The one exception for what a user can cause, and how a command ends on it."""

import sys
from collections.abc import Callable

from skipalign_jax.runtime import terminal


class UserError(ValueError):
  """A mistake in a config, a file or a flag: says what, where, what to do."""


def first_line(error: BaseException) -> str:
  """The first line of an exception's message, or its type where it has none."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run_command(main: Callable[[], int | None]) -> None:
  """Runs `main` and exits: 0, its own status, 2 on UserError, 130 on Ctrl-C."""
  try:
    status = main() or 0
  except UserError as error:
    terminal.tell(f"error: {error}")
    status = 2
  except KeyboardInterrupt:
    terminal.tell("interrupted")
    status = 130
  sys.exit(status)

"""The exception for mistakes of the user, and the exit status of a command."""

import signal
import sys
from collections.abc import Callable

from skipalign_jax.runtime import terminal


class UserError(ValueError):
  """A mistake in a config, a file or a flag: what is wrong, where, what to do."""


def first_line(error: BaseException) -> str:
  """The first line of an exception's message, or its type where it has none."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run_command(main: Callable[[], int | None]) -> None:
  """Runs `main` and exits: 0, its own status, 2 on UserError, 130 on Ctrl-C, 141
  where nobody reads its output."""
  try:
    status = main() or 0
  except UserError as error:
    terminal.print_to_stderr(f"error: {error}")
    status = 2
  except BrokenPipeError:  # the reader of the output has ended, as `| head` does
    terminal.discard_output()
    status = 128 + signal.SIGPIPE
  except KeyboardInterrupt:
    terminal.print_to_stderr("interrupted")
    status = 130
  sys.exit(status)

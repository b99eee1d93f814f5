"""The exception for mistakes of the user, and the exit status of a command."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator

from skipalign_jax.runtime import signals, storage, terminal


class UserError(ValueError):
  """A mistake in a config, a file or a flag: what is wrong, where, what to do."""


class NotFiniteError(UserError):
  """A model's output is NaN or infinite.

  Attributes:
    row: index of the first such row of the batch.
  """

  def __init__(self, row: int):
    """`row`: see the class."""
    super().__init__(
      f"the model's output for row {row} of a batch is NaN or infinite; {NOT_FINITE}"
    )
    self.row = row


NOT_FINITE = (
  "its weights have such values, or values that are too large for this --dtype: try "
  "--dtype=float32, or another checkpoint"
)


def first_line(error: BaseException) -> str:
  """The first line of an exception's message, or its type where it has none."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def of_storage(before: str = "", after: str = "") -> Iterator[None]:
  """Failed storage in the block is a UserError that says what to do.

  Args:
    before, after: what the message has before and after that.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # each library has its own
    if storage.number_of(error) is None:
      raise
    raise UserError(f"{before}{storage.explain(error)}{after}") from error


def run_command(main: Callable[[], int | None]) -> None:
  """Runs `main` and exits: 0, its own status, 2 on UserError, 141 where nobody reads
  its output, 128 + the number of a signal (130 for Ctrl-C). What it prints is escaped.
  """
  sys.excepthook = terminal.print_exception
  sys.unraisablehook = terminal.print_unraisable
  with terminal.escaped_streams():
    status = _status(main)
  sys.exit(status)


def _status(main: Callable[[], int | None]) -> int:
  try:
    with signals.as_exceptions(), of_storage():
      return main() or 0
  except UserError as error:
    terminal.print_to_stderr(f"error: {error}")
    return 2
  except BrokenPipeError:  # the reader of the output has ended, as `| head` does
    terminal.discard_output()
    return 128 + signal.SIGPIPE
  except KeyboardInterrupt as error:
    terminal.print_to_stderr(signals.describe(error))
    return signals.status_of(error)

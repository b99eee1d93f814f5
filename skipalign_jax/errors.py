"""The one exception for what a user can cause, and how a command ends on it."""

import sys
from collections.abc import Callable


class UserError(ValueError):
  """A mistake in a config, a file or a flag: says what, where, what to do."""


def run_command(main: Callable[[], int | None]) -> None:
  """Runs `main` and exits: 0, its own status, 2 on UserError, 130 on Ctrl-C."""
  try:
    status = main() or 0
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    status = 2
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    status = 130
  sys.exit(status)

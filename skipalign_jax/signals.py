"""Stopping cleanly: the first signal asks, the second one insists."""

import signal
import sys


class Stop:
  """Notes SIGINT and SIGTERM, so that a loop can save and leave.

  From the second signal on the system ends the process at once, whatever it waits for;
  what it leaves is what a kill leaves, and the next start copes with that.

  Attributes:
    status: exit status, 0 or 128 + the signal's number.
  """

  def __init__(self, told: bool = True):
    """`told`: whether the first signal is answered on the terminal."""
    self.status = 0
    self._told = told
    self._previous = {}

  @property
  def requested(self) -> bool:
    """Whether a signal came."""
    return bool(self.status)

  def __enter__(self) -> "Stop":
    for number in (signal.SIGINT, signal.SIGTERM):
      self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number: int, _) -> None:
    self.status = 128 + number
    for each in self._previous:
      signal.signal(each, signal.SIG_DFL)
    if self._told:
      # A progress bar hides the cursor, and nobody shows it after a second signal.
      cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
      print(
        f"{cursor}\nstopping after this step; once more to stop at once", flush=True
      )

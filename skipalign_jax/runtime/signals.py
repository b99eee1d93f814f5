"""Stopping cleanly: the first signal asks, the second one insists."""

import os
import signal
import sys
import threading

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
  """Notes SIGINT and SIGTERM, so that a loop can save and leave.

  The second signal ends the process at once, whatever it waits for; what it leaves is
  what a kill leaves, and the next start copes with that.

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
    # Python calls handlers between its own instructions only, which may be minutes
    # apart while XLA compiles. Numbers of signals go down this pipe at once.
    reading, self._writing = os.pipe()
    os.set_blocking(self._writing, False)
    self._wakeup = signal.set_wakeup_fd(self._writing)
    threading.Thread(target=_insist, args=(reading,), daemon=True).start()
    for number in _SIGNALS:
      self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(self._wakeup)
    os.close(self._writing)  # which ends the thread

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


def _insist(reading: int) -> None:
  """Ends the process at the second signal that comes down the pipe."""
  asked = 0
  with os.fdopen(reading, "rb", buffering=0) as pipe:
    while number := pipe.read(1):
      asked += number[0] in _SIGNALS
      if asked == 2:
        os._exit(128 + number[0])

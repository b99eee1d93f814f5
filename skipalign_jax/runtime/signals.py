"""Stopping cleanly: the first signal requests it, the second one ends the process."""

import os
import signal
import sys
import threading

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
  """Notes SIGINT and SIGTERM, so that a loop can save and end.

  The second signal ends the process at once, whatever it waits for. It leaves the same
  files as a kill, and the next start handles them.

  Attributes:
    status: exit status, 0 or 128 + the signal's number.
  """

  def __init__(self, announce: bool = True):
    """`announce`: whether the first signal prints a message."""
    self.status = 0
    self._announce = announce
    self._previous = {}

  @property
  def requested(self) -> bool:
    """Whether a signal came."""
    return bool(self.status)

  def __enter__(self) -> "Stop":
    # Python calls handlers between its own instructions only, which may be minutes
    # apart while XLA compiles. The numbers of signals enter this pipe at once.
    reading, self._writing = os.pipe()
    os.set_blocking(self._writing, False)
    self._wakeup = signal.set_wakeup_fd(self._writing)
    thread = threading.Thread(target=_end_at_second, args=(reading,), daemon=True)
    thread.start()
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
    if self._announce:
      # A progress bar hides the cursor, and nothing shows it after a second signal.
      cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
      print(
        f"{cursor}\nstopping after this step; press Ctrl-C again to stop now",
        flush=True,
      )


def _end_at_second(reading: int) -> None:
  """Ends the process at the second signal that comes through the pipe."""
  count = 0
  with os.fdopen(reading, "rb", buffering=0) as pipe:
    while number := pipe.read(1):
      count += number[0] in _SIGNALS
      if count == 2:
        os._exit(128 + number[0])

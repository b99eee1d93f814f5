"""Stopping cleanly: the first signal requests it, the second one ends the process."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from skipalign_jax.runtime import terminal

# What job schedulers send before a time limit or an eviction (SLURM's --signal, SGE's
# -notify), and a closed terminal. They may be ignored, as SIGHUP is under nohup.
NOTICES = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ALL = (signal.SIGINT, signal.SIGTERM, *NOTICES)
# Seconds in which signals count as one: `make`, `timeout` and job schedulers pass a
# signal on that the whole group of processes has got already.
TOGETHER = 0.5


class Stopped(KeyboardInterrupt):
  """Another signal of `ALL` than Ctrl-C's came; like it, it removes what a command has
  half written.

  Attributes:
    number: of the signal.
  """

  def __init__(self, number: int):
    """`number`: see the class."""
    super().__init__(signal.Signals(number).name)
    self.number = number


def ending() -> tuple[int, ...]:
  """The signals that end a command: `ALL` but for `NOTICES` that are ignored."""
  ignored = {one for one in NOTICES if signal.getsignal(one) == signal.SIG_IGN}
  return tuple(number for number in ALL if number not in ignored)


def status_of(error: KeyboardInterrupt) -> int:
  """The exit status after Ctrl-C or `Stopped`: 128 + the signal's number."""
  return 128 + getattr(error, "number", signal.SIGINT)


def describe(error: KeyboardInterrupt) -> str:
  """What a command prints when it ends for that reason."""
  return f"stopped by {error}" if isinstance(error, Stopped) else "interrupted"


@contextlib.contextmanager
def as_exceptions() -> Iterator[None]:
  """Signals raise exceptions in the block, so that it removes what it has begun.

  The second signal ends the process at once, as in `Stop`.
  """

  def stop(number: int, _) -> None:
    _leave_the_next_to_the_thread()
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

  with _handled(stop):
    yield


class Stop:
  """Notes the signals of `ALL`, so that a loop can save and end.

  The second signal ends the process at once, whatever it waits for. It leaves the same
  files as a kill, and the next start handles them. Signals within `TOGETHER` seconds
  count as one, and so do all `NOTICES`: a closed terminal may send several SIGHUPs.

  Attributes:
    status: exit status, 0 or 128 + the signal's number.
  """

  def __init__(self, announce: bool = True):
    """`announce`: whether the first signal prints a message."""
    self.status = 0
    self._announce = announce
    self._handled = _handled(self._note)

  @property
  def requested(self) -> bool:
    """Whether a signal came."""
    return bool(self.status)

  def __enter__(self) -> "Stop":
    self._handled.__enter__()
    return self

  def __exit__(self, *raised) -> None:
    self._handled.__exit__(*raised)

  def _note(self, number: int, _) -> None:
    self.status = 128 + number
    _leave_the_next_to_the_thread()
    if self._announce:
      console = terminal.Console()
      # A progress bar hides the cursor, and nothing shows it after a second signal.
      # The terminal may have gone; or the signal came inside of another print.
      with contextlib.suppress(OSError, RuntimeError):
        console.show_cursor()
        console.print("\nstopping after this step; press Ctrl-C again to stop now")


@contextlib.contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
  """Calls `handler` for the block's first signal; the second one ends the process."""
  # Python calls handlers between its own instructions only, which may be minutes
  # apart while XLA compiles. The numbers of signals enter this pipe at once.
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  wakeup = signal.set_wakeup_fd(writing)
  threading.Thread(target=_end_at_second, args=(reading,), daemon=True).start()
  previous = {number: signal.signal(number, handler) for number in ending()}
  try:
    yield
  finally:
    for number, before in previous.items():
      signal.signal(number, before)
    signal.set_wakeup_fd(wakeup)
    os.close(writing)  # which ends the thread


def _leave_the_next_to_the_thread() -> None:
  """For the time after the first signal; `NOTICES` then change nothing."""
  for number in ALL:
    ignored = number in NOTICES
    signal.signal(number, signal.SIG_IGN if ignored else lambda *_: None)


def _end_at_second(reading: int) -> None:
  """Ends the process at the second signal that comes through the pipe."""
  first = None
  with os.fdopen(reading, "rb", buffering=0) as pipe:
    while number := pipe.read(1):
      if number[0] not in ALL:
        continue
      now = time.monotonic()
      first = now if first is None else first
      if now - first > TOGETHER and number[0] not in NOTICES:
        os._exit(128 + number[0])

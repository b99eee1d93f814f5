"""What a child process for untrusted work does at its start, and how it sends messages.

A message is its length and its bytes. See `child_process` for the other side.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from typing import BinaryIO

LENGTH = struct.Struct("!Q")
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def begin() -> bool:
  """Gives up what untrusted work does not need; False if the parent has ended.

  The arguments of the program are those of `child_process.start`.
  """
  parent, ends_with_parent = int(sys.argv[1]), sys.argv[2] == "True"
  # Signals of a terminal or a scheduler are for the parent, which may still need work.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
  if ends_with_parent:
    ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
  for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
    resource.setrlimit(kind, (0, 0))
  return os.getppid() == parent


def receive(requests: BinaryIO) -> bytes | None:
  """The next message; None at the end."""
  head = requests.read(LENGTH.size)
  return requests.read(LENGTH.unpack(head)[0]) if head else None


def send(replies: BinaryIO, *parts: bytes) -> None:
  """Sends one message."""
  replies.write(LENGTH.pack(sum(map(len, parts))))
  for part in parts:
    replies.write(part)
  replies.flush()


def mapped() -> int:
  """Bytes of address space that this process has now."""
  with open("/proc/self/statm", encoding="ascii") as file:
    return int(file.read().split()[0]) * resource.getpagesize()


def limit_memory(limit: int) -> None:
  """Sets the bytes of address space that this process may have."""
  hard = resource.getrlimit(resource.RLIMIT_AS)[1]
  if hard != resource.RLIM_INFINITY:
    limit = min(limit, hard)
  resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def limit_seconds(seconds: float) -> None:
  """Ends this process after more seconds of computing; 0 for no limit.

  The kernel's timer also works in the middle of a call into C, where no Python code
  runs.
  """
  signal.setitimer(signal.ITIMER_PROF, seconds)

"""Child processes for untrusted work: Python programs that answer on a pipe.

They end with their parent, also with one that is killed, and get no variables of its
environment. See `child_side` for what they do themselves.
"""

import os
import pathlib
import select
import subprocess
import sys
import threading

from skipalign_jax.runtime import child_side, errors, interpreter

_START_SECONDS = 600  # on a slow network disk
_PACKAGES = str(pathlib.Path(__file__).parents[2])  # the folder of skipalign_jax


class TooSlowError(Exception):
  """A child took too much time."""


def start(program: str, purpose: str, remedy: str) -> subprocess.Popen[bytes]:
  """A child that has sent its first message.

  Args:
    program: path of a Python file, which begins with `child_side.begin`.
    purpose: what it does, for a message, as in "reads Parquet files".
    remedy: what a user can do without it.

  Raises:
    UserError: it cannot be started.
  """
  # Not by a parent's end but by that of its thread the kernel ends a child.
  is_main = threading.current_thread() is threading.main_thread()
  # Without site, whose work is done: the child takes the parent's path. An editable
  # install is not on it: site finds the package by a hook.
  path = os.pathsep.join([*map(os.path.abspath, sys.path), _PACKAGES])
  command = [sys.executable, "-s", "-S", "-P", program, str(os.getpid()), str(is_main)]
  try:
    child = subprocess.Popen(
      command,
      bufsize=0,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      cwd="/",
      env=interpreter.environment() | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"},
      start_new_session=True,  # Ctrl-C is for the parent
    )
  except OSError as error:
    raise _cannot_start(purpose, str(error), remedy) from error
  if receive(child, _START_SECONDS) is None:
    status = end(child)
    raise _cannot_start(purpose, f"it ends with status {status}", remedy)
  return child


def _cannot_start(purpose: str, problem: str, remedy: str) -> errors.UserError:
  return errors.UserError(
    f"the process that {purpose} cannot be started with {sys.executable} ({problem}). "
    f"Free memory and processes, or {remedy}"
  )


def send(child: subprocess.Popen[bytes], message: bytes) -> bool:
  """Sends a message; False if the child has ended."""
  rest = memoryview(child_side.LENGTH.pack(len(message)) + message)
  try:
    while rest:
      rest = rest[os.write(child.stdin.fileno(), rest) :]
  except BrokenPipeError:
    return False
  return True


def receive(child: subprocess.Popen[bytes], seconds: float) -> bytes | None:
  """The next message of a child; None if it has ended. TooSlowError after `seconds`."""
  head = child_side.LENGTH.size
  fd, found, missing = child.stdout.fileno(), bytearray(), head
  while missing > 0:
    _wait(fd, seconds)
    part = os.read(fd, min(missing, 1 << 20))
    if not part:
      return None
    found += part
    if len(found) >= head:
      missing = head + child_side.LENGTH.unpack_from(found)[0] - len(found)
    else:
      missing = head - len(found)
  return bytes(memoryview(found)[head:])


def _wait(fd: int, seconds: float) -> None:
  """Returns when `fd` can be read.

  Waits in pieces, so that a time in which both processes are stopped (Ctrl-Z, a laptop
  that sleeps) counts as one piece.
  """
  poll = select.poll()
  poll.register(fd, select.POLLIN)
  pieces = max(1, round(seconds))
  for _ in range(pieces):
    if poll.poll(1000 * seconds / pieces):
      return
  raise TooSlowError


def end(child: subprocess.Popen[bytes]) -> int:
  """Ends a child, which may have ended already; its exit status."""
  with child:  # closes the pipes and waits
    child.kill()
  return child.returncode

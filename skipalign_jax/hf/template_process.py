"""The process in which chat templates of strangers are rendered.

There is one for each process that needs it. It is started with the first request, used
for all further ones, ended when it reaches a limit, and then started again. It ends
with its parent, also with one that is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from skipalign_jax.hf import template_child
from skipalign_jax.runtime import errors, interpreter

_PATIENCE = 6  # times the limit: time that may pass where other processes compute
_START_SECONDS = 600  # on a slow network disk


class TooSlowError(Exception):
  """A request took too much time."""


class EndedError(Exception):
  """The process ended by itself, twice; the argument is how."""


class Process:
  """Sends requests to a child, one at a time."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._child: subprocess.Popen[bytes] | None = None
    self._template: str | None = None  # the one that the child has

  def ask(
    self, template: str, jobs: Sequence[dict[str, Any]], seconds: float, memory: int
  ) -> list[dict[str, Any]]:
    """The replies of `template_child.answer` to jobs.

    Args:
      template: the text of a chat template.
      jobs: variables and characters of each.
      seconds: of computing that each may take.
      memory: bytes that the child may take for them.

    Raises:
      TooSlowError: one takes longer.
      EndedError: the child ends each time it is asked.
      UserError: the child cannot be started.
    """
    limits = {"seconds": seconds, "bytes": memory}
    with self._lock:
      try:
        for _ in range(2):  # another program may have ended an idle child
          replies = self._try(template, {"jobs": jobs, **limits})
          if replies is not None:
            return replies
          status = self._end()
          if status == -signal.SIGPROF:
            raise TooSlowError
        raise EndedError(f"signal {-status}" if status < 0 else f"status {status}")
      except BaseException:
        self._end()  # it may be in the middle of a request
        raise

  def _try(self, template: str, request: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The replies; None if the child has ended."""
    child = self._started()
    new = None if template == self._template else template
    message = memoryview(template_child.to_bytes({"template": new, **request}))
    try:
      while message:
        message = message[os.write(child.stdin.fileno(), message) :]
    except BrokenPipeError:
      return None
    self._template = template
    reply = _receive(child, request["seconds"] * len(request["jobs"]) * _PATIENCE)
    return reply and reply["answers"]

  def _started(self) -> subprocess.Popen[bytes]:
    if self._child is None:
      self._child, self._template = _start(), None
    return self._child

  def _end(self) -> int:
    """Ends the child, which may have ended already; its exit status."""
    child, self._child = self._child, None
    if child is None:
      return 0
    with child:  # closes the pipes and waits
      child.kill()
    return child.returncode

  def close(self) -> None:
    """Ends the child; the next request starts another one."""
    with self._lock:
      self._end()

  def pid(self) -> int | None:
    """Of the child, if there is one."""
    return self._child and self._child.pid


def _start() -> subprocess.Popen[bytes]:
  """A child that is ready; raises UserError."""
  # Not by a parent's end but by that of its thread the kernel ends a child.
  is_main = threading.current_thread() is threading.main_thread()
  path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
  try:
    child = subprocess.Popen(
      # Without site, whose work is done: the child takes the parent's path.
      [
        sys.executable,
        "-s",
        "-S",
        "-P",
        template_child.__file__,
        str(os.getpid()),
        str(is_main),
      ],
      bufsize=0,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      cwd="/",
      env=interpreter.environment() | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"},
      start_new_session=True,  # Ctrl-C is for the parent
    )
  except OSError as error:
    raise _cannot_start(str(error)) from error
  if _receive(child, _START_SECONDS) is None:
    with child:
      child.kill()
    raise _cannot_start(f"it ends with status {child.returncode}")
  return child


def _cannot_start(problem: str) -> errors.UserError:
  return errors.UserError(
    f"the process that renders chat templates cannot be started with {sys.executable} "
    f"({problem}); it is needed for the templates of models. Free memory and "
    "processes, or set data.template=tulu"
  )


def _receive(child: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
  """The next message of a child; None if it has ended. TooSlowError after `seconds`."""
  head = template_child.LENGTH.size
  fd, found, missing = child.stdout.fileno(), bytearray(), head
  while missing > 0:
    _wait(fd, seconds)
    part = os.read(fd, 1 << 20)
    if not part:
      return None
    found += part
    if len(found) >= head:
      missing = head + template_child.LENGTH.unpack_from(found)[0] - len(found)
  return template_child.from_bytes(found[head:])


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


SHARED = Process()


def _forget() -> None:
  """In a fork: the child is that of the parent."""
  global SHARED
  SHARED = Process()


with contextlib.suppress(AttributeError):  # no forks on this system
  os.register_at_fork(after_in_child=_forget)

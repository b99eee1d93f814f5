"""The process in which chat templates of strangers are rendered.

There is one for each process that needs it. It is started with the first request, used
for all further ones, ended when it reaches a limit, and then started again. It ends
with its parent, also with one that is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from skipalign_jax.hf import template_child
from skipalign_jax.runtime import child_process

_PATIENCE = 6  # times the limit: time that may pass where other processes compute


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
            raise child_process.TooSlowError
        raise EndedError(f"signal {-status}" if status < 0 else f"status {status}")
      except BaseException:
        self._end()  # it may be in the middle of a request
        raise

  def _try(self, template: str, request: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The replies; None if the child has ended."""
    child = self._started()
    new = None if template == self._template else template
    message = template_child.to_bytes({"template": new, **request})
    if not child_process.send(child, message):
      return None
    self._template = template
    seconds = request["seconds"] * len(request["jobs"]) * _PATIENCE
    reply = child_process.receive(child, seconds)
    return None if reply is None else template_child.from_bytes(reply)["answers"]

  def _started(self) -> subprocess.Popen[bytes]:
    if self._child is None:
      self._template = None
      self._child = child_process.start(
        template_child.__file__, "renders chat templates", "set data.template=tulu"
      )
    return self._child

  def _end(self) -> int:
    """Ends the child, which may have ended already; its exit status."""
    child, self._child = self._child, None
    return 0 if child is None else child_process.end(child)

  def close(self) -> None:
    """Ends the child; the next request starts another one."""
    with self._lock:
      self._end()

  def pid(self) -> int | None:
    """Of the child, if there is one."""
    return self._child and self._child.pid


SHARED = Process()


def _forget() -> None:
  """In a fork: the child is that of the parent."""
  global SHARED
  SHARED = Process()


with contextlib.suppress(AttributeError):  # no forks on this system
  os.register_at_fork(after_in_child=_forget)

"""XLA's trace of some steps, for xprof and TensorBoard's profile tab."""

import pathlib
import platform
import re
from typing import Any

import jax

from skipalign_jax.runtime import distributed, errors

FOLDER = "profile"  # of a workdir


def parse(text: str) -> range:
  """The steps of `profile`; empty for an empty text.

  Raises:
    UserError: not START:STOP with 1 <= START <= STOP.
  """
  if not text:
    return range(0)
  found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
  first, last = map(int, found.groups()) if found else (0, 0)
  if not 1 <= first <= last:
    raise errors.UserError(
      f"profile={text!r} is not START:STOP, two steps with 1 <= START <= STOP"
    )
  return range(first, last + 1)


def check(text: str, steps: int) -> None:
  """Raises UserError if `profile` names a step after the last one."""
  traced = parse(text)
  if traced and traced[-1] > steps:
    raise errors.UserError(
      f"profile={text} names steps after the last one; the run has {steps}"
    )


def folder_of(workdir: pathlib.Path) -> pathlib.Path:
  """Where this process writes its trace; all processes must call it.

  JAX names a trace by its host: of several processes on one, the others have folders
  of their own.
  """
  hosts, index = distributed.exchange(platform.node()), jax.process_index()
  is_first = hosts.index(hosts[index]) == index
  return workdir / FOLDER / ("" if is_first else f"process_{index}")


class Trace:
  """Starts before the first of its steps and stops after the last one.

  A run that resumes among them traces the rest.
  """

  def __init__(self, steps: range, folder: pathlib.Path):
    """`folder`: see `folder_of`."""
    self._steps, self._folder, self._on = steps, folder, False

  def before(self, step: int) -> None:
    """Starts the trace if it is due."""
    if step in self._steps and not self._on:
      jax.profiler.start_trace(self._folder)
      self._on = True

  def after(self, step: int, numbers: Any) -> pathlib.Path | None:
    """Stops the trace after its last step, when `numbers` are computed.

    Returns:
      The folder of the trace, if it was stopped.
    """
    if not self._on or step != self._steps[-1]:
      return None
    jax.block_until_ready(numbers)
    return self.close()

  def close(self) -> pathlib.Path | None:
    """Stops the trace if it runs; returns its folder then."""
    if not self._on:
      return None
    self._on = False
    jax.profiler.stop_trace()
    return self._folder

"""TensorBoard's event files, written by the thread that trains.

tensorboardX's own writer has a thread for this, whose errors nobody sees: after one, on
a full disk, its queue fills up and training waits for ever.
"""

import pathlib
import time

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

_FLUSH_SECONDS = 60


class Board:
  """An event file; raises OSError where it cannot be written."""

  def __init__(self, folder: pathlib.Path, first_step: int):
    """Begins a file in `folder`; TensorBoard hides older values from this step on."""
    folder.mkdir(exist_ok=True)
    # An absolute path: tensorboardX takes the beginning of "gs:runs/a" for a protocol.
    self._file = event_file_writer.EventsWriter(str(folder.absolute() / "events"))
    self._write(first_step, file_version="brain.Event:2")
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(first_step, session_log=start)
    self.flush()

  def _write(self, step: int, **content) -> None:
    event = event_pb2.Event(wall_time=time.time(), step=step, **content)
    self._file.write_event(event)

  def add(self, step: int, name: str, value: float) -> None:
    """Adds a value; it is on disk within a minute, if more follow."""
    self._write(step, summary=summary.scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Puts all values on disk."""
    self._file.flush()
    self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes."""
    self._file.close()

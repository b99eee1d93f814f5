"""Locks on folders in which one process writes at a time."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
from typing import TextIO

from skipalign_jax.runtime import errors, terminal

NAME = ".lock"  # the file in the folder; it stays there

# Errors of filesystems without record locks: NFS without its lock service, and FUSE.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def take(folder: pathlib.Path, flag: str, console: terminal.Console) -> TextIO:
  """Takes the lock of a folder; reports a filesystem that has no locks.

  A record lock, not flock: data workers that outlive their parent do not inherit it.

  Args:
    folder: it exists.
    flag: that names it, for messages.
    console: for the report.

  Returns:
    The lock. `release`, or the end of this process, ends it.

  Raises:
    UserError: another process has it.
    OSError: its file cannot be written.
  """
  file = (folder / NAME).open("a+", encoding="utf-8")
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _NO_LOCKS:
      console.print(
        f"NOTE       the filesystem of {folder} has no locks ({error.strerror}): make "
        "sure that nothing else writes there"
      )
      return file
    with file:  # left open, its end would give back a later lock of this process
      if error.errno not in (errno.EACCES, errno.EAGAIN):
        raise
      file.seek(0)
      holder = file.read().strip() or "another process"
      here = holder.endswith(f" on {socket.gethostname()}")  # gone with its process
      remedy = "" if here else f". If its machine is gone, delete {folder / NAME}"
      raise errors.UserError(
        f"{flag}={folder} is being written by {holder}; wait for it, stop it, or give "
        f"a new folder{remedy}"
      ) from error
  file.truncate(0)
  file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
  file.flush()
  return file


def release(lock: TextIO) -> None:
  """Gives the lock back."""
  with contextlib.suppress(OSError):  # nothing was written there
    lock.close()

"""Removes folders that a program of a stranger has filled."""

import contextlib
import os
import stat
import time
import uuid

_TRIES, _PAUSE = 3, 0.2


def remove(folder: str) -> bool:
  """Removes a folder with all that is in it; whether it is gone.

  Folders in folders are moved up before they are emptied, so neither their depth nor
  the length of their paths matters, and two of them are open at a time. Nothing that a
  link leads to is touched.
  """
  for _ in range(_TRIES):
    try:
      _empty(folder)
      os.rmdir(folder)
    except FileNotFoundError:
      return True
    except OSError:  # something is still writing, or may not be removed
      time.sleep(_PAUSE)
    else:
      return True
  return False


def _empty(folder: str) -> None:
  root = _open(folder, None)
  try:
    while names := os.listdir(root):
      for name in names:
        try:
          os.unlink(name, dir_fd=root)
        except (IsADirectoryError, PermissionError):
          _remove_shallow(name, root)
  finally:
    os.close(root)


def _remove_shallow(name: str, root: int) -> None:
  """Removes the folder `name` of `root`, to which its own folders are moved."""
  inner = _open(name, root)
  try:
    with os.scandir(inner) as entries:
      for entry in entries:
        if entry.is_dir(follow_symlinks=False):
          os.close(_open(entry.name, inner))  # without permissions it cannot be moved
          new = uuid.uuid4().hex
          os.rename(entry.name, new, src_dir_fd=inner, dst_dir_fd=root)
        else:
          os.unlink(entry.name, dir_fd=inner)
  finally:
    os.close(inner)
  os.rmdir(name, dir_fd=root)


def _open(name: str, parent: int | None) -> int:
  """A folder, opened after its owner got all permissions for it."""
  flags = os.O_DIRECTORY | os.O_NOFOLLOW
  place = os.open(name, os.O_PATH | flags, dir_fd=parent)
  try:
    path = f"/proc/self/fd/{place}"
    with contextlib.suppress(PermissionError):  # of another owner
      os.chmod(path, stat.S_IRWXU)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
  finally:
    os.close(place)

"""The folder of files that can be made again: samples and compiled programs."""

import contextlib
import functools
import os
import pathlib
import stat
import tempfile

from skipalign_jax.runtime import terminal

HOME = "~/.cache/skipalign_jax"


def folder(part: str, known: str = "") -> pathlib.Path:
  """A folder of caches that this user may write.

  It is in the home folder or, where there is none or it cannot be written, as in many
  containers, in that of temporary files.

  Args:
    part: its name in the folder of all caches.
    known: if the home folder's has a file whose name begins so, it is read there,
      whoever may write it.

  Raises:
    OSError: neither can be written.
  """
  with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home folder
    home = pathlib.Path(HOME).expanduser() / part
    if known and any(home.glob(f"{known}*")):
      return home
    return _writable(home)
  temporary = _temporary()
  found = _writable(temporary / part)
  _note(temporary)
  return found


def _writable(path: pathlib.Path) -> pathlib.Path:
  path.mkdir(parents=True, exist_ok=True)
  if not os.access(path, os.W_OK | os.X_OK):
    raise PermissionError(f"{path} cannot be written")
  return path


def _temporary() -> pathlib.Path:
  """A folder of this user alone: others could put samples or programs there."""
  path = pathlib.Path(tempfile.gettempdir()) / f"skipalign_jax-{os.getuid()}"
  path.mkdir(mode=0o700, exist_ok=True)
  found = path.lstat()
  if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
    raise PermissionError(f"{path} belongs to another user")
  if found.st_mode & 0o077:
    raise PermissionError(f"{path} can be used by other users; remove it")
  return path


@functools.cache
def _note(found: pathlib.Path) -> None:
  """Says once where the caches are."""
  terminal.print_to_stderr(
    f"note: {HOME} cannot be written; samples and compiled programs are kept in {found}"
  )

"""Storage that fails: which error it was, and what a user can do about it."""

import contextlib
import errno
import os
import pathlib
import re

from skipalign_jax.runtime import terminal

_GONE = "the filesystem has gone; is it mounted?"
_FORBIDDEN = "this user may not do that there; give another folder, or permission"
_REMEDIES = {
  errno.ENOSPC: "the disk is full; free some space",
  errno.EDQUOT: "the quota is used up; free some space",
  errno.EFBIG: "files may not be so large here; see ulimit -f",
  errno.EROFS: "the filesystem is read-only; give another folder",
  errno.EACCES: _FORBIDDEN,
  errno.EPERM: _FORBIDDEN,
  errno.EIO: "the disk or its connection fails; look at it, or give another folder",
  errno.EMFILE: "too many files are open, see ulimit -n; or gcsfuse does not rename "
  "folders, see its --rename-dir-limit",
  errno.ENFILE: "too many files are open on this machine",
  errno.ENAMETOOLONG: "names may not be so long here; give a shorter one",
  **dict.fromkeys((errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO), _GONE),
}
# Python names no error where it can write none of its folders of temporary files.
_TEMPORARY = "No usable temporary directory"
# How Rust's safetensors and tokenizers and TensorStore write the number of an error;
# TensorStore has its name or the number itself.
_IN_TEXT = re.compile(r"\bos error (\d+)|\bcode: (\d+), kind:|\bos_error_code='(\w+)'")

_PATH = re.compile(r'"(/[^"\\]+)')  # of TensorStore


def number_of(error: BaseException) -> int | None:
  """The errno of an error of storage, whichever library raised it; None for others."""
  return _origin(error)[1]


def _origin(error: BaseException) -> tuple[BaseException, int | None]:
  """The error of storage that a library may have wrapped, and its errno."""
  found = error.errno if isinstance(error, OSError) else None
  if found is None and (match := _IN_TEXT.search(str(error))):
    rust, safetensors, named = match.groups()
    number = rust or safetensors or named
    found = int(number) if number.isdecimal() else getattr(errno, number, 0)
  if found is None and error.__cause__ is not None:
    return _origin(error.__cause__)
  if found == errno.ENOENT and _TEMPORARY in str(error):
    found = errno.ENOSPC
  return error, found if found in _REMEDIES else None


def explain(error: BaseException, folder: pathlib.Path | None = None) -> str:
  """What failed, where, and what to do, in a line; any other error as it is.

  Args:
    error: of any library.
    folder: where it was, for an error that names no file.
  """
  origin, number = _origin(error)
  if number is None:
    return str(error)
  if _TEMPORARY in str(origin):
    return f"{origin.strerror}; free some space there, or set TMPDIR to another folder"
  if (where := _where(origin) or folder) is None:
    return f"{os.strerror(number)}; {_REMEDIES[number]}"
  free = _free(pathlib.Path(where)) if number == errno.ENOSPC else ""
  return f"{where}: {os.strerror(number)}{free}; {_REMEDIES[number]}"


def _where(error: BaseException) -> str | None:
  """The file or folder that an error names."""
  found = getattr(error, "filename", None)
  if isinstance(found, str | bytes | os.PathLike):
    return os.fsdecode(found)
  quoted = _PATH.search(str(error))
  return quoted and quoted[1]


def _free(path: pathlib.Path) -> str:
  """What a filesystem has left: bytes, and files where that is less than a hundred."""
  with contextlib.suppress(OSError, ValueError):
    there = next(one for one in path.absolute().parents if one.is_dir())
    found = os.statvfs(there)
    few = found.f_files and found.f_favail < 100  # some filesystems do not count them
    files = f" and {found.f_favail} files" if few else ""
    return f" ({terminal.size(found.f_bavail * found.f_frsize)}{files} left)"
  return ""

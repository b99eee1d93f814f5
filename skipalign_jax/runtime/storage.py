"""Storage that fails: which error it was, and what a user can do about it."""

import errno
import os
import re

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
  errno.EMFILE: "too many files are open; see ulimit -n",
  errno.ENFILE: "too many files are open on this machine",
  errno.ENAMETOOLONG: "names may not be so long here; give a shorter one",
  **dict.fromkeys((errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO), _GONE),
}
# How Rust's safetensors and tokenizers and TensorStore write the number of an error.
_IN_TEXT = re.compile(r"\bos error (\d+)|\bcode: (\d+), kind:|\bos_error_code='(\w+)'")


def number_of(error: BaseException) -> int | None:
  """The errno of an error of storage, whichever library raised it; None for others."""
  found = error.errno if isinstance(error, OSError) else None
  if found is None and (match := _IN_TEXT.search(str(error))):
    rust, safetensors, name = match.groups()
    found = int(rust or safetensors or getattr(errno, name, 0))
  if found is None and error.__cause__ is not None:  # wrapped by a library
    return number_of(error.__cause__)
  return found if found in _REMEDIES else None


def explain(error: BaseException) -> str:
  """What failed, where, and what to do, in a line; any other error as it is."""
  if (number := number_of(error)) is None:
    return str(error)
  where = getattr(error, "filename", None)
  named = f"{where}: " if isinstance(where, str | os.PathLike) else ""
  return f"{named}{os.strerror(number)}; {_REMEDIES[number]}"

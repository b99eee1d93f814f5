"""The files of tokenized sources: each has the checksum of its bytes in its name.

A file whose bytes do not match is removed, and what was in it is made again: a flipped
bit would be a wrong token, or a sample of another length. CRC-32 is as fast as memory
is read.
"""

import contextlib
import fcntl
import pathlib
from collections.abc import Callable, Iterator

from skipalign_jax.runtime import checksums, files, terminal


def file_of(
  folder: pathlib.Path,
  name: str,
  write: Callable[[pathlib.Path], None],
  console: terminal.Console,
) -> pathlib.Path:
  """The file of this name, written first if there is no whole one.

  Args:
    folder: of the cache; made if needed.
    name: of what is in the file.
    write: writes it to a path.
    console: where a damaged file is reported.

  Raises:
    OSError: the folder cannot be used.
  """
  folder.mkdir(parents=True, exist_ok=True)
  if (found := _whole(folder, name, console)) is not None:
    return found
  with _one_at_a_time(folder / f"{name}.lock"):
    return _whole(folder, name, console) or _written(folder, name, write)


def _whole(
  folder: pathlib.Path, name: str, console: terminal.Console
) -> pathlib.Path | None:
  """The file that equals its checksum; the others are removed."""
  for path in sorted(folder.glob(f"{name}-*.arrow")):
    with contextlib.suppress(FileNotFoundError):  # another process has removed it
      if path == _named(folder, name, path):
        return path
      console.print(f"note: {path} is damaged; it is removed and made again")
      path.unlink()
  return None


def _written(
  folder: pathlib.Path, name: str, write: Callable[[pathlib.Path], None]
) -> pathlib.Path:
  with files.own_file(folder / name) as new:
    write(new)
    return new.replace(_named(folder, name, new))


def _named(folder: pathlib.Path, name: str, path: pathlib.Path) -> pathlib.Path:
  """The path that a file with the bytes of `path` has."""
  _, checksum = checksums.size_and_checksum(path)
  return folder / f"{name}-{checksum:08x}.arrow"


@contextlib.contextmanager
def _one_at_a_time(lock: pathlib.Path) -> Iterator[None]:
  """Other processes, of this run or another, wait here until the work is done.

  The lock ends with its process. Where the filesystem has no locks every process does
  the work, which is slower but not wrong: only complete files appear.
  """
  with lock.open("w") as file:
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_EX)
    try:
      yield
    finally:
      lock.unlink(missing_ok=True)  # processes that wait have the file open

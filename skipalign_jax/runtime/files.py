"""Files of our own: JSON, JSON Lines, and files that are replaced whole or not at all.

A process may be killed at any moment. A reader then finds the old file or the new one,
never half of one; only a file that grows line by line may end in half a line.
"""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from skipalign_jax.runtime import errors, json_limits, storage, untrusted


def read_json(
  path: pathlib.Path, max_values: int = json_limits.MAX_VALUES, finite: bool = True
) -> dict[str, Any]:
  """A JSON object from a file.

  Args:
    path: of the file.
    max_values: that it may have.
    finite: whether NaN and infinite numbers are refused, which no file of ours has;
      those of models may.

  Raises:
    UserError: it cannot be read, or is not such an object.
  """
  try:
    value = untrusted.read_json(path, max_values)
  except OSError as error:
    raise errors.UserError(f"{path}: {error.strerror or error}") from error
  except untrusted.BROKEN as error:
    raise errors.UserError(f"{path}: not valid JSON ({error})") from error
  if finite and (where := not_finite(value)):
    raise errors.UserError(f"{path}: not valid JSON ({where} is NaN or infinite)")
  return value


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes `value` as indented JSON, all of it or nothing.

  Raises:
    UserError: a number in it is NaN or infinite, which JSON does not have.
  """
  if where := not_finite(value):
    raise errors.UserError(
      f"{path}: not written, because {where} is NaN or infinite, which JSON does not "
      "have; remove what this number comes from"
    )
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text in UTF-8, all of it or nothing."""
  with replacing(path) as new:
    new.write_text(text, "utf-8")


def not_finite(value: Any) -> str:
  """The keys that lead to the first number that is NaN or infinite; "" without one.

  As in "summary.sets.trec.mean" or "items.3.score".
  """
  if isinstance(value, float):
    return "" if math.isfinite(value) else "it"
  if isinstance(value, dict):
    inner = value.items()
  elif isinstance(value, list | tuple):
    inner = enumerate(value)
  else:
    return ""
  for key, part in inner:
    if found := not_finite(part):
      return str(key) if found == "it" else f"{key}.{found}"
  return ""


def read_json_lines(
  path: pathlib.Path, check: Callable[[Any], None] = lambda value: None
) -> list[Any]:
  """The values of a file with one JSON value per line.

  A last line without its line break, as a killed process leaves it, is left out.

  Args:
    path: of the file.
    check: raises ValueError, LookupError, TypeError or AttributeError for a value that
      does not belong into the file.

  Raises:
    UserError: the file cannot be read, or one of its whole lines is damaged.
  """
  try:
    *lines, _ = path.read_bytes().split(b"\n")
  except OSError as error:
    raise errors.UserError(f"{path} cannot be read ({error.strerror})") from error
  values = []
  for number, line in enumerate(lines, 1):
    try:
      values.append(untrusted.parse_json(line))
      check(values[-1])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise errors.UserError(
        f"{path}, line {number}, is damaged ({error!r}); remove that line"
      ) from error
  return values


def cut_half_line(path: pathlib.Path) -> None:
  """Removes a last line without its line break, before other lines are appended."""
  data = path.read_bytes()
  os.truncate(path, data.rfind(b"\n") + 1)


@contextlib.contextmanager
def replacing(path: pathlib.Path, shared: bool = False) -> Iterator[pathlib.Path]:
  """A path next to `path`; what the block writes there becomes `path` when it ends.

  On any exception it is deleted and `path` stays as it was. What a kill left is deleted
  by the next try.

  Args:
    path: of a file, or of a folder that does not exist yet.
    shared: whether other processes may write the file `path` at the same time. Each
      then has a name of its own.
  """
  if shared:
    with own_file(path) as new:
      yield new
      new.replace(path)
    return
  new = path.with_name(unfinished(path.name))
  _remove(new)
  try:
    yield new
    new.replace(path)
  except BaseException as error:
    _name(error, path)
    _remove(new)
    raise


def _name(error: BaseException, path: pathlib.Path) -> None:
  """Names the file in an error of writing, which has no name of its own."""
  if isinstance(error, OSError) and error.filename is None:
    error.filename = str(path)


def unfinished(name: str) -> str:
  """Name under which `replacing` writes a file that is not shared."""
  return f".{name}.new"


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """A temporary folder next to `out` that becomes `out` when the block ends.

  On any exception it is deleted and `out` stays as it was. What a kill left is deleted
  by the next try.

  Raises:
    UserError: `out` exists and is not an empty folder, or cannot be written.
  """
  out = pathlib.Path(out).absolute()
  began = False
  try:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
      raise errors.UserError(
        f"{out}: exists and is not an empty folder; choose another --out or remove it"
      )
    out.parent.mkdir(parents=True, exist_ok=True)
    with _own(out, ".partial", pathlib.Path.mkdir) as temporary:
      began = True
      yield temporary
      temporary.replace(out)
  except errors.UserError:
    raise
  except Exception as error:  # a full disk, a lost mount; some libraries have their own
    if not isinstance(error, OSError) and storage.number_of(error) is None:
      raise
    problem = "not written" if began else "cannot be created"
    raise errors.UserError(f"{out}: {problem} ({storage.explain(error)})") from error


def own_file(path: pathlib.Path) -> contextlib.AbstractContextManager[pathlib.Path]:
  """A new file next to `path`; the block writes and renames it.

  If it raises, the file is deleted. What a kill left is deleted by the next try.
  """
  return _own(path, ".new", lambda new: new.touch(exist_ok=False))


@contextlib.contextmanager
def _own(
  path: pathlib.Path, suffix: str, create: Callable[[pathlib.Path], None]
) -> Iterator[pathlib.Path]:
  """A new file or folder next to `path`, of this process alone; deleted if the block
  raises.

  The process holds a lock on it for as long as it lives. What has a name of this kind
  and no lock was left by a kill and is deleted here; all of it stays on a filesystem
  without locks.
  """
  name = re.compile(re.escape(f".{path.name}.") + r"\w{8,32}" + re.escape(suffix))
  for other in list(path.parent.iterdir()):
    if name.fullmatch(other.name):
      with contextlib.suppress(OSError), _locked(other):
        _remove(other)
  with contextlib.ExitStack() as locks:
    mine = _created(path, suffix, create, locks)
    try:
      yield mine
    except BaseException as error:
      _name(error, path)
      _remove(mine)
      raise


def _created(
  path: pathlib.Path,
  suffix: str,
  create: Callable[[pathlib.Path], None],
  locks: contextlib.ExitStack,
) -> pathlib.Path:
  """A new file or folder next to `path`, whose lock `locks` holds."""
  while True:
    mine = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{suffix}")
    create(mine)
    try:
      locks.enter_context(_locked(mine))
      return mine
    except (BlockingIOError, FileNotFoundError):
      pass  # another process took it for one that a kill left
    except OSError:
      return mine  # a filesystem without locks


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a file or folder; OSError if another process has it."""
  access = os.O_RDONLY if path.is_dir() else os.O_RDWR
  descriptor = os.open(path, access | os.O_NOFOLLOW)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.stat(path)  # it was not deleted before it was locked
    yield
  finally:
    os.close(descriptor)


def set_usual_permissions(path: pathlib.Path) -> None:
  """Gives a file or folder the permissions that the process's umask leaves."""
  mask = os.umask(0)
  os.umask(mask)
  path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)

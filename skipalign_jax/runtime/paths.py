"""Paths that a user writes: names of files as they are, with ~ for a home folder.

Libraries get such a path whole and as data. Names that one of them cannot take are
refused here, before anything is read or written.
"""

import os
import pathlib
import re
from collections.abc import Callable, Sequence

from skipalign_jax.runtime import errors

HUB = "hub:"  # begins a name of the Hugging Face hub
_MAX_NAME, _MAX_PATH = 255, 4095  # bytes, of Linux
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OURS_IN_NAME, _OURS_IN_PATH = 32, 320  # for the longest names that are written inside


def given(text: str | os.PathLike[str], flag: str) -> pathlib.Path:
  """The path that a flag or a config key names.

  Args:
    text: what the user wrote.
    flag: how the text was given, for messages, as in "--workdir=runs/a".

  Raises:
    UserError: a name that cannot be opened, or a home folder that is not known.
  """
  text = os.fspath(text)
  if why := problem(text):
    raise errors.UserError(f"{_printable(flag)}: {why}")
  # Not pathlib's, which does not know "./~x" from "~x".
  expanded = os.path.expanduser(text)
  if text.startswith("~") and expanded == text:
    raise errors.UserError(
      f"{flag}: the home folder {text.split('/')[0]} is not known; write the whole "
      f"path, or ./{text} for a folder of this name"
    )
  return _plain(pathlib.Path(expanded))


def _plain(path: pathlib.Path) -> pathlib.Path:
  """The same path without "..", which libraries refuse or resolve differently.

  It means the same when it is given again: it begins neither with ~ nor with `HUB`.
  """
  if ".." in path.parts:
    found = pathlib.Path()
    for part in path.parts:  # of a symbolic link, .. is the parent of its target
      found = found.resolve().parent if part == ".." else found / part
    path = found
  return path.absolute() if str(path).startswith(("~", HUB)) else path


def output(text: str | os.PathLike[str], flag: str) -> pathlib.Path:
  """As `given`, for a folder that is written: the names inside it must fit too."""
  if os.fspath(text).startswith(HUB):
    raise errors.UserError(
      f"{flag}: {HUB} begins a name of the Hugging Face hub, where nothing is written; "
      f"write ./{text} for a folder of this name"
    )
  if _ADDRESS.match(os.fspath(text)):
    raise errors.UserError(
      f"{flag}: this is the address of a place on a network, and only folders are "
      "written; mount it (a bucket with gcsfuse or mountpoint-s3) and give the folder, "
      f"or write ./{text} for a folder of this name"
    )
  path = given(text, flag)
  if len(os.fsencode(path.name)) + _OURS_IN_NAME > _MAX_NAME:
    raise errors.UserError(f"{flag}: this name is too long; give a shorter one")
  if len(os.fsencode(path.absolute())) + _OURS_IN_PATH > _MAX_PATH:
    raise errors.UserError(f"{flag}: this path is too long; give a shorter one")
  return path


def different(texts: Sequence[str], note: Callable[[str], object]) -> list[str]:
  """The folders, each once; one that is named again is left out and noted.

  Args:
    texts: paths that a user wrote, in any spelling: a, ./a, a link to a.
    note: receives a sentence for each that is left out.

  Raises:
    UserError: as `given`.
  """
  found: dict[pathlib.Path, str] = {}
  for text in texts:
    place = given(text, text).resolve()
    if place in found:
      note(f"{text} is the same folder as {found[place]} before it; it counts once")
    found.setdefault(place, text)
  return list(found.values())


def problem(text: str) -> str:
  """Why no file can have this path; empty if one can."""
  if not text:
    return "the path is empty"
  if "\0" in text:
    return "a path cannot have a null character"
  try:
    encoded = text.encode("utf-8")
  except UnicodeEncodeError:
    return "the path is not valid UTF-8; rename it"
  longest = max(map(len, encoded.split(b"/")))
  if longest > _MAX_NAME or len(encoded) > _MAX_PATH:
    return "the path is too long"
  return ""


def _printable(text: str) -> str:
  return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")

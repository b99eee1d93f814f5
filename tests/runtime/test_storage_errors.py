"""Errors of storage are known by their number, whichever library raises them."""

import errno
import os
import re
import types

import pytest

from skipalign_jax.runtime import errors, storage

RAISED = {
  "Python": OSError(errno.ENOSPC, "No space left on device", "a/b"),
  "tokenizers": Exception("No space left on device (os error 28)"),
  "safetensors": RuntimeError(
    'Error while serializing: Os { code: 28, kind: StorageFull, message: "N" }'
  ),
  "TensorStore": ValueError("RESOURCE_EXHAUSTED: Failed [os_error_code='ENOSPC']"),
  "TensorStore's number": ValueError("RESOURCE_EXHAUSTED: F [os_error_code='28']"),
}


def wrapped(error):
  try:
    raise OSError("it needs a folder that can be written") from error
  except OSError as outer:
    return outer


@pytest.mark.parametrize("library", RAISED)
def test_a_full_disk_is_known_in_every_library(library):
  for error in (RAISED[library], wrapped(RAISED[library])):
    assert storage.number_of(error) == errno.ENOSPC
    with (
      pytest.raises(errors.UserError, match=r"out: .*disk is full; free some space!"),
      errors.of_storage("out: ", "!"),
    ):
      raise error
  assert storage.explain(RAISED["Python"]).startswith("a/b: No space left")


@pytest.mark.parametrize("name", ["EDQUOT", "EROFS", "EACCES", "EPERM", "EIO"])
def test_each_error_has_a_remedy(name):
  number = getattr(errno, name)
  assert "; " in storage.explain(OSError(number, "x"))


@pytest.mark.parametrize(
  "error",
  [
    FileNotFoundError(errno.ENOENT, "x"),
    BrokenPipeError(errno.EPIPE, "x"),
    KeyError("code: 5"),
    ValueError("os error 2"),
    ValueError("[os_error_code='NONE']"),
  ],
)
def test_other_errors_are_not_hidden(error):
  assert storage.number_of(error) is None and storage.explain(error) == str(error)
  with pytest.raises(type(error)) as raised, errors.of_storage():
    raise error
  assert raised.value is error


def test_a_message_says_where_and_how_much_is_left(tmp_path):
  error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a" / "b"))
  assert re.match(
    rf"{tmp_path}/a/b: No space left on device \([\d.]+ \w*B( and \d+ files)? left\); ",
    storage.explain(error),
  )
  text = f"Failed: \"{tmp_path}/a/b\": No space left on device [os_error_code='28']"
  for inside in (error, wrapped(error), ValueError(text)):
    assert storage.explain(inside) == storage.explain(error)
  nameless = OSError(errno.ENOSPC, "of a file that is closed")
  assert storage.explain(nameless, tmp_path / "a" / "b") == storage.explain(error)
  assert storage.explain(error, tmp_path / "c") == storage.explain(error)


@pytest.mark.parametrize(
  ("files", "free", "says"), [(12, 0, " and 0 files"), (0, 0, "")]
)
def test_a_filesystem_without_files_left_says_so(files, free, says, monkeypatch):
  found = types.SimpleNamespace(f_files=files, f_favail=free, f_bavail=8, f_frsize=1024)
  monkeypatch.setattr(os, "statvfs", lambda path: found)
  text = storage.explain(OSError(errno.ENOSPC, "x", "/a/b"))
  assert f"(8.0 KiB{says} left)" in text


def test_no_folder_of_temporary_files_is_an_error_of_storage():
  text = "No usable temporary directory found in ['/tmp', '/x']"
  error = FileNotFoundError(errno.ENOENT, text)
  for one in (error, wrapped(error)):
    assert storage.number_of(one) == errno.ENOSPC
    assert storage.explain(one).startswith(text) and "TMPDIR" in storage.explain(one)

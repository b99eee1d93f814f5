"""Caches are in the home folder or, where that is not possible, in a safe other one."""

import os

import pytest

from skipalign_jax.runtime import caches


@pytest.fixture
def temporary(monkeypatch, tmp_path):
  """The user's folder in that of temporary files; it does not exist yet."""
  folder = tmp_path / "tmp"
  folder.mkdir()
  monkeypatch.setattr(caches.tempfile, "gettempdir", lambda: str(folder))
  caches._note.cache_clear()
  return folder / f"skipalign_jax-{os.getuid()}"


def no_home(monkeypatch, how, tmp_path):
  (tmp_path / "file").write_text("")
  if how == "unset":  # and a user without an entry in the list of users
    monkeypatch.delenv("HOME")
    unknown = lambda _: (_ for _ in ()).throw(KeyError("uid not found"))
    monkeypatch.setattr("pwd.getpwuid", unknown)
  else:
    homes = {"absent": "/proc/none", "file": str(tmp_path / "file")}
    monkeypatch.setenv("HOME", homes[how])


def test_caches_are_in_the_home_folder(monkeypatch, tmp_path, temporary, capsys):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  assert caches.folder("a") == tmp_path / "home" / ".cache" / "skipalign_jax" / "a"
  assert not temporary.exists() and not capsys.readouterr().err


@pytest.mark.parametrize("how", ["unset", "absent", "file"])
def test_without_a_home_folder_they_are_elsewhere(
  how, monkeypatch, tmp_path, temporary, capsys
):
  no_home(monkeypatch, how, tmp_path)
  assert caches.folder("a") == temporary / "a"
  assert caches.folder("b") == temporary / "b"
  assert temporary.stat().st_mode & 0o777 == 0o700
  said = capsys.readouterr().err
  assert said.count("note: ") == 1 and str(temporary) in said


def test_a_home_folder_that_is_read_only_is_still_read(
  monkeypatch, tmp_path, temporary
):
  home = tmp_path / "home" / ".cache" / "skipalign_jax"
  home.mkdir(parents=True)
  (home / "known.arrow").write_text("")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setattr(caches.os, "access", lambda path, _: path == temporary)
  assert caches.folder("", "known.arrow") == home
  assert caches.folder("", "new.arrow") == temporary


@pytest.mark.parametrize("how", ["link", "file", "open"])
def test_a_folder_that_others_could_write_is_refused(
  how, monkeypatch, tmp_path, temporary
):
  no_home(monkeypatch, "absent", tmp_path)
  (tmp_path / "other").mkdir()
  if how == "link":
    temporary.symlink_to(tmp_path / "other")
  elif how == "file":
    temporary.write_text("")
  else:
    temporary.mkdir()
    temporary.chmod(0o777)
  with pytest.raises(OSError):
    caches.folder("a")
  assert not any((tmp_path / "other").iterdir())


def test_the_folder_of_another_user_is_refused(monkeypatch, tmp_path, temporary):
  no_home(monkeypatch, "absent", tmp_path)
  temporary.mkdir(mode=0o700)
  uid = os.getuid()
  monkeypatch.setattr(caches.os, "getuid", lambda: uid + 1)
  other = temporary.with_name(f"skipalign_jax-{uid + 1}")
  temporary.rename(other)
  with pytest.raises(PermissionError, match="belongs to another user"):
    caches.folder("a")

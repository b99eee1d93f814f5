"""Files are whole or not there, whenever a process is killed."""

import errno
import os
import signal

import pytest

from skipalign_jax.runtime import errors, files, signals

GOOD = b'{"step": 1}\n'


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_json_comes_back(tmp_path):
  files.write_json(tmp_path / "x.json", {"a": [1, "é"]})
  assert files.read_json(tmp_path / "x.json") == {"a": [1, "é"]}
  assert (tmp_path / "x.json").read_text("utf-8").endswith("\n")
  assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_refused(tmp_path, number):
  value = {"items": ({"score": 1.0}, {"score": number})}
  assert files.not_finite(value) == "items.1.score"
  value = {"items": list(value["items"])}
  assert files.not_finite(value) == "items.1.score"
  with pytest.raises(errors.UserError, match=r"x\.json.* items\.1\.score is NaN"):
    files.write_json(tmp_path / "x.json", value)
  assert names(tmp_path) == []


@pytest.mark.parametrize(
  ("content", "problem"),
  [(b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[1]", "a JSON object")],
)
def test_other_json_is_refused(tmp_path, content, problem):
  (tmp_path / "x.json").write_bytes(content)
  with pytest.raises(errors.UserError, match=rf"x\.json: .*{problem}"):
    files.read_json(tmp_path / "x.json")
  with pytest.raises(errors.UserError, match="No such file"):
    files.read_json(tmp_path / "absent.json")


@pytest.mark.parametrize("shared", [False, True])
def test_a_failed_replacement_leaves_the_old_file(tmp_path, shared):
  path = tmp_path / "x"
  path.write_text("old")
  with pytest.raises(KeyboardInterrupt), files.replacing(path, shared) as new:
    new.write_text("half")
    raise KeyboardInterrupt
  assert path.read_text() == "old" and names(tmp_path) == ["x"]
  with files.replacing(path, shared) as new:
    new.write_text("new")
    assert path.read_text() == "old"
  assert path.read_text() == "new" and names(tmp_path) == ["x"]


def test_what_a_kill_leaves_does_not_disturb_the_next_try(tmp_path):
  for name in ("file", "folder"):
    left = tmp_path / files.unfinished(name)
    left.mkdir()
    (left / "half").write_text("x")
  with files.replacing(tmp_path / "file") as new:
    new.write_text("whole")
  with files.replacing(tmp_path / "folder") as new:
    new.mkdir()
    (new / "whole").write_text("x")
  assert names(tmp_path) == ["file", "folder"]
  assert names(tmp_path / "folder") == ["whole"]


def test_a_link_is_replaced_and_what_it_names_stays(tmp_path):
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "file").write_text("x")
  (tmp_path / files.unfinished("y")).symlink_to(tmp_path / "folder")
  files.write_text(tmp_path / "y", "whole")
  assert names(tmp_path) == ["folder", "y"] and names(tmp_path / "folder") == ["file"]


def test_an_error_names_its_file(tmp_path):
  """The one that it is of, or the one that is written if it names none."""
  for error, named in (
    (OSError(errno.ENOSPC, "full"), tmp_path / "x"),
    (FileNotFoundError(errno.ENOENT, "gone", "other"), "other"),
  ):
    with pytest.raises(OSError) as raised, files.replacing(tmp_path / "x"):
      raise error
    assert raised.value.filename == str(named)


def test_permissions_are_those_of_the_umask(tmp_path):
  private = tmp_path / "private"
  private.touch(mode=0o600)
  before = os.umask(0o027)
  try:
    for path, mode in ((private, 0o640), (tmp_path, 0o750)):
      files.set_usual_permissions(path)
      assert path.stat().st_mode & 0o777 == mode
    assert os.umask(0o027) == 0o027  # as it was
  finally:
    os.umask(before)


def test_processes_that_write_the_same_file_do_not_meet(tmp_path):
  path = tmp_path / "x"
  with files.replacing(path, shared=True) as one:
    one.write_text("one")
    with files.replacing(path, shared=True) as other:
      other.write_text("other")
  assert path.read_text() == "one" and names(tmp_path) == ["x"]


def test_half_a_last_line_is_left_out(tmp_path):
  path = tmp_path / "x.jsonl"
  for half in (b"", b"{", b'{"step": 2}', b"\0\0"):
    path.write_bytes(GOOD + half)
    assert files.read_json_lines(path) == [{"step": 1}]
    files.cut_half_line(path)
    assert path.read_bytes() == GOOD
  path.write_bytes(b"{")
  assert files.read_json_lines(path) == []
  files.cut_half_line(path)
  assert path.read_bytes() == b""


@pytest.mark.parametrize("bad", [b"", b"{", b"\xff", b"[" * 100_000, b'{"loss": 1}'])
def test_the_number_of_a_damaged_line_is_reported(tmp_path, bad):
  path = tmp_path / "x.jsonl"
  path.write_bytes(GOOD + bad + b"\n" + GOOD)
  with pytest.raises(errors.UserError, match=r"x\.jsonl, line 2, is damaged"):
    files.read_json_lines(path, check=lambda value: value["step"])


def test_lines_of_a_file_that_is_not_there(tmp_path):
  with pytest.raises(errors.UserError, match=r"x\.jsonl cannot be read"):
    files.read_json_lines(tmp_path / "x.jsonl")


def test_a_new_folder_is_whole_or_not_there(tmp_path):
  with pytest.raises(RuntimeError), files.new_folder(tmp_path / "x") as new:
    (new / "file").write_text("half")
    raise RuntimeError
  assert names(tmp_path) == []
  with files.new_folder(tmp_path / "x") as new:
    (new / "file").write_text("whole")
  assert names(tmp_path) == ["x"]
  plain = tmp_path / "plain"
  plain.mkdir()
  assert (tmp_path / "x").stat().st_mode == plain.stat().st_mode
  (tmp_path / "file").touch()
  for there in ("x", "file"):
    message = f"{there}: exists and is not an empty folder; choose another --out"
    with pytest.raises(errors.UserError, match=message):
      files.new_folder(tmp_path / there).__enter__()


def half_written(path, suffix, kind):
  """What a process had begun when it was killed."""
  left = path.with_name(f".{path.name}.{kind}{suffix}")
  left.mkdir() if suffix == ".partial" else left.write_text("half")
  if suffix == ".partial":
    (left / "half").write_text("x")
  return left


@pytest.mark.parametrize("name", ["x", "[a*?]", "a.b", "é\n"])
@pytest.mark.parametrize("suffix", [".partial", ".new"])
def test_what_a_kill_left_is_removed_and_what_lives_is_not(tmp_path, name, suffix):
  path = tmp_path / name
  write = files.new_folder if suffix == ".partial" else (
    lambda path: files.replacing(path, shared=True)
  )  # fmt: skip
  put = lambda new: (new / "file" if suffix == ".partial" else new).write_text("whole")
  others = [
    half_written(tmp_path / "other", suffix, "0123abcd"),
    half_written(tmp_path / f"{name}.y", suffix, "0123abcd"),
    half_written(path, suffix, "short"),
    half_written(path, ".txt", "0123abcd"),
  ]
  half_written(path, suffix, "0123abcd")
  half_written(path, suffix, "0_3ab2xy")  # as older versions named it
  with pytest.raises((errors.UserError, RuntimeError)), write(path) as one:
    put(one)
    with write(path) as other:
      assert one.exists()  # it lives
      put(other)
    assert path.exists()
    raise RuntimeError
  assert names(tmp_path) == sorted([name, *(left.name for left in others)])


def test_a_file_that_is_deleted_before_it_is_locked_is_made_again(
  tmp_path, monkeypatch
):
  """By another process, which took it for one that a kill left."""
  made, flock = [], files.fcntl.flock

  def delete_first(descriptor, operation):
    made.extend(names(tmp_path))
    if len(made) == 1:
      (tmp_path / made[0]).unlink()
    flock(descriptor, operation)

  monkeypatch.setattr(files.fcntl, "flock", delete_first)
  with files.own_file(tmp_path / "x") as new:
    assert new.exists() and len(made) == 2 and new.name == made[1] != made[0]
    new.unlink()


def test_where_there_are_no_locks_nothing_is_removed(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOLCK, "no locks")

  monkeypatch.setattr(files.fcntl, "flock", flock)
  left = half_written(tmp_path / "x", ".partial", "0123abcd")
  with files.new_folder(tmp_path / "x"):
    pass
  assert names(tmp_path) == sorted(["x", left.name])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_removes_what_was_begun(tmp_path, name):
  number = getattr(signal, name)
  with pytest.raises(KeyboardInterrupt) as raised, signals.as_exceptions():
    with files.new_folder(tmp_path / "x") as new, files.replacing(tmp_path / "y") as y:
      (new / "half").write_text("x")
      y.write_text("half")
      os.kill(os.getpid(), number)
      (new / "other").write_text("x")
  assert names(tmp_path) == []
  assert signals.status_of(raised.value) == 128 + number

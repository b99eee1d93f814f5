"""A program of a model costs itself its score, and nothing else: `programs.py`.

The default suite takes the fast ones; `-m slow` takes all.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import programs
import pytest

from skipalign_jax.evals.lm_eval import code_eval, folders, program_child
from skipalign_jax.runtime import errors

FAST = ["passes", "exit 87", "deep folders", "a child of a child", "writes to all"]


def check(name, outcome, seconds, left, files):
  assert outcome == programs.PROGRAMS[name][0], name
  assert left == [] and files == [], name
  assert seconds < 30, name


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("plain", [False, True])
def test_programs(name, plain):
  code_eval.notes()
  with programs.without_namespaces() if plain else contextlib.nullcontext():
    check(name, *programs.run(name))
  (note,) = code_eval.notes()
  assert "programs of the model ran" in note
  if plain:
    assert "as this user" in note and "container" in note


@pytest.mark.slow
@pytest.mark.parametrize("plain", [[], ["--plain"]])
def test_all_programs(plain):
  script = pathlib.Path(programs.__file__)
  done = subprocess.run(
    [sys.executable, script, *plain],
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(script.parents[2])},
    check=True,
  )
  print(done.stdout)
  found = [
    json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')
  ]
  is_plain = any("as this user" in note for *_, notes in found for note in notes)
  expected = [n for n, (_, anywhere, _) in programs.PROGRAMS.items() if anywhere]
  if not plain:
    if is_plain:
      pytest.skip("this system has no namespaces for us")
    expected = list(programs.PROGRAMS)
  assert [name for name, *_ in found] == expected
  for name, outcome, seconds, left, files, _ in found:
    if name == "ends its watcher" and plain:
      assert outcome == "failed"
    elif name == "memory in many":  # which of the limits is first
      assert outcome in ("failed", "timed out")
    else:
      check(name, outcome, seconds, left, files)


def test_folders_of_any_depth_are_removed(tmp_path):
  outside = tmp_path / "outside"
  outside.mkdir(mode=0o755)
  (outside / "file").write_text("a")
  made = tmp_path / "made"
  made.mkdir()
  here = os.getcwd()
  os.chdir(made)
  try:
    for depth in range(3000):
      os.mkdir("d")
      if depth % 500 == 0:
        os.symlink(outside, "link")
        os.mkfifo("pipe")
        os.mkdir("shut", 0)
      os.chdir("d")
  finally:
    os.chdir(here)
  (made / "d").chmod(0)
  assert folders.remove(str(made)) and not made.exists()
  assert (outside / "file").read_text() == "a"
  assert outside.stat().st_mode & 0o777 == 0o755
  assert folders.remove(str(made))  # not there


def test_a_folder_that_stays_is_a_note(monkeypatch):
  code_eval.notes()
  remove = folders.remove
  monkeypatch.setattr(folders, "remove", lambda folder: not remove(folder))
  assert code_eval.outcome("pass", timeout=2) == "passed"
  assert any("could not be removed" in note for note in code_eval.notes())
  assert code_eval.notes() == []


def test_a_system_that_starts_no_process_is_one_message(monkeypatch):
  monkeypatch.setattr(code_eval.time, "sleep", lambda _: None)
  monkeypatch.setattr(sys, "executable", "/no/such/python")
  with pytest.raises(errors.UserError, match=r"unsafe_code.*resume"):
    code_eval.outcome("pass", timeout=2)


@pytest.mark.parametrize(
  "reply", ["", "[]", "7", '{"outcome": "passed"}', '{"outcome": 1, "contained": []}']
)
def test_a_reply_that_is_not_one_is_a_failure(reply, monkeypatch, tmp_path):
  monkeypatch.setattr(code_eval.time, "sleep", lambda _: None)
  path = tmp_path / "x_child.py"
  path.write_text(f"print({reply!r})")
  monkeypatch.setattr(program_child, "__file__", str(path))
  assert code_eval.outcome("pass", timeout=2) == "failed"

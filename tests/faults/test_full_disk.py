"""A full disk at any moment of any command: one message, and the next try works.

The default suite lets no file grow. `-m slow` fails single calls, see full_disk.py.
"""

import collections
import contextlib
import errno
import io
import json
import subprocess
import sys
import tempfile

import disk_commands
import failing_saves
import full_disk
import pytest
import tiny
from file_limits import files_of

from skipalign_jax.runtime import compile_cache, errors

# Commands of which the default suite runs one each.
FAST = ("train", "import", "export", "evaluate", "compare", "plan", "distances", "show")


def in_this_process(module, arguments, variables):
  """(status, standard output, standard error) of a command."""
  printed = io.StringIO(), io.StringIO()
  with (
    contextlib.redirect_stdout(printed[0]),
    contextlib.redirect_stderr(printed[1]),
    pytest.MonkeyPatch.context() as patched,
    pytest.raises(SystemExit) as ended,
  ):
    patched.setattr(sys, "argv", [])
    errors.run_command(disk_commands.main_of(module, arguments))
  return ended.value.code, *(text.getvalue() for text in printed)


@pytest.fixture(scope="module")
def box(tmp_path_factory):
  return disk_commands.Box(tmp_path_factory.mktemp("disk"), in_this_process)


@pytest.mark.parametrize("name", FAST)
def test_files_that_may_not_grow_are_one_message(name, box, monkeypatch):
  monkeypatch.setattr(compile_cache, "_noted", [])
  command = disk_commands.COMMANDS[name]
  box.begin(command)
  with files_of(0):
    status, _, printed = box.run(command)
  assert status == 2
  assert not full_disk.not_one_message(status, printed, errno.EFBIG, box.path)
  command.part(box.out, {})
  if name != "train":  # which takes seconds
    status, _, printed = box.run(command)
    assert status == 0, printed
    assert command.prints or box.content(command)


# Some of the first calls are tried, and every N-th.
TRIED = {
  "train": (f"--calls={','.join(map(str, range(1, 60, 4)))}", "--every=90"),
  "train, caches at home": ("--first=3", "--every=200"),
  "train, adapters": ("--every=160",),
  "train, pairs": ("--every=90",),
  "resume": ("--every=90",),
  "import": ("--first=10", "--every=50"),
  "generate": ("--every=18",),
  "sweep --run": ("--every=300",),
}
OFTEN = ("--first=3", "--every=4")
MODES = "ENOSPC,ENOSPC:once"
OTHERS = "EROFS,EDQUOT,EACCES,EIO"


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
  """(command, errors, *flags) → the outcomes of full_disk.py, as it prints them."""
  library = failing_saves.build(tmp_path_factory.mktemp("storage"))
  if library is None:
    pytest.skip("there is no C compiler")
  variables = {
    **tiny.environment(1),
    "LD_PRELOAD": str(library),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }

  def run(name, errors, *flags):
    with tempfile.TemporaryDirectory(dir=failing_saves.MEMORY) as folder:
      done = subprocess.run(
        [
          sys.executable,
          full_disk.__file__,
          folder,
          name,
          f"--errors={errors}",
          *flags,
        ],
        env=variables,
        capture_output=True,
        text=True,
      )
    assert done.returncode == 0, done.stderr
    _, *found = map(json.loads, done.stdout.splitlines())
    counts = collections.Counter(outcome for *_, outcome in found)
    print(f"{name}: {done.stdout.splitlines()[0]}, {errors}: {dict(counts)}")
    assert counts.keys() <= {"message", "complete", "not reached"}, found
    return counts

  return run


@pytest.mark.slow
@pytest.mark.parametrize("name", disk_commands.COMMANDS)
def test_a_full_disk_at_the_calls_of_a_command(name, tried):
  counts = tried(name, MODES, *TRIED.get(name, OFTEN))
  assert counts["complete" if name == "generate" else "message"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "export", "evaluate", "distances"])
def test_other_errors_at_some_calls_of_a_command(name, tried):
  counts = tried(name, OTHERS, "--every=120" if name == "train" else "--every=9")
  assert counts["message"] > 3

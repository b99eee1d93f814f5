"""A full disk at any moment of any command: one message, and the next try works.

The default suite lets no file grow. `-m slow` fails single calls, see full_disk.py.
"""

import collections
import contextlib
import errno
import io
import json
import re
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


MODES = "ENOSPC,ENOSPC:once"
OTHERS = "EROFS,EDQUOT,EACCES,EIO"
# Each try takes seconds, and most of their calls are those of `train` and `evaluate`.
SOME = ("resume", "sweep --run")
# Each try takes seconds, of the others a tenth of it.
RUNS = ("train", "import", "generate", "evaluate", "sweep")
REST = [name for name in disk_commands.COMMANDS if name not in SOME]
LONG = [name for name in REST if re.split("[, ]", name)[0] in RUNS]
SHORT = [name for name in REST if name not in LONG]


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
  """(commands, *flags) → counts of the outcomes of full_disk.py per command."""
  library = failing_saves.build(tmp_path_factory.mktemp("storage"))
  if library is None:
    pytest.skip("there is no C compiler")
  variables = {
    **tiny.environment(1),
    "LD_PRELOAD": str(library),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }

  def run(names, *flags):
    with tempfile.TemporaryDirectory(dir=failing_saves.MEMORY) as folder:
      done = subprocess.run(
        [sys.executable, full_disk.__file__, folder, *names, *flags],
        env=variables,
        capture_output=True,
        text=True,
      )
    assert done.returncode == 0, done.stderr
    lines = list(map(json.loads, done.stdout.splitlines()))
    found = [line for line in lines if isinstance(line, list)]
    print(*flags, *(line for line in lines if line not in found))
    counts = collections.defaultdict(collections.Counter)
    for command, *_, outcome in found:
      counts[command][outcome] += 1
    for command, outcomes in counts.items():
      print(f"{command}: {dict(outcomes)}")
    wrong = [line for line in found if line[-1] not in FINE]
    assert not wrong, wrong
    return counts

  return run


FINE = ("message", "complete", "not reached")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("names", "how", "least"),
  [
    (LONG, ["--in_turn"], 90),
    (SHORT, [], 90),
    (SOME, ["--in_turn", "--every=6"], 8),
  ],
)
def test_a_full_disk_at_a_call_of_each_kind(names, how, least, tried):
  counts = tried(names, f"--errors={MODES}", *how)
  assert all(counts[name]["message"] > 1 for name in SHORT if name in names)
  assert sum(map(collections.Counter.total, counts.values())) > least


@pytest.mark.slow
@pytest.mark.parametrize(
  ("names", "every"), [(["train", "evaluate"], 12), (["export", "distances"], 3)]
)
def test_other_errors_at_some_calls(names, every, tried):
  counts = tried(names, f"--errors={OTHERS}", "--in_turn", f"--every={every}")
  assert sum(outcomes["message"] for outcomes in counts.values()) > 3

"""Command lines that end before any work load no library that loads slowly."""

import json
import os
import subprocess
import sys

import pytest
import tiny

from skipalign_jax import analyze, convert
from skipalign_jax.commands import analyze as commands_analyze
from skipalign_jax.hf import export

sys.path.append(str(tiny.ROOT / "benchmarks"))
import command_startup

SLOW = ("jax", "transformers", "datasets", "orbax", "matplotlib", "scipy", "pandas")
# Runs command lines in one process; prints the exit status of each, and what is newly
# loaded after it.
RUN = """
import contextlib, io, json, runpy, sys
results, loaded = [], set(sys.modules)
for module, *words in json.loads(sys.argv[1]):
  sys.argv[:] = [module, *words]
  out, err = contextlib.redirect_stdout, contextlib.redirect_stderr
  with out(io.StringIO()), err(io.StringIO()):
    try:
      runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
      status = leaving.code
  results.append([status, sorted(set(sys.modules) - loaded)])
  loaded = set(sys.modules)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
  cases = [command_startup.command_line(tiny.ROOT, c) for c in command_startup.CASES]
  command = [sys.executable, "-c", RUN, json.dumps(cases)]
  done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return dict(zip(command_startup.CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", command_startup.CASES)
def test_help_and_mistakes_load_nothing_slow(results, case):
  status, loaded = results[case]
  assert status == (0 if "--help" in case else 2)
  assert not set(SLOW) & set(loaded)


def test_every_command_has_cases():
  commands = {case.split()[0] for case in command_startup.CASES}
  files = (tiny.ROOT / "skipalign_jax").glob("*.py")
  runnable = {p.stem for p in files if "__main__" in p.read_text(encoding="utf-8")}
  runnable.remove("__main__")  # runs the others
  assert len(runnable) == 8 and runnable < commands


def test_choices_of_command_lines_are_those_of_the_work():
  assert convert.DTYPES == export.DTYPES
  assert analyze.MEASUREMENTS == tuple(commands_analyze.MEASUREMENTS)


# In place of a library that every command imports: Ctrl-C comes while it loads.
STOPS = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
SCRIPT = "import sys\nfrom skipalign_jax.__main__ import script\nsys.exit(script())\n"


@pytest.mark.parametrize("command", ["-m skipalign_jax.train", "-m skipalign_jax", ""])
def test_ctrl_c_while_a_command_imports_is_one_line(tmp_path, command):
  (tmp_path / "rich.py").write_text(STOPS)
  script = tmp_path / "skipalign"  # as pip writes it
  script.write_text(SCRIPT)
  done = subprocess.run(
    [sys.executable, *(command.split() or [script])],
    env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{tiny.ROOT}"},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_the_package_in_another_program_leaves_its_signals():
  program = (
    "import signal, skipalign_jax\n"
    "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
  )
  subprocess.run([sys.executable, "-c", program], check=True, cwd=tiny.ROOT)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_commands_say_that_they_need_linux(system):
  """Other programs can import the package all the same."""
  code = f"import sys; sys.platform = {system!r}; import skipalign_jax"
  as_command = f"import sys; sys.argv = ['-m']; {code}"
  done = subprocess.run([sys.executable, "-c", as_command], capture_output=True)
  assert done.returncode == 2 and done.stdout == b""
  assert done.stderr.startswith(b"error: the commands of skipalign_jax run on Linux")
  assert system.encode() in done.stderr and done.stderr.count(b"\n") == 1
  done = subprocess.run([sys.executable, "-c", code], capture_output=True)
  assert (done.returncode, done.stderr) == (0, b"")

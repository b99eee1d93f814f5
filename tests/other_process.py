"""Another process, which takes the lock of a folder."""

import contextlib
import subprocess
import sys

import tiny

_TAKES = """
import pathlib, sys
from rich import console
from skipalign_jax.runtime import locks
lock = locks.take(pathlib.Path(sys.argv[1]), "--out", console.Console(quiet=True))
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holding(folder):
  """The number of a process that is killed at the end of the block."""
  with subprocess.Popen(
    [sys.executable, "-c", _TAKES, str(folder)],
    cwd=tiny.ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as other:
    try:
      assert other.stdout.readline() == "held\n"
      yield other.pid
    finally:
      other.kill()


def is_refused(folder):
  """Whether another process cannot have the lock."""
  command = [sys.executable, "-c", _TAKES, str(folder)]
  done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, input=b"")
  assert done.returncode == 0 or b"is being written by" in done.stderr, done.stderr
  return done.returncode != 0

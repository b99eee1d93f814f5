"""Another process, which holds the lock of a folder."""

import contextlib
import subprocess
import sys

import tiny

_HOLDS = """
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
    [sys.executable, "-c", _HOLDS, str(folder)],
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

"""Saves of a tiny checkpoint whose N-th change of a file, and all that follow, fail.

python failing_saves.py ERRNO [once], with storage.c loaded, tries all N and
prints a line of JSON for each: the call, "message" or "saved", or what is wrong. Each
time step 1 is saved before, and step 2 is saved again after.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

import jax
import numpy as np
import saved_states

from skipalign_jax.hf import native
from skipalign_jax.runtime import checksums, errors, terminal
from skipalign_jax.training import checkpoint

SOURCE = pathlib.Path(__file__).parent / "storage.c"
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # saves sync all their files


def build(folder):
  """The library that makes storage fail; None without a C compiler."""
  library = folder / "storage.so"
  command = ["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"]
  with contextlib.suppress(FileNotFoundError):
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return library
  return None


class Storage:
  """Fails when it is asked to, as storage.c does."""

  def __init__(self, folder, number, once, below="run"):
    """`folder` has the log; calls in its folder `below` fail with errno `number`."""
    self._state, self._log = folder / "state", folder / "log"
    self.stop()
    names = {"BELOW": folder / below, "LOG": self._log, "STATE": self._state}
    names |= {"ERRNO": number, "ONCE": "1" if once else None}
    # Once and for all: other threads may read the environment at any time.
    for name, value in names.items():
      if value is not None:
        os.environ[f"FAULT_{name}"] = str(value)
      else:
        os.environ.pop(f"FAULT_{name}", None)

  def _set(self, after):
    with self._state.open("r+b" if self._state.exists() else "wb") as file:
      file.write(struct.pack("ii", 0, after))  # other processes have it mapped

  def begin(self, after):
    """Fails from the `after`-th call on; with 0 it only counts."""
    self._log.write_text("")
    self._set(after)

  def stop(self):
    """From now on nothing fails or is counted."""
    self._set(-1)

  @contextlib.contextmanager
  def failing(self, after):
    """As `begin`, in the block."""
    self.begin(after)
    try:
      yield
    finally:
      self.stop()

  def calls(self):
    """Kind and path of each call in the last block."""
    lines = self._log.read_text().splitlines()
    return [line.split(" ", 1)[1] for line in lines]


@contextlib.contextmanager
def printed_to(path):
  """In the block, what this process and its threads print goes to a file."""
  before = os.dup(1), os.dup(2)
  with path.open("w") as file:
    os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(before[0], 1), os.dup2(before[1], 2)
    os.close(before[0]), os.close(before[1])


def save(run, at):
  saved = checkpoint.Checkpoints(run, 1, False)
  try:
    saved.save(saved_states.state(float(at)), at, {"next": at}, None)
    saved.wait()
    return saved.newly_saved()
  finally:
    saved.close()


def outcome(run, reported, message, printed):
  """ "message" or "saved", or what is wrong."""
  steps = [p.name for p in (run / "checkpoints").iterdir() if p.name.isdecimal()]
  latest = max(map(int, steps))
  if printed:
    return f"printed: {printed}"
  if damage := checksums.damage(run / "checkpoints" / str(latest)):
    return f"{latest} is damaged: {damage}"
  found = native.open_arrays(run, latest, {"norm/weight": (2000,)})
  expected = saved_states.state(float(latest)).params["norm"]["weight"]
  if not np.array_equal(found["norm/weight"].read(), expected):
    return f"{latest} has other weights"
  if (latest == 2) != (reported == 2) and not message:
    return f"reported {reported}, latest {latest}, no message"
  if message is None:
    return "saved"
  return "message" if "; " in message and "\n" in message else f"message: {message}"


def attempt(folder, storage, after):
  """(the call that failed first, the outcome) of a save."""
  run, reported, message = folder / "run", None, None
  shutil.rmtree(run, ignore_errors=True)
  save(run, 1)
  with printed_to(folder / "printed"), storage.failing(after):
    try:
      reported = save(run, 2)
    except errors.UserError as error:
      message = str(error)
    except BaseException as error:  # of any kind: that is what is looked for
      message = repr(error)
  printed = (folder / "printed").read_text()
  calls = storage.calls()
  if not after or after > len(calls):
    return "", "not reached"
  found = outcome(run, reported, message, printed)
  before = {p.name for p in (run / "checkpoints").iterdir() if p.name.isdecimal()}
  with printed_to(folder / "printed"):
    save(run, 2)
  left = {p.name for p in (run / "checkpoints").iterdir()}
  # Where it was there in spite of the message, it is not saved again.
  if left != ({"1", "2"} if "2" in before else {"2"}) and left != {"2"}:
    found = f"not saved again after {found}"
  name = re.sub(r"[0-9a-f]{8,}", "#", calls[after - 1])
  return name.replace(str(run), ""), found


def main(number, *once):
  sys.unraisablehook = terminal.print_unraisable
  jax.config.update("jax_platforms", "cpu")
  with tempfile.TemporaryDirectory(dir=MEMORY) as name:
    folder = pathlib.Path(name)
    storage = Storage(folder, getattr(errno, number), once)
    attempt(folder, storage, 0)
    for after in range(1, len(storage.calls()) + 1):
      print(json.dumps(attempt(folder, storage, after)), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])

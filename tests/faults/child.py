"""A command of the project that kills itself at a named moment.

  python child.py MOMENT:CALL:SECONDS[:SIGNAL] MODULE ARGUMENTS…

SIGKILL, or another signal, comes SECONDS after the CALL-th call of what MOMENT names in
`MOMENTS`, for "worker" to one of the data workers; "never" lets it run. Where BATCHES
names a file, a line for each batch that was read is added: its number, and a digest of
its sample ids and tokens. Each save takes SLOW_SAVES seconds longer at its end.
"""

import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
import zlib

import orbax.checkpoint as ocp

from skipalign_jax import convert, train
from skipalign_jax.data import pipeline
from skipalign_jax.hf import native, safetensors_files
from skipalign_jax.runtime import checksums, errors
from skipalign_jax.training import step

# What a moment begins with: (owner, name).
MOMENTS = {
  "step": (pipeline.TrainIterator, "__next__"),
  "worker": (pipeline.TrainIterator, "__next__"),
  "save": (ocp.CheckpointManager, "save"),
  "checksums": (checksums, "size_and_checksum"),
  "evaluate": (None, "eval_step"),
  "export": (safetensors_files, "write_tensors"),
  "import": (native, "_write"),
  # After three files of JSON it is the turn of the folder, which is whole.
  "renamed": (pathlib.Path, "replace"),
  "claim": (native, "write_config"),
}


def die(seconds, number, worker):
  def end():
    time.sleep(seconds)
    pid = multiprocessing.active_children()[0].pid if worker else os.getpid()
    os.kill(pid, number)

  if seconds:
    threading.Thread(target=end, daemon=True).start()
  else:
    end()


def deadly(function, call, seconds, number=signal.SIGKILL, worker=False):
  """`function`, whose `call`-th call begins the end."""
  calls = 0

  def called(*args, **kwargs):
    nonlocal calls
    calls += 1
    if calls == call:
      die(seconds, number, worker)
    return function(*args, **kwargs)

  return called


def arm(moment, call, seconds, number="SIGKILL"):
  owner, name = MOMENTS[moment]
  how = int(call), float(seconds), getattr(signal, number)
  if owner is not None:
    function = getattr(owner, name)
    setattr(owner, name, deadly(function, *how, moment == "worker"))
    return
  compile_steps = step.compile_steps

  def compiled(*args):
    train_step, eval_step = compile_steps(*args)
    return train_step, deadly(eval_step, *how)

  step.compile_steps = compiled


def note_batches(path):
  take = pipeline.TrainIterator.__next__

  def noted(self):
    number, batch = self.get_state()["next_index"], take(self)
    digest = zlib.crc32(batch["tokens"].tobytes(), zlib.crc32(batch["sample_ids"]))
    with open(path, "a") as file:
      file.write(f"{number} {digest}\n")
    return batch

  pipeline.TrainIterator.__next__ = noted


def slow_saves(seconds):
  write = checksums.write

  def slow(folder):
    time.sleep(seconds)
    write(folder)

  checksums.write = slow


if __name__ == "__main__":
  moment, module, sys.argv[1:] = sys.argv[1], sys.argv[2], sys.argv[3:]
  if "BATCHES" in os.environ:
    note_batches(os.environ["BATCHES"])
  if "SLOW_SAVES" in os.environ:
    slow_saves(float(os.environ["SLOW_SAVES"]))
  if moment != "never":
    arm(*moment.split(":"))
  errors.run_command({"train": train.main, "convert": convert.main}[module])

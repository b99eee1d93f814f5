"""Commands whose N-th change of a file fails, alone or with all that follow.

python full_disk.py FOLDER COMMAND… [--errors=ENOSPC,EIO:once] [--in_turn] [--first=N]
    [--every=N]

With storage.c loaded. Each COMMAND is one of `disk_commands.COMMANDS`; all that it
writes is below FOLDER/box. One call of each kind is tried (see `kind`) that no command
of the same module had before, or the first N calls; of these every N-th; with each of
the errors, or with one of them in turn. After a message the same command runs again
without a fault, and must leave what an undisturbed one leaves.

A line of JSON for each try: the command, the error, the call's number, the call, and
"message" or "complete", or what is wrong. Before them one for each command, with the
number of its calls; at the end one with the seconds of computing.
"""

import argparse
import atexit
import collections
import errno
import faulthandler
import importlib
import json
import os
import pathlib
import re
import sys
import threading
import traceback

import disk_commands
import failing_saves

from skipalign_jax.runtime import errors

SECONDS = 200  # for a command, on a machine with other work
WITHIN = ("checkpoints", "rows", "xla")  # folders where a file's name does not matter
MODULES = (  # loaded once; each command is a fork, made before JAX has a device
  *("train", "convert", "generate", "evaluate", "plan", "analyze", "show"),
  *("sweep.__main__", "sweep.collect", "sweep.execute", "training.run"),
  *(f"commands.{name}" for name in ("analyze", "convert", "evaluate", "generate")),
  *("commands.plan", "commands.show", "evals.needle", "evals.heatmap"),
)
LIBRARIES = (
  *("grain.python", "pandas", "pyarrow.compute", "safetensors.numpy"),
  *("matplotlib.figure", "matplotlib.backends.backend_agg"),
)


def forked(function, printed):
  """(status, standard output and error) of a fork that calls a function.

  `printed`: a folder. A fork that takes too long says where it waits.
  """
  names = [printed / name for name in ("out", "err")]
  sys.stdout.flush()
  if not (pid := os.fork()):
    _child(function, names)
  status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  return status, *(name.read_text() for name in names)


def _child(function, names):
  """Ends as a process of its own does."""
  for number, name in enumerate(names, 1):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
  faulthandler.dump_traceback_later(SECONDS, exit=True)
  try:
    function()
    status = 0
  except SystemExit as ended:
    status = ended.code or 0
  except BaseException:
    traceback.print_exc()
    status = 1
  threading._shutdown()
  atexit._run_exitfuncs()
  sys.stdout.flush(), sys.stderr.flush()
  os._exit(status)


class Trial:
  """One command, and what it does when storage fails."""

  def __init__(self, folder, name):
    self._folder, self._printed = folder, folder / "printed"
    self._printed.mkdir(exist_ok=True)
    self._command = disk_commands.COMMANDS[name]
    self.fail_with("ENOSPC")
    self._box = disk_commands.Box(folder, self._run)
    self._worked = []  # what was there before a second try that worked
    self.whole, self.calls = self._undisturbed()

  def fail_with(self, error):
    """From now on: the name of an error number, with ":once" or without."""
    name, _, once = error.partition(":")
    self._number = getattr(errno, name)
    self._storage = failing_saves.Storage(self._folder, self._number, once, "box")

  def _run(self, module, arguments, variables, after=None):
    """Runs a command in a fork, whose `after`-th call fails; 0: is only counted."""

    def work():
      os.environ.update(variables)
      main = disk_commands.main_of(module, arguments)
      if after is not None:
        self._storage.begin(after)  # to the end of the process
      errors.run_command(main)

    try:
      return forked(work, self._printed)
    finally:
      self._storage.stop()

  def _undisturbed(self):
    """(what the command leaves, its calls)."""
    self._box.begin(self._command)
    status, out, err = self._box.run(self._command, after=0)
    assert status == 0, err
    return self._content(out), self._storage.calls()

  def _content(self, printed):
    """What the command has left and printed, as JSON; its error where that fails."""
    read = lambda: print(json.dumps(self._box.content(self._command), sort_keys=True))
    status, out, err = forked(read, self._printed)  # TensorStore has threads
    return (err if status else out) + self._command.prints * printed

  def _wrong_part(self):
    """What is wrong with what a failed command has left; "" if nothing is."""
    whole = json.loads(self.whole.splitlines()[0])
    part = lambda: self._command.part(self._box.out, whole)
    return forked(part, self._printed)[2]

  def attempt(self, after):
    """(the call that failed first, what came of it)."""
    self._box.begin(self._command)
    status, out, err = self._box.run(self._command, after=after)
    calls = self._storage.calls()
    if after > len(calls):
      return "", "not reached"
    return self.short(calls[after - 1]), self._outcome(status, out, err)

  def kinds(self):
    """Kind → number of its first call."""
    found = {}
    for number, call in enumerate(self.calls, 1):
      found.setdefault(kind(self.short(call)), number)
    return found

  def short(self, call):
    """A call without what differs from try to try."""
    call = call.replace(str(self._box.path), "")
    return re.sub(r"[0-9a-f]{8,}|\.\d{10,}\S*", "#", call)

  def _outcome(self, status, out, err):
    if status not in (0, self._command.status):
      return f"status {status}, printed: {err}"
    if wrong := not_one_message(status, err, self._number, self._box.path):
      return wrong
    if status == 0:
      same = self._content(out) == self.whole
      return "complete" if same else "status 0, but another output"
    if wrong := self._wrong_part():
      return f"after {err}: {wrong}"
    if (left := disk_commands.state(self._box.path)) in self._worked:
      return "message"
    status, out, again = self._box.run(self._command)
    if status or (found := self._content(out)) != self.whole:
      return f"after {err}: not as undisturbed: {again or found}, {self.whole}"
    self._worked.append(left)
    return "message"


def kind(call):
  """What a call does, and the name of its file; not its number in the name.

  In some folders what it does is enough: all calls of a checkpoint are those of
  `failing_saves`.
  """
  what, path = call.split(" ", 1)
  for name in WITHIN:
    path = re.sub(f"/{name}/.*", f"/{name}/", path)
  return f"{what} {re.sub('[0-9]+', '#', path)}"


def not_one_message(status, printed, number, box):
  """What is wrong with how a command has failed; "" if nothing is."""
  lines = [line for line in printed.splitlines() if not line.startswith("note: ")]
  text = "\n".join(lines)
  if status == 0:
    return f"status 0, printed: {text}" if text.strip() else ""
  if "Traceback" in text:
    return f"a traceback: {text}"
  if text.count("error: ") != 1 or not text.startswith("error: "):
    return f"not one message: {text}"
  expected = {"reason": os.strerror(number), "place": str(box), "remedy": "; "}
  if lacks := [name for name, part in expected.items() if part not in text]:
    return f"no {', '.join(lacks)}: {text}"
  return ""


def chosen(trial, first, seen):
  """Numbers of calls to try; `seen`: the kinds of earlier commands, which grow."""
  if first:
    return range(1, min(first, len(trial.calls)) + 1)
  kinds = trial.kinds()
  new = kinds.keys() - seen
  seen |= new
  return sorted(kinds[one] for one in new)


def tries(calls, names, in_turn):
  """(error, number of a call) of each try."""
  for place, after in enumerate(calls):
    for name in [names[place % len(names)]] if in_turn else names:
      yield name, after


def main(argv):
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("commands", choices=disk_commands.COMMANDS, nargs="+")
  parser.add_argument("--errors", default="ENOSPC")
  parser.add_argument("--in_turn", action="store_true")
  parser.add_argument("--first", type=int, default=0)
  parser.add_argument("--every", type=int, default=1)
  args = parser.parse_args(argv)
  folder, seen = args.folder.absolute(), collections.defaultdict(set)
  box = folder / "box"
  places = {"HOME": box / "home", "TMPDIR": box / "tmp"}
  places["MPLCONFIGDIR"] = folder / "matplotlib"
  os.environ |= {name: str(path) for name, path in places.items()}
  for name in (*(f"skipalign_jax.{one}" for one in MODULES), *LIBRARIES):
    importlib.import_module(name)
  for command in args.commands:
    trial = Trial(folder, command)
    print(json.dumps({"command": command, "calls": len(trial.calls)}), flush=True)
    before = seen[disk_commands.COMMANDS[command].words.split()[0]]
    calls = chosen(trial, args.first, before)[args.every - 1 :: args.every]
    for error, after in tries(calls, args.errors.split(","), args.in_turn):
      trial.fail_with(error)
      print(json.dumps([command, error, after, *trial.attempt(after)]), flush=True)
  print(json.dumps({"seconds": round(sum(os.times()[:4]))}))


if __name__ == "__main__":
  main(sys.argv[1:])

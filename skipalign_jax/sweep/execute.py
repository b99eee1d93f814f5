"""Lists the runs of a sweep, makes what is missing, or writes the commands for it."""

import shlex
import signal
import subprocess
import sys
from typing import IO

from skipalign_jax.runtime import errors, files, signals, storage, terminal
from skipalign_jax.sweep import plan as plan_lib
from skipalign_jax.sweep import runs


def show(plan: plan_lib.Plan, console: terminal.Console) -> None:
  """Prints a paragraph per run, with the reason if it cannot be made."""
  console.print(f"{plan.sweep.title}: {len(plan.sweep.runs)} runs in {plan.out}\n")
  for name, one in plan.sweep.runs.items():
    console.print(f"{name}: {_status(plan, name)}")
    what = one.config or f"model {one.model}"
    console.print(f"  {what} {runs.describe(one.changes)}".rstrip())
    if one.config:
      console.print(f"  {plan.workdir(name)}")
  evaluations = ", ".join(plan.sweep.evaluations) or "none"
  console.print(f"\nevaluations of each: {evaluations}")


def _status(plan: plan_lib.Plan, name: str) -> str:
  try:
    plan.check(name)
    return plan.status(name)
  except errors.UserError as error:
    return f"cannot run: {str(error).splitlines()[0]}"


def run(plan: plan_lib.Plan, console: terminal.Console) -> int:
  """Makes what is missing, run by run.

  A run that fails is reported at the end and does not stop the others.

  Returns:
    0; 1 if a run failed; 128 + its number after a signal.
  """
  failed: dict[str, str] = {}
  count = len(plan.sweep.runs)
  for i, name in enumerate(plan.sweep.runs, 1):
    try:
      status = plan.status(name)
      plan.check(name)
    except errors.UserError as error:
      failed[name] = str(error).splitlines()[0]
      console.print(f"run {i} of {count}, {name}\n  cannot run: {failed[name]}")
      continue
    console.print(f"run {i} of {count}, {name}: {status}")
    for command in plan.todo(name):
      console.print(f"  {shlex.join(['python', *command])}")
      status, stopped = call([sys.executable, *command])
      if stopped:
        console.print("stopped; the same command resumes here")
        return stopped
      if status:
        task = command[2] if command[1] == plan_lib.EVALUATE else "training"
        failed[name] = f"{task} ended with status {status}"
        console.print(f"  failed: {failed[name]}")
        if command[1] == plan_lib.TRAIN:
          break  # nothing to evaluate
  if failed:
    reasons = "\n".join(f"  {name}: {why}" for name, why in failed.items())
    console.print(f"{len(failed)} of {count} runs failed:\n{reasons}")
    return 1
  console.print(f"all {count} runs are done; --collect makes the tables")
  return 0


def call(command: list[str], output: IO[str] | None = None) -> tuple[int, int]:
  """Runs a command and waits for its end.

  A signal is passed on, and the wait continues, because training saves its step. The
  command has a process group of its own, so that Ctrl-C reaches it only once.

  Args:
    command: its arguments.
    output: an open file for what it prints, except for errors; None prints it here.

  Returns:
    Its exit status, and 128 + the number of a signal that came; 0 if none did.
  """
  stopped = 0
  process = subprocess.Popen(command, process_group=0, stdout=output)

  def pass_on(number, _):
    nonlocal stopped
    stopped = 128 + number
    process.send_signal(number)

  previous = {n: signal.signal(n, pass_on) for n in signals.ending()}
  try:
    return process.wait(), stopped
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def write_commands(plan: plan_lib.Plan, console: terminal.Console) -> None:
  """Writes OUT/commands.txt, a shell line per run, and prints it.

  Raises:
    UserError: a run cannot be made or needs results of others; or OUT cannot be
      written.
  """
  if plan.sweep.targets:
    raise errors.UserError(
      "--commands: the runs of this sweep choose their NTK target from results; use "
      "--run --rows=NAME on each machine"
    )
  lines = []
  for name in plan.sweep.runs:
    try:
      plan.check(name)
    except errors.UserError as error:
      raise errors.UserError(f"run {name!r}: {error}") from error
    commands = [plan.train_command(name)] if plan.sweep.runs[name].config else []
    commands += [plan.evaluate_command(name, e) for e in plan.sweep.evaluations]
    lines.append(" && ".join(shlex.join(["python", *c]) for c in commands))
  path = plan.out / "commands.txt"
  try:
    plan.out.mkdir(parents=True, exist_ok=True)
    files.write_text(path, "\n".join(lines) + "\n")
  except OSError as error:
    raise errors.UserError(
      f"--out={plan.out} cannot be written: {storage.explain(error)}"
    ) from error
  console.print("\n".join(lines))
  console.print(
    f"\nwritten to {path}; on SLURM, from the repository:\n"
    f"sbatch --array=1-{len(lines)} launch/slurm_array.sbatch {path}"
  )

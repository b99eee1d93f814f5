"""Runs a table of trainings: python -m skipalign_jax.sweep --config=FILE[:tiny].

Without anything else it lists the rows: config, changes, workdir and how far each has
come. --run trains and evaluates them here, one after the other; started again it goes
on where it stopped. --commands writes a shell line a row, for other machines. --collect
puts results into the paper's tables.

  --out=DIR                  folder of the sweep; by default the sweep's own
  --rows=NAME,NAME           only these rows, by the names of their folders
  --config.KEY=VALUE         a key of every training; a row's own changes win
  --eval.NAME.OPTION=VALUE   an option of the evaluation NAME, for every row
"""

import argparse
import pathlib
import shlex
import signal
import subprocess
import sys

from skipalign_jax.runtime import errors, terminal
from skipalign_jax.sweep import collect, runs
from skipalign_jax.sweep import plan as plan_lib

WHAT = {
  "list": "the rows, and how far each has come (without any of these, too)",
  "run": "trains and evaluates what is missing, row by row",
  "commands": "writes a shell line a row",
  "collect": "makes the tables",
}
USAGE = """python -m skipalign_jax.sweep --config=FILE[:variant] [--out=DIR]
    [--rows=NAME,NAME] [--list | --run | --commands | --collect]
    [--config.KEY=VALUE …] [--eval.NAME.OPTION=VALUE …]"""


def main(argv: list[str] | None = None) -> int:
  """Lists, runs, writes commands or collects; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m skipalign_jax.sweep",
    usage=USAGE,
    description=__doc__,
    formatter_class=terminal.HelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--config", required=True, help="file with get_sweep(variant)")
  parser.add_argument("--out", default="", help="folder of the sweep")
  parser.add_argument("--rows", default="", help="only these, comma-separated")
  what = parser.add_mutually_exclusive_group()
  for name, does in WHAT.items():
    what.add_argument(f"--{name}", action="store_true", help=does)
  args, others = parser.parse_known_args(argv)
  overrides, options = _split(others)
  sweep = runs.load(args.config)
  if args.rows:
    sweep = runs.select(sweep, args.rows.split(","))
  out = pathlib.Path(args.out or sweep.out)
  plan = plan_lib.Plan(sweep, out, overrides, options)
  console = terminal.Console()
  if args.run:
    return run(plan, console)
  if args.commands:
    write_commands(plan, console)
  elif args.collect:
    stem = pathlib.Path(args.config.partition(":")[0]).stem
    collect.run(plan, stem, console)
  else:
    show(plan, console)
  return 0


def _split(arguments: list[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
  """--config.… as they are, and the options of --eval.… by evaluation."""
  overrides: list[str] = []
  options: dict[str, dict[str, str]] = {}
  for argument in arguments:
    key, equals, value = argument.partition("=")
    parts = key.split(".", 2)
    if key.startswith("--config.") and equals:
      overrides.append(argument)
    elif parts[0] == "--eval" and len(parts) == 3 and equals:
      options.setdefault(parts[1], {})[parts[2]] = value
    else:
      raise errors.UserError(f"unexpected argument {argument!r}\nusage: {USAGE}")
  return overrides, options


def show(plan: plan_lib.Plan, console: terminal.Console) -> None:
  """Prints a paragraph a row; a row that cannot run says why."""
  console.print(f"{plan.sweep.title}: {len(plan.sweep.runs)} rows in {plan.out}\n")
  for name, row in plan.sweep.runs.items():
    console.print(f"{name}: {_status(plan, name)}")
    what = row.config or f"model {row.model}"
    console.print(f"  {what} {runs.describe(row.changes)}".rstrip())
    if row.config:
      console.print(f"  {plan.workdir(name)}")
  evaluations = ", ".join(plan.sweep.evaluations) or "none"
  console.print(f"\nevaluations of each: {evaluations}")


def _status(plan: plan_lib.Plan, name: str) -> str:
  try:
    plan.check(name)
  except errors.UserError as error:
    return f"cannot run: {str(error).splitlines()[0]}"
  return plan.status(name)


def run(plan: plan_lib.Plan, console: terminal.Console) -> int:
  """Makes what is missing, row by row.

  A row that fails is told at the end, the others go on.

  Returns:
    0, 1 if a row failed, 128 + its number after a signal.
  """
  failed: dict[str, str] = {}
  count = len(plan.sweep.runs)
  for i, name in enumerate(plan.sweep.runs, 1):
    console.print(f"row {i} of {count}, {name}: {plan.status(name)}")
    try:
      plan.check(name)
    except errors.UserError as error:
      failed[name] = str(error).splitlines()[0]
      console.print(f"  cannot run: {failed[name]}")
      continue
    for command in plan.todo(name):
      console.print(f"  {shlex.join(['python', *command])}")
      status, stopped = call([sys.executable, *command])
      if stopped:
        console.print("stopped; the same command goes on from here")
        return stopped
      if status:
        task = command[2] if command[1] == plan_lib.EVALUATE else "training"
        failed[name] = f"{task} ended with status {status}"
        console.print(f"  failed: {failed[name]}")
        if command[1] == plan_lib.TRAIN:
          break  # nothing to evaluate
  if failed:
    told = "\n".join(f"  {name}: {why}" for name, why in failed.items())
    console.print(f"{len(failed)} of {count} rows failed:\n{told}")
    return 1
  console.print(f"all {count} rows are done; --collect makes the tables")
  return 0


def call(command: list[str]) -> tuple[int, int]:
  """Runs a command to its end.

  A signal is passed on and the command's end waited for: training saves its step. In a
  process group of its own, so that Ctrl-C reaches it once, through us.

  Returns:
    Its exit status, and 128 + the number of a signal that came; 0 if none did.
  """
  stopped = 0
  process = subprocess.Popen(command, process_group=0)

  def pass_on(number, _):
    nonlocal stopped
    stopped = 128 + number
    process.send_signal(number)

  before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
  try:
    return process.wait(), stopped
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def write_commands(plan: plan_lib.Plan, console: terminal.Console) -> None:
  """Writes OUT/commands.txt, a shell line a row, and prints it."""
  if plan.sweep.targets:
    raise errors.UserError(
      "--commands: rows of this sweep choose their NTK target on the way; run "
      "--run --rows=NAME on each machine"
    )
  lines = []
  for name in plan.sweep.runs:
    try:
      plan.check(name)
    except errors.UserError as error:
      raise errors.UserError(f"row {name!r}: {error}") from error
    commands = [plan.train_command(name)] if plan.sweep.runs[name].config else []
    commands += [plan.evaluate_command(name, e) for e in plan.sweep.evaluations]
    lines.append(" && ".join(shlex.join(["python", *c]) for c in commands))
  path = plan.out / "commands.txt"
  try:
    plan.out.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  except OSError as error:
    raise errors.UserError(f"--out={plan.out} cannot be written: {error}") from error
  console.print("\n".join(lines))
  console.print(
    f"\nwritten to {path}; on SLURM, from the repository:\n"
    f"sbatch --array=1-{len(lines)} launch/slurm_array.sbatch {path}"
  )


if __name__ == "__main__":
  errors.run_command(main)

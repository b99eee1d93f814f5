"""Runs a table of trainings: python -m skipalign_jax.sweep --config=FILE[:tiny].

Without any other flag it lists the runs: config, changes, workdir and how far each has
come. --run trains and evaluates them here, one after the other; started again it
resumes where it stopped. --commands writes a shell line per run, for other machines.
--collect puts results into the paper's tables.

  --out=DIR                  folder of the sweep; by default the sweep's own
  --rows=NAME,NAME           only these runs, by the names of their folders
  --config.KEY=VALUE         a key of every training; a run's own changes win
  --eval.NAME.OPTION=VALUE   an option of the evaluation NAME, for every run
"""

import argparse
import pathlib

from skipalign_jax.runtime import arguments, errors, paths, terminal
from skipalign_jax.sweep import runs

ACTIONS = {
  "list": "the runs, and how far each has come (the default)",
  "run": "trains and evaluates what is missing, run by run",
  "commands": "writes a shell line per run",
  "collect": "makes the tables",
}
FLAGS = ("--config", "--out", "--rows", *(f"--{name}" for name in ACTIONS))
USAGE = """python -m skipalign_jax.sweep --config=FILE[:variant] [--out=DIR]
    [--rows=NAME,NAME] [--list | --run | --commands | --collect]
    [--config.KEY=VALUE …] [--eval.NAME.OPTION=VALUE …]"""


def main(argv: list[str] | None = None) -> int:
  """Lists, runs, writes commands or collects; returns the exit status."""
  args, others = _parser().parse_known_args(argv)
  overrides, options = _split(others)
  sweep = runs.load(args.config)
  if args.rows:
    sweep = runs.select(sweep, args.rows.split(","))
  # Imported once the command line is understood: JAX takes a second to load.
  from skipalign_jax.sweep import collect, execute
  from skipalign_jax.sweep import plan as plan_lib

  out = paths.output(args.out or sweep.out, f"--out={args.out or sweep.out}")
  plan = plan_lib.Plan(sweep, out, overrides, options)
  console = terminal.Console()
  if args.run:
    return execute.run(plan, console)
  if args.commands:
    execute.write_commands(plan, console)
  elif args.collect:
    stem = pathlib.Path(args.config.partition(":")[0]).stem
    collect.run(plan, stem, console)
  else:
    execute.show(plan, console)
  return 0


def _parser() -> argparse.ArgumentParser:
  # Not arguments.Parser: arguments that it does not know are for `_split`.
  parser = argparse.ArgumentParser(
    prog="python -m skipalign_jax.sweep",
    usage=USAGE,
    description=__doc__,
    formatter_class=terminal.HelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--config", required=True, help="file with get_sweep(variant)")
  parser.add_argument("--out", default="", help="folder of the sweep")
  parser.add_argument("--rows", default="", help="only these runs, comma-separated")
  actions = parser.add_mutually_exclusive_group()
  for name, does in ACTIONS.items():
    actions.add_argument(f"--{name}", action="store_true", help=does)
  return parser


def _split(
  unknown: list[str],
) -> tuple[list[str], dict[str, dict[str, str]]]:
  """--config.… as they are, and the options of --eval.… by evaluation.

  Raises:
    UserError: an argument that is neither.
  """
  overrides: list[str] = []
  options: dict[str, dict[str, str]] = {}
  for argument in unknown:
    key, equals, value = argument.partition("=")
    parts = key.split(".", 2)
    if key.startswith("--config.") and equals:
      overrides.append(argument)
    elif parts[0] == "--eval" and len(parts) == 3 and equals:
      options.setdefault(parts[1], {})[parts[2]] = value
    elif key.startswith(("--config.", "--eval.")):
      form = "--config.KEY=VALUE and --eval.NAME.OPTION=VALUE"
      raise errors.UserError(f"unexpected argument {argument!r}; the forms are {form}")
    else:
      message = arguments.unexpected(argument, FLAGS)
      raise errors.UserError(f"{message}\nusage: {USAGE}")
  return overrides, options


if __name__ == "__main__":
  errors.run_command(main)

"""Runs the study: python -m studies.smollm2_far [--status] [--gate] [--minutes=N].

Units that are missing are made one after the other, those of the gate first; each
writes its results into studies/smollm2_far/results. The same command resumes. What
training and evaluation print, scores too, goes to runs/smollm2_far/printed.txt: nobody
reads it before an arm is complete. README.md there has the plan.
"""

import pathlib
import subprocess
import time
from collections.abc import Sequence

from skipalign_jax.runtime import arguments, errors, terminal

PRINTED = pathlib.Path("runs/smollm2_far/printed.txt")


def main(argv: list[str] | None = None) -> int:
  """Makes units, or says which are missing; returns the exit status."""
  parser = arguments.Parser(prog="python -m studies.smollm2_far", description=__doc__)
  add = parser.add_argument
  add("--status", action="store_true", help="what is done, how long the rest takes")
  add("--gate", action="store_true", help="only the gate")
  add("--minutes", type=float, default=0, help="begin no unit after so long; 0: all")
  add("--commit", action="store_true", help="commit the results of each unit")
  args = parser.parse_args(argv)
  # These load JAX, which --help and mistakes in the command line do not need.
  from studies.smollm2_far import decision, units

  console = terminal.Console()
  study = units.Study()
  if args.status:
    for line in units.status(study, decision.all_units(study)):
      console.print(line)
    return 0
  _prepare(console)
  begin = time.monotonic()
  late = lambda: args.minutes and time.monotonic() - begin > 60 * args.minutes
  status = _make(study, units.of_gate(), late, args.commit, console)
  if status or late() or not decision.gate_is_done(study):
    return status
  report = decision.decide(study)
  if not report.passed:
    console.print(
      "the base chooses too few answers inside its window; the study ends here"
    )
    return 0
  if args.gate:
    console.print(f"the gate is done: {decision.path(study)}")
    return 0
  return _make(study, units.of_study(report.decided), late, args.commit, console)


def _prepare(console: terminal.Console) -> None:
  """Checks the files and makes the dialogues.

  Raises:
    UserError: a file is missing or cannot be used.
  """
  from studies.smollm2_far import dialogues, plan, units

  units.check_data()
  path = pathlib.Path(plan.DIALOGUES)
  if not path.exists():
    counts = dialogues.make(plan.CHATS, plan.WEIGHTS, path, plan.MAX_TOKENS)
    console.print(f"{path}: {counts}")


def _make(study, missing: Sequence, late, commit: bool, console) -> int:
  """Makes units one after the other; returns the exit status."""
  from skipalign_jax.sweep import execute
  from studies.smollm2_far import units

  missing = [unit for unit in missing if not study.is_done(unit)]
  PRINTED.parent.mkdir(parents=True, exist_ok=True)
  for number, unit in enumerate(missing, 1):
    if late():
      console.print(f"{len(missing) - number + 1} units are left")
      return 0
    console.print(f"unit {number} of {len(missing)}: {unit.name}")
    try:
      with PRINTED.open("a", encoding="utf-8") as output:
        made = units.make(study, unit, lambda one: execute.call(one, output))
    except units.Failed as failed:
      console.print(f"{unit.name} ended with status {failed.args[0]}; it resumes here")
      return int(failed.args[0])
    if commit:
      _commit(unit.name, made)
  return 0


def _commit(name: str, made: Sequence[pathlib.Path]) -> None:
  paths = list(map(str, made))
  try:
    subprocess.run(["git", "add", "--", *paths], check=True)
    message = f"Study far: {name}"
    subprocess.run(["git", "commit", "-qm", message, "--", *paths], check=True)
  except (OSError, subprocess.CalledProcessError) as error:
    raise errors.UserError(
      f"the results of {name} are written and cannot be committed: {error}"
    ) from error


if __name__ == "__main__":
  errors.run_command(main)

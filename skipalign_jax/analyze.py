"""What a run trains, measured and drawn: python -m skipalign_jax.analyze WHAT …

  distances  relative distances over the whole data set (SkipAlign, Figure 2)
  coverage   positions and distances that occur, gaps
  diagram    a few dialogues under each strategy (Figure 1)
  rope       how far RoPE's pairs turn, in pretraining and in the run
  training   losses and evaluations of runs, over steps
  draw       the picture of such a JSON again

Each writes WHAT.json to --out (runs/analysis) and WHAT.png, which is drawn from
the JSON alone. --strategies=contiguous,skip_outer,skip_outer/uniform names
strategies and gaps, --samples=N takes only the first N dialogues (diagram: N of
several turns, 3 by default), --draws=N draws with N seeds.
"""

import sys
from collections.abc import Sequence
from typing import Any

from skipalign_jax import cli
from skipalign_jax import config as config_lib
from skipalign_jax.runtime import arguments, errors, terminal

USAGE = """
  python -m skipalign_jax.analyze distances|coverage|diagram|rope
    --config=FILE[:variant] [--strategies=A,B/GAPS] [--samples=N] [--draws=N]
    [--out=DIR] [--config.key=value …]
  python -m skipalign_jax.analyze training WORKDIR … [--out=DIR]
  python -m skipalign_jax.analyze draw FILE.json …"""
MEASUREMENTS = ("distances", "coverage", "diagram", "rope")
COMMANDS = (*MEASUREMENTS, "training", "draw")
OUT = "runs/analysis"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command, by default that of sys.argv; returns the exit status."""
  argv = sys.argv if argv is None else argv
  what, rest = (argv[1], list(argv[2:])) if len(argv) > 1 else ("", [])
  if what in ("", "-h", "--help") or {"-h", "--help"} & set(rest):
    terminal.Console().print(f"{__doc__}\nusage: {USAGE}")
    return 0 if what else 2
  if what not in COMMANDS:
    raise errors.UserError(f"{arguments.unexpected(what, COMMANDS)}\nusage: {USAGE}")
  if what == "training":
    workdirs, out = _workdirs(rest)
  elif what in MEASUREMENTS:
    config, flags = _config(rest)
  # Imported once the command line is understood: JAX takes a second to load.
  from skipalign_jax.commands import analyze

  if what == "draw":
    analyze.redraw_all(rest)
  elif what == "training":
    analyze.draw_training(workdirs, out)
  else:
    analyze.draw_measurement(what, config, flags)
  return 0


def _workdirs(words: list[str]) -> tuple[list[str], str]:
  """The arguments of `training`: workdirs and --out."""
  flags = [word for word in words if word.startswith("--")]
  for flag in flags:
    if not flag.startswith("--out="):
      raise errors.UserError(f"{arguments.unexpected(flag, ['--out'])}\nusage: {USAGE}")
  workdirs = [word for word in words if not word.startswith("--")]
  if not workdirs:
    raise errors.UserError(f"training needs the workdirs of runs\nusage: {USAGE}")
  return workdirs, flags[-1].removeprefix("--out=") if flags else OUT


def _config(words: list[str]) -> tuple[config_lib.ConfigDict, dict[str, Any]]:
  """The arguments of a measurement: the config and the command's own flags."""
  config, flags = cli.parse(
    ["analyze", *words],
    USAGE,
    strategies=cli.Flag("", "NAME or NAME/GAPS, with commas. Empty: a selection."),
    samples=cli.Flag(0, "Dialogues to read. 0: all."),
    draws=cli.Flag(1, "Draws of positions per dialogue."),
    out=cli.Flag(OUT, "Folder of the results."),
  )
  if flags["samples"] < 0 or flags["draws"] < 1:
    raise errors.UserError("--samples must be 0 (all) or more, --draws 1 or more")
  return config, flags


if __name__ == "__main__":
  errors.run_command(main)

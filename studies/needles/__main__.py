"""Runs the study: python -m studies.needles --out=DIR.

SkipAlign's claims on a tiny model, trained from scratch here for each of several seeds.
The same command goes on where it was stopped; started twice, it shares the work.
DIR gets every piece's numbers, then study_b.json, from which tables and figures come.
"""

import argparse
import json
import pathlib

from skipalign_jax.runtime import compile_cache, errors, terminal
from studies.needles import collect, figure, pieces, recipes, tables


def main(argv: list[str] | None = None) -> int:
  """Makes what is missing, then what is shown; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m studies.needles",
    description=__doc__,
    formatter_class=terminal.HelpFormatter,
  )
  parser.add_argument("--out", required=True, help="folder of the study")
  parser.add_argument(
    "--micro", action="store_true", help="all paths, with models that learn nothing"
  )
  args = parser.parse_args(argv)
  console = terminal.Console()
  settings = recipes.MICRO if args.micro else recipes.Settings()
  study = pieces.Study(pathlib.Path(args.out).expanduser(), settings)
  compile_cache.enable()
  try:
    complete = pieces.run(study, console)
  except pieces.Stopped as stopped:
    return stopped.args[0]
  path = collect.write(study)
  # Read back, so that nothing is shown that the file does not hold.
  content = json.loads(path.read_text(encoding="utf-8"))
  (study.folder / "tables.md").write_text(tables.report(content), "utf-8")
  made = figure.draw(content, study.folder)
  console.print("complete" if complete else "other processes still work on the rest")
  console.print(f"written to {study.folder}: {path.name}, tables.md")
  console.print(", ".join(picture.name for picture in made))
  return 0


if __name__ == "__main__":
  errors.run_command(main)

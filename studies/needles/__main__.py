"""Runs the study: python -m studies.needles --out=DIR.

Tests SkipAlign's claims on a tiny model, which is trained from scratch for each of
several seeds. The same command resumes a study that was stopped, and several processes
share the work. The study writes the numbers of every piece into DIR, then study_b.json,
from which the tables and figures are made.
"""

import json

from skipalign_jax.runtime import arguments, errors, files, paths, terminal


def main(argv: list[str] | None = None) -> int:
  """Makes the missing pieces, then tables and figures; returns the exit status."""
  parser = arguments.Parser(
    prog="python -m studies.needles",
    description=__doc__,
  )
  parser.add_argument("--out", required=True, help="folder of the study")
  parser.add_argument(
    "--micro", action="store_true", help="run all code, with models that learn nothing"
  )
  parser.add_argument(
    "--change",
    default="",
    help="make only the base and the runs of the claims with this change of "
    "recipes.FOLLOW_UPS, tables without figures",
  )
  parser.add_argument(
    "--more",
    action="store_true",
    help="three seeds more than the study has, by the same rule",
  )
  args = parser.parse_args(argv)
  # These load JAX, which --help and mistakes in the command line do not need.
  from skipalign_jax.runtime import compile_cache
  from studies.needles import collect, figure, pieces, recipes, tables

  console = terminal.Console()
  settings = recipes.MICRO if args.micro else recipes.Settings()
  if args.more:
    settings = recipes.more_seeds(settings)
  if args.change and args.change not in recipes.FOLLOW_UPS:
    known = ", ".join(map(repr, recipes.FOLLOW_UPS))
    raise errors.UserError(
      f"--change={args.change!r} is not known; give one of {known}"
    )
  folder = paths.output(args.out, f"--out={args.out}")
  study = pieces.Study(folder, settings, args.change)
  compile_cache.enable()
  try:
    complete = pieces.run(study, console)
  except pieces.Stopped as stopped:
    return stopped.args[0]
  path = collect.write(study)
  # Read back, so that nothing is shown that is not in the file.
  content = json.loads(path.read_text(encoding="utf-8"))
  files.write_text(study.folder / "tables.md", tables.report(content))
  made = [] if args.change else figure.draw(content, study.folder)
  console.print("complete" if complete else "other processes still work on the rest")
  names = [path.name, "tables.md", *(picture.name for picture in made)]
  console.print(f"written to {study.folder}: {', '.join(names)}")
  return 0


if __name__ == "__main__":
  errors.run_command(main)

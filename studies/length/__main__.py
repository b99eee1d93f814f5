"""Trains the study's models: python -m studies.length --out=DIR.

Long-Short Alignment (arXiv 2506.11769) argues that a model generalises to longer inputs
if its outputs do not change with length: the mean of bits rather than their number, or
the number through 1/√y. The study trains small decoders on strings of 1 to 10 bits and
tests them on up to 50. It writes results.json into DIR, then figure.png from these
results alone; if DIR already has the results, only the figure and the tables are made.
"""

from skipalign_jax.runtime import arguments, errors, paths, terminal

MINIMUM = {"steps": 1, "seeds": 2}


def main(argv: list[str] | None = None) -> int:
  """Runs the study, or shows the results of an earlier run; returns the exit status."""
  parser = arguments.Parser(
    prog="python -m studies.length",
    description=__doc__,
  )
  parser.add_argument("--out", required=True, help="folder for results and figure")
  parser.add_argument("--steps", type=int, default=600, help="of training")
  parser.add_argument("--seeds", type=int, default=5, help="of each model")
  args = parser.parse_args(argv)
  for name, minimum in MINIMUM.items():
    if getattr(args, name) < minimum:
      raise errors.UserError(
        f"--{name}={getattr(args, name)} must be at least {minimum}"
        + (": intervals need two" if name == "seeds" else "")
      )
  # Loads JAX, which --help and mistakes in the command line do not need.
  from studies.length import study

  folder = paths.output(args.out, f"--out={args.out}")
  study.make_and_show(folder, args.seeds, args.steps, terminal.Console())
  return 0


if __name__ == "__main__":
  errors.run_command(main)

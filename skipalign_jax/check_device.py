"""Whether all is right on this machine's devices: python -m skipalign_jax.check_device.

Needs no download, and one process. Checks the attention backends against the
definition, positions against a CPU, and losses on one device against several; then
times training, prefill and decoding of models with random weights, next to what `plan`
estimates. Exit status 1 if a check fails.
"""

import argparse

from skipalign_jax.runtime import arguments, errors


def main() -> int:
  """Prints the report and writes it; returns the exit status."""
  args = _parse()
  # Imported once the command line is understood: JAX takes a second to load.
  from skipalign_jax.commands import check_device

  return check_device.run(args)


def _parse() -> argparse.Namespace:
  parser = arguments.Parser(
    prog="python -m skipalign_jax.check_device", description=__doc__
  )
  add = parser.add_argument
  add("--out", default="runs/check_device", help="folder of report.json and report.md")
  add(
    "--size",
    default="auto",
    choices=("auto", "small", "full"),
    help="of the models that are timed; auto: small on a CPU, else 1B and 7B",
  )
  return parser.parse_args()


if __name__ == "__main__":
  errors.run_command(main)

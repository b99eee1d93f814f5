"""Prints samples as the model sees them: python -m skipalign_jax.show --config=FILE.

One line per run of tokens that share sample, block and target flag, with the positions
that training gives them (3…900: with jumps between them); --every_token=1 gives each
token its own line.
"""

import sys

from skipalign_jax import cli
from skipalign_jax.runtime import errors, terminal

USAGE = """python -m skipalign_jax.show --config=FILE[:variant] [--n=1]
    [--max_tokens_per_block=40] [--every_token=0] [--config.some.key=value …]"""


def main() -> int:
  """Prints the first rows of the training data; returns the exit status."""
  config, flags = cli.parse(
    sys.argv,
    USAGE,
    n=cli.Flag(1, "Rows to print."),
    max_tokens_per_block=cli.Flag(40, "Longer spans are shortened. 0: no limit."),
    every_token=cli.Flag(0, "1: one line per token."),
  )
  if flags["every_token"] not in (0, 1):
    raise errors.UserError(f"--every_token={flags['every_token']} must be 0 or 1")
  # Imported once the command line is understood: JAX takes a second to load.
  from skipalign_jax.commands import show

  every_token = bool(flags["every_token"])
  limit = flags["max_tokens_per_block"]
  show.run(config, flags["n"], limit, every_token, terminal.Console())
  return 0


if __name__ == "__main__":
  errors.run_command(main)

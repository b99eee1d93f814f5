"""What a run needs before it is rented: python -m skipalign_jax.plan --config=FILE
--topology=a100-80gb:8.

Compiles the real training step (or prefill and decode) for hardware that this machine
does not have; docs/design.md says what is counted and what is assumed.
"""

import sys

from skipalign_jax import cli
from skipalign_jax.runtime import errors, hardware, terminal

USAGE = """python -m skipalign_jax.plan --config=FILE[:variant] --topology=T[,T…]
    [--out=DIR] [--job=train|generate --length=N [--part=N]] [--samples=N]
    [--search=0|1] [--config.some.key=value …]"""


def main() -> int:
  """Prints a plan per topology; returns the exit status."""
  config, flags = cli.parse(
    sys.argv,
    USAGE,
    topology=cli.Flag("", "Hardware as KIND:DEVICES, several separated by commas."),
    out=cli.Flag("", "Folder of plan.json. Empty: no file."),
    job=cli.Flag("train", "What to plan: train or generate."),
    length=cli.Flag(0, "Tokens that the KV cache holds (job generate)."),
    part=cli.Flag(0, "Tokens of a prompt read at a time (job generate). 0: all."),
    samples=cli.Flag(0, "Training samples, for the number of steps. 0: unknown."),
    search=cli.Flag(1, "1: search for the largest microbatch. 0: do not."),
  )
  check(flags)
  # Imported once the command line is understood: JAX takes a second to load.
  from skipalign_jax.commands import plan

  return plan.run(config, flags, terminal.Console())


def check(flags: dict[str, str | int]) -> None:
  """Checks the command's own flags.

  Raises:
    UserError: a flag is missing, or flags contradict each other.
  """
  hardware.parse(flags["topology"])
  if flags["job"] not in ("train", "generate"):
    raise errors.UserError(f"--job={flags['job']}: choose train or generate")
  if flags["job"] == "generate" and flags["length"] < 2:
    raise errors.UserError(
      "--job=generate needs --length=N, the tokens that the KV cache holds"
    )
  if flags["job"] == "train" and flags["length"]:
    raise errors.UserError(
      "--length is for --job=generate; the rows of training have "
      "--config.data.seq_len tokens"
    )
  if flags["job"] == "generate" and flags["samples"]:
    raise errors.UserError("--samples is for --job=train; leave it out")
  if flags["part"] and (
    flags["job"] == "train" or flags["part"] < 2 or flags["length"] % flags["part"]
  ):
    raise errors.UserError(
      f"--part={flags['part']}: the tokens of a prompt that --job=generate reads at a "
      f"time, at least 2; they must divide --length={flags['length']}"
    )
  if flags["search"] not in (0, 1):
    raise errors.UserError(f"--search={flags['search']} must be 0 or 1")
  if flags["samples"] < 0:
    raise errors.UserError(f"--samples={flags['samples']} must be positive")


if __name__ == "__main__":
  errors.run_command(main)

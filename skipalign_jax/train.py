"""Fine-tunes a model: python -m skipalign_jax.train --config=FILE --workdir=DIR.

The same command resumes a run that was stopped: the workdir holds the state, the data
iterator and the resolved config. On several hosts it is the same command in every
process: all compute, process 0 writes and reports.
"""

import sys

from skipalign_jax import cli
from skipalign_jax.runtime import errors, paths

USAGE = """python -m skipalign_jax.train --config=FILE[:variant] --workdir=DIR
    [--config.some.key=value …] [--distributed=auto|off|HOST:PORT,COUNT,INDEX]"""


def main() -> int:
  """Trains; returns the exit status."""
  config, flags = cli.parse(
    sys.argv,
    USAGE,
    workdir=cli.Flag("", "Folder of the run; the same command resumes it."),
    distributed=cli.Flag(
      "auto",
      "How several processes find each other: auto, off, or HOST:PORT,COUNT,INDEX.",
    ),
  )
  if not flags["workdir"]:
    raise errors.UserError(f"--workdir=DIR is missing\nusage: {USAGE}")
  workdir = paths.output(flags["workdir"], f"--workdir={flags['workdir']}")
  # Imported once the command line is understood: JAX and what reads data take seconds.
  from skipalign_jax.runtime import compile_cache, distributed, terminal
  from skipalign_jax.training import run

  def work() -> int:
    distributed.initialize(flags["distributed"], f"--workdir={workdir.absolute()}")
    compile_cache.enable()
    console = terminal.Console(quiet=not distributed.is_first())
    return run.run(config, workdir, console)

  return distributed.run(work)


if __name__ == "__main__":
  errors.run_command(main)

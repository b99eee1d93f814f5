"""The list of the commands: python -m skipalign_jax, or skipalign after pip install.

`skipalign NAME …` is `python -m skipalign_jax.NAME …`.
"""

import importlib
import sys

from skipalign_jax.runtime import errors, terminal

COMMANDS = {
  "train": "fine-tune a model, or resume a run",
  "show": "the tokens, targets and positions of training samples",
  "generate": "reply to a prompt",
  "evaluate": "needle, keys, ruler, longbench, perplexity and more; compare results",
  "convert": "import from and export to Hugging Face folders and GGUF; verify",
  "check_device": "whether all is right on this machine's devices, and how fast",
  "plan": "memory and time of a config on GPUs and TPUs that are not here",
  "analyze": "what positions train: distances, coverage, rope; a run's training",
  "sweep": "train and evaluate a table of runs",
}


def main() -> int:
  """Runs a command, or prints the list; returns the exit status."""
  name, *rest = sys.argv[1:] or [""]
  if name in COMMANDS:
    sys.argv = [name, *rest]
    if name == "sweep":  # a package
      from skipalign_jax.sweep import __main__ as command

      return command.main()
    return importlib.import_module(f"skipalign_jax.{name}").main()
  listed = "\n".join(f"  {each:12} {what}" for each, what in COMMANDS.items())
  text = (
    "usage: skipalign COMMAND … (or python -m skipalign_jax.COMMAND …)\n\n"
    f"{listed}\n\nskipalign COMMAND --help shows the flags of a command."
  )
  if name in ("", "-h", "--help"):
    terminal.Console(soft_wrap=True).print(text)
    return 0
  raise errors.UserError(f"there is no command {name!r}\n{text}")


def script() -> None:
  """The console script `skipalign`."""
  errors.run_command(main)


if __name__ == "__main__":
  script()

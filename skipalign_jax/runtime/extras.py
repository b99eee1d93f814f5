"""Packages that only some commands need: the extra of each, and its command."""

import importlib.util
import pathlib

from skipalign_jax.runtime import errors

# Package, as it is imported → extra of pyproject.toml.
EXTRAS = {
  "datasets": "hub",
  "gguf": "gguf",
  "lm_eval": "eval",
  "matplotlib": "plots",
  "mlflow": "mlflow",
  "qwix": "lora",
  "torch": "parity",
  "trackio": "trackio",
  "wandb": "wandb",
}


class MissingError(errors.UserError):
  """A package that is needed is not installed."""


def is_installed(package: str) -> bool:
  """Whether a package can be imported. A folder of this name without code is none."""
  found = importlib.util.find_spec(package)
  return found is not None and found.origin is not None


def need(package: str, what: str, otherwise: str = "") -> None:
  """Checks that a package of `EXTRAS` is installed.

  Args:
    package: as it is imported.
    what: that needs it; begins the message.
    otherwise: what to do without the package.

  Raises:
    MissingError: it is not installed; the message has the command that installs it.
  """
  if is_installed(package):
    return
  end = f"; or {otherwise}" if otherwise else ""
  raise MissingError(
    f"{what} needs {package}, which is not installed: {command(EXTRAS[package])}{end}"
  )


def command(*extras: str) -> str:
  """The command that installs extras, in a checkout or of an installed package."""
  checkout = pathlib.Path(__file__).parents[2] / "pyproject.toml"
  names = f"[{','.join(extras)}]"
  if checkout.is_file():
    return f"pip install -e '.{names}'"
  return f"pip install 'skipalign_jax{names}'"

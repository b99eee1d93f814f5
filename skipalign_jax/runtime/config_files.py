"""Config files: the user's own, and those that come with the package."""

import pathlib

from skipalign_jax.runtime import errors, paths


def folder() -> pathlib.Path:
  """Where the package's own configs are: inside it, or next to it in a checkout."""
  package = pathlib.Path(__file__).parents[1]
  inside = package / "configs"
  return inside if inside.is_dir() else package.parent / "configs"


def names(function: str) -> list[str]:
  """Configs of the package that define `function`: "get_config" or "get_sweep"."""
  return sorted(
    path.stem
    for path in folder().glob("*.py")
    if f"\ndef {function}(" in path.read_text(encoding="utf-8")
  )


def find(reference: str, function: str) -> pathlib.Path:
  """The file that `--config=REFERENCE[:variant]` names.

  Args:
    reference: a path; or a config of the package, as llama2_ntk or
      configs/llama2_ntk.py, from any folder. A file that exists comes first.
    function: that the file must define; names the configs in the error.

  Raises:
    UserError: there is no such file, or the path cannot be one.
  """
  path = paths.given(reference, f"--config={reference}")
  if path.is_file():
    return path
  if str(path.parent) in (".", "configs") and path.suffix in ("", ".py"):
    packaged = folder() / f"{path.stem}.py"
    if packaged.is_file():
      return packaged
  raise errors.UserError(
    f"--config={reference}: there is no such file; give a path, or a config of the "
    f"package: {', '.join(names(function))}; NAME:tiny tries one with a tiny model"
  )

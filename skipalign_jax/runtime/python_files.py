"""Python files of the user: --config=FILE.py[:variant] of a training or a sweep.

Such a file is trusted and runs. Mistakes in it, and other files in its place, end in
one message.
"""

import importlib.util
import pathlib
import sys
import types
from typing import Any

from skipalign_jax.runtime import errors

KINDS = {  # function that a file defines → what the file is
  "get_config": "a config, for python -m skipalign_jax.train",
  "get_sweep": "a sweep, for python -m skipalign_jax.sweep",
}
_MODULE = "config_file"  # its name while it is loaded


def call(path: pathlib.Path, function: str, *arguments: str) -> Any:
  """What a function of the file returns.

  Args:
    path: of the file.
    function: one of `KINDS`.
    *arguments: of the function.

  Raises:
    UserError: there is no such file, it is of another kind, or it raises an exception.
  """
  module = _load(path)
  if not callable(getattr(module, function, None)):
    other = [kind for name, kind in KINDS.items() if hasattr(module, name)]
    raise errors.UserError(
      f"--config: {path} has no {function}(); "
      + (f"it is {other[0]}" if other else f"it is not {KINDS[function]}")
    )
  try:
    return getattr(module, function)(*arguments)
  except (errors.UserError, KeyboardInterrupt):
    raise
  except BaseException as error:  # also SystemExit
    raise _failed(path, f"its {function}() fails", error) from error


def _load(path: pathlib.Path) -> types.ModuleType:
  if not path.is_file():
    found = ", ".join(str(p) for p in sorted(path.parent.glob("*.py"))) or "none"
    raise errors.UserError(
      f"--config: {path} does not exist or is not a file; Python files in "
      f"{path.parent}: {found}"
    )
  if path.suffix != ".py":
    raise errors.UserError(
      f"--config: {path} is not a Python file (.py); give a file of configs/, or your "
      "own copy of one"
    )
  spec = importlib.util.spec_from_file_location(_MODULE, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[_MODULE] = module  # dataclasses look for their module
  try:
    spec.loader.exec_module(module)
  except (errors.UserError, KeyboardInterrupt):
    raise
  except BaseException as error:
    raise _failed(path, "cannot be loaded", error) from error
  finally:
    del sys.modules[_MODULE]
  return module


def _failed(path: pathlib.Path, problem: str, error: BaseException) -> errors.UserError:
  """The message about an exception, with the last line of the file that led to it."""
  line, what, frame = None, errors.first_line(error), error.__traceback__
  while frame is not None:
    if frame.tb_frame.f_code.co_filename == str(path):
      line = frame.tb_lineno
    frame = frame.tb_next
  if isinstance(error, SyntaxError):
    line, what = error.lineno, error.msg
  where = f", line {line}" if line else ""
  return errors.UserError(
    f"--config: {path} {problem}{where}: {type(error).__name__}: {what}"
  )

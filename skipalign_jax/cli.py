"""Command lines of the form `--config=FILE[:variant] --config.some.key=value`."""

import difflib
import pathlib
from typing import Any

from absl import flags
from ml_collections import config_flags

from skipalign_jax import config as config_lib
from skipalign_jax.runtime import errors


def parse(
  argv: list[str], usage: str, **extra: str | int
) -> tuple[config_lib.ConfigDict, dict[str, Any]]:
  """Reads the config, its overrides and the command's own flags.

  Args:
    argv: sys.argv.
    usage: one line, shown with every mistake.
    **extra: the command's own flags and their defaults.

  Returns:
    The locked config, and the values of `extra`.

  Raises:
    UserError: unknown key or flag, wrong type, unreadable config file.
  """
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  for name, default in extra.items():
    define = flags.DEFINE_integer if isinstance(default, int) else flags.DEFINE_string
    define(name, default, "", flag_values=values)
  if any(arg in ("--help", "-h", "-help") for arg in argv[1:]):
    print(f"usage: {usage}\nkeys: see skipalign_jax/config.py, each with a comment")
    raise SystemExit(0)
  _check_file(argv, usage)
  try:
    rest = values(argv)[1:]
  except (AttributeError, KeyError) as error:  # an override of an undeclared key
    raise errors.UserError(_unknown_key(argv, str(error))) from error
  except (flags.Error, TypeError, ValueError) as error:
    # absl quotes the whole traceback of a config file; its last line says enough.
    last_line = str(error).strip().splitlines()[-1]
    message = last_line.removeprefix("skipalign_jax.runtime.errors.UserError: ")
    raise errors.UserError(f"{message}\nusage: {usage}") from error
  if rest:
    raise errors.UserError(f"unexpected argument {rest[0]!r}\nusage: {usage}")
  return values.config, {name: values[name].value for name in extra}


def _check_file(argv: list[str], usage: str) -> None:
  given = [arg.split("=", 1)[1] for arg in argv if arg.startswith("--config=")]
  if not given:
    raise errors.UserError(f"--config=FILE is missing\nusage: {usage}")
  path = pathlib.Path(given[-1].split(":")[0])
  if not path.is_file():
    here = ", ".join(str(p) for p in sorted(path.parent.glob("*.py"))) or "none"
    raise errors.UserError(f"config file {path} does not exist; there: {here}")


def _unknown_key(argv: list[str], message: str) -> str:
  """Names the override that no config declares, and the nearest one that is."""
  known = _flatten(config_lib.default())
  for arg in argv:
    key = arg.removeprefix("--config.").split("=")[0]
    if arg.startswith("--config.") and key not in known:
      close = difflib.get_close_matches(key, known, n=1)
      hint = f"; did you mean {close[0]}?" if close else ""
      return f"config has no key {key!r}{hint} (all keys: skipalign_jax/config.py)"
  return message


def _flatten(config: config_lib.ConfigDict, prefix: str = "") -> list[str]:
  keys = []
  for name, value in config.items():
    if isinstance(value, config_lib.ConfigDict):
      keys += _flatten(value, f"{prefix}{name}.")
    else:
      keys.append(prefix + name)
  return keys

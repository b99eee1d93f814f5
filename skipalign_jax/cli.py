"""Command lines of the form `--config=FILE[:variant] --config.some.key=value`."""

import dataclasses
import re
import textwrap
from typing import Any

from absl import flags as absl_flags
from ml_collections import config_flags

from skipalign_jax import config as config_lib
from skipalign_jax import config_keys
from skipalign_jax.runtime import config_files, errors, python_files, terminal

COLUMNS = 80  # of the help


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of one command; its type is that of the default."""

  default: str | int
  meaning: str


def parse(
  argv: list[str], usage: str, **flags: Flag
) -> tuple[config_lib.ConfigDict, dict[str, Any]]:
  """Reads the config, its overrides and the command's own flags.

  Args:
    argv: sys.argv.
    usage: shown by --help and with most errors.
    **flags: the command's own flags.

  Returns:
    The config, locked and checked by `config.check`; and the values of `flags`.

  Raises:
    UserError: unknown key or flag, a value that is not allowed, unreadable config file.
    SystemExit: help was requested and printed.
  """
  if any(arg in ("--help", "-h", "-help") for arg in argv[1:]):
    terminal.Console().print(help_text(usage, flags))
    raise SystemExit(0)
  config, argv = _read_file(argv, usage)
  argv = _unset(config, argv)
  values = absl_flags.FlagValues()
  for name, flag in flags.items():
    is_int = isinstance(flag.default, int)
    define = absl_flags.DEFINE_integer if is_int else absl_flags.DEFINE_string
    define(name, flag.default, flag.meaning, flag_values=values)
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    rest = values(argv)[1:]
  except (AttributeError, KeyError) as error:  # an override of an undeclared key
    raise errors.UserError(_unknown_key(argv, config, str(error))) from error
  except (absl_flags.Error, TypeError, ValueError) as error:
    message = _value_of_section(argv) or _value_of_key(argv, str(error))
    message = message or f"{error}{_key_as_flag(error)}\nusage: {usage}"
    raise errors.UserError(message) from error
  if rest:
    raise errors.UserError(f"unexpected argument {rest[0]!r}\nusage: {usage}")
  config_lib.check(values.config)
  return values.config, {name: values[name].value for name in flags}


def help_text(usage: str, flags: dict[str, Flag]) -> str:
  """Usage, the command's flags, and all keys of the config by section."""
  variants = ", ".join(name for name in config_lib.VARIANTS if name)
  lines = [f"usage: {usage}", "", "Flags, with their defaults:"]
  configs = ", ".join(config_files.names("get_config"))
  lines += _entry(
    "--config=FILE[:variant]",
    f"Config file, or one of the package: {configs}. Variants: {variants}.",
  )
  for name, flag in flags.items():
    lines += _entry(f"--{name}={_shown(flag.default)}", flag.meaning)
  lines += _entry("--config.KEY=VALUE", "Replaces a value of the config file.")
  lines += ["", "Keys of the config, with their defaults and allowed values:"]
  for part in config_lib.SECTIONS:
    title = f"{part.name}: {part.meaning}" if part.name else part.meaning
    lines += ["", *textwrap.wrap(title, COLUMNS)]
    for name, key in part.full_names().items():
      allowed = f" ({key.allowed()})" if key.allowed() else ""
      lines += _entry(f"{name}={_shown(key.default)}{allowed}", key.meaning)
  return "\n".join(lines)


def _entry(what: str, meaning: str) -> list[str]:
  """A paragraph whose first line is not indented as far as the others."""
  indents = dict(initial_indent="  ", subsequent_indent="      ")
  return textwrap.wrap(f"{what}  {meaning}", COLUMNS, **indents, break_on_hyphens=False)


def _shown(default: Any) -> str:
  if default is None:
    return "unset"
  return str(default) if default != "" else "''"


def _read_file(argv: list[str], usage: str) -> tuple[config_lib.ConfigDict, list[str]]:
  """The config of the file that `argv` names last, and the other arguments."""
  rest, named = [], []
  arguments = iter(argv)
  for arg in arguments:
    if arg in ("--config", "-config"):  # the file is an argument of its own
      named += [following] if (following := next(arguments, "")) else []
    elif arg.startswith("--config="):
      named.append(arg.removeprefix("--config="))
    elif rest and re.fullmatch(r"--config\.[\w.]+", rest[-1]) and arg[:2] != "--":
      rest[-1] += f"={arg}"  # so is the value of a key
    else:
      rest.append(arg)
  if not named:
    raise errors.UserError(f"--config=FILE is missing\nusage: {usage}")
  file, colon, variant = named[-1].partition(":")
  path = config_files.find(file, "get_config")
  config = python_files.call(path, "get_config", *([variant] if colon else []))
  if not isinstance(config, config_lib.ConfigDict):
    raise errors.UserError(
      f"--config: get_config() of {file} returns {type(config).__name__}, not a "
      "config; start from config.default() and return what it made"
    )
  return config, rest


def _unset(config: config_lib.ConfigDict, argv: list[str]) -> list[str]:
  """Unsets the keys of `--config.KEY=None` that may be unset; returns the other args.

  The last value of a key counts, so those before it go too.
  """
  rest: list[str] = []
  for arg in argv:
    flag, _, value = arg.partition("=")
    key = config_lib.KEYS.get(flag.removeprefix("--config."))
    if value == "None" and key is not None and key.default is None:
      rest = [other for other in rest if not other.startswith(f"{flag}=")]
      config.update_from_flattened_dict({flag.removeprefix("--config."): None})
    else:
      rest.append(arg)
  return rest


def _key_as_flag(error: Exception) -> str:
  """What to write for an unknown flag that names a key of the config; or ""."""
  if not isinstance(error, absl_flags.UnrecognizedFlagError):
    return ""
  hint = config_keys.meant(error.flagname, tuple(config_lib.KEYS))
  return f"; keys of the config are written --config.KEY=VALUE: {hint}" if hint else ""


def _value_of_section(argv: list[str]) -> str:
  """Says that a section has no value, if an override gives it one; otherwise ""."""
  sections = {part.name: part for part in config_lib.SECTIONS if part.keys}
  for arg in argv:
    name = arg.removeprefix("--config.").split("=")[0]
    if arg.startswith("--config.") and name in sections:
      keys = sections[name].full_names()
      hint = config_keys.meant(name, tuple(config_lib.KEYS))
      hint = hint or f"give one of its keys: {', '.join(keys)}"
      return f"{arg}: {name} is a section of the config; {hint}"
  return ""


def _value_of_key(argv: list[str], message: str) -> str:
  """Says what a key may be, if absl's message is on the value of one; otherwise ""."""
  for arg in argv:
    flag, _, value = arg.partition("=")
    key = config_lib.KEYS.get(name := flag.removeprefix("--config."))
    if key is not None and message.startswith(f"flag {arg}: "):
      return key.problem(name, value)
  return ""


def _unknown_key(argv: list[str], config: config_lib.ConfigDict, message: str) -> str:
  """Names the override of a key that does not exist; otherwise `message`."""
  known = config_lib.flatten(config)
  for arg in argv:
    key = arg.removeprefix("--config.").split("=")[0]
    if arg.startswith("--config.") and key not in known:
      return config_lib.unknown(key)
  return message

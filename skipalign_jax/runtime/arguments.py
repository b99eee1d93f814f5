"""Command lines read by argparse: help in paragraphs, the nearest flag after a typo."""

import argparse
import difflib
import math
from collections.abc import Iterable
from typing import Any

from skipalign_jax.runtime import terminal


class Parser(argparse.ArgumentParser):
  """argparse's parser; parsers of subcommands are of this class too."""

  def __init__(self, **options: Any):
    """As argparse's, with `terminal.HelpFormatter`."""
    self._flags: list[str] = []
    super().__init__(formatter_class=terminal.HelpFormatter, **options)

  def add_argument(self, *names: str, **options: Any) -> argparse.Action:
    """As argparse's."""
    self._flags += [name for name in names if name.startswith("--")]
    return super().add_argument(*names, **options)

  def parse_known_args(self, args=None, namespace=None):
    """As argparse's, but an unknown argument is an error of this parser.

    So a subcommand's parser reports it, which knows the flags of the subcommand.
    """
    found, unknown = super().parse_known_args(args, namespace)
    if unknown:
      self.error(unexpected(unknown[0], self._flags))
    return found, unknown


def finite(text: str) -> float:
  """A number, for `type=` of an argument; NaN and infinity are not numbers here.

  Raises:
    ArgumentTypeError: the text is something else.
  """
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
  return number


def unexpected(argument: str, known: Iterable[str]) -> str:
  """The error of an unknown argument, written --flag, --flag=value or value.

  Args:
    argument: what the command does not know.
    known: what it knows.
  """
  close = difflib.get_close_matches(argument.partition("=")[0], list(known), n=1)
  remedy = f"did you mean {close[0]}?" if close else "--help lists the arguments"
  return f"unexpected argument {argument!r}; {remedy}"

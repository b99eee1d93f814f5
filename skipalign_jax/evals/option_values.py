"""Values of options that several tasks share."""

from collections.abc import Sequence
from typing import Any

from skipalign_jax.runtime import errors

MAX_DEPTHS = 1000


def at_least(options: Any, **minima: int) -> None:
  """Checks numbers, as in at_least(options, samples=1, seed=0).

  Raises:
    UserError: an option is less than its minimum.
  """
  for name, minimum in minima.items():
    check_at_least(name, getattr(options, name), minimum)


def check_at_least(name: str, value: int, minimum: int) -> None:
  """Checks one number.

  Raises:
    UserError: it is less than its minimum.
  """
  if value < minimum:
    raise errors.UserError(f"--{name}={value} must be at least {minimum}")


def names(flag: str, text: str, known: Sequence[str]) -> list[str]:
  """Different names with commas between them, in the order in which they are given.

  Raises:
    UserError: one is not among the known ones.
  """
  found = list(dict.fromkeys(name.strip() for name in text.split(",")))
  if unknown := [name for name in found if name not in known]:
    raise errors.UserError(
      f"--{flag}={text}: {unknown[0]!r} is unknown; choose from {', '.join(known)}"
    )
  return found


def numbers(flag: str, text: str, least: int = 1) -> list[int]:
  """Integers with commas between them, in ascending order; all at least `least`.

  Raises:
    UserError: the text is something else.
  """
  try:
    found = [int(part) for part in text.split(",")]
  except ValueError:
    found = []
  if not found or min(found) < least:
    kind = "positive numbers" if least == 1 else f"numbers from {least} on"
    raise errors.UserError(f"--{flag}={text}: give {kind} like 1024,2048")
  return sorted(set(found))


def depths(text: str) -> list[float]:
  """Fractions from 0 to 1, in ascending order.

  Args:
    text: a count ("5": the middles of five equal parts) or a list ("0,0.5,1").

  Raises:
    UserError: the text is something else.
  """
  try:
    found = [float(part) for part in text.split(",")]
    if len(found) == 1 and 1 <= found[0] <= MAX_DEPTHS and found[0].is_integer():
      n = int(found[0])
      return [round((i + 0.5) / n, 4) for i in range(n)]
  except ValueError:
    found = []
  if not found or not all(0 <= depth <= 1 for depth in found):
    raise errors.UserError(
      f"--depths={text}: give a count like 5, at most {MAX_DEPTHS:,}, or fractions "
      "from 0 to 1 like 0.1,0.5"
    )
  return sorted(set(found))

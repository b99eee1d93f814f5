"""How many values a JSON text has, and how deep they are: known before memory is spent.

A parser makes an object of 50 bytes or more from the three bytes of "[],". So 100 MB of
text can become gigabytes, which take half a minute. Counting characters takes
milliseconds.
"""

import re
from typing import Any

MAX_VALUES = 1_000_000  # of a config, an index or a record
MAX_RESULT_VALUES = 4_000_000  # of a file with results
MAX_DEPTH = 100  # lists and objects inside of each other
MAX_DIGITS = 308  # of an integer, which then fits a float

_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_STRINGS = {
  str: re.compile(_STRING, re.DOTALL),
  bytes: re.compile(_STRING.encode(), re.DOTALL),
}


def check(text: str | bytes, max_values: int = MAX_VALUES) -> None:
  """Raises ValueError if the text has more than `max_values` values."""
  if _marks(text) <= max_values:  # those in strings included
    return
  quote, escaped = ('"', '\\"') if isinstance(text, str) else (b'"', b'\\"')
  quotes = text.count(quote) - text.count(escaped)
  if quotes <= 4 * max_values:  # a key and a value have two quotes each
    if _marks(_STRINGS[type(text)].sub(text[:0], text)) <= max_values:
      return
  raise ValueError(f"it has more than {max_values:,} values, the limit")


def _marks(text: str | bytes) -> int:
  """At least the number of lists, objects and values that are not the first of one."""
  marks = "[{," if isinstance(text, str) else (b"[", b"{", b",")
  return sum(map(text.count, marks))


def check_depth(value: Any) -> None:
  """Raises ValueError if lists and objects are nested more than `MAX_DEPTH` deep."""
  level = [value]
  for _ in range(MAX_DEPTH + 1):
    level = [
      part
      for one in level
      if isinstance(one, dict | list)
      for part in (one.values() if isinstance(one, dict) else one)
    ]
    if not level:
      return
  raise ValueError("nested too deeply")


def integer(digits: str) -> int:
  """For `json`'s parse_int: an integer; ValueError if it has too many digits."""
  if len(digits) > MAX_DIGITS:
    raise ValueError(f"a number of {len(digits):,} digits")
  return int(digits)

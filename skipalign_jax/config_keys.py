"""One key of the config: its default, its meaning and the values that it may have."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

import ml_collections

_KINDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a finite number",
  str: "a text",
  tuple: "a tuple",
  object: "a text or a tuple of texts",
}


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of the config; see `key`.

  Attributes:
    default: value in a new config. None: unset, and the key may stay unset.
    meaning: what the key does, in plain text.
    kind: type of the values; `object` is a text or a tuple of texts.
    choices: the allowed texts; empty for all.
    at_least, at_most: bounds that are allowed.
    above, below: bounds that are not allowed.
    or_value: a number that is allowed although it is outside the bounds.
  """

  default: Any
  meaning: str
  kind: type
  choices: tuple[str, ...] = ()
  at_least: float | None = None
  at_most: float | None = None
  above: float | None = None
  below: float | None = None
  or_value: float | None = None

  def field(self) -> Any:
    """The default as a ConfigDict stores it; the type of the key is fixed with it."""
    if self.default is None:
      return ml_collections.config_dict.placeholder(self.kind)
    if self.kind is object:
      return ml_collections.FieldReference(self.default, field_type=object)
    return self.default

  def allowed(self) -> str:
    """The choices or the range in words; "" if every value of the type is allowed."""
    if self.choices:
      return f"one of {', '.join(self.choices)}"
    if self.at_least is not None and self.at_most is not None:
      return f"from {_shown(self.at_least)} to {_shown(self.at_most)}"
    bounds = {
      "at least": self.at_least,
      "above": self.above,
      "at most": self.at_most,
      "below": self.below,
    }
    words = [f"{w} {_shown(b)}" for w, b in bounds.items() if b is not None]
    alternative = "" if self.or_value is None else f", or {self.or_value}"
    return " and ".join(words) + alternative

  def accepts(self, value: Any) -> bool:
    """Whether the key may have this value. NaN and infinity are not numbers here."""
    if value is None:
      return self.default is None
    if self.kind in (int, float):
      return self._accepts_number(value)
    if self.kind is object:
      texts = [value] if isinstance(value, str) else value
      return isinstance(texts, Sequence) and all(isinstance(t, str) for t in texts)
    return isinstance(value, self.kind) and (not self.choices or value in self.choices)

  def _accepts_number(self, value: Any) -> bool:
    number = numbers.Integral if self.kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, number):
      return False
    if not -math.inf < value < math.inf:
      return False
    return value == self.or_value or (
      (self.at_least is None or value >= self.at_least)
      and (self.above is None or value > self.above)
      and (self.at_most is None or value <= self.at_most)
      and (self.below is None or value < self.below)
    )

  def problem(self, name: str, value: Any) -> str:
    """Says that the key `name` cannot have this value, and which ones it can have."""
    allowed = self.allowed()
    if self.choices:
      remedy = f"choose {allowed}"
    else:
      remedy = f"set it to {_KINDS[self.kind]}{', ' if allowed else ''}{allowed}"
    default = "unset" if self.default is None else self.default
    return f"{name}={value!r} is not allowed; {remedy} (default: {default})"


def _shown(bound: float) -> str:
  """Limits of 32-bit numbers are written as powers of two."""
  for power in (30, 31, 32):
    if bound in (2**power, 2**power - 1):
      return f"2^{power}" if bound == 2**power else f"2^{power} - 1"
  return f"{bound:,}"


def key(default: Any, meaning: str, kind: type | None = None, **allowed: Any) -> Key:
  """A key; `kind` is needed only if the default is None or has several types."""
  return Key(default, meaning, kind or type(default), **allowed)


@dataclasses.dataclass(frozen=True)
class Section:
  """Keys that belong together.

  Attributes:
    name: in front of the dot; "" for keys without a section.
    meaning: of the whole section, in plain text.
    keys: name → key. Empty: the section accepts any keys.
  """

  name: str
  meaning: str
  keys: dict[str, Key]

  def full_names(self) -> dict[str, Key]:
    """ "section.name" → key."""
    prefix = f"{self.name}." if self.name else ""
    return {f"{prefix}{name}": key for name, key in self.keys.items()}


def section(name: str, meaning: str, /, **keys: Key) -> Section:
  """A section and its keys, in order."""
  return Section(name, meaning, keys)

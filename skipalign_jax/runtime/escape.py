"""Texts of strangers, made safe to show: on a terminal, in one line, in Markdown.

Names in files, chats, error texts of libraries and replies of models may hold
characters that a terminal or a viewer obeys. They are shown as Python writes them:
\\x1b, \\u202e.
"""

import re
from collections.abc import Sequence

# Controls but tab and line feed; other line ends; marks that turn the direction of
# writing; halves of surrogate pairs, which also stand for bytes that are not UTF-8.
_CONTROLS = re.compile(
  "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MAX_NAME = 200  # characters of one of several names
_SPACES = re.compile("[\t\n]")
_MARKDOWN = re.compile(
  r"[\\`*|~$\[]"  # code, emphasis, cells of tables, mathematics, links
  r"|<(?=[^\W\d_]|[/!?])|&(?=#?\w+;)"  # HTML
  r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis by _ is at the edge of a word
  r"|^>|^#(?=#*(?:\s|$))|^[-+](?=[-\s]|$)"  # quotes, headings, lists and rules
)
_NUMBERED = re.compile(r"^(\d{1,9})(?=[.)](?:\s|$))")  # items of a list


def controls(text: str) -> str:
  """The text with its line breaks and tabs, and no other control character."""
  return _CONTROLS.sub(_spelled, text)


def is_broken(text: str) -> bool:
  """Whether a text has halves of surrogate pairs, so that UTF-8 cannot write it."""
  return any("\ud800" <= character <= "\udfff" for character in text)


def line(text: object) -> str:
  """A name or value in one line, without any control character."""
  return _SPACES.sub(_spelled, controls(str(text)))


def listed(names: Sequence[object], count: int = 5) -> str:
  """The first names of many, each in one line: "a, b and 3 more"."""
  more = f" and {len(names) - count} more" if len(names) > count else ""
  return ", ".join(line(name)[:_MAX_NAME] for name in names[:count]) + more


def markdown(text: object) -> str:
  """One line of Markdown that shows the text as it is; fits into a table's cell."""
  return _NUMBERED.sub(r"\1\\", _MARKDOWN.sub(r"\\\g<0>", line(text)))


def _spelled(found: re.Match[str]) -> str:
  return found[0].encode("unicode_escape").decode("ascii")

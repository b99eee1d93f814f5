"""Parts of a study's page that a command makes from its results.

Such a part is between `<!-- NAME: made by … -->` and `<!-- end of NAME -->`.
"""

import pathlib
import re

from skipalign_jax.runtime import files


def part(text: str, name: str) -> str:
  """The text of a part, without the lines around it."""
  return _pattern(name).search(text)[2].strip("\n") + "\n"


def with_part(text: str, name: str, made: str) -> str:
  """The page with a new text in a part."""
  assert _pattern(name).search(text), f"the page has no part {name}"
  return _pattern(name).sub(lambda found: f"{found[1]}\n{made}\n{found[3]}", text)


def write(page: pathlib.Path, **parts: str) -> None:
  """Writes parts of a page; what is around them remains."""
  text = page.read_text(encoding="utf-8")
  for name, made in parts.items():
    text = with_part(text, name, made)
  files.write_text(page, text)


def table(columns: list[str], rows: list[list[str]]) -> str:
  """A table in Markdown, with a newline at its end."""
  lines = [columns, ["---"] * len(columns), *rows]
  return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _pattern(name: str) -> re.Pattern[str]:
  begin, end = rf"<!-- {name}: [^\n]*-->\n", f"<!-- end of {name} -->"
  return re.compile(f"({begin})(.*?)({end})", re.DOTALL)

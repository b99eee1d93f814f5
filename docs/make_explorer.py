"""Builds docs/explorer.html, one page without outside parts, from docs/explorer/."""

import pathlib

DOCS = pathlib.Path(__file__).parent
PARTS = {"STYLE": "page.css", "POSITIONS": "positions.js", "PAGE": "page.js"}


def build() -> str:
  """The page: the parts put where page.html names them."""
  read = lambda name: (DOCS / "explorer" / name).read_text(encoding="utf-8")
  page = read("page.html")
  for mark, name in PARTS.items():
    assert page.count(f"/*{mark}*/") == 1, mark
    page = page.replace(f"/*{mark}*/", read(name).rstrip())
  return page


if __name__ == "__main__":
  (DOCS / "explorer.html").write_text(build(), encoding="utf-8")

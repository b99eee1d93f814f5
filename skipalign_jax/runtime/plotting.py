"""Matplotlib, loaded where a picture is drawn and not before: it takes a second."""

import pathlib
from typing import Any

from skipalign_jax.runtime import escape, extras, files, terminal


def possible(console: terminal.Console, picture: pathlib.Path) -> bool:
  """Whether pictures can be drawn here; if not, a note says what that needs.

  Args:
    console: for the note.
    picture: that would be drawn.
  """
  try:
    extras.need("matplotlib", f"{picture.name} is not drawn: it")
  except extras.MissingError as error:
    console.print(f"note: {error}")
    return False
  return True


def pyplot() -> Any:
  """matplotlib.pyplot, drawing into files."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  return pyplot


def save(figure: Any, path: str | pathlib.Path, **options: Any) -> None:
  """Writes a figure whose titles and labels show names as they are, or nothing.

  Args:
    figure: of matplotlib.
    path: of the PNG.
    **options: of `Figure.savefig`.
  """
  from matplotlib import text

  for one in figure.findobj(text.Text):
    # Without a text yet, it is a tick's, which may be written as mathematics.
    if one.get_text():
      one.set_text(escape.controls(one.get_text()))
      one.set_parse_math(False)
  with files.replacing(pathlib.Path(path)) as new:
    figure.savefig(new, format="png", **options)

"""Matplotlib, loaded where a picture is drawn and not before: it takes a second."""

from typing import Any


def pyplot() -> Any:
  """matplotlib.pyplot, drawing into files."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  return pyplot

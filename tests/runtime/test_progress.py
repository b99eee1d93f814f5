"""A bar on a terminal; lines, not too many, elsewhere."""

import io

import pytest

from skipalign_jax.runtime import progress, terminal


def shown(times, monkeypatch, terminal_width=None, **options):
  """What is printed when updates 1, 2, … of 4 come at these seconds."""
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  size = {"width": terminal_width} if terminal_width else {}
  console = terminal.Console(
    file=io.StringIO(), force_terminal=bool(terminal_width), color_system=None, **size
  )
  with progress.Progress(console, "task", 4, **options) as bar:
    for done, now[0] in enumerate(times, 1):
      bar.update(done, f"line {done}", f"note {done}")
  return console.file.getvalue()


def test_lines_come_every_few_seconds(monkeypatch):
  assert shown((1, 11, 12, 21), monkeypatch) == "line 2\n"
  assert shown((1, 11, 12, 22), monkeypatch) == "line 2\nline 4\n"


def test_first_and_last_line_if_wanted(monkeypatch):
  text = shown((1, 2, 3, 4), monkeypatch, both_ends=True)
  assert text == "line 1\nline 4\n"


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_fits_the_terminal(monkeypatch, width):
  text = shown((1, 2, 3, 4), monkeypatch, width, note="note 0")
  last = text.split("\r")[-1].removeprefix("\x1b[2K").splitlines()[0]
  assert "line" not in text and "4/4" in last and "note 4" in last
  assert len(last) <= width

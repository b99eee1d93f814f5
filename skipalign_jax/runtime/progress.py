"""How far a command is: a bar on a terminal, a line every few seconds elsewhere."""

import time

from rich import progress

from skipalign_jax.runtime import escape, terminal


class Progress:
  """The progress of one task; a context manager."""

  SECONDS_BETWEEN_LINES = 10

  def __init__(
    self,
    console: terminal.Console,
    name: str,
    total: int,
    done: int = 0,
    note: str = "",
    both_ends: bool = False,
  ):
    """Shows nothing yet.

    Args:
      console: where it is shown.
      name: of the task, before the bar.
      total: steps or items of the task.
      done: how many of them are done already.
      note: what is next to the bar until the first update.
      both_ends: whether the first update and the last one always print their line.
    """
    self._console = console
    self._total = total
    self._both_ends = both_ends
    self._last_line = float("-inf") if both_ends else time.monotonic()
    self._bar = progress.Progress(
      _text("{task.description}"),
      progress.BarColumn(bar_width=None),  # what the others leave
      progress.MofNCompleteColumn(),
      _text("{task.fields[note]}"),
      progress.TimeElapsedColumn(),
      progress.TimeRemainingColumn(),
      console=console,
      disable=console.quiet or not console.is_terminal,
    )
    name = escape.line(name)
    self._task = self._bar.add_task(name, total=total, completed=done, note=note)

  def __enter__(self) -> "Progress":
    self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    self._bar.stop()

  def update(self, done: int, line: str, note: str = "") -> None:
    """Shows that so many steps or items are done.

    Args:
      done: how many, of all.
      line: what is printed where there is no bar, if it is time for a line.
      note: what is next to the bar.
    """
    self._bar.update(self._task, completed=done, note=escape.line(note))
    due = time.monotonic() - self._last_line > self.SECONDS_BETWEEN_LINES
    last = self._both_ends and done == self._total
    if not self._console.is_terminal and (due or last):
      self._last_line = time.monotonic()
      self._console.print(line)


class Counter:
  """A count of records on a terminal while their number is unknown; a context manager.

  Nothing of it is left afterwards.
  """

  def __init__(self, console: terminal.Console, name: str):
    """`name`: of the task, before the count."""
    self._bar = progress.Progress(
      progress.SpinnerColumn(),
      _text("{task.description}: {task.completed:,.0f} records"),
      progress.TimeElapsedColumn(),
      console=console,
      transient=True,
      disable=not console.is_terminal,
    )
    self._task = self._bar.add_task(escape.line(name), total=None)

  def __enter__(self) -> "Counter":
    self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    self._bar.stop()

  def add(self, count: int) -> None:
    """Counts so many more."""
    self._bar.advance(self._task, count)


def _text(form: str) -> progress.TextColumn:
  """A column of text in which brackets are text."""
  return progress.TextColumn(form, markup=False)

"""Output of commands: wrapped at words on a terminal, in whole lines elsewhere.

A log or a pipe gets no colour, no bar and no line break that the text does not have, so
that it can be searched. Paths are never broken: a line that the terminal itself wraps
can be copied. Texts of strangers cannot steer a terminal: everything is escaped here,
before its width is measured (see escape.py).
"""

import argparse
import codecs
import contextlib
import io
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from rich import cells
from rich import console as rich_console
from rich import table as rich_table
from rich import text as rich_text

from skipalign_jax.runtime import escape

_HANGING = re.compile(r" *(?:- |\S+ {2,})?")  # "  - item" and "name       value"
_UNIT = re.compile(r"(?<=\d) (?=%|(?:[KMG]i?B|s|ms|h|tok/s)\b)")
_QUOTED = r"(?:'[^']*'|\"[^\"]*\")+"  # as shlex.quote and repr write it
_VALUE = re.compile(rf"(?<=[=(]){_QUOTED}")
_ARGUMENT = re.compile(rf"(?<=[=\s]){_QUOTED}")
_COMMAND = re.compile(r"\b(?:python -[cm]|sbatch) ")


class Console(rich_console.Console):
  """A console for plain texts, without markup."""

  def __init__(self, quiet: bool = False, **options: Any):
    """As rich's; `quiet` prints nothing."""
    super().__init__(highlight=False, markup=False, emoji=False, quiet=quiet, **options)

  def print(self, *objects: Any, **options: Any) -> None:
    """Prints texts in lines that fit; tables and bars as rich does."""
    # While a bar is shown, what others print comes as rich's Text.
    is_text = lambda one: isinstance(one, rich_text.Text)
    objects = tuple(one.plain if is_text(one) else one for one in objects)
    if all(isinstance(one, str) for one in objects):
      options.setdefault("soft_wrap", True)
      if self.is_terminal:
        escaped = map(escape.controls, objects)
        objects = tuple(fold(text, self.width) for text in escaped)
    try:
      super().print(*objects, **options)
    except OSError:  # the disk of a log is full, or a terminal has gone
      self.on_broken_pipe()

  def render_str(self, text: str, **options: Any) -> rich_text.Text:
    """As rich's, of the escaped text: rich calls it for every one, in tables too."""
    return super().render_str(escape.controls(text), **options)

  @property
  def file(self) -> IO[str]:
    """As rich's, without `_Escaped` around it: colours are not escaped."""
    file = super().file
    while inner := getattr(file, "rich_proxied_file", None):
      file = inner
    return file

  @file.setter
  def file(self, file: IO[str]) -> None:
    self._file = file

  def on_broken_pipe(self) -> None:
    """Continues without output where rich would end the process and lose work."""
    self.quiet = True
    discard_output()

  def print_markdown(self, text: str) -> None:
    """A Markdown text: rendered on a terminal, as it is elsewhere."""
    if self.is_terminal:
      from rich import markdown  # takes as long to load as the rest of rich

      class Whole(markdown.TableElement):
        """A table whose words are whole."""

        def __rich_console__(self, *_):
          rows = [self.header.row, *(self.body.rows if self.body else ())]
          yield Table([[cell.content.plain for cell in row.cells] for row in rows])

      class Text(markdown.Markdown):
        elements = markdown.Markdown.elements | {"table_open": Whole}

      super().print(Text(escape.controls(text)))
    else:
      self.print(text)


def fold(text: str, width: int) -> str:
  """The text in lines of at most `width`; longer words have a line of their own.

  Further lines are indented to the value of "name  value" and to the words of "- item".
  Lines of a command end in a backslash, so that it can be copied; what is quoted in it
  stays in one line.
  """
  return "\n".join(_fold(line, width) for line in text.split("\n"))


def _fold(line: str, width: int) -> str:
  if len(line) <= width:
    return line
  command = _COMMAND.search(line) is not None
  hang = len(_HANGING.match(line)[0])
  line = _UNIT.sub("\N{NO-BREAK SPACE}", line)  # a number stays with its unit
  quoted = _ARGUMENT if command else _VALUE
  lines = textwrap.wrap(
    quoted.sub(lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), line),
    width - 2 * command,
    subsequent_indent=" " * (hang or 2),
    break_long_words=False,
    break_on_hyphens=False,
  )
  joined = (" \\\n" if command else "\n").join(lines)
  return joined.replace("\N{NO-BREAK SPACE}", " ")


def discard_output() -> None:
  """Makes the rest of the standard output go nowhere; nobody can receive it."""
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, sys.stdout.fileno())
  os.close(null)


def print_to_stderr(text: str) -> None:
  """Prints one message apart from a command's output: an error or a note."""
  Console(stderr=True).print(text)


def print_exception(*raised: Any) -> None:
  """Prints a traceback; `raised` as sys.excepthook gets it."""
  sys.stderr.write(escape.controls("".join(traceback.format_exception(*raised))))


def print_unraisable(found: Any) -> None:
  """Prints what nobody can catch; `found` as sys.unraisablehook gets it.

  Not what a thread has to tell an event loop that has ended: after the first write that
  fails, TensorStore has that for each of the others, and Orbax reports the first.
  """
  if str(found.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(found)


def write(text: str) -> None:
  """Writes a part of a model's text, which is a result, to the standard output.

  A terminal gets it escaped. A file or another program gets it as it is.
  """
  file = Console().file
  file.write(escape.controls(text) if file.isatty() else text)
  file.flush()


@contextlib.contextmanager
def escaped_streams() -> Iterator[None]:
  """In the block, all that is printed is escaped, also what libraries print.

  So are, from here on, characters that the encoding of a stream lacks.
  """
  before = sys.stdout, sys.stderr
  for stream in before:
    # A stream that has all characters keeps its own rule for bytes of file names.
    if isinstance(stream, io.TextIOWrapper) and not _has_all_characters(stream):
      stream.reconfigure(errors="backslashreplace")
  sys.stdout, sys.stderr = map(_Escaped, before)
  try:
    yield
  finally:
    sys.stdout, sys.stderr = before


def _has_all_characters(stream: io.TextIOWrapper) -> bool:
  return codecs.lookup(stream.encoding).name.startswith("utf")


class _Escaped:
  """A standard stream that escapes what is written to it.

  Attributes:
    rich_proxied_file: the stream; by this name rich finds it and writes to it.
  """

  _BARS = re.compile("^\r|^(?:\x1b\\[A)+$")  # with these, tqdm's bars stay in place

  def __init__(self, stream: IO[str]):
    self.rich_proxied_file = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self.rich_proxied_file, name)

  def write(self, text: str) -> int:
    bar = self._BARS.match(text)
    begin = bar.end() if bar else 0
    self.rich_proxied_file.write(text[:begin] + escape.controls(text[begin:]))
    return len(text)

  def writelines(self, lines: Iterable[str]) -> None:
    for line in lines:
      self.write(line)


def text(plain: str, style: str = "") -> rich_text.Text:
  """A text in a style, as a cell of a table: one line, escaped."""
  return rich_text.Text(escape.line(plain), style)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
  """A table to print: its first column aligned left, the others right."""
  return Table([[escape.controls(cell) for cell in row] for row in (headings, *rows)])


class Table:
  """Cells that are printed without breaking a word, at any width.

  Columns become narrower down to their longest word. Where that is not enough, each
  row is a list with a line per cell.
  """

  def __init__(self, rows: Sequence[Sequence[str]]):
    """`rows`: the headings, then the cells of each row; escaped."""
    self._headings, *self._rows = rows
    self._columns = list(zip(*rows, strict=True))

  def __rich_console__(
    self, console: rich_console.Console, options: rich_console.ConsoleOptions
  ) -> Iterator[rich_table.Table | rich_text.Text]:
    borders = 3 * len(self._columns) + 1
    widths = self._widths(options.max_width - borders)
    if widths is None:
      yield rich_text.Text(self._listed(options.max_width), overflow="fold")
      return
    drawn = rich_table.Table()
    for i, (heading, width) in enumerate(zip(self._headings, widths, strict=True)):
      drawn.add_column(heading, width=width, justify="right" if i else "left")
    for row in self._rows:
      drawn.add_row(*row)
    yield drawn

  def _widths(self, room: int) -> list[int] | None:
    """Widths of the columns whose sum is at most `room`; None: too little room."""
    widest = lambda texts: max(map(cells.cell_len, texts), default=0)
    words = [widest(" ".join(column).split()) for column in self._columns]
    widths = [widest("\n".join(column).split("\n")) for column in self._columns]
    if sum(words) > room:
      return None
    while sum(widths) > room:
      wide = [i for i, width in enumerate(widths) if width > words[i]]
      widths[max(wide, key=lambda i: widths[i])] -= 1
    return widths

  def _listed(self, width: int) -> str:
    """The rows as lists of "heading  value"."""
    names = [" ".join(heading.split()) for heading in self._headings[1:]]
    room = min(max(map(len, names), default=0), width // 2)
    lines = []
    for first, *others in self._rows:
      lines.append(first)
      lines += [f"  {n:<{room}}  {x}" for n, x in zip(names, others, strict=True)]
    return fold("\n".join(lines), width)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
  """Wraps paragraphs at the terminal's width; keeps the lines of indented ones."""

  def _fill_text(self, text: str, width: int, indent: str) -> str:
    parts = text.strip().split("\n\n")
    return "\n\n".join(
      fold(part, width) if part.startswith(" ") else textwrap.fill(part, width)
      for part in parts
    )

  def _get_help_string(self, action: argparse.Action) -> str | None:
    shown = action.default not in (None, "", False, argparse.SUPPRESS)
    return super()._get_help_string(action) if shown else action.help


def size(count: float) -> str:
  """A number of bytes as text: "512 B", "35.4 MiB", "2.20 GiB"."""
  for unit in ("B", "KiB", "MiB"):
    if count < 1000:
      return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
    count /= 1024
  return f"{count:.2f} GiB"

"""What strangers write cannot steer a terminal, forge a line or become markup."""

import ast
import io
import logging
import pathlib
import re
import sys

import pytest
from rich import cells, markdown
from rich import table as rich_table

from skipalign_jax.runtime import errors, escape, progress, terminal

ROOT = pathlib.Path(__file__).parents[2]
CONTROLS = [
  *map(chr, (*range(9), *range(11, 32), *range(127, 160))),  # not tab and line feed
  *map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)),
  *map(chr, (0xD800, 0xDC80, 0xDFFF)),
]
HOSTILE = "evil\x1b[2J\x9b31m\u202etxt\udc80\r"
SHOWN = r"evil\x1b[2J\x9b31m\u202etxt\udc80\r"


def is_safe(text):
  return not any(control in text for control in CONTROLS)


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_every_control_character_is_spelled(control):
  spelled = ascii(control)[1:-1]
  assert escape.controls(f"a{control}b\n\tc") == f"a{spelled}b\n\tc"
  assert escape.line(f"a{control}b\n\tc") == f"a{spelled}b\\n\\tc"
  assert is_safe(escape.markdown(control))


def test_other_texts_stay():
  text = "Zürich 東京 שלום 👩\u200d👩 \\x1b [bold] a_b\n\t"
  assert escape.controls(text) == text


def test_lists_of_names_are_short():
  names = ["a\nb", "c" * 1000, "d", "e"]
  assert escape.listed(names, 3) == f"a\\nb, {200 * 'c'}, d and 1 more"


def console(**options):
  return terminal.Console(file=io.StringIO(), width=80, **options)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_console_escapes_lines_cells_and_markdown(is_terminal):
  shown = console(force_terminal=is_terminal, color_system=None)
  shown.print(HOSTILE)
  shown.print(HOSTILE, style="dim")
  shown.print(terminal.table([HOSTILE, "b"], [[HOSTILE, "1"]]))
  drawn = rich_table.Table("a")
  drawn.add_row(terminal.text(f"{HOSTILE}\nb", "blue"))
  shown.print(drawn)
  shown.print_markdown(f"# {HOSTILE}\n\n- {HOSTILE}")
  text = shown.file.getvalue()
  assert is_safe(text) and text.count("evil") == 7 and r"\r\nb" in text


def test_widths_are_those_of_the_escaped_text():
  shown = console(force_terminal=True, color_system=None)
  shown.print(terminal.table(["a", "b"], [[5 * "\x1b", "1"], ["c", 10 * "\x07"]]))
  shown.print("name       " + 15 * "\x1b\x1b ")
  lines = shown.file.getvalue().splitlines()
  assert max(map(cells.cell_len, lines)) <= 80
  assert len({cells.cell_len(line) for line in lines if "│" in line}) == 1


@pytest.mark.parametrize("is_terminal", [False, True])
def test_names_and_notes_of_bars_are_text(is_terminal):
  shown = console(force_terminal=is_terminal, color_system=None)
  with progress.Progress(shown, "[/b] {x} \x07", 2, both_ends=True) as bar:
    bar.update(2, "line [/b]\x07", "note [/b]\x07")
  with progress.Counter(shown, "[/b] {x} \x07") as count:
    count.add(3)
  text = shown.file.getvalue()
  assert "\x07" not in text
  assert ("note [/b]" in text and "[/b] {x}" in text) if is_terminal else "line" in text


def test_what_others_print_while_a_bar_is_shown_is_escaped(monkeypatch):
  monkeypatch.setattr(sys, "stdout", io.StringIO())
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  with terminal.escaped_streams():
    shown = terminal.Console(force_terminal=True, color_system=None, width=80)
    with progress.Progress(shown, "task", 2):
      print(f"library {HOSTILE}".rstrip())
      print(f"library {HOSTILE}".rstrip(), file=sys.stderr)
  text = sys.stdout.getvalue() + sys.stderr.getvalue()
  ours = re.compile(r"\r|\x1b\[(\?25[lh]|2K|1A)")  # of the bar
  assert is_safe(ours.sub("", text)) and text.count("library evil") == 2


def commanded(main, capsys):
  """(status, standard output, standard error) of a command."""
  with pytest.raises(SystemExit) as leaving:
    errors.run_command(main)
  return leaving.value.code, *capsys.readouterr()


@pytest.fixture(autouse=True)
def usual_hook(monkeypatch):
  monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def test_errors_are_escaped(capsys):
  def main():
    raise errors.UserError(f"model {HOSTILE}:\nno such file")

  expected = f"error: model {SHOWN}:\nno such file\n"
  assert commanded(main, capsys) == (2, "", expected)


def test_what_libraries_print_is_escaped(capsys, monkeypatch):
  # pytest-xdist cannot report a log that is not UTF-8.
  monkeypatch.setattr(logging.getLogger("library"), "propagate", False)

  def main():
    handler = logging.StreamHandler()
    logging.getLogger("library").addHandler(handler)
    logging.getLogger("library").warning("key %s", HOSTILE)
    logging.getLogger("library").removeHandler(handler)
    sys.stdout.writelines([HOSTILE, "\n"])
    print(HOSTILE, file=sys.stdout)

  status, out, err = commanded(main, capsys)
  assert status == 0 and is_safe(out + err)
  assert out == f"{SHOWN}\n{SHOWN}\n" and err == f"key {SHOWN}\n"
  assert sys.stdout is not sys.__stderr__ and not hasattr(sys.stdout, "_BARS")


def test_bars_of_libraries_stay_in_place_and_colours_of_ours(capsys):
  def main():
    sys.stderr.write("\r 10%")
    sys.stderr.write("\x1b[A\x1b[A")
    sys.stderr.write("a\r\x1b[A")
    terminal.Console(force_terminal=True, color_system="standard").print(
      "blue", style="blue"
    )

  _, out, err = commanded(main, capsys)
  assert err == "\r 10%\x1b[A\x1b[Aa\\r\\x1b[A" and "\x1b[34mblue" in out


def test_tracebacks_are_escaped(capsys):
  def main():
    raise RuntimeError(HOSTILE)

  with pytest.raises(RuntimeError) as caught:
    errors.run_command(main)
  sys.excepthook(caught.type, caught.value, caught.tb)
  err = capsys.readouterr().err
  assert is_safe(err) and f"RuntimeError: {SHOWN}" in err and "test_escape.py" in err


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_models_text_is_escaped_on_a_terminal_only(is_terminal, capsys, monkeypatch):
  monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: is_terminal)
  with terminal.escaped_streams():
    terminal.write("a\tb\x1b[1m\n")
  out = capsys.readouterr().out
  assert out == ("a\tb\\x1b[1m\n" if is_terminal else "a\tb\x1b[1m\n")


MARKUP = [
  "<img src=x onerror=alert(1)>", "&lt;b&gt; &#27;", "[a](javascript:b)", "![a](b)",
  "*a* **a** _a_ __a__ ~~a~~", "`a`", "a | b", "$a$", "\\*a\\*", "# a", "- a", "+ a",
  "---", "> a", "1. a", "12) a", "123. a", "[a]: b", "[ ] a",
  "<!-- a", "a\n\n# b", "***", "___",
  "|", "\\", "-", "+", "#", "1.",
]  # fmt: skip


@pytest.mark.parametrize("text", MARKUP)
def test_markdown_shows_a_text_as_it_is(text):
  for form, cell in (("- {}", " • {}"), ("| a |\n|---|\n| {} |", " {}")):
    shown = console(color_system=None)
    shown.print(markdown.Markdown(form.format(escape.markdown(text))))
    lines = [line.rstrip() for line in shown.file.getvalue().splitlines()]
    assert cell.format(escape.line(text)).rstrip() in lines, form


def test_usual_names_in_markdown_stay():
  for name in ("runs/skip_all-1e-4@200", "a [runs/b]", "+20 (+3 to +37)", "-0.5", ""):
    assert escape.markdown(name).replace("\\[", "[") == name


PRINTING = {"print", "print_exc", "print_exception", "pprint"}


CHILD = "skipalign_jax/evals/lm_eval/program_child.py"  # its parent reads its output
# These write to a child, and one text of their own.
PIPES = {"skipalign_jax/runtime/child_process.py", "skipalign_jax/__init__.py"}


def test_nothing_is_printed_past_the_terminal():
  """No call of print or a standard stream, and no text or console of rich itself."""
  checked = 0
  for path in (*ROOT.glob("skipalign_jax/**/*.py"), *ROOT.glob("studies/**/*.py")):
    where = path.relative_to(ROOT).as_posix()
    if where in ("skipalign_jax/runtime/terminal.py", CHILD):
      continue
    checked += 1
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Name):
          assert function.id not in PRINTING, f"{where}:{node.lineno}"
        elif isinstance(function, ast.Attribute):
          owner = ast.unparse(function.value)
          assert owner not in ("traceback", "pprint"), f"{where}:{node.lineno}"
          written = function.attr in ("write", "writelines")
          assert not (written and "std" in owner), f"{where}:{node.lineno}"
          assert where in PIPES or ast.unparse(function) != "os.write", where
      if isinstance(node, ast.ImportFrom) and node.module == "rich":
        allowed = {"table", "progress"}  # their texts go through our console
        assert {alias.name for alias in node.names} <= allowed, where
  assert checked > 150

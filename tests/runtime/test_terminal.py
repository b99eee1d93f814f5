"""What commands print reads well at 80 columns, and is plain text in a pipe."""

import importlib
import io
import os
import re
import shlex
import subprocess
import sys

import pytest
from rich import cells

from skipalign_jax.evals import tasks
from skipalign_jax.runtime import terminal

HELP = {
  "analyze": [[]],
  "convert": [[], ["import"], ["export"], ["verify"]],
  "evaluate": [[], *([t] for t in [*tasks.TASKS, "compare"])],
  "generate": [[]],
  "plan": [[]],
  "show": [[]],
  "sweep.__main__": [[]],
  "train": [[]],
}


def printed(*objects, markdown=False, **options):
  console = terminal.Console(file=io.StringIO(), **{"width": 80} | options)
  for one in objects:
    console.print_markdown(one) if markdown else console.print(one)
  return console.file.getvalue()


LINE = (
  "data       chats.jsonl: 64 samples, 27,516 tokens, 10,606 targets and more like it"
)


def test_lines_hang_under_their_values_on_a_terminal():
  text = printed(LINE, "  - " + 20 * "words ", force_terminal=True)
  first, second, item, more = text.splitlines()
  assert first == LINE[: LINE.rindex(" it")] and second == " " * 11 + "it"
  assert item.startswith("  - words") and more.startswith("    words")


def test_lines_are_whole_in_a_pipe():
  assert printed(LINE, "[bold] :-) is text") == f"{LINE}\n[bold] :-) is text\n"


def test_numbers_keep_their_units():
  text = terminal.fold(76 * "x" + " 6.2 % of it, 1.00 GiB", 80)
  assert text.splitlines()[1] == "  6.2 % of it, 1.00 GiB"


def test_paths_are_not_broken():
  path = "/a" * 50
  assert f"\n  {path}\n" in terminal.fold(f"written to the folder {path} again", 80)


def test_a_command_can_be_copied():
  command = (
    "next       python -m skipalign_jax.generate --model=runs/x --prompt='Hello' -b"
  )
  first, second = terminal.fold(command, 60).splitlines()
  assert first.endswith(" \\") and len(first) <= 60
  assert (first[:-1] + second).split() == command.split()


@pytest.mark.parametrize("name", ["a b c d", "it's a b", 'a "b" c'])
def test_quoted_words_are_not_broken(name):
  folder = shlex.quote(f"/tmp/somewhere/{name}/runs of mine/run")
  command = (
    f"next       python -m skipalign_jax.generate --model={folder} --prompt='a b'"
  )
  copied = terminal.fold(command, 60).replace("\\\n", "")
  assert shlex.split(copied) == shlex.split(command)
  hint = f"load it with from_pretrained({name!r}), or here as --model={folder}"
  assert f"--model={folder}" in terminal.fold(hint, 60)


def test_tables_are_drawn_on_a_terminal_and_markdown_in_a_pipe():
  text = "### Scores\n\n| Model | needle |\n|---|--:|\n| a\\*b | 0.5 |\n\n- a note"
  assert printed(text, markdown=True) == text + "\n"
  drawn = printed(text, markdown=True, force_terminal=True, color_system=None)
  assert "a*b" in drawn and "|" not in drawn and "─" in drawn


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("markdown", [False, True])
def test_tables_fit_without_breaking_a_word(width, markdown):
  long = ["strategy", *(f"a long heading of column {i}" for i in range(5))]
  row = ["skip_outer/uniform", *(f"12.{i} 12.6 samples" for i in range(5))]
  table = terminal.table(long, [row, row])
  if markdown:
    line = lambda cells: f"| {' | '.join(cells)} |"
    table = "\n".join(map(line, [long, ["---"] * 6, row, row]))
  options = dict(width=width, force_terminal=True, color_system=None)
  text = printed(table, markdown=markdown, **options)
  assert max(map(cells.cell_len, text.splitlines())) <= width
  words = [word for cell in [*long[1:], *row] for word in cell.split()]
  assert not {*words} - {*re.split(r"[\s┃│]+", text)}
  assert ("┃" in text) == (width > 60)  # below that, lines "heading  value"
  assert text.count("12.4 12.6") >= (2 if width == 200 else 0)


def test_a_cell_per_line_has_its_heading():
  shown = printed(
    terminal.table(["", "x", "a name"], [["one", "1", 70 * "b"]]), width=60
  )
  assert shown.splitlines()[:2] == ["one", "  x       1"]
  assert shown.count("b") == 70  # a word that is longer than a line


@pytest.mark.parametrize(
  ("count", "text"),
  [(0, "0 B"), (999, "999 B"), (177_100, "172.9 KiB"), (2.2 * 2**30, "2.20 GiB")],
)
def test_sizes(count, text):
  assert terminal.size(count) == text


@pytest.mark.parametrize("name", HELP)
def test_help_fits_80_columns_and_is_plain(name, monkeypatch, capsys):
  monkeypatch.setenv("COLUMNS", "80")
  module = importlib.import_module(f"skipalign_jax.{name}")
  for words in HELP[name]:
    monkeypatch.setattr(sys, "argv", [name, *words, "--help"])
    try:
      module.main(sys.argv) if name == "analyze" else module.main()
    except SystemExit as leaving:
      assert leaving.code == 0
    text = capsys.readouterr().out
    wide = [line for line in text.splitlines() if cells.cell_len(line) > 80]
    assert not wide and "\x1b" not in text
    assert "usage" in text and "None" not in text


@pytest.mark.parametrize("full", [False, True])
def test_a_command_continues_where_nobody_receives_its_output(tmp_path, full):
  """A pipe whose reader has ended, and a full disk."""
  code = (
    "from skipalign_jax.runtime import errors, terminal\n"
    "import pathlib, sys\n"
    "def main():\n"
    "  console = terminal.Console()\n"
    "  for i in range(3000):\n"
    "    console.print(50 * 'x')\n"
    "  pathlib.Path(sys.argv[1]).write_text('saved')\n"
    "errors.run_command(main)"
  )
  command = [sys.executable, "-c", code, str(tmp_path / "file")]
  if full:
    with open("/dev/full", "w") as file:
      done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True)
    status, said = done.returncode, done.stderr
  else:
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    said, status = process.stderr.read(), process.wait()
  assert (status, said) == (0, "") and (tmp_path / "file").read_text() == "saved"


def test_help_into_a_pipe_that_closes_is_no_traceback():
  code = (
    "from skipalign_jax.runtime import errors\n"
    "def main():\n  for i in range(9999): print(50 * 'x')\n"
    "errors.run_command(main)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )
  process.stdout.close()
  assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_characters_that_an_encoding_lacks_end_no_command(encoding):
  code = (
    "from skipalign_jax.runtime import errors, terminal\n"
    "def main():\n"
    "  terminal.Console().print('caf\\u00e9 \\u2026 \\U0001f914')\n"
    "  terminal.write('\\u65e5')\n"
    "errors.run_command(main)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "PYTHONIOENCODING": encoding},
    capture_output=True,
  )
  said = "caf\u00e9 \u2026 \U0001f914\n\u65e5".encode(encoding, "backslashreplace")
  assert (done.returncode, done.stdout, done.stderr) == (0, said, b"")

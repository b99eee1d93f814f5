"""What `show` prints is what the model sees."""

import io
import itertools
import json
import sys

import numpy as np
import pytest
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax import show as skipalign_jax_show
from skipalign_jax.commands import show
from skipalign_jax.data import packing, pipeline
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.method import positions
from skipalign_jax.runtime import errors, terminal


@pytest.fixture
def config(tmp_path):
  c = config_lib.tiny(config_lib.default())
  c.data.cache_dir = str(tmp_path)
  c.positions.strategy, c.positions.skip_prob = "skip_all", 1.0
  return c


def printed(config, n=1, limit=0, width=120, every_token=False, **kwargs):
  file = io.StringIO()
  console = rich_console.Console(file=file, width=width, highlight=False, **kwargs)
  show.run(config, n, limit, every_token, console)
  return file.getvalue()


def test_spans_cover_the_row():
  sample = dict(
    tokens=np.arange(1, 8), sample_id=9, block_starts=np.array([0, 3]),
    target_spans=np.array([4, 6]), is_text=False,
  )  # fmt: skip
  row = packing.assemble_row([sample, sample], 20, 0)
  found = [(s.segment, s.block, s.is_target, s.begin, s.end) for s in show.spans(row)]
  one = [(0, False, 0, 3), (1, False, 3, 4), (1, True, 4, 6), (1, False, 6, 7)]
  assert found == [
    (segment, block, target, 7 * (segment - 1) + begin, 7 * (segment - 1) + end)
    for segment in (1, 2)
    for block, target, begin, end in one
  ]


def test_texts_are_not_instructions(config):
  config.data.train = "builtin:text:8"
  config.data.eval, config.data.text_blocks = "", "paragraphs"
  text = printed(config, width=200)
  assert "│ text" in text and "instruction" not in text


def test_shows_the_positions_and_targets_of_training(config):
  text = printed(config, width=200)
  tokenizer = tokenizer_lib.resolve(config)
  quiet = rich_console.Console(file=io.StringIO())
  row = pipeline.build(config, tokenizer, 0, 1, quiet).train_rows[0]
  batch = {name: array[None] for name, array in row.items()}
  recipe = positions.PositionConfig(**config.positions)
  positions_L = np.asarray(positions.synthesize(recipe, config.seed, batch))[0]
  spans = show.spans(row)
  lines = [line for line in text.splitlines() if "│" in line]
  ends = [(positions_L[s.begin], positions_L[s.end - 1]) for s in spans]
  expected = [f"{first}-{last}" if last > first else f"{first}" for first, last in ends]
  shown = [line.split("│") for line in lines]
  shown = [cells for cells in shown if cells[1].strip()]  # folded lines have no number
  assert [cells[5].strip() for cells in shown] == expected
  assert [cells[4].strip() == "yes" for cells in shown] == [s.is_target for s in spans]
  assert max(positions_L) > 1000  # the row has a skip


def test_a_longer_text_is_shown_as_it_is_cropped(config):
  config.data.train, config.data.eval = "builtin:text:8", ""
  config.data.seq_len, config.data.text_window = 64, 256
  config.data.packing, config.positions.strategy = False, "pose"
  assert "row 0: 64 tokens" in printed(config, width=200)


def test_a_reply_of_weight_zero_is_shown_as_read(config, tmp_path):
  """In a packed row the other replies are learned, each with its stop token."""
  path = tmp_path / "chats.jsonl"
  messages = [
    {"role": "user", "content": "ask 0"},
    {"role": "assistant", "content": "answer 0", "weight": 0},
    {"role": "user", "content": "ask 1"},
    {"role": "assistant", "content": "answer 1", "train": True},
  ]
  lines = [{"messages": messages}, {"messages": messages[2:]}]
  path.write_text("\n".join(map(json.dumps, lines)))
  config.data.train, config.data.eval = str(path), ""
  config.data.packing = True
  text = printed(config, width=200)
  cells = [line.split("│") for line in text.splitlines() if line.count("│") > 5]
  learned = [row[6].strip() for row in cells if row[4].strip() == "yes"]
  assert learned == ["answer 1<|im_end|>"] * 2
  (read,) = [row for row in cells if "answer 0" in row[6]]
  assert read[3].strip() == "response" and not read[4].strip()
  assert "not learned: 1 replies that the data excludes" in text


def test_every_token_gets_its_own_line_and_position(config):
  lines = [line.split("│") for line in printed(config, every_token=True).splitlines()]
  found = [int(cells[5]) for cells in lines if len(cells) > 5 and cells[1].strip()]
  assert found[0] == 0 and len(found) > 150
  assert all(one < other for one, other in itertools.pairwise(found))
  assert found[-1] > 1000


@pytest.mark.parametrize("width", [80, 120])
def test_fits_the_terminal_and_has_no_colour_in_a_pipe(config, width):
  text = printed(config, n=2, width=width)
  assert max(map(len, text.splitlines())) <= width
  assert "\x1b" not in text and text.count("row ") == 2


def test_colour_in_a_terminal(config):
  assert "\x1b[" in printed(config, force_terminal=True, color_system="truecolor")


def test_the_middle_of_long_blocks_is_left_out(config):
  whole, short = printed(config), printed(config, limit=10)
  assert "…" not in whole and "…" in short and len(short) < len(whole)


def test_chats_cannot_steer_the_terminal(config, tmp_path):
  turns = [("user", "a\x1b[2Jb\x9b1m\r\n\tc\u202e"), ("assistant", "d\x07e\u2066")]
  messages = [{"role": role, "content": content} for role, content in turns]
  path = tmp_path / "a\x1b[2J.jsonl"
  path.write_text(64 * (json.dumps({"messages": messages}) + "\n"))
  config.data.train, config.data.eval = str(path), ""
  console = terminal.Console(file=io.StringIO(), width=200)
  show.run(config, 1, 0, False, console)
  text = console.file.getvalue()
  assert r"a\x1b[2Jb\x9b1m\r\n\tc\u202e" in text and r"d\x07e\u2066" in text
  assert r"a\x1b[2J.jsonl: 64 samples" in text
  assert all(character.isprintable() for character in text.replace("\n", ""))


def test_unusable_records_cannot_steer_the_terminal(config, tmp_path, capsys):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b"\x1b[2J\x9b\xe2\x80\xae{\n" * 8)
  config.data.train = str(path)

  def main():
    show.run(config, 1, 0, False, terminal.Console())

  with pytest.raises(SystemExit):
    errors.run_command(main)
  text = capsys.readouterr().err
  assert r"not valid" in text or r"not UTF-8" in text
  assert r"\x1b[2J" in text and "\x1b" not in text and "\u202e" not in text


def test_row_number_out_of_range(config):
  for n in (0, 10_000):
    with pytest.raises(errors.UserError, match="--n"):
      printed(config, n=n)


def test_every_token_is_0_or_1(monkeypatch):
  arguments = ["show", "--config=quickstart:tiny", "--every_token=2"]
  monkeypatch.setattr(sys, "argv", arguments)
  with pytest.raises(errors.UserError, match="--every_token=2 must be 0 or 1"):
    skipalign_jax_show.main()


def test_a_config_that_cannot_train_is_an_error(config):
  config.steps = None
  with pytest.raises(errors.UserError, match="exactly one of steps and epochs"):
    printed(config)

"""The picture at the end of a run, and that it cannot fail one."""

import json

import pytest
from matplotlib import figure as figure_lib

from skipalign_jax.runtime import extras, terminal
from skipalign_jax.training import picture

RECORDS = [
  {"step": 0, "eval_loss": 3.0},
  {"step": 1, "loss": 3.1, "largest_position": 900},
  {"step": 2, "loss": float("nan"), "largest_position": 1000},
  {"step": 2, "eval_loss": 2.5},
]


@pytest.fixture
def folder(tmp_path):
  lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
  (tmp_path / "metrics.jsonl").write_text(lines)
  return tmp_path


def drawn(folder, capsys, max_position=1024):
  picture.draw_at_end(folder, max_position, terminal.Console())
  return capsys.readouterr().out


def test_draws_losses_and_positions(folder, capsys, monkeypatch):
  figures = []
  save = figure_lib.Figure.savefig

  def kept(figure, *args, **options):
    figures.append(figure)
    save(figure, *args, **options)

  monkeypatch.setattr(figure_lib.Figure, "savefig", kept)
  assert str(folder / picture.NAME) in drawn(folder, capsys)
  assert (folder / picture.NAME).read_bytes().startswith(b"\x89PNG")
  left, right = figures[0].axes
  held_out = left.get_lines()[1]
  assert list(held_out.get_xdata()) == [0, 2] and list(held_out.get_ydata()) == [3, 2.5]
  assert list(right.get_lines()[0].get_ydata()) == [900, 1000]
  assert right.get_lines()[1].get_ydata()[0] == 1024
  assert right.get_ylim() == pytest.approx((0, 1.05 * 1024))
  assert sorted(p.name for p in folder.iterdir()) == ["metrics.jsonl", picture.NAME]


def test_units_of_runs_that_learn_from_pairs(tmp_path, monkeypatch):
  figures = []
  save = lambda figure, *_, **__: figures.append(figure)
  rewards = {"rewards/margin": 0.1, "rewards/chosen": 0.2}
  pairs = [record | (rewards if "loss" in record else {}) for record in RECORDS]
  monkeypatch.setattr(picture.plotting, "save", save)
  for records in (RECORDS, pairs):
    picture.draw(records, 1024, tmp_path / "x.png")
  units = [figure.axes[0].get_ylabel() for figure in figures]
  assert units == ["loss, nats per token", "loss, nats"]
  assert [line.get_label() for line in figures[1].axes[0].get_lines()] == [
    "training, per pair",
    "held out, per token of chosen",
  ]


def test_a_run_without_numbers_of_a_kind_is_drawn(folder, capsys):
  (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
  assert "note" not in drawn(folder, capsys, 0)
  (folder / "metrics.jsonl").write_text("")
  assert "note" not in drawn(folder, capsys, 0)


def test_what_fails_is_a_note_in_one_line(folder, capsys, monkeypatch):
  (folder / picture.NAME).mkdir()  # cannot be replaced by a file
  out = drawn(folder, capsys)
  assert out.startswith("note: ") and "is not drawn" in out and out.count("\n") == 1
  assert not [p for p in folder.iterdir() if p.name.endswith(".new")]
  monkeypatch.setattr(extras, "is_installed", lambda package: False)
  out = drawn(folder, capsys)
  assert "training.png is not drawn" in out and "pip install" in out
  assert out.count("\n") == 1

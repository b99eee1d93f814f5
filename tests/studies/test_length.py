"""The synthetic study: its tasks by their definitions, its command end to end.

Shapes: S seeds, C cells, B strings, L places.
"""

import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from skipalign_jax.runtime import errors
from studies.length import __main__ as command
from studies.length import figure, study, tasks, training, verdict

Cell = training.Cell


def strings(n):
  """All strings of n bits."""
  return np.array(list(itertools.product((0, 1), repeat=n)))


def test_strings_are_a_start_token_and_bits():
  length_B = np.arange(1, 65) % 7 + 1
  tokens_BL, segment_ids_BL, total_B = map(
    np.asarray, tasks.draw_bits(jax.random.key(0), length_B, 7)
  )
  ones = 0
  for tokens, segments, total, n in zip(
    tokens_BL, segment_ids_BL, total_B, length_B, strict=True
  ):
    assert tokens[0] == tasks.START and set(tokens[1:]) <= {0, 1}
    assert segments.tolist() == [1] * (n + 1) + [0] * (7 - n)
    assert total == sum(tokens[1 : n + 1])
    assert not tokens[n + 1 :].any()
    ones += total
  assert 0.4 < ones / length_B.sum() < 0.6


def test_answers_and_baselines():
  """Against all strings of a length, one by one."""
  for n in (3, 10, 13):
    bits = strings(n)
    naive = {"mean": bits.mean(1), "length": np.full(len(bits), n), "sum": bits.sum(1)}
    blind = {
      "mean": np.full(len(bits), 0.5),
      "length": np.full(len(bits), min(n, 10)),
      "sum": bits[:, :10].sum(1),
    }
    for name, task in tasks.TASKS.items():
      y = task.answer(bits.sum(1).astype(np.float32), np.float32(n))
      np.testing.assert_allclose(np.broadcast_to(y, len(bits)), naive[name], rtol=1e-6)
      assert y.min() >= task.minimum
      error = np.mean((naive[name] - blind[name]) ** 2)
      assert task.baseline(n) == pytest.approx(error)
      square = np.mean(naive[name].astype(float) ** 2)
      assert tasks.mean_square(name, n) == pytest.approx(square)


def test_output_representations():
  formulas = {
    "y": lambda x: x,
    "√y": math.sqrt,
    "log y": math.log,
    "1/√y": lambda x: 1 / math.sqrt(x),
  }
  for task, minimum in (("length", 1), ("sum", 0)):
    y = np.arange(minimum, 51, dtype=np.float32)
    for name, f in formulas.items():
      z = tasks.encode(task, name, y)
      expected = y if name == "y" else [f(v - minimum + 1) for v in y]
      np.testing.assert_allclose(z, expected, rtol=2e-6, atol=1e-7)
      np.testing.assert_allclose(tasks.decode(task, name, z), y, rtol=2e-6, atol=1e-5)
      wild = np.array([-1e9, -1.0, 0.0, 1e-9, 1e9], np.float32)
      found = np.asarray(tasks.decode(task, name, wild))
      assert np.isfinite(found).all() and np.abs(found).max() <= tasks.CAP
  # An output at or below 0 means the longest possible string, not the shortest.
  assert tasks.decode("length", "1/√y", np.float32(-0.1)) == tasks.CAP
  assert tasks.decode("length", "√y", np.float32(-0.1)) == 0


def test_positions_of_the_encodings():
  segment_ids_BL = jnp.array([[1] * 11, [1] * 11, [1, 1, 1] + [0] * 8])
  encoded = jax.jit(training.encoded_positions)
  none_BL, rope_BL, skip_BL = np.asarray(encoded(segment_ids_BL, jax.random.key(1)))
  assert not none_BL.any()
  assert (rope_BL[:2] == np.arange(11)).all()
  assert rope_BL[2].tolist() == [0, 1, 2] + [0] * 8
  for skip_L, n in zip(skip_BL, (11, 11, 3), strict=True):
    assert (np.diff(skip_L[:n]) > 0).all() and skip_L.max() < 64
    assert not skip_L[n:].any()
  assert (skip_BL[0] != skip_BL[1]).any() and skip_BL[0].max() > 20
  tested_EBL = np.asarray(encoded(segment_ids_BL, None))
  assert (tested_EBL[2] == rope_BL).all()


CELLS = (
  Cell("mean", "y", "none"),
  Cell("length", "1/√y", "rope"),
  Cell("sum", "log y", "skip"),
)


@pytest.fixture
def small(monkeypatch):
  """A small program: one cell per task, short strings."""
  for name, value in dict(
    MODEL=tiny.config(vocab_size=3, num_layers=1, tie_embeddings=True),
    CELLS=CELLS,
    BATCH=5,
    TEST_STRINGS=4,
    TESTED=(1, 12),
    CHUNK=2,
  ).items():
    monkeypatch.setattr(training, name, value)
  monkeypatch.setattr(tasks, "LONGEST_TESTED", 12)


def test_losses_are_the_squared_errors_of_a_naive_model(small):
  rng = np.random.default_rng(0)
  cells = [
    {
      "decoder": tiny.params(training.MODEL, seed=c),
      "head": {"weight": rng.normal(size=24).astype(np.float32), "bias": np.float32(c)},
    }
    for c in range(3)
  ]
  params_C = jax.tree.map(lambda *x: np.stack(x), *cells)
  key = jax.random.key(3)
  loss_C = jax.jit(training.losses)(params_C, key)

  keys = jax.random.split(key, 3)
  length_B = np.asarray(jax.random.randint(keys[0], (5,), 1, 11))
  assert len(set(length_B)) > 1 and 1 <= length_B.min() and length_B.max() <= 10
  tokens_BL, segment_ids_BL, _ = tasks.draw_bits(keys[1], length_B, 10)
  positions_EBL = jax.jit(training.encoded_positions)(segment_ids_BL, keys[2])
  answers = {
    "mean": lambda bits: bits.mean(),
    "length": lambda bits: 1 / math.sqrt(len(bits)),
    "sum": lambda bits: math.log(bits.sum() + 1),
  }
  shape = tiny.config(vocab_size=3, num_layers=1)  # the head replaces the lm_head
  naive = jax.jit(
    jax.vmap(lambda p, *x: tiny.naive_logits(p, shape, *x), (None, 0, 0, None))
  )
  for c, cell in enumerate(CELLS):
    head = cells[c]["head"]
    params = cells[c]["decoder"] | {"lm_head": {"weight": head["weight"][None]}}
    at_BL = positions_EBL[training.ENCODINGS.index(cell.encoding)]
    out_BLV = np.asarray(naive(params, tokens_BL, at_BL, np.tri(11, dtype=bool)))
    errors_B = []
    for b, n in enumerate(length_B):
      answer = answers[cell.task](np.asarray(tokens_BL)[b, 1 : n + 1])
      errors_B.append(out_BLV[b, n, 0] + head["bias"] - answer)
    np.testing.assert_allclose(loss_C[c], np.mean(np.square(errors_B)), rtol=1e-4)


def content(mse):
  """The parts of results.json that verdicts use; mse: cell → errors of three seeds."""
  return {
    "tested": [10, 20],
    "protocol": {"seeds": 3, "steps": 1},
    "baselines": {
      name: {"blind": t.blind, "mse": [t.baseline(10), t.baseline(20)]}
      for name, t in tasks.TASKS.items()
    },
    "cells": [
      cell._asdict()
      | {
        "mse": [[9.0, e] for e in mse(cell)],
        "accuracy": [[1.0, 0.5]] * 3 if cell.task != "mean" else None,
      }
      for cell in training.CELLS
    ],
  }


def test_intervals_are_students():
  found = verdict.interval([1.0, math.e, math.e**2])
  half = 4.302653 / math.sqrt(3)  # t of 2 degrees, standard deviation 1
  assert found["mean"] == pytest.approx(math.e)
  assert found["low"] == pytest.approx(math.exp(1 - half))
  assert found["high"] == pytest.approx(math.exp(1 + half))


def test_claims_compare_within_a_seed():
  """The error of 1/√y is half that of y in each seed, of √y twice; log y varies."""
  of_seed = np.array([1.0, 30.0, 900.0])
  factor = {"y": 1.0, "√y": 2.0, "log y": np.array([0.5, 1.0, 2.0]), "1/√y": 0.5}

  def mse(cell):
    if cell.task == "mean":
      return 0.25 / 20 / np.array([4.0, 4.1, 4.2])
    return of_seed * factor[cell.outrep]

  found = {(one["claim"], one["encoding"]): one for one in verdict.claims(content(mse))}
  for encoding in training.ENCODINGS:
    one = found["length: 1/√y better than y", encoding]
    assert (one["verdict"], one["ratio"]["mean"]) == ("yes", pytest.approx(2))
    assert found["sum: √y better than y", encoding]["verdict"] == "no"
    assert found["sum: log y better than y", encoding]["verdict"] == "open"
    one = found["length: 1/√y better than √y", encoding]
    assert one["ratio"]["mean"] == pytest.approx(4)
    one = found["mean: better than answering 1/2", encoding]
    assert (one["verdict"], one["ratio"]["low"]) == ("yes", pytest.approx(4, rel=0.1))
    # Relative errors, of the middle seed: √30/20 of lengths, √(1/(80·4.1)) of means.
    one = found["mean goes further than length", encoding]
    square = 0.25 + 0.25 / 20
    middle = math.sqrt(30) / 20 / math.sqrt(0.0125 / 4.1 / square)
    assert one["ratio"]["mean"] == pytest.approx(middle, rel=1e-2)


def test_command(small, tmp_path, monkeypatch, capsys):
  # Verdicts and the figure need all cells; other tests check them.
  monkeypatch.setattr(verdict, "claims", lambda content: [])
  monkeypatch.setattr(verdict, "report", lambda content: "the report")
  shown = []
  monkeypatch.setattr(figure, "draw", lambda content, path: shown.append(content))
  argv = [f"--out={tmp_path / 'study'}", "--steps=4", "--seeds=2"]
  results = tmp_path / "study" / "results.json"

  def interrupted(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as killed:  # while results.json is written
    killed.setattr(study, "run", lambda *_: {"protocol": {}})
    killed.setattr(pathlib.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
      command.main(argv)
  assert not results.exists()

  assert command.main(argv) == 0
  found = json.loads(results.read_text(encoding="utf-8"))
  assert shown == [found] and "the report" in capsys.readouterr().out
  assert found["protocol"]["steps"] == 4 and found["tested"] == [1, 12]
  assert [Cell(c["task"], c["outrep"], c["encoding"]) for c in found["cells"]] == [
    *CELLS
  ]
  for cell in found["cells"]:
    assert np.shape(cell["mse"]) == (2, 2) and np.isfinite(cell["mse"]).all()
    assert np.shape(cell["train_loss"]) == (2,) and min(cell["train_loss"]) > 0
    assert (cell["accuracy"] is None) == (cell["task"] == "mean")
  assert found["cells"][1]["mse"][0] != found["cells"][1]["mse"][1]  # seeds differ

  # Existing results are shown, not made again, and not replaced by other settings.
  monkeypatch.setattr(study, "run", lambda *_: pytest.fail("trained again"))
  assert command.main(argv) == 0 and len(shown) == 2
  with pytest.raises(errors.UserError, match="steps 4, now 5"):
    command.main([argv[0], "--steps=5", "--seeds=2"])
  results.write_text('{"protocol"', encoding="utf-8")
  with pytest.raises(errors.UserError, match="delete it"):
    command.main(argv)


def test_figure_and_report_come_from_the_content(tmp_path):
  found = content(lambda cell: np.array([1.0, 2.0, 3.0]))
  found["summary"], found["claims"] = verdict.summary(found), verdict.claims(found)
  found = json.loads(json.dumps(found))
  path = figure.draw(found, tmp_path / "figure.png")
  assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 20_000
  text = verdict.report(found)
  # Geometric mean 6^(1/3); the logarithms' standard deviation is 0.556, t is 4.303.
  row = next(line for line in text.splitlines() if "1/√y" in line and "sum" in line)
  assert "1.8 (0.46 to 7.2)" in row and "50 %" in row
  assert "OutRep helps (length): 9 open (of 9 comparisons)" in text


def test_the_readme_has_the_numbers_of_the_results():
  found = json.loads(
    (tiny.ROOT / "studies/length/results/results.json").read_text("utf-8")
  )
  note = (tiny.ROOT / "studies/length/README.md").read_text("utf-8")
  assert found["summary"] == verdict.summary(found)
  assert found["claims"] == verdict.claims(found)
  lines = verdict.report(found).splitlines()
  for line in (line for line in lines if line.startswith("|") or "comparisons" in line):
    assert line in note
  steps, seeds = found["protocol"]["steps"], found["protocol"]["seeds"]
  wanted = json.loads(json.dumps(study.protocol(seeds, steps)))
  assert found["protocol"] == wanted and f"{steps} steps, {seeds} seeds" in note


@pytest.mark.parametrize(
  ("flag", "message"),
  [("--steps=0", "--steps=0 must be at least 1"), ("--seeds=1", "intervals need two")],
)
def test_refused(tmp_path, flag, message):
  with pytest.raises(errors.UserError, match=message):
    command.main([f"--out={tmp_path}", flag])

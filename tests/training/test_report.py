"""What a run says of itself before it starts."""

import dataclasses
import json

import pytest
import tiny
import tiny_subject

from skipalign_jax import config as config_lib
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.method import long_short
from skipalign_jax.model import known_models, rope
from skipalign_jax.training import report


@pytest.mark.parametrize(
  ("changes", "reported"),
  [
    (dict(strategy="contiguous"), "contiguous"),
    (
      dict(skip_below=900),
      "skip_outer up to 2,000, p=1.0 per block, sequential gaps, samples of 900 tokens "
      "or more stay contiguous",
    ),
    (dict(strategy="pose", chunks=3), "pose up to 2,000, 3 chunks"),
    (dict(strategy="randpos"), "randpos up to 2,000"),
    (
      dict(strategy="cream", resample="epoch"),
      "cream up to 2,000, drawn again each epoch",
    ),
  ],
)
def test_positions_are_described_with_the_parameters_of_the_strategy(changes, reported):
  fixed = dataclasses.replace(tiny.SKIPS, resample="never")
  assert report.describe_positions(dataclasses.replace(fixed, **changes)) == reported


FAR = {"positions.max_position": 100_000, "data.seq_len": 6000}


@pytest.mark.parametrize(
  ("changes", "noted"),
  [
    ({}, ""),
    ({"positions.max_position": 8192}, ""),
    ({"positions.max_position": 8193}, "positions.max_position=8,193 is beyond"),
    ({"positions.strategy": "contiguous"}, ""),
    (
      {"positions.strategy": "contiguous", "data.seq_len": 16_384},
      "data.seq_len=16,384 is beyond the model's window of 8,192",
    ),
    ({"positions.max_position": 9000, "model.init_from": ""}, ""),
    (
      {"positions.strategy": "contiguous", "distill.weight": 1.0} | FAR,
      "data.seq_len=6,000 with jumps of distill.weight, 12,000, is beyond",
    ),
    (
      {"positions.strategy": "contiguous", "distill.weight": 1.0}
      | {"distill.reach": "limit"}
      | FAR,
      "positions.max_position=100,000 is beyond",
    ),
  ],
)
def test_positions_beyond_the_window_are_noted(changes, noted):
  c = config_lib.default()
  c.model.init_from, c.positions.max_position = "some/model", 8000
  c.update_from_flattened_dict(changes)
  found = report.describe_reach(c, 8192)
  assert len(found) == bool(noted)
  assert all(noted in line for line in found)


@pytest.mark.parametrize(
  ("kind", "factor", "reported"),
  [
    ("model", 1.0, "none, theta 10000"),
    ("none", 1.0, "none, theta 10000"),
    ("ntk", 1.0, "ntk, theta 10000; nothing is scaled: the model's window has 4,096"),
    ("ntk", 4.0, "ntk, theta 10000, 4x to 4,096 positions"),
  ],
)
def test_a_rope_that_is_not_scaled_is_reported(kind, factor, reported):
  shape = known_models.KNOWN["meta-llama/Llama-2-7b-hf"]
  own = "ntk" if kind == "ntk" else "none"
  shape = dataclasses.replace(shape, rope=rope.RopeConfig(own, 10_000.0, factor=factor))
  assert report.describe_rope(kind, shape).startswith(reported)


@pytest.mark.parametrize(("alpha", "lines"), [(0.0, 0), (0.3, 1), (0.5, 2)])
def test_a_strong_regulariser_is_reported(alpha, lines):
  reported = report.describe_long_short(long_short.LongShortConfig(alpha, "none", 0))
  assert len(reported) == lines
  assert all(f"alpha {alpha}" in line for line in reported[:1])
  assert all("NOTE" in line and "worse" in line for line in reported[1:])


@pytest.mark.parametrize(
  ("template", "own", "noted"),
  [("tulu", True, True), ("model", True, False), ("tulu", False, False)],
)
def test_a_template_that_replaces_the_models_own_is_noted(
  tmp_path, template, own, noted
):
  folder = tiny_subject.folder(tmp_path / "model")
  if not own:  # a base model
    path = folder / "tokenizer_config.json"
    kept = json.loads(path.read_text()) | {"chat_template": None}
    path.write_text(json.dumps(kept))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
  c = config_lib.default()
  c.model.init_from, c.data.template = str(folder), template
  found = report.describe_template(c, tokenizer_lib.resolve(c))
  assert len(found) == noted
  assert all("data.template=tulu replaces the chat template" in line for line in found)


def test_a_run_that_was_trained_with_the_same_template_is_not_noted():
  c = config_lib.default()
  c.data.tokenizer, c.data.template = "bytes", "tulu"
  assert report.describe_template(c, tokenizer_lib.resolve(c)) == []


@pytest.mark.parametrize(
  ("changes", "held_out", "noted"),
  [
    ({}, True, False),
    ({"eval.every": 3}, True, True),
    ({"eval.every": 0}, True, True),
    ({"eval.every": 3}, False, False),
    ({"eval.every": 3, "checkpoint.keep_best": False}, True, False),
    ({"eval.every": 3, "checkpoint.every": 0}, True, False),
    ({"eval.every": 3, "checkpoint.every": 1000}, True, False),  # one, at the end
  ],
)
def test_checkpoints_without_a_held_out_loss_are_noted(changes, held_out, noted):
  c = config_lib.default()
  c.update_from_flattened_dict({"checkpoint.every": 100, **changes})
  found = report.describe_best(c, 1000, held_out)
  assert len(found) == noted
  assert all("is no multiple of eval.every=" in line for line in found)


def test_a_trace_of_steps_that_are_trained_already_is_noted():
  assert report.describe_profile("", 9) == report.describe_profile("3:9", 8) == []
  (line,) = report.describe_profile("3:9", 9)
  assert "no trace is written" in line and "profile=3:9" in line


@pytest.mark.parametrize(
  ("start", "reported"),
  [(0, "a new run"), (3, "continuing after step 3"), (8, "all 8 steps are trained")],
)
def test_a_run_says_where_it_begins(start, reported):
  assert reported in report.describe_start(start, 8)

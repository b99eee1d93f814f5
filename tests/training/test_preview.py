import dataclasses

import jax
import numpy as np
import pytest
import tiny

from skipalign_jax import config as config_lib
from skipalign_jax.method import positions
from skipalign_jax.training import preview

STRATEGIES = config_lib.KEYS["positions.strategy"].choices


@pytest.mark.parametrize(
  ("strategy", "schedule"),
  [(strategy, "") for strategy in STRATEGIES]
  + [(strategy, "40,90") for strategy in ("skip_outer", "randpos")],
)
def test_what_is_shown_is_what_the_first_step_reads(strategy, schedule):
  recipe = dataclasses.replace(
    tiny.SKIPS, strategy=strategy, max_position=90, schedule=schedule
  )
  batch = tiny.batch()

  @jax.jit
  def in_a_step(step):
    limit = positions.limit_at(recipe, step, 10)
    return positions.synthesize(recipe, 3, batch, limit)

  shown = preview.draw_positions(recipe, 3, batch)
  np.testing.assert_array_equal(shown, in_a_step(0))


@pytest.mark.parametrize("strategy", ["pose", "cream"])
def test_a_longer_text_is_shown_as_the_step_cuts_it(strategy):
  recipe = dataclasses.replace(tiny.SKIPS, strategy=strategy, max_position=90)
  tokens_BL = np.arange(1, 49, dtype=np.int32)[None].repeat(2, 0)
  batch = {
    "tokens": tokens_BL,
    "segment_ids": np.where(np.arange(48) < [[48], [9]], 1, 0),
    "block_ids": np.zeros_like(tokens_BL),
    "sample_ids": np.full(tokens_BL.shape, 7, np.uint32),
    "epochs": np.zeros_like(tokens_BL),
  }
  in_a_step = positions.crop(recipe, 3, batch, 12, 90)
  shown = preview.as_trained(recipe, 3, batch, 12)
  assert shown.keys() == in_a_step.keys()
  for name, array_BL in in_a_step.items():
    np.testing.assert_array_equal(shown[name], array_BL)
  assert shown["tokens"].shape == (2, 12)


def test_samples_gives_blocks_with_their_positions():
  batch = dict(
    segment_ids=np.array([[1, 1, 1, 1, 2, 2, 0]]),
    block_ids=np.array([[0, 0, 1, 2, 0, 1, 0]]),
    is_response=np.array([[0, 0, 1, 0, 0, 1, 0]], bool),
  )
  positions = np.array([[0, 1, 2, 900, 0, 1, 0]])
  first, second = preview.samples(batch, positions)
  assert preview.describe(first) == "user 0-1, assistant 2-2, user 900-900"
  assert [span.tokens for span in first] == [2, 1, 1]
  assert preview.describe(second) == "user 0-0, assistant 1-1"
  assert preview.describe(first[::2]) == "text 0-1, text 900-900"


def test_a_block_with_jumps_inside_is_not_shown_as_a_long_one():
  drawn = [preview.Span(False, 3, 0, 900), preview.Span(True, 2, 901, 902)]
  assert preview.describe(drawn) == "user 0…900, assistant 901-902"


def test_a_sample_of_many_blocks_is_described_in_one_short_line():
  many = [preview.Span(i % 2 == 1, 1, i, i) for i in range(400)]
  reported = preview.describe(many)
  assert reported.startswith("user 0-0, assistant 1-1, ")
  assert reported.endswith("user 10-10, … 388 more …, assistant 399-399")
  assert reported.count("-") == preview.MAX_BLOCKS
  assert "more" not in preview.describe(many[: preview.MAX_BLOCKS])


def test_draw_writes_a_picture(tmp_path):
  blocks = [preview.Span(False, 3, 0, 2), preview.Span(True, 5, 400, 404)]
  path = tmp_path / "positions.png"
  preview.draw([blocks], 1000, "title", path)
  assert path.read_bytes().startswith(b"\x89PNG")


def test_blocks_at_the_end_are_drawn_inside_and_in_order():
  crowded = [preview.Span(False, 5, 0, 4)] + [
    preview.Span(True, 2, 990 + 2 * i, 991 + 2 * i) for i in range(5)
  ]
  places = preview._places(crowded, 1000)
  ends = [left + width for left, width in places]
  assert ends[-1] == 1000 and all(width == 12 for _, width in places)
  assert all(a <= left for a, (left, _) in zip(ends, places[1:], strict=False))
  assert places[0][0] == 0 and places[1][0] == 940

"""EndPrompt's cue: after each training sample, light, far away, and nowhere else."""

import numpy as np
import pytest
import test_pipeline

from skipalign_jax.analysis import measure
from skipalign_jax.data import packing
from skipalign_jax.method import positions
from skipalign_jax.runtime import errors
from skipalign_jax.training import preview, resolve

TEXT = "The end."
CUE = test_pipeline.TOKENIZER(TEXT)["input_ids"]


def make_config(cache, **data):
  c = test_pipeline.make_config(cache, **data)
  p = c.positions
  p.strategy, p.terminal, p.cue, p.max_position = "endprompt", "cue", TEXT, 5000
  return c


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp("cache"))


def samples_of(row):
  """Each sample of a row as its part of every array."""
  numbers = range(1, int(row["segment_ids"].max()) + 1)
  return [{k: x[row["segment_ids"] == n] for k, x in row.items()} for n in numbers]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("train", ["builtin:recall:20", "builtin:text:4"])
def test_each_training_sample_ends_with_it(cache, train, pack):
  c = make_config(cache, train=train, packing=pack, eval="holdout:1", seq_len=256)
  c.batch_size, c.steps, c.epochs = 1, None, 1
  data = test_pipeline.build(c)
  recipe = positions.PositionConfig(**c.positions)
  plain = make_config(cache, train=train, packing=pack, eval="", seq_len=256 - len(CUE))
  plain.positions.terminal = "turn"
  plain.batch_size, plain.steps, plain.epochs = 1, None, 1
  without = {
    int(one["sample_ids"][0]): one
    for row in test_pipeline.rows_of(test_pipeline.build(plain))
    for one in samples_of(row)
  }
  rows = test_pipeline.rows_of(data)
  found = [one for row in rows for one in samples_of(row)]
  assert len(found) == len(without) - 1  # one is held out
  for one in found:
    own = without[int(one["sample_ids"][0])]
    n = len(own["tokens"])
    for name in ("tokens", "loss_weight", "block_ids", "is_response"):
      np.testing.assert_array_equal(one[name][:n], own[name])
    assert one["tokens"][n:].tolist() == CUE
    np.testing.assert_array_equal(one["loss_weight"][n:], np.float32(0.1))
    assert set(one["block_ids"][n:]) == {own["block_ids"][-1] + 1}
    assert not one["is_response"][n:].any()
  batch = {name: x[None] for name, x in rows[0].items()}
  at_L = preview.draw_positions(recipe, 0, batch)[0]
  for number in range(1, int(rows[0]["segment_ids"].max()) + 1):
    here = at_L[rows[0]["segment_ids"] == number]
    m, b = len(here), len(CUE)
    assert here.tolist() == [*range(m - b), *range(5000 - b, 5000)]
  for batch in data.eval_batches:  # not where losses are compared
    for row in range(len(batch["tokens"])):
      used = batch["segment_ids"][row] > 0
      assert batch["tokens"][row][used][-len(CUE) :].tolist() != CUE


def test_samples_count_alike_with_their_cues(cache):
  c = make_config(cache, packing=True)
  c.loss.reduction = "sequence"
  row = test_pipeline.build(c).train_rows[0]
  sums = [one["loss_weight"].sum() for one in samples_of(row)]
  np.testing.assert_allclose(sums, 1, rtol=1e-5)


def test_only_this_terminal_part_is_appended(cache):
  c = make_config(cache)
  c.positions.strategy = "skip_outer"
  row = test_pipeline.build(c).train_rows[0]
  assert row["tokens"][row["segment_ids"] > 0][-len(CUE) :].tolist() != CUE
  assert set(np.unique(row["loss_weight"])) == {0, 1}
  assert set(row) == set(packing.DTYPES)


def test_what_cannot_be_is_refused(cache):
  c = make_config(cache)
  for c.positions.cue in ("", "a" * 511):
    with pytest.raises(errors.UserError, match=r"positions\.cue=.*data\.seq_len=512"):
      test_pipeline.build(c)
  c = make_config(cache, packing=True, packing_mask=False)
  c.epochs, c.steps = 1, None
  with pytest.raises(errors.UserError, match=r"data\.packing_mask=True"):
    resolve.check(c)
  base = positions.PositionConfig(**c.positions)
  with pytest.raises(errors.UserError, match="choose turn or response"):
    measure.recipes(base, "")
  assert measure.recipes(base, "contiguous,skip_outer")

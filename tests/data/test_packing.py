"""Rows: every sample once, no row too long; the arrays of a row."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from skipalign_jax.data import packing

SEQ_LEN = 50


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
  lengths=st.lists(st.integers(1, SEQ_LEN), max_size=300), limit=st.integers(1, 20)
)
def test_every_sample_is_in_one_row_and_fits(lengths, limit):
  rows = packing.plan_rows(np.array(lengths, int), SEQ_LEN, limit)
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  assert all(0 < sum(lengths[i] for i in row) <= SEQ_LEN for row in rows)
  assert all(len(row) <= limit for row in rows)


def test_first_fit_by_hand():
  rows = packing.plan_rows(np.array([30, 30, 20, 15, 5, 50]), 50, 9)
  assert rows == [[0, 2], [1, 3, 4], [5]]
  rows = packing.plan_rows(np.array([10, 10, 10, 10, 10]), 50, 2)
  assert rows == [[0, 1], [2, 3], [4]]


def test_packing_fills_rows():
  lengths = np.random.default_rng(0).integers(20, 2000, 5000)
  rows = packing.plan_rows(lengths, 4096, 128)
  assert lengths.sum() / (4096 * len(rows)) > 0.93


def sample(length, sample_id, block_starts, target_spans, is_text=False):
  return dict(
    tokens=np.arange(1, length + 1, dtype=np.int32),
    block_starts=np.array(block_starts, np.int32),
    target_spans=np.array(target_spans, np.int32),
    sample_id=np.uint32(sample_id),
    is_text=is_text,
  )


def test_assemble_row():
  row = packing.assemble_row(
    [
      sample(6, 2**32 - 1, [0, 3], [4, 6]),
      sample(5, 7, [0, 1, 3, 4], [2, 3, 4, 5]),
    ],
    seq_len=13,
    epoch=2,
  )
  expected = {
    "tokens": [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 0, 0],
    "segment_ids": [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0],
    "block_ids": [0, 0, 0, 1, 1, 1, 0, 1, 1, 2, 3, 0, 0],
    "is_response": [0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 0, 0],
    "loss_weight": [0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0],
    "sample_ids": [2**32 - 1] * 6 + [7] * 5 + [0, 0],
    "epochs": [2] * 11 + [0, 0],
  }
  assert list(row) == list(expected)
  for name, values in expected.items():
    np.testing.assert_array_equal(row[name], values, err_msg=name)
    assert row[name].dtype == packing.DTYPES[name]


def test_a_text_has_no_responses():
  row = packing.assemble_row(
    [sample(4, 1, [0, 1, 2], [1, 4], is_text=True), sample(2, 2, [0, 1], [1, 2])], 7, 0
  )
  assert row["is_response"].tolist() == [False] * 5 + [True, False]
  assert row["block_ids"].tolist() == [0, 1, 2, 2, 0, 1, 0]
  assert row["loss_weight"].tolist() == [0, 1, 1, 1, 0, 1, 0]


def test_first_tokens():
  whole = sample(6, 1, [0, 2, 4], [1, 3, 4, 6])
  row = packing.assemble_row([packing.first_tokens(whole, 4)], 6, 0)
  assert row["tokens"].tolist() == [1, 2, 3, 4, 0, 0]
  assert row["block_ids"].tolist() == [0, 0, 1, 1, 0, 0]
  assert row["loss_weight"].tolist() == [0, 1, 1, 0, 0, 0]


def test_empty_row_is_all_zeros():
  row = packing.assemble_row([], seq_len=4, epoch=3)
  for made in (row, packing.without_mask(row), packing.weigh_samples_equally(row)):
    assert all(array.shape == (4,) and not array.any() for array in made.values())
    assert {name: array.dtype for name, array in made.items()} == packing.DTYPES


SAMPLES = [
  sample(6, 2**32 - 1, [0, 3, 5], [4, 5]),  # cut off in its second instruction
  sample(5, 7, [0, 1, 3, 4], [2, 3, 4, 5]),
  sample(2, 8, [0, 1], []),
]


def test_a_row_without_mask_is_one_sample():
  row = packing.assemble_row(SAMPLES, seq_len=15, epoch=2)
  joined = packing.without_mask(row)
  expected = {
    "segment_ids": [1] * 13 + [0, 0],
    "block_ids": [0, 0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8, 0, 0],
  }
  for name, array in joined.items():
    assert array.dtype == packing.DTYPES[name]
    if name != "sample_ids":
      np.testing.assert_array_equal(array, expected.get(name, row[name]))
  ids = lambda samples: packing.without_mask(
    packing.assemble_row(samples, seq_len=20, epoch=0)
  )["sample_ids"]
  assert set(ids(SAMPLES)) == {0, *joined["sample_ids"][:1]}
  assert len({ids(s)[0] for s in (SAMPLES, SAMPLES[::-1], SAMPLES[:2])}) == 3


def test_samples_have_equal_weight():
  row = packing.assemble_row(SAMPLES, seq_len=15, epoch=2)
  weighed = packing.weigh_samples_equally(row)
  np.testing.assert_array_equal(
    weighed["loss_weight"], [0, 0, 0, 0, 1, 0, 0, 0, 0.5, 0, 0.5, 0, 0, 0, 0]
  )
  assert weighed["loss_weight"].dtype == np.float32
  for name in row.keys() - {"loss_weight"}:
    np.testing.assert_array_equal(weighed[name], row[name])

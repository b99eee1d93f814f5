"""Every promise of positions.py, for random dialogues, packings and settings."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from skipalign_jax.method import positions
from skipalign_jax.runtime import errors

L = 64  # one row length and few static configs: compiling is what costs time
SKIPS = ("skip_all", "skip_inner", "skip_outer")


def config(strategy="skip_all", max_position=1000, **changes):
  settings = dict(skip_prob=0.5, prob_per="block", resample="never", gaps="sequential")
  return positions.PositionConfig(strategy, max_position, **(settings | changes))


@functools.cache
def compiled(recipe):
  return jax.jit(lambda batch, seed: positions.synthesize(recipe, seed, batch))


def synthesize(recipe, batch, seed=0):
  return np.asarray(compiled(recipe)(batch, seed))


def row(samples, length=L, epoch=0):
  """One row from [(sample id, block sizes)]; blocks alternate, user first."""
  arrays = dict(
    segment_ids=np.zeros(length, np.int32),
    block_ids=np.zeros(length, np.int32),
    is_response=np.zeros(length, bool),
    sample_ids=np.zeros(length, np.uint32),
    epochs=np.zeros(length, np.int32),
  )
  at = 0
  for number, (sample_id, sizes) in enumerate(samples, 1):
    for block, size in enumerate(sizes):
      part = slice(at, at + size)
      arrays["segment_ids"][part] = number
      arrays["block_ids"][part] = block
      arrays["is_response"][part] = block % 2 == 1
      arrays["sample_ids"][part] = sample_id
      arrays["epochs"][part] = epoch
      at += size
  assert at <= length
  return arrays


def stack(rows):
  return {name: np.stack([r[name] for r in rows]) for name in rows[0]}


COUNT = 20_000


def many(recipe, sizes):
  """[COUNT, tokens] positions of samples with the same blocks and other ids."""
  one = row([(0, sizes)], length=16)
  batch = {name: np.repeat(x[None], COUNT, 0) for name, x in one.items()}
  ids = np.arange(COUNT, dtype=np.uint32)
  batch["sample_ids"] = np.repeat(ids[:, None], 16, 1)
  return synthesize(recipe, batch)[:, : sum(sizes)]


sizes_of_blocks = st.lists(st.integers(1, 5), min_size=1, max_size=6)
dialogues = st.lists(
  st.tuples(st.integers(0, 2**32 - 1), sizes_of_blocks),
  min_size=1,
  max_size=5,
  unique_by=lambda sample: sample[0],
).filter(lambda samples: sum(sum(sizes) for _, sizes in samples) <= L)
recipes = st.sampled_from(
  (
    config("skip_outer", 100_000),
    config("skip_inner", 100_000, gaps="uniform"),
    config("skip_all", 20),  # some samples leave little room, some none
    config("skip_all", 20, gaps="uniform"),
  )
)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(dialogues, recipes, st.integers(0, 3))
def test_promises_hold_for_any_packing(samples, recipe, seed):
  packed = synthesize(recipe, stack([row(samples)]), seed)[0]
  at = 0
  for sample in samples:
    sizes = sample[1]
    m = sum(sizes)
    here = packed[at : at + m]
    alone = synthesize(recipe, stack([row([sample])]), seed)[0, :m]
    np.testing.assert_array_equal(here, alone)  # packing changes nothing
    assert here[0] == 0
    assert (np.diff(here) >= 1).all()  # strictly increasing
    if m < recipe.max_position:
      assert here[-1] <= recipe.max_position - 1
    else:
      np.testing.assert_array_equal(here, np.arange(m))  # too long: no skips
    start = 0
    for block, size in enumerate(sizes):
      inside = here[start : start + size]
      np.testing.assert_array_equal(np.diff(inside), 1)  # contiguous in a block
      moved = block > 0 and inside[0] != here[start - 1] + 1
      is_response = block % 2 == 1
      if moved:
        assert recipe.strategy == "skip_all" or (
          is_response == (recipe.strategy == "skip_inner")
        )
      start += size
    at += m
  assert (packed[at:] == 0).all()  # padding


@pytest.mark.parametrize("gaps", ["sequential", "uniform"])
@pytest.mark.parametrize("strategy", SKIPS)
def test_skips_really_happen(strategy, gaps):
  found = many(config(strategy, 100_000, gaps=gaps), [1, 2] * 3)
  assert (np.diff(found, axis=1) > 1).any(axis=1).mean() > 0.5
  assert found.max() > 50_000


# Share of samples left as they were at p = 0.5, by turns, and mean last bias.
@pytest.mark.parametrize(
  ("strategy", "expected"),
  [
    ("skip_outer", {1: 1.00, 2: 0.50, 3: 0.25, 5: 0.0625}),
    ("skip_inner", {1: 0.50, 2: 0.25, 3: 0.125, 5: 0.031}),
    ("skip_all", {1: 0.50, 2: 0.125, 3: 0.031, 5: 0.002}),
  ],
)
def test_fraction_left_unskipped(strategy, expected):
  for turns, fraction in expected.items():
    found = many(config(strategy, 100_000), [1, 1] * turns)
    unskipped = (found[:, -1] == 2 * turns - 1).mean()
    assert abs(unskipped - fraction) < 0.012, (turns, unskipped)


def test_mean_last_bias():
  for turns, mean in {2: 25_000, 5: 67_000, 8: 84_000}.items():
    found = many(config("skip_outer", 100_000), [1, 1] * turns)
    bias = found[:, -1] - (2 * turns - 1)
    assert abs(bias.mean() - mean) < 3_000, (turns, bias.mean())


def test_first_gap_is_uniform_over_the_room():
  """s_1 ~ U{1 … L − m}: both ends are reached, and all parts equally often."""
  found = many(config("skip_inner", 12, skip_prob=1.0), [1, 1])
  counts = np.bincount(found[:, 1] - 1, minlength=11)
  assert counts[0] == 0 and len(counts) == 11  # never no skip, never beyond L − m
  assert abs(counts[1:] / COUNT - 0.1).max() < 0.01


def test_gaps_take_the_last_place_that_is_left():
  """Two places of room: the second gap gets what the first one leaves, if it can."""
  found = many(config("skip_all", 5, skip_prob=1.0), [1, 1, 1]) - np.arange(3)
  layouts, counts = np.unique(found[:, 1:], axis=0, return_counts=True)
  assert layouts.tolist() == [[1, 2], [2, 2]]
  assert abs(counts / COUNT - 0.5).max() < 0.02


def test_uniform_gaps_make_all_layouts_equally_likely():
  """Two gaps sharing 3 blanks: the 10 pairs (u_1 ≤ u_2) each a tenth."""
  recipe = config("skip_all", 6, skip_prob=1.0, gaps="uniform")
  found = many(recipe, [1, 1, 1]) - np.arange(3)
  layouts, counts = np.unique(found[:, 1:], axis=0, return_counts=True)
  expected = [(a, b) for a in range(4) for b in range(a, 4)]
  assert [tuple(x) for x in layouts.tolist()] == expected
  assert abs(counts / COUNT - 0.1).max() < 0.01


def test_sequential_gaps_favour_the_first():
  recipe = config("skip_all", 100_000, skip_prob=1.0)
  first, second = (many(recipe, [1, 1, 1]) - np.arange(3))[:, 1:].T
  assert abs(first.mean() - 50_000) < 1_500
  assert abs(second.mean() - 75_000) < 1_500


@pytest.mark.parametrize(("p", "share"), [(0.0, 0.0), (0.2, 0.2), (1.0, 1.0)])
@pytest.mark.parametrize("prob_per", ["block", "sample"])
def test_skip_prob(p, share, prob_per):
  recipe = config("skip_inner", 1000, skip_prob=p, prob_per=prob_per)
  found = many(recipe, [1, 1])
  assert abs((found[:, 1] > 1).mean() - share) < 0.02


def test_prob_per_sample_skips_all_or_none():
  recipe = config("skip_all", 100_000, prob_per="sample", gaps="uniform")
  jumps = (np.diff(many(recipe, [1] * 4), axis=1) > 1).sum(axis=1)
  assert set(np.unique(jumps)) <= {0, 2, 3}  # a uniform gap may be empty
  assert abs((jumps == 0).mean() - 0.5) < 0.04


def test_draws_depend_only_on_seed_sample_and_epoch():
  sample = (7, [2, 2, 2, 2])
  here = lambda recipe, seed=0, epoch=0, id_=7: synthesize(
    recipe, stack([row([(id_, sample[1])], epoch=epoch)]), seed
  )[0, :8].tolist()
  static = config("skip_all", 100_000, skip_prob=1.0)
  by_epoch = config("skip_all", 100_000, skip_prob=1.0, resample="epoch")
  assert here(static) == here(static, epoch=5)
  assert here(by_epoch) != here(by_epoch, epoch=5)
  assert here(by_epoch, epoch=5) == here(by_epoch, epoch=5)
  assert here(static) != here(static, seed=1)
  assert here(static) != here(static, id_=8)


def test_order_of_rows_does_not_matter():
  recipe = config("skip_all", 100_000)
  batch = stack([row([(i, [2, 3, 1, 4])]) for i in range(6)])
  whole = synthesize(recipe, batch)
  back = synthesize(recipe, {name: x[::-1] for name, x in batch.items()})
  np.testing.assert_array_equal(whole, back[::-1])
  assert (np.diff(whole[:, :10]) > 1).any()


def test_a_full_row_draws_as_each_sample_alone():
  """Without padding there is no block after the last one."""
  recipe = config("skip_inner", 100_000, gaps="uniform")
  samples = [(7, [4, 4, 4]), (8, [20, 12, 10, 10])]
  for seed in range(4):
    full = synthesize(recipe, stack([row(samples)]), seed)[0]
    parts = [
      synthesize(recipe, stack([row([one])]), seed)[0, : sum(one[1])] for one in samples
    ]
    np.testing.assert_array_equal(full, np.concatenate(parts))


def test_contiguous_counts_from_zero_in_each_segment():
  recipe = config("contiguous")
  found = synthesize(recipe, stack([row([(1, [2, 1]), (2, [4])])]))[0, :9]
  assert found.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 0]


@pytest.mark.parametrize(
  "wrong",
  [
    dict(strategy="skip_otter"),
    dict(skip_prob=1.5),
    dict(max_position=0),
    dict(max_position=2**24),
    dict(gaps="random"),
    dict(resample="step"),
    dict(prob_per="token"),
  ],
)
def test_bad_settings_are_refused(wrong):
  with pytest.raises(errors.UserError, match=next(iter(wrong))):
    config(**wrong)

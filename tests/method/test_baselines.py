"""PoSE, RandPos and CREAM against plain numpy transcriptions, draw by draw in law."""

import collections
import functools
import math

import jax
import numpy as np
import pytest
from test_positions import config, row, stack, synthesize

from skipalign_jax.method import baselines, positions
from skipalign_jax.runtime import errors

COUNT = 6_000


@functools.lru_cache
def drawn(name, length, N, L, **options):
  """content and positions [COUNT, m] of a method."""
  method = functools.partial(baselines.METHODS[name], **options)
  draw = jax.jit(jax.vmap(lambda key: method(key, length, N, L)))
  keys = jax.random.split(jax.random.key(5), COUNT)
  return [np.asarray(x)[:, : min(length, N)] for x in draw(keys)]


def law(rows):
  """row (as a tuple) → its share."""
  counts = collections.Counter(map(tuple, rows.tolist()))
  return {key: count / len(rows) for key, count in counts.items()}


def check_same_law(ours, theirs):
  """Two samples of COUNT rows come from one law: no cell is 5 σ apart."""
  ours, theirs = law(ours), law(theirs)
  assert len(theirs) > 8
  for key in ours.keys() | theirs.keys():
    one, two = ours.get(key, 0), theirs.get(key, 0)
    sigma = math.sqrt(max(one, two) * 2 / COUNT)
    assert abs(one - two) < 5 * sigma + 2 / COUNT, key


def naive_pose(rng, length, N, L):
  n = min(length, N)
  r1 = rng.integers(1, (n + 1) // 2, endpoint=True)
  r2 = rng.integers(n, length, endpoint=True)
  l2 = r2 - (n - r1)
  u = rng.integers(0, L - n, endpoint=True)
  content = [*range(r1), *range(l2, r2)]
  return content, [*range(r1), *(t + u for t in range(r1, n))]


@functools.lru_cache
def naive_gaussian(factor):
  x = np.linspace(2, 2 * factor, 1000)
  return [0.5 * (1 + math.erf((a - 1 - factor) / (3 * math.sqrt(2)))) for a in x], x


def naive_cream(rng, length, N, L):
  length = min(length, L)
  n = min(length, N)
  factor = L / n
  h = n // 3 if rng.random() < 0.5 else min(int(4 * factor), n // 3)
  mid = n - 2 * h
  alpha = math.floor(np.interp(rng.random(), *naive_gaussian(factor)))
  low, high = int(h + (mid - 1) * alpha / 2), math.floor(alpha / 2 * n) - h - 1
  e = rng.integers(low, high, endpoint=True)
  places = [*range(h), *range(e - mid + 1, e + 1), *range(L - h, L)]
  if e >= length - h:
    e = length - h - 1
  content = [*range(h), *range(e - mid + 1, e + 1), *range(length - h, length)]
  return content, places


NAIVE = {"pose": naive_pose, "cream": naive_cream}


@pytest.mark.parametrize(
  ("name", "length", "N", "L"),
  [
    ("pose", 5, 8, 12),
    ("pose", 9, 6, 11),  # a longer text: parts of it
    ("cream", 7, 8, 21),
    ("cream", 20, 8, 24),
    ("cream", 40, 6, 24),
  ],
)
def test_same_law_as_a_plain_transcription(name, length, N, L):
  options = {"chunks": 2} if name == "pose" else {}
  content, places = drawn(name, length, N, L, **options)
  rng = np.random.default_rng(0)
  naive = [NAIVE[name](rng, length, N, L) for _ in range(COUNT)]
  check_same_law(
    np.concatenate([content, places], axis=1), np.array([c + p for c, p in naive])
  )


def test_randpos_draws_every_subset_alike():
  content, places = drawn("randpos", 3, 4, 6)
  found = law(places)
  assert len(found) == math.comb(6, 3)
  assert all(
    abs(share - 1 / 20) < 5 * math.sqrt(1 / 20 / COUNT) for share in found.values()
  )
  assert (content == np.arange(3)).all()


def test_more_chunks_of_pose():
  content, places = drawn("pose", 30, 12, 200, chunks=4)
  jumps = (np.diff(places) > 1).sum(1)
  assert jumps.max() == 3 and (jumps == 3).mean() > 0.8
  assert (np.diff(content) >= 1).all() and content.max() == 29
  assert places.max() <= 199 and places.max() > 190
  starts = np.argmax(np.diff(places) > 1, axis=1) + 1
  assert set(starts[jumps == 3]) == {1, 2, 3}  # the first takes at most a fourth


@pytest.mark.parametrize("name", list(baselines.METHODS))
def test_promises(name):
  recipe = config(name, 50)
  sizes = [1, 2, 3, 5, 13]
  packed = synthesize(recipe, stack([row([(i, [n]) for i, n in enumerate(sizes)])]))[0]
  at = 0
  for i, n in enumerate(sizes):
    here = packed[at : at + n]
    alone = synthesize(recipe, stack([row([(i, [n])])]))[0, :n]
    np.testing.assert_array_equal(here, alone)
    assert (np.diff(here) >= 1).all() and 0 <= here[0] and here[-1] < 50
    assert name == "randpos" or here[0] == 0
    at += n
  assert (packed[at:] == 0).all()
  assert (np.diff(packed[sum(sizes[:4]) : at]) > 1).any()  # a real skip was seen


@pytest.mark.parametrize("name", list(baselines.METHODS))
def test_a_sample_without_room_stays_contiguous(name):
  here = synthesize(config(name, 20), stack([row([(1, [21])]), row([(1, [20])])]))
  np.testing.assert_array_equal(here[0, :21], np.arange(21))
  np.testing.assert_array_equal(here[1, :20], np.arange(20))


def test_uniform_gaps_between_all_units_are_sorted_random_slots():
  """LongRecipe's (2409.00509), but that the first unit has no slot of its own there."""
  sizes, L, rng = [2, 1, 3], 12, np.random.default_rng(0)
  recipe = config("skip_all", L, skip_prob=1.0, gaps="uniform")
  one = stack([row([(0, sizes)], length=8)])
  batch = {name: np.repeat(x, COUNT, 0) for name, x in one.items()}
  batch["sample_ids"] = np.repeat(np.arange(COUNT, dtype=np.uint32)[:, None], 8, 1)
  places = synthesize(recipe, batch)[:, : sum(sizes)]
  blanks, theirs = L - sum(sizes), []
  for _ in range(COUNT):
    slots = [0, *sorted(1 + rng.choice(blanks + len(sizes) - 1, len(sizes) - 1, False))]
    positions_m, used = [], 0
    for unit, (slot, size) in enumerate(zip(slots, sizes, strict=True)):
      start = slot - unit + used  # blanks before it, and the tokens before it
      positions_m += range(start, start + size)
      used += size
    theirs.append(positions_m)
  check_same_law(places, np.array(theirs))


@pytest.mark.parametrize("strategy", ["pose", "skip_all", "endprompt", "logo"])
def test_only_samples_below_skip_below_move(strategy):
  recipe = config(strategy, 1000, skip_prob=1.0, skip_below=12, terminal="response")
  here = synthesize(recipe, stack([row([(3, [4, 8]), (4, [5, 6])])]))[0]
  np.testing.assert_array_equal(here[:12], np.arange(12))
  assert here[12 + 10] > 11


@pytest.mark.parametrize("name", baselines.CROPS)
def test_crop_takes_the_text_at_its_positions(name):
  N, W, L = 12, 40, 40
  rows = [row([(i, [n])], length=W) for i, n in enumerate([40, 40, 25, 7])]
  batch = stack(rows)
  batch["tokens"] = np.where(batch["segment_ids"] > 0, 100 + np.arange(W), 0).astype(
    np.int32
  )
  cut = jax.jit(lambda batch: positions.crop(config(name, L), 0, batch, N))(batch)
  cut = {key: np.asarray(x) for key, x in cut.items()}
  assert {x.shape for x in cut.values()} == {(4, N)}
  np.testing.assert_array_equal(cut["segment_ids"][:3], 1)
  np.testing.assert_array_equal(cut["segment_ids"][3], [1] * 7 + [0] * 5)
  content = cut["tokens"][:3] - 100
  assert (np.diff(content) >= 1).all() and (np.diff(content) > 1).any()
  assert content[:2].max() > N and content[2].max() < 25
  np.testing.assert_array_equal(cut["tokens"][3, :7], 100 + np.arange(7))
  assert not any(x[3, 7:].any() for x in cut.values())  # padding, positions too
  if name == "cream":  # a text as long as L: its places are its positions
    np.testing.assert_array_equal(cut["positions"][:2], content[:2])
    near = jax.jit(lambda batch: positions.crop(config(name, 25), 0, batch, N))(batch)
    here = np.asarray(near["tokens"][:2]) - 100  # a longer text: the same
    np.testing.assert_array_equal(near["positions"][:2], here)
  assert all(cut[key].dtype == x.dtype for key, x in batch.items())


@pytest.mark.parametrize("changes", [{"chunks": 1}, {"skip_below": -1}])
def test_bad_settings_are_refused(changes):
  with pytest.raises(errors.UserError, match=next(iter(changes))):
    config("pose", **changes)

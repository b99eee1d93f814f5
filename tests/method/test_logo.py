"""LOGO's positions against a plain transcription, and the starts of its chunks."""

import hypothesis
import numpy as np
import pytest
from test_endprompt import SAMPLES, L
from test_positions import config, row, stack, synthesize


def parts(sizes, terminal):
  """(t, b) of a sample whose blocks alternate, an instruction first."""
  responses = range(1, len(sizes), 2)
  first = responses[-1] - (terminal == "turn") if responses else 0
  before = sum(sizes[:first]) if first else sum(sizes)
  return before, sum(sizes) - before


def starts(slot, c):
  """All starts of a chunk in its slot, as the paper's code has them."""
  n = -(-slot // c)
  return {i * (slot - c) // max(n - 1, 1) for i in range(n)}


@pytest.mark.parametrize("terminal", ["turn", "response"])
@hypothesis.example(samples=[(1, [9] * 4), (2, [7] * 4)])  # no padding
@hypothesis.given(samples=SAMPLES)
@hypothesis.settings(deadline=None, max_examples=40)
def test_chunks_are_in_their_slots_and_the_last_part_is_at_the_end(samples, terminal):
  chunks = 3
  recipe = config("logo", L, terminal=terminal, chunks=chunks)
  here, at = synthesize(recipe, stack([row(samples)]))[0], 0
  for _, sizes in samples:
    m = sum(sizes)
    drawn, at = here[at : at + m], at + m
    t, b = parts(sizes, terminal)
    if not b:
      np.testing.assert_array_equal(drawn, np.arange(m))
      continue
    np.testing.assert_array_equal(drawn[t:], np.arange(L - b, L))
    c, slot = -(-t // chunks), (L - b) // chunks
    for j, begin in enumerate(range(0, t, c)):
      chunk = drawn[begin : min(begin + c, t)]
      np.testing.assert_array_equal(np.diff(chunk), 1)
      offset = chunk[0] - j * slot
      assert offset in starts(slot, c) or offset - 1 in starts(slot, c) or (
        offset + 1 in starts(slot, c)
      )  # fmt: skip
      assert 0 <= offset <= slot - c and (offset == 0 or j)
  assert not here[at:].any()


def test_starts_cover_the_slot_and_are_alike():
  count, sizes = 4000, [4, 2]
  recipe = config("logo", 26, terminal="response", chunks=2)
  one = row([(0, sizes)], length=8)
  batch = {name: np.repeat(x[None], count, 0) for name, x in one.items()}
  batch["sample_ids"] += np.arange(count, dtype=np.uint32)[:, None]
  here = synthesize(recipe, batch)
  assert set(here[:, 0]) == {0}
  found, counts = np.unique(here[:, 2] - 12, return_counts=True)
  assert found.tolist() == [0, 2, 4, 6, 8, 10]  # slots of 12, chunks of 2
  assert np.abs(counts / count - 1 / 6).max() < 0.03


@pytest.mark.parametrize("m", [L - 2, L - 1, L, L + 1])
def test_little_room(m):
  """Chunks stay together where a slot is shorter than a chunk."""
  recipe = config("logo", L, chunks=7)
  here = synthesize(recipe, stack([row([(1, [5, 5, 5, m - 15])], m)]))[0]
  assert (np.diff(here) > 0).all() and here[-1] == max(L, m) - 1


def test_a_pair_of_one_turn_stays_contiguous():
  """Also its shorter reply, which has fewer tokens than the pair counts for."""
  one = row([(1, [4, 2]), (1, [4, 5])])
  one["sample_sizes"] = np.full_like(one["segment_ids"], 9)
  here = synthesize(config("logo", L, terminal="turn"), stack([one]))[0]
  np.testing.assert_array_equal(here[:15], [*range(6), *range(9)])


def test_large_limits_do_not_overflow():
  recipe = config("logo", 2**24 - 1, terminal="response", chunks=4)
  here = synthesize(recipe, stack([row([(i, [4, 2])], 8) for i in range(50)]))[:, :6]
  assert (np.diff(here) > 0).all() and (here[:, -1] == 2**24 - 2).all()

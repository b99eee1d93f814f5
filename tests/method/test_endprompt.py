"""EndPrompt against a plain transcription, and limits that rise over a run."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from test_positions import config, row, stack, synthesize

from skipalign_jax.method import baselines, positions
from skipalign_jax.runtime import errors

L = 300
IDS = st.integers(0, 2**32 - 1)
SAMPLES = st.lists(
  st.tuples(IDS, st.lists(st.integers(1, 9), min_size=1, max_size=6)),
  min_size=1,
  max_size=3,
  unique_by=lambda sample: sample[0],
).filter(lambda samples: sum(sum(sizes) for _, sizes in samples) <= 64)


def naive(sizes, L, terminal):
  """Positions of one sample whose blocks alternate, an instruction first."""
  m, responses = sum(sizes), range(1, len(sizes), 2)
  first = responses[-1] - (terminal == "turn") if responses else 0
  if terminal == "cue":
    first = len(sizes) - 1
  before = sum(sizes[:first]) if first else m
  return [t if t < before or m >= L else t + L - m for t in range(m)]


@pytest.mark.parametrize("terminal", ["turn", "response", "cue"])
@hypothesis.example(samples=[(1, [9] * 4), (2, [7] * 4)])  # no padding
@hypothesis.example(samples=[(1, [9] * 5), (2, [19])])
@hypothesis.given(samples=SAMPLES)
@hypothesis.settings(deadline=None, max_examples=40)
def test_packed_samples_are_those_of_a_plain_transcription(samples, terminal):
  recipe = config("endprompt", L, terminal=terminal)
  here = synthesize(recipe, stack([row(samples)]))[0]
  expected = [t for _, sizes in samples for t in naive(sizes, L, terminal)]
  np.testing.assert_array_equal(here, np.pad(expected, (0, 64 - len(expected))))


@pytest.mark.parametrize("m", [L - 1, L, L + 1])
def test_a_sample_fills_the_room_that_there_is(m):
  here = synthesize(config("endprompt", L), stack([row([(1, [5, 5, 5, m - 15])], m)]))
  np.testing.assert_array_equal(here[0], naive([5, 5, 5, m - 15], L, "turn"))
  assert here[0, -1] == max(L, m) - 1


def test_distances_are_short_or_near_the_limit():
  n, b, m = 20, 6, 26
  here = synthesize(
    config("endprompt", L, terminal="response"), stack([row([(1, [20, 6])])])
  )[0, :m]
  found = set((here[:, None] - here[None]).ravel().tolist())
  assert {d for d in found if d >= 0} == {*range(max(n, b)), *range(L - m + 1, L)}


def test_random_ends_are_uniform_and_one_per_sample():
  count, sizes = 4000, [2, 1, 2, 3]
  recipe = config("endprompt", 18, terminal_at="random")
  one = stack([row([(0, sizes)], length=8)])
  batch = {name: np.repeat(x, count, 0) for name, x in one.items()}
  batch["sample_ids"] = np.repeat(np.arange(count, dtype=np.uint32)[:, None], 8, 1)
  u = synthesize(recipe, batch) - np.arange(8)
  assert (u[:, :3] == 0).all() and (u[:, 3:] == u[:, 3:4]).all()
  share = np.bincount(u[:, 3], minlength=11) / count  # the room is 10
  assert len(share) == 11 and np.abs(share - 1 / 11).max() < 5 * np.sqrt(1 / 11 / count)


def test_without_a_response_nothing_moves():
  text = stack([row([(1, [4, 5, 6])])])
  text["is_response"][:] = False
  np.testing.assert_array_equal(
    synthesize(config("endprompt", L), text)[0, :15], np.arange(15)
  )


def test_limits_have_equal_shares_of_the_run():
  recipe = config("skip_all", 40, schedule="10,20,40,40")
  found = [int(positions.limit_at(recipe, step, 10)) for step in range(12)]
  assert found == [10, 10, 10, 20, 20, 40, 40, 40, 40, 40, 40, 40]
  assert positions.limit_at(config("skip_all", 40), 3, 10) == 40
  traced = jax.jit(lambda step: positions.limit_at(recipe, step, 10))
  assert [int(traced(step)) for step in range(12)] == found


@pytest.mark.parametrize(
  "strategy",
  [
    "skip_all",
    "endprompt",
    pytest.param("pose", marks=pytest.mark.slow),
    pytest.param("cream", marks=pytest.mark.slow),
  ],
)
def test_a_scheduled_limit_is_that_limit(strategy):
  """One compiled program draws, for each stage, what a run with that L alone draws."""
  recipe = config(strategy, 100, skip_prob=1.0, schedule="30,60,100")
  batch = stack([row([(5, [3, 6, 4, 7]), (9, [8, 8, 8])])])
  draw = jax.jit(lambda limit: positions.synthesize(recipe, 0, batch, limit))
  for limit in (30, 60, 100):
    alone = synthesize(config(strategy, limit, skip_prob=1.0), batch)
    np.testing.assert_array_equal(draw(limit), alone)
  assert draw._cache_size() == 1


def test_one_program_draws_randpos_below_each_limit():
  """Randomized YaRN's positions; a sample as long as the limit stays contiguous."""
  recipe = config("randpos", 100, schedule="20,60,100")
  batch = stack([row([(5, [3, 6, 4, 7]), (9, [4, 5, 6])])])
  draw = jax.jit(lambda limit: positions.synthesize(recipe, 0, batch, limit))
  for limit, before in ((20, 14), (60, 20), (100, 60)):
    here = np.asarray(draw(limit))[0]
    for at in (slice(0, 20), slice(20, 35)):
      assert (np.diff(here[at]) > 0).all() and before <= here[at].max() < limit
    assert not here[35:].any()
  assert draw._cache_size() == 1


def test_randpos_below_a_limit_draws_every_subset_alike():
  keys = jax.vmap(jax.random.key)(np.arange(20_000, dtype=np.uint32))
  draw = jax.jit(jax.vmap(lambda key, L: baselines.randpos_below(key, 3, 4, L, 9)[1],
                          (0, None)))  # fmt: skip
  places = np.asarray(draw(keys, 6))[:, :3]
  assert places.max() == 5 and (np.diff(places) > 0).all()
  _, counts = np.unique(places, axis=0, return_counts=True)
  assert len(counts) == 20
  assert np.abs(counts / 20_000 - 1 / 20).max() < 5 * np.sqrt(1 / 20 / 20_000)
  np.testing.assert_array_equal(draw(keys[:2], 3)[:, :3], [[0, 1, 2]] * 2)


@pytest.mark.parametrize(
  "schedule",
  ["10,x", "10,20", "0,40", "10,80", "10,,40", "40,10", "10,40,20", "20,10,40"],
)
def test_schedules_that_do_not_fit_are_refused(schedule):
  with pytest.raises(errors.UserError, match="schedule"):
    config("skip_all", 40, schedule=schedule)

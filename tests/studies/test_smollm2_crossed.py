"""Intervals of crossed seeds and texts cover known effects; p values are exact."""

import itertools

import numpy as np
import pytest
from scipy import stats

from studies.smollm2_far import crossed


def simulated(rng, seeds, texts, mean, seed_sd, text_sd, rest_sd):
  normal = rng.standard_normal
  return (
    mean
    + seed_sd * normal((seeds, 1))
    + text_sd * normal((1, texts))
    + rest_sd * normal((seeds, texts))
  )


def coverage(draws, seed, seeds, texts, *deviations):
  rng, hits = np.random.default_rng(seed), 0
  for _ in range(draws):
    found = crossed.mean(simulated(rng, seeds, texts, 0.4, *deviations))
    hits += found["low"] <= 0.4 <= found["high"]
  return hits / draws


def far_coverage(draws, seed, seeds, far, near, *deviations):
  """Far − near of 0.5, where a seed moves both lengths alike and each by itself."""
  rng, hits = np.random.default_rng(seed), 0
  for _ in range(draws):
    common = 0.3 * rng.standard_normal((seeds, 1))
    a = common + simulated(rng, seeds, far, 0.5, *deviations)
    b = common + simulated(rng, seeds, near, 0.0, *deviations)
    found = crossed.far_minus_near(a, b)
    hits += found["low"] <= 0.5 <= found["high"]
  return hits / draws


GRID = list(
  itertools.product(
    [(6, 16), (6, 4), (3, 4)],
    [(0.2, 0.3, 0.3), (0.0, 0.3, 0.3), (0.3, 0.0, 0.3), (0.0, 0.0, 0.3), (0.3, 0.3, 0)],
  )
)


@pytest.mark.parametrize(("size", "deviations"), [GRID[0], GRID[5]])
def test_intervals_cover_what_they_say(size, deviations):
  assert 0.92 <= coverage(600, 0, *size, *deviations) <= 0.985


def test_intervals_of_far_minus_near_cover_what_they_say():
  assert 0.92 <= far_coverage(600, 0, 6, 4, 4, 0.2, 0.3, 0.3) <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize(("size", "deviations"), GRID)
def test_intervals_cover_over_the_whole_grid(size, deviations):
  assert 0.93 <= coverage(5000, 1, *size, *deviations)
  assert 0.93 <= far_coverage(5000, 2, size[0], size[1], size[1], *deviations)


def test_texts_alone_would_not_cover():
  """Why seeds have to count: an interval over texts alone misses too often."""
  rng, hits = np.random.default_rng(0), 0
  for _ in range(400):
    over_seeds = simulated(rng, 6, 16, 0.4, 0.2, 0.1, 0.1).mean(axis=0)
    low, high = stats.t.interval(0.95, 15, over_seeds.mean(), stats.sem(over_seeds))
    hits += low <= 0.4 <= high
  assert hits / 400 < 0.8


def test_deviations_are_those_of_the_simulation():
  found = crossed.deviations(
    simulated(np.random.default_rng(0), 200, 200, 1.0, 0.5, 0.3, 0.1)
  )
  assert found["seed_sd"] == pytest.approx(0.5, rel=0.15)
  assert found["text_sd"] == pytest.approx(0.3, rel=0.15)
  assert found["rest_sd"] == pytest.approx(0.1, rel=0.05)


def test_without_an_effect_of_texts_it_is_students_over_seeds():
  d_ST = np.random.default_rng(1).standard_normal((6, 1)) + np.zeros((6, 5))
  found = crossed.mean(d_ST)
  low, high = stats.t.interval(0.95, 5, d_ST[:, 0].mean(), stats.sem(d_ST[:, 0]))
  assert (found["low"], found["high"]) == pytest.approx((low, high))
  assert found["p"] == pytest.approx(stats.ttest_1samp(d_ST[:, 0], 0).pvalue)


def test_sign_flips_are_exact():
  assert crossed.sign_flip([1, 2, 3, 4, 5, 6]) == 2 / 64
  assert crossed.sign_flip([-1, -1, -1, -1, -1]) == 2 / 32
  assert crossed.sign_flip([1, -1]) == 1
  values = np.random.default_rng(0).standard_normal(6) + 0.5
  expected = stats.permutation_test(
    (values,), np.sum, permutation_type="samples", n_resamples=np.inf
  ).pvalue
  assert crossed.sign_flip(values) == pytest.approx(expected)


def test_the_bootstrap_redraws_both():
  rng = np.random.default_rng(0)
  only_seeds = rng.standard_normal((6, 1)) + np.zeros((6, 4))
  only_texts = rng.standard_normal((1, 4)) + np.zeros((6, 4))
  for d_ST in (only_seeds, only_texts):
    low, high = crossed.bootstrap(d_ST)
    assert low < d_ST.mean() < high
    assert d_ST.min() <= low and high <= d_ST.max()
  assert crossed.bootstrap(np.full((6, 4), 2.0)) == pytest.approx([2, 2])


def test_rank_correlations_are_spearmans():
  x, y = np.random.default_rng(0).integers(0, 4, (2, 12)).astype(float)
  expected = stats.spearmanr(x, y).statistic
  assert crossed.rank_correlation(x, y) == pytest.approx(expected)
  assert np.isnan(crossed.rank_correlation(x, np.ones(12)))


def test_holm_corrects_from_the_smallest():
  assert crossed.holm([0.04, 0.01]) == [0.04, 0.02]
  assert crossed.holm([0.02, 0.03]) == [0.04, 0.04]
  assert crossed.holm([0.9, 0.7]) == [1, 1]


@pytest.mark.parametrize(
  ("low", "high", "p", "words"),
  [
    (0.1, 0.9, 0.01, "holds"),
    (-0.9, -0.1, 0.01, "the opposite holds"),
    (0.05, 0.25, 0.01, "holds; equivalent"),
    (-0.2, 0.25, 0.5, "equivalent"),
    (-0.2, 0.35, 0.5, "not decided"),
    (0.01, 0.5, 0.06, "not decided"),  # the correction decides
  ],
)
def test_words(low, high, p, words):
  interval = {"mean": (low + high) / 2, "low": low, "high": high}
  assert crossed.verdict(interval, p, 0.3) == words


def test_planned_widths_are_those_of_simulated_studies():
  rng = np.random.default_rng(0)
  found = [
    crossed.mean(simulated(rng, 6, 8, 0, 0.2, 0.2, 0.2))["error"] for _ in range(800)
  ]
  root_mean_square = np.sqrt(np.mean(np.square(found)))
  planned = crossed.half_width(6, 8, 0.2, 0.2, 0.2) / stats.t.ppf(0.975, 5)
  assert root_mean_square == pytest.approx(planned, rel=0.1)


def test_four_of_five_studies_see_a_detectable_difference():
  rng, effect = np.random.default_rng(0), crossed.detectable(6, 8, 0.2, 0.2, 0.2)
  seen = [
    crossed.mean(simulated(rng, 6, 8, effect, 0.2, 0.2, 0.2))["p"] < 0.05
    for _ in range(800)
  ]
  assert 0.75 < np.mean(seen) < 0.9

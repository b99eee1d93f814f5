"""Statistics of differences d[seed, text] whose seeds and texts are both random.

A seed has an effect on all its texts and a text on all seeds, so that neither pairs nor
cells are independent. d = mean + seed + text + rest, each normal; the mean squares of
the two-way table estimate what varies.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

LEVEL = 0.95


def squares(d_ST: np.ndarray) -> dict[str, tuple[float, int]]:
  """Mean square and degrees of freedom of seeds, texts and the rest."""
  S, T = d_ST.shape
  mean, by_seed, by_text = d_ST.mean(), d_ST.mean(axis=1), d_ST.mean(axis=0)
  rest = d_ST - by_seed[:, None] - by_text[None] + mean
  return {
    "seed": (T * float(np.sum((by_seed - mean) ** 2)) / (S - 1), S - 1),
    "text": (S * float(np.sum((by_text - mean) ** 2)) / (T - 1), T - 1),
    "rest": (float(np.sum(rest**2)) / ((S - 1) * (T - 1)), (S - 1) * (T - 1)),
  }


def deviations(d_ST: np.ndarray) -> dict[str, float]:
  """Standard deviations of seeds, texts and the rest, at least 0."""
  S, T = d_ST.shape
  of = {name: square for name, (square, _) in squares(d_ST).items()}
  return {
    "seed_sd": math.sqrt(max(0.0, of["seed"] - of["rest"]) / T),
    "text_sd": math.sqrt(max(0.0, of["text"] - of["rest"]) / S),
    "rest_sd": math.sqrt(of["rest"]),
  }


def mean(d_ST: np.ndarray, level: float = LEVEL) -> dict[str, Any]:
  """Mean over seeds and texts, its interval, and p of no difference.

  The variance of the mean is (seed + text − rest) / (S T), in mean squares; its degrees
  of freedom are Satterthwaite's. Where texts vary less than the rest, they count as 0.

  Args:
    d_ST: differences, at least two seeds and two texts.
    level: of the interval.
  """
  S, T = d_ST.shape
  of = squares(d_ST)
  parts = [(of["seed"][0], of["seed"][1])]
  if of["text"][0] > of["rest"][0]:
    parts += [(of["text"][0], of["text"][1]), (-of["rest"][0], of["rest"][1])]
  scaled = [(square / (S * T), freedom) for square, freedom in parts]
  return _interval(float(d_ST.mean()), scaled, level) | {
    "seeds": S,
    "texts": T,
    "by_seed": d_ST.mean(axis=1).tolist(),
    **deviations(d_ST),
  }


def far_minus_near(
  far_ST: np.ndarray, near_SU: np.ndarray, level: float = LEVEL
) -> dict[str, Any]:
  """Mean far − mean near, the same seeds, other texts; as `mean`.

  Seeds vary by the difference of their two means, which has the rest of both in it;
  texts of each length add what they vary by beyond the rest.
  """
  by_seed = far_ST.mean(axis=1) - near_SU.mean(axis=1)
  S = len(by_seed)
  parts = [(float(np.var(by_seed, ddof=1)) / S, S - 1)]
  for d in (far_ST, near_SU):
    of = squares(d)
    if of["text"][0] > of["rest"][0]:
      parts += [
        (of["text"][0] / d.size, of["text"][1]),
        (-of["rest"][0] / d.size, of["rest"][1]),
      ]
  found = _interval(float(by_seed.mean()), parts, level)
  return found | {"by_seed": by_seed.tolist()}


def _interval(
  center: float, parts: Sequence[tuple[float, int]], level: float
) -> dict[str, Any]:
  """Student's interval with a variance that is a sum of mean squares (Satterthwaite).

  Args:
    center: the mean.
    parts: (share of the variance, degrees of freedom) of each.
    level: of the interval.
  """
  variance = sum(part for part, _ in parts)
  if variance == 0:
    same = {"mean": center, "low": center, "high": center, "error": 0.0}
    return same | {"freedom": 1.0, "p": float(center == 0)}
  freedom = variance**2 / sum(part**2 / n for part, n in parts)
  error = math.sqrt(variance)
  half = float(special.stdtrit(freedom, (1 + level) / 2)) * error
  p = 2 * float(special.stdtr(freedom, -abs(center) / error))
  found = {"mean": center, "low": center - half, "high": center + half}
  return found | {"error": error, "freedom": freedom, "p": p}


def sign_flip(by_seed: Sequence[float]) -> float:
  """Two-sided p over all signs of the seeds' means, exact; at least 2 / 2^S."""
  d_S = np.asarray(by_seed, float)
  signs_NS = np.array(list(itertools.product((1, -1), repeat=len(d_S))))
  sums_N = np.abs(signs_NS @ d_S)
  return float(np.mean(sums_N >= abs(d_S.sum()) * (1 - 1e-12)))


def bootstrap(d_ST: np.ndarray, draws: int = 10_000, seed: int = 0) -> list[float]:
  """95 % of means of redrawn seeds and redrawn texts, both with replacement."""
  rng = np.random.default_rng(seed)
  S, T = d_ST.shape
  weights_NS = rng.multinomial(S, [1 / S] * S, draws) / S
  weights_NT = rng.multinomial(T, [1 / T] * T, draws) / T
  means_N = np.einsum("ns,st,nt->n", weights_NS, d_ST, weights_NT)
  return np.quantile(means_N, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
  """Spearman's, with mean ranks of equal values; NaN where all are equal."""
  ranks = []
  for values in (x, y):
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[at]
    ranks.append(rank - rank.mean())
  size = math.sqrt(np.prod([rank @ rank for rank in ranks]))
  return float(ranks[0] @ ranks[1] / size) if size else math.nan


def holm(ps: Sequence[float]) -> list[float]:
  """p of several tests, corrected: the chance of any false one is at most p."""
  found, worst = [0.0] * len(ps), 0.0
  for rank, i in enumerate(np.argsort(ps, kind="stable")):
    worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
    found[i] = worst
  return found


def verdict(interval: dict[str, Any], p: float, margin: float) -> str:
  """ "holds", "the opposite holds", "equivalent", "not decided"; or the first two and
  "equivalent".

  Args:
    interval: of the difference, 95 %.
    p: corrected, if there is a correction.
    margin: differences within it are equivalent.
  """
  words = []
  if p < 1 - LEVEL:
    words.append("holds" if interval["mean"] > 0 else "the opposite holds")
  if -margin < interval["low"] and interval["high"] < margin:
    words.append("equivalent")
  return "; ".join(words) or "not decided"


def half_width(
  seeds: int, texts: int, seed_sd: float, text_sd: float, rest_sd: float = 0.0
) -> float:
  """Of the 95 % interval that is to be expected, with S − 1 degrees of freedom."""
  return float(special.stdtrit(seeds - 1, (1 + LEVEL) / 2)) * _error(
    seeds, texts, seed_sd, text_sd, rest_sd
  )


def detectable(
  seeds: int, texts: int, seed_sd: float, text_sd: float, rest_sd: float = 0.0
) -> float:
  """The difference whose interval excludes 0 in four of five studies, about."""
  t = special.stdtrit(seeds - 1, [(1 + LEVEL) / 2, 0.8])
  return float(t.sum()) * _error(seeds, texts, seed_sd, text_sd, rest_sd)


def _error(seeds, texts, seed_sd, text_sd, rest_sd) -> float:
  return math.sqrt(
    seed_sd**2 / seeds + text_sd**2 / texts + rest_sd**2 / (seeds * texts)
  )

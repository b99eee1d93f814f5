"""Draws a data set's positions with several recipes, and measures them.

Shapes: R rows, L tokens per row, D distances or positions.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from skipalign_jax.analysis import dialogues, distances
from skipalign_jax.method import positions
from skipalign_jax.runtime import errors
from skipalign_jax.training import unread

ROWS = 8  # per batch that positions are drawn for
WIDE_BINS, NEAR_BINS, PARTS = 200, 64, 10

Record = dict[str, Any]


def recipes(
  base: positions.PositionConfig, spec: str
) -> dict[str, positions.PositionConfig]:
  """Names → recipes: "contiguous,skip_outer,skip_outer/uniform".

  Args:
    base: the config's recipe; it gives the fields that `spec` does not name.
    spec: strategies, each alone or followed by a slash and a gap law; empty for
      contiguous positions and the config's strategy.

  Raises:
    UserError: an unknown strategy or gap law, a gap law that the strategy does not
      read, or a cue that samples do not have.
  """
  names = [name.strip() for name in spec.split(",")] if spec else []
  names = names or dict.fromkeys(["contiguous", base.strategy])
  found = {}
  for name in names:
    strategy, slash, gaps = name.partition("/")
    if strategy == "endprompt" and base.terminal == "cue":
      raise errors.UserError(
        "positions.terminal=cue appends a text to training samples, which the samples "
        "here do not have; choose turn or response, or other --strategies"
      )
    change = {"strategy": strategy} | ({"gaps": gaps} if slash else {})
    found[name] = dataclasses.replace(base, **change)
    if slash and "gaps" in unread.of_positions(
      dataclasses.replace(base, strategy=strategy, gaps="uniform")
    ):
      raise errors.UserError(
        f"--strategies={spec}: {strategy} has no law of gaps; write {strategy} alone"
      )
  return found


def count(
  pieces: Iterable[dialogues.Dialogues],
  chosen: Mapping[str, positions.PositionConfig],
  seed: int,
  seq_len: int,
  draws: int = 1,
) -> dict[str, distances.Counter]:
  """Counts of each recipe over all samples, at the positions that training draws.

  Args:
    pieces: samples of at most `seq_len` tokens.
    chosen: name → recipe.
    seed: of the run.
    seq_len: tokens of the rows that positions are drawn for.
    draws: number of seeds to count, starting with `seed`: one measures a run, many
      measure the mean of the recipe.

  Raises:
    UserError: there are no samples.
  """
  draw = {
    name: jax.jit(functools.partial(positions.synthesize, recipe))
    for name, recipe in chosen.items()
  }
  counters = {
    name: distances.Counter(max(recipe.max_position, seq_len))
    for name, recipe in chosen.items()
  }
  seeds = [np.uint32((seed + i) % 2**32) for i in range(draws)]  # as jax.random.key
  for piece in pieces:
    for batch in dialogues.batches(piece, seq_len, ROWS):
      read = {name: x_RL for name, x_RL in batch.items() if name != "is_text"}
      # Draw all of them first: the device draws while the host counts.
      drawn = [
        (name, one(number, read)) for name, one in draw.items() for number in seeds
      ]
      for name, positions_RL in drawn:
        counters[name].add(distances.runs(batch, np.asarray(positions_RL)))
  if not all(counter.samples for counter in counters.values()):
    raise errors.UserError("there are no samples to count")
  return counters


def histogram(counter: distances.Counter, seq_len: int) -> Record:
  """Both counts of distances in bins, and how far from uniform the long ones are.

  Keys: `wide` and `near` hold the width of bins, up to the limit and up to seq_len,
  and the mean count of a distance in each bin; `beyond` describes the distances
  seq_len … limit − 1: the share of pairs there, ten equal parts of it (uniform: 0.1
  each), the largest difference of the distribution function from the uniform one
  (`ks`) and half the sum of absolute differences over `wide` bins (`tv`).
  """
  kinds = {"pairs": counter.pairs(), "samples": counter.sets()}
  record: Record = {"samples": counter.samples, "tokens": counter.tokens}
  for name, end, bins in (
    ("wide", counter.limit, WIDE_BINS),
    ("near", min(seq_len, counter.limit), NEAR_BINS),
  ):
    width = -(-end // bins)
    record[name] = {"width": width} | {
      kind: _means(count_D[:end], width) for kind, count_D in kinds.items()
    }
  record["beyond"] = {
    kind: departure(count_D, seq_len) for kind, count_D in kinds.items()
  }
  return record


def _means(count_D: np.ndarray, width: int) -> list[float]:
  begin = np.arange(0, len(count_D), width)
  sizes = np.diff(np.append(begin, len(count_D)))
  return [float(f"{x:.6g}") for x in (np.add.reduceat(count_D, begin) / sizes).tolist()]


def departure(count_D: np.ndarray, begin: int) -> Record | None:
  """How the counts from `begin` differ from uniform ones; None without any counts."""
  long_D = count_D[begin:]
  total = int(long_D.sum())
  if not total:
    return None
  share_D = long_D / total
  size = len(long_D)
  edges = np.arange(PARTS + 1) * size // PARTS  # some are equal where D is small
  part = np.diff(np.append(0, np.cumsum(long_D))[edges]) / total
  # Differences of the distribution function at the end of each distance.
  off_D = np.cumsum(share_D) - np.arange(1, size + 1) / size
  width = -(-size // WIDE_BINS)
  bins = np.arange(0, size, width)
  even = np.diff(np.append(bins, size)) / size
  return {
    "from": begin,
    "share": total / int(count_D.sum()),
    "parts": part.round(5).tolist(),
    "ks": round(float(np.abs(off_D).max()), 5),
    "tv": round(float(np.abs(np.add.reduceat(share_D, bins) - even).sum() / 2), 5),
  }


def coverage(counter: distances.Counter) -> Record:
  """The part of 0 … limit − 1 that occurs, and the sizes of gaps.

  Keys: `distances` and `positions` with the share that occurs, the longest that occurs
  and the longest stretch that does not; `unmoved`, the share of samples without a gap;
  `gaps_per_sample`, samples with 0, 1, 2 … gaps; quantiles (10, 50, 90 %) of gaps and
  of the last position; `wide`, tokens at a position, the mean of each bin.
  """
  width = -(-counter.limit // WIDE_BINS)
  per_sample = counter.gaps_in_sample
  return {
    "samples": counter.samples,
    "tokens": counter.tokens,
    "limit": counter.limit,
    "distances": _met(counter.pairs()),
    "positions": _met(counter.positions()),
    "unmoved": counter.unmoved / counter.samples,
    "gaps": int(counter.gaps.sum()),
    "gaps_per_sample": np.trim_zeros(per_sample, "b").tolist(),
    "gap_quantiles": _quantiles(counter.gaps),
    "last_quantiles": _quantiles(counter.last),
    "wide": {"width": width, "tokens": _means(counter.positions(), width)},
  }


def _met(count_D: np.ndarray) -> Record:
  met = np.flatnonzero(count_D)
  edges = np.concatenate([[-1], met, [len(count_D)]])
  return {
    "share": len(met) / len(count_D),
    "longest": int(met[-1]) if len(met) else None,
    "longest_unmet_stretch": int(np.diff(edges).max()) - 1,
  }


def _quantiles(count_D: np.ndarray) -> list[int] | None:
  total = np.cumsum(count_D)
  if not total[-1]:
    return None
  return [int(np.searchsorted(total, q * total[-1])) for q in (0.1, 0.5, 0.9)]

"""Which relative distances a data set trains, counted exactly, without token pairs.

SkipAlign (2405.03939) §3.2 and Figure 2. A query is a token of a response (in a plain
text, any token); its keys are the tokens of the same sample up to and including
itself; their distance is the difference of their position ids. Two counts of it:

  pairs    (query, key) pairs at distance d: what attention sums over
  samples  samples in which some query meets distance d: the paper's "union of the
           relative distance sets for generating responses in each turn"

Role headers and stop tokens count with their block (a choice: the places that predict
a target differ by a few tokens per reply). Positions of a block are contiguous, so the
pairs of two blocks are counted in closed form: n queries from position a and m keys
from position b have each distance lo = a − b − m + 1 … a + n − 1 − b as often as two
boxes overlap, a trapezoid whose second difference is +1 at lo, −1 at lo + m and
lo + n, +1 at lo + m + n. A block with itself has n − d pairs. Summing the second
differences of all blocks, and then summing twice, gives the histogram: the work depends
on the number of blocks, the memory on that of distances, neither on that of tokens.

Shapes: T places of a batch, R runs (blocks, or parts of them, without a gap), Q pairs
of a query run and a key run, D distances 0 … D − 1, or positions.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from skipalign_jax.analysis import dialogues

_PAIRS = 1_000_000  # pairs of runs that are expanded at a time


@dataclasses.dataclass(frozen=True)
class Runs:
  """Runs: neighbouring tokens of a sample with consecutive positions.

  Attributes:
    sample: number of the sample; does not decrease.
    first: position of the first token.
    size: tokens.
    is_query: the tokens are of a response, or of a text.
  """

  sample: np.ndarray
  first: np.ndarray
  size: np.ndarray
  is_query: np.ndarray


def runs(batch: Mapping[str, np.ndarray], positions_BL: np.ndarray) -> Runs:
  """The runs of a batch of `dialogues.batches` at these positions."""
  segment_BL = batch["segment_ids"]
  row_BL = np.arange(len(segment_BL))[:, None] * (segment_BL.shape[1] + 1)
  used_T = segment_BL.ravel() > 0
  sample_T = (segment_BL + row_BL).ravel()[used_T]
  position_T = positions_BL.ravel()[used_T].astype(np.int64)
  query_T = (batch["is_response"] | batch["is_text"]).ravel()[used_T]
  begins_T = np.ones(len(sample_T), bool)
  begins_T[1:] = (np.diff(sample_T) > 0) | (np.diff(position_T) != 1)
  begins_T[1:] |= query_T[1:] != query_T[:-1]
  first = np.flatnonzero(begins_T)
  return Runs(
    sample=sample_T[first],
    first=position_T[first],
    size=np.diff(np.append(first, len(sample_T))),
    is_query=query_T[first],
  )


class Counter:
  """Counts over a data set, batch by batch.

  Attributes:
    limit: positions and distances are below it.
    samples, tokens: how many were counted.
    unmoved: samples without a gap.
    gaps: int64 by size; how many gaps have this size.
    gaps_in_sample: int64 by number of gaps; how many samples have this number.
    last: int64 by position; how many samples end there.
  """

  def __init__(self, limit: int):
    """Positions and distances are below `limit`."""
    self.limit = limit
    self.samples = self.tokens = self.unmoved = 0
    zeros = lambda: np.zeros(limit + 3, np.int64)
    self._pairs, self._sets, self._positions = zeros(), zeros(), zeros()
    self.gaps, self.last = zeros(), zeros()
    self.gaps_in_sample = zeros()

  def pairs(self) -> np.ndarray:
    """(query, key) pairs at each distance 0 … limit − 1."""
    return np.cumsum(np.cumsum(self._pairs))[: self.limit]

  def sets(self) -> np.ndarray:
    """Samples in which each distance occurs."""
    return np.cumsum(self._sets)[: self.limit]

  def positions(self) -> np.ndarray:
    """Tokens at each position."""
    return np.cumsum(self._positions)[: self.limit]

  def add(self, found: Runs) -> None:
    """Counts the runs of a batch; a sample is in one batch only."""
    first_R, size_R = found.first, found.size
    if not len(first_R):
      return
    end_R = first_R + size_R
    assert end_R.max() <= self.limit, end_R.max()
    new_R = np.diff(found.sample, prepend=-1) > 0
    opens_R = np.flatnonzero(new_R)
    self._positions += self._bins(first_R) - self._bins(end_R)
    self.samples += len(opens_R)
    self.tokens += int(size_R.sum())

    gap_R = np.where(new_R, 0, first_R - np.roll(end_R, 1))
    per_sample = np.add.reduceat((gap_R > 0).astype(np.int64), opens_R)
    self.unmoved += int(np.sum(per_sample == 0))
    self.gaps_in_sample += self._bins(per_sample)
    self.gaps += self._bins(gap_R[gap_R > 0])
    self.last += self._bins(end_R[np.append(opens_R[1:], len(end_R)) - 1] - 1)

    # A few samples at a time: with RandPos each token is a run.
    query = np.flatnonzero(found.is_query)
    opens_of_R = np.repeat(opens_R, np.diff(np.append(opens_R, len(first_R))))
    keys = query - opens_of_R[query] + 1  # its own run and all before
    if not len(query):
      return
    ends = np.append(np.flatnonzero(np.diff(found.sample[query])) + 1, len(query))
    group = np.cumsum(keys)[ends - 1] // _PAIRS
    for some in np.split(np.arange(len(query)), ends[:-1][np.diff(group) > 0]):
      q_Q = np.repeat(query[some], keys[some])
      k_Q = dialogues.spread(opens_of_R[query[some]], keys[some])
      self._add_pairs(found, q_Q, k_Q)

  def _add_pairs(self, found: Runs, q_Q: np.ndarray, k_Q: np.ndarray) -> None:
    n_Q, m_Q = found.size[q_Q], found.size[k_Q]
    gap_Q = found.first[q_Q] - found.first[k_Q]
    own_Q = q_Q == k_Q
    lo_Q = np.where(own_Q, 0, gap_Q - m_Q + 1)
    hi_Q = gap_Q + n_Q - 1

    n, m, lo = n_Q[~own_Q], m_Q[~own_Q], lo_Q[~own_Q]
    self._pairs += self._bins(lo) - self._bins(lo + m)
    self._pairs += self._bins(lo + m + n) - self._bins(lo + n)
    n = n_Q[own_Q]  # n, n − 1 … 1: second differences n, −(n + 1), 0 …, +1 at n + 1
    self._pairs[0] += n.sum()
    self._pairs[1] -= n.sum() + len(n)
    self._pairs += self._bins(n + 1)

    # The union of a sample's intervals: each adds the part after those before it.
    order = np.lexsort((lo_Q, found.sample[q_Q]))
    apart = found.sample[q_Q][order] * (self.limit + 1)
    lo, hi = lo_Q[order] + apart, hi_Q[order] + apart
    reached = np.maximum.accumulate(hi)
    lo[1:] = np.maximum(lo[1:], reached[:-1] + 1)
    adds = lo <= hi
    lo, hi = (lo - apart)[adds], (hi - apart)[adds]
    self._sets += self._bins(lo) - self._bins(hi + 1)

  def _bins(self, values: np.ndarray) -> np.ndarray:
    return np.bincount(values, minlength=self.limit + 3)

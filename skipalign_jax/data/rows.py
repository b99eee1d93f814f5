"""The rows of the whole run, in training order: planned epoch by epoch, read at random.

Every process plans the same rows from the same lengths; so all agree on which samples a
batch holds and, where batches differ in it, on how long its rows are.
"""

from typing import SupportsIndex

import ml_collections
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import packing, prepare
from skipalign_jax.runtime import errors

Planned = tuple[int, np.ndarray]  # epoch, the (source, row) pairs of a row


class TrainRows:
  """Random access to the rows of the whole run, epoch after epoch."""

  def __init__(
    self,
    prepared: list[prepare.Prepared],
    usable: list[np.ndarray],
    config: ml_collections.ConfigDict,
  ):
    self._prepared, self._usable, self._config = prepared, usable, config
    self._rows: list[Planned] = []
    self._left: list[Planned] = []  # of sorted epochs: too few for a batch
    self._lengths: list[int] = []  # tokens of a row, for each sorted batch
    self._epochs = 0

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: SupportsIndex) -> packing.Row:
    epoch, members = self._rows[int(index)]
    samples = [self._prepared[source].sample(int(row)) for source, row in members]
    row = packing.assemble_row(samples, self.length(int(index)), epoch)
    if self._config.loss.reduction == "sequence":  # of the samples, before they join
      row = packing.weigh_samples_alike(row)
    return row if self._config.data.packing_mask else packing.without_mask(row)

  def length(self, index: int) -> int:
    """Places of row `index`, the same for all rows of its batch."""
    if self._config.data.batching == "sorted":
      return self._lengths[index // self._config.batch_size]
    return config_lib.row_length(self._config.data)

  def add_epoch(self) -> None:
    """Plans one more pass over the data, shuffled anew."""
    rng = np.random.default_rng((self._config.seed, self._epochs))
    chosen = []
    for number, (p, usable) in enumerate(
      zip(self._prepared, self._usable, strict=True)
    ):
      whole, part = divmod(p.source.weight, 1)
      some = rng.permutation(usable)[: round(part * len(usable))]
      rows = np.concatenate([np.tile(usable, int(whole)), some])
      chosen.append(np.stack([np.full(len(rows), number), rows], axis=1))
    order = rng.permutation(np.concatenate(chosen))
    lengths = np.array([self._tokens(member) for member in order])
    c = self._config.data
    plan = packing.plan_rows(
      lengths, config_lib.row_length(c), config_lib.max_packed(c)
    )
    if not plan:
      raise errors.UserError(
        "the weights behind * leave no sample in an epoch; raise them"
      )
    # The half-empty rows that packing ends with must not meet in one batch.
    planned = [(self._epochs, order[plan[i]]) for i in rng.permutation(len(plan))]
    if c.batching == "sorted":
      self._add_sorted(planned, rng)
    else:
      self._rows += planned
    self._epochs += 1

  def _add_sorted(self, planned: list[Planned], rng: np.random.Generator) -> None:
    """Batches of neighbours in length, shuffled (LongAlign, 2401.18058).

    Rows that fill no batch, which chance picks, wait for the next epoch.
    """
    size = self._config.batch_size
    planned = self._left + planned
    whole = len(planned) // size * size
    planned, self._left = planned[:whole], planned[whole:]
    tokens = np.array([self._tokens(members[0]) for _, members in planned], int)
    by_length = np.argsort(tokens, kind="stable").reshape(-1, size)
    buckets = np.array(config_lib.buckets(self._config.data))
    for batch in rng.permutation(by_length):
      self._rows += [planned[i] for i in batch]
      longest = tokens[batch].max()
      self._lengths.append(int(buckets[np.searchsorted(buckets, longest)]))

  def _tokens(self, member: np.ndarray) -> int:
    source, row = member
    return int(self._prepared[source].lengths[row])

  def describe_sorted(self) -> str:
    """What sorting saves: the share of padding with it and without."""
    seq_len = self._config.data.seq_len
    tokens = sum(self._tokens(members[0]) for _, members in self._rows)
    places = self._config.batch_size * sum(self._lengths)
    plain = len(self._rows) * seq_len
    told = ", ".join(
      f"{self._lengths.count(length)} x {length}"
      for length in config_lib.buckets(self._config.data)
    )
    return (
      f"sorted: batches x tokens a row {told}; {1 - tokens / places:.0%} padding, "
      f"{1 - tokens / plain:.0%} in rows of {seq_len}"
    )

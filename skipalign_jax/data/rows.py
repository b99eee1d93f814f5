"""The rows of the whole run, in training order: planned epoch by epoch, read at random.

Every process plans the same rows from the same lengths. So all agree on the samples of
each batch and, if batches differ in length, on the length of its rows.

A run of whole epochs reads every row: batches continue into the next epoch, and empty
rows, of weight 0, fill the last one.
"""

from collections.abc import Sequence
from typing import SupportsIndex

import ml_collections
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import cue, packing, preferences, prepare
from skipalign_jax.runtime import errors

Member = tuple[int, int] | np.ndarray  # source, table row
Planned = tuple[int, np.ndarray]  # epoch, (source, table row) of each sample in a row


class TrainRows:
  """Random access to the rows of the whole run, epoch after epoch."""

  def __init__(
    self,
    prepared: list[prepare.Prepared] | list[cue.WithCue],
    usable: list[np.ndarray],
    config: ml_collections.ConfigDict,
  ):
    self._prepared, self._usable, self._config = prepared, usable, config
    self._rows: list[Planned] = []
    self._left: list[Planned] = []  # sorted batching: too few rows for a batch
    self._lengths: list[int] = []  # sorted batching: tokens per row of each batch
    self._epochs = self._empty = 0
    self._reference = self.empty_reference()

  def __len__(self) -> int:
    return len(self._rows)

  @property
  def epochs(self) -> int:
    """Number of epochs that were added, of which the last may be reached in part."""
    return self._epochs

  @property
  def filled(self) -> int:
    """Number of rows that have samples; the others are the last ones."""
    return len(self._rows) - self._empty

  def __getitem__(self, index: SupportsIndex) -> packing.Row:
    epoch, members = self._rows[int(index)]
    return self._assemble(members, self.length(int(index)), epoch)

  def _assemble(
    self, members: Sequence[Member], length: int, epoch: int = 0
  ) -> packing.Row:
    samples = [self._prepared[source].sample(int(row)) for source, row in members]
    parts = [part for sample in samples for part in preferences.parts(sample)]
    row = packing.assemble_row(parts, length, epoch)
    if config_lib.has_pairs(self._config):
      known = [self._reference[source][row] for source, row in members]
      return preferences.with_pairs(row, known)
    if self._config.loss.reduction == "sequence":  # per sample, so before they join
      row = packing.weigh_samples_equally(row)
    return row if self._config.data.packing_mask else packing.without_mask(row)

  def each_once(self) -> list[list[Member]]:
    """The samples of rows that have each usable sample once, packed."""
    members = [
      (source, int(row)) for source, rows in enumerate(self._usable) for row in rows
    ]
    lengths = np.array([self._tokens(member) for member in members])
    c = self._config.data
    plan = packing.plan_rows(lengths, c.seq_len, config_lib.max_packed(c))
    return [[members[i] for i in row] for row in plan]

  def assemble(self, some: Sequence[Sequence[Member]]) -> packing.Row:
    """Rows of these samples, stacked [B, L]."""
    rows = [self._assemble(members, self._config.data.seq_len) for members in some]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def empty_reference(self) -> list[np.ndarray]:
    """Zeros for log π0 of both replies of each pair, [table rows, 2] per source."""
    return [np.zeros((len(p.lengths), 2), np.float32) for p in self._prepared]

  def set_reference(self, reference: list[np.ndarray]) -> None:
    """Takes what `empty_reference` describes, for all rows read from now on."""
    self._reference = reference

  def length(self, index: int) -> int:
    """Length L of row `index`, the same for all rows of its batch."""
    if self._config.data.batching == "sorted":
      return self._lengths[index // self._config.batch_size]
    return config_lib.row_length(self._config.data)

  def add_epoch(self) -> None:
    """Plans one more pass over the data, in a new random order.

    Raises:
      UserError: the weights of the sources leave no samples.
    """
    rng = np.random.default_rng((self._config.seed, self._epochs))
    chosen = []
    for number, (p, usable) in enumerate(
      zip(self._prepared, self._usable, strict=True)
    ):
      whole, part = divmod(p.source.weight, 1)
      # What a fraction leaves of a sample is carried over to the next epoch.
      before, after = (
        round(part * len(usable) * epochs)
        for epochs in (self._epochs, self._epochs + 1)
      )
      some = rng.permutation(usable)[: after - before]
      rows = np.concatenate([np.tile(usable, int(whole)), some])
      chosen.append(np.stack([np.full(len(rows), number), rows], axis=1))
    order = rng.permutation(np.concatenate(chosen))
    lengths = np.array([self._tokens(member) for member in order])
    c = self._config.data
    plan = packing.plan_rows(
      lengths, config_lib.row_length(c), config_lib.max_packed(c)
    )
    if not plan and not self._rows:
      raise errors.UserError(
        "data.train: the weights after * leave no samples in an epoch; increase them"
      )
    # Packing leaves half-empty rows at the end; shuffle them into all batches.
    planned = [(self._epochs, order[plan[i]]) for i in rng.permutation(len(plan))]
    if c.batching == "sorted":
      self._add_sorted(planned, rng)
    else:
      self._rows += planned
    self._epochs += 1

  def fill_last_batch(self) -> None:
    """Ends the run after the epochs so far: all their rows are in whole batches.

    The last batch has the rows that are left, and empty ones.
    """
    size = self._config.batch_size
    if self._left:
      self._add_batch(self._left)
      self._left = []
    self._empty = -len(self._rows) % size
    nothing = self._epochs - 1, np.zeros((0, 2), int)
    self._rows += [nothing] * self._empty

  def not_reached(self, rows: int) -> int:
    """How many rows the epochs so far have after the first `rows` of the run."""
    return len(self._rows) - rows + len(self._left)

  def samples_by_source(self, rows: int) -> list[int]:
    """How many samples of each source the first `rows` rows of the run have."""
    counts = np.zeros(len(self._prepared), int)
    for _, members in self._rows[:rows]:
      np.add.at(counts, members[:, 0], 1)
    return counts.tolist()

  def _add_sorted(self, planned: list[Planned], rng: np.random.Generator) -> None:
    """Batches of rows of similar length, in random order (LongAlign, 2401.18058).

    Random rows that are too few for a batch wait for the next epoch.
    """
    size = self._config.batch_size
    planned = self._left + planned
    whole = len(planned) // size * size
    planned, self._left = planned[:whole], planned[whole:]
    tokens = np.array([self._tokens(members[0]) for _, members in planned], int)
    by_length = np.argsort(tokens, kind="stable").reshape(-1, size)
    for batch in rng.permutation(by_length):
      self._add_batch([planned[i] for i in batch])

  def _add_batch(self, planned: list[Planned]) -> None:
    """Adds the rows of a sorted batch, and how long they are."""
    longest = max(self._tokens(members[0]) for _, members in planned)
    buckets = np.array(config_lib.buckets(self._config.data))
    self._rows += planned
    self._lengths.append(int(buckets[np.searchsorted(buckets, longest)]))

  def _tokens(self, member: Member) -> int:
    source, row = member
    return int(self._prepared[source].lengths[row])

  def describe_sorted(self) -> str:
    """The share of padding with sorted batches and without, for the report."""
    seq_len = self._config.data.seq_len
    filled = self._rows[: self.filled]
    tokens = sum(self._tokens(members[0]) for _, members in filled)
    places = self._config.batch_size * sum(self._lengths)
    plain = len(self._rows) * seq_len
    batches = ", ".join(
      f"{self._lengths.count(length)} x {length}"
      for length in config_lib.buckets(self._config.data)
    )
    return (
      f"sorted: batches x tokens per row {batches}; {1 - tokens / places:.0%} padding, "
      f"{1 - tokens / plain:.0%} in rows of {seq_len}"
    )

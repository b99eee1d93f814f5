"""Which samples are held out (`data.eval`), and copies among samples."""

from __future__ import annotations

import re

import ml_collections
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import prepare
from skipalign_jax.runtime import errors

HeldOut = tuple[prepare.Prepared, np.ndarray]  # a source, its held-out table rows


def is_taken_out(data: ml_collections.ConfigDict) -> bool:
  """Whether held-out samples are taken out of the training data."""
  return isinstance(data.eval, str) and bool(re.match("holdout(:|$)", data.eval))


def trained_on(train: list[prepare.Prepared], held_out: list[HeldOut]) -> int:
  """Number of held-out samples that the training data have, too."""
  trained = np.concatenate([_held_names(p, p.usable) for p in train])
  return sum(
    int(np.isin(_held_names(p, usable), trained).sum()) for p, usable in held_out
  )


def _held_ids(data: prepare.Prepared) -> np.ndarray:
  """By what each table row is held out: of a pair, its chosen dialogue."""
  return data.rows.column("held_id")


def _held_names(data: prepare.Prepared, samples: np.ndarray) -> np.ndarray:
  """As `_names`, of what is measured of the samples if they are held out."""
  chosen, lengths = data.rows.rejected_start, data.lengths
  lengths = np.where(chosen > 0, chosen, lengths)[samples]
  return _held_ids(data)[samples].astype(np.uint64) << 32 | lengths.astype(np.uint64)


def _names(data: prepare.Prepared, samples: np.ndarray) -> np.ndarray:
  """Id and length of samples in one number, uint64 [N]: copies have both in common.

  Of a million samples about a hundred share only the id, which has 32 bits.
  """
  ids, lengths = data.sample_ids[samples], data.lengths[samples]
  return ids.astype(np.uint64) << 32 | lengths.astype(np.uint64)


def copies(train: list[prepare.Prepared]) -> int:
  """How many samples are copies of others."""
  whole = np.concatenate([_names(p, p.usable) for p in train])
  return len(whole) - len(np.unique(whole))


def take_out(
  train: list[prepare.Prepared], data: ml_collections.ConfigDict
) -> tuple[list[np.ndarray], list[HeldOut]]:
  """Takes held-out samples out of the sources, whatever the order of their files.

  All copies of a held-out dialogue are removed from the training data; of pairs, all
  with its chosen reply. Of texts, pieces are held out; other pieces of the same
  document may stay.

  Args:
    train: the training sources.
    data: the `data` part of a config.

  Returns:
    The table rows left for training, per source, and the held-out ones, if any.
  """
  ids = np.unique(np.concatenate([_held_ids(p)[p.usable] for p in train]))
  count = config_lib.held_out(data, len(ids))
  if not count:
    return [p.usable for p in train], []
  if count >= len(ids):
    raise errors.UserError(
      f"data.eval={data.eval!r} leaves nothing to train on: there are {len(ids)} "
      "different samples; hold out fewer (data.eval=holdout takes a tenth) or add data"
    )
  # Ids are hashes: the smallest ones are a random choice.
  chosen = ids[:count]
  usable, held_out = [], []
  for p in train:
    inside = np.isin(_held_ids(p)[p.usable], chosen)
    usable.append(p.usable[~inside])
    held_out.append((p, p.usable[inside]))
  return usable, held_out


def check_no_weights(found: list[prepare.Prepared]) -> None:
  """Raises UserError for a weight: each sample of held-out data counts once."""
  for p in found:
    if p.source.weight != 1:
      raise errors.UserError(
        f"data.eval: the weight *{p.source.weight:g} of {p.source.name} has no effect, "
        "because each held-out sample is read once; remove it"
      )

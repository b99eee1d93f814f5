"""Which samples share a row, and the arrays of a row.

Rows are planned in advance for a whole epoch, from the lengths alone. Packing while
reading (as Grain's FirstFitPackIterDataset does) would be less code, but this way the
number of steps is known exactly, every row can be read by its number, the state to
resume from is one integer, and neither the workers nor the hosts change the order.

Shapes: N samples, L tokens per row.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

OPEN_ROWS = 64  # rows that can take another sample while packing

Row = dict[str, np.ndarray]

# The arrays of a row, [L] each; padding is zero in all of them.
DTYPES = {
  "tokens": np.int32,
  "segment_ids": np.int32,  # number of the sample in its row, from 1
  "block_ids": np.int32,  # number of the block in its sample, from 0
  "is_response": np.bool_,  # the block is a response
  "loss_weight": np.float32,  # of predicting this token
  "sample_ids": np.uint32,
  "epochs": np.int32,
}
# What rows of preference pairs have besides, see preferences.py.
PAIR_DTYPES = {
  "sample_sizes": np.int32,  # tokens of the longer one of the pair
  "reference": np.float32,  # at the first token: log p of the reply, of the start
}


def plan_rows(lengths_N: np.ndarray, seq_len: int, max_samples: int) -> list[list[int]]:
  """Puts samples 0 … N−1, in this order, into rows.

  First fit: a sample goes into the first open row that has room. If no row has, the
  fullest one is closed.

  Args:
    lengths_N: tokens of each sample, in 1 … seq_len.
    seq_len: tokens of a row.
    max_samples: that a row takes; 1 for no packing.

  Returns:
    The samples of each row; each sample is in exactly one row.
  """
  if max_samples == 1:
    return [[i] for i in range(len(lengths_N))]
  rows: list[list[int]] = []
  open_rows: list[list[int]] = [[] for _ in range(OPEN_ROWS)]
  room = np.full(OPEN_ROWS, seq_len)
  for i, length in enumerate(lengths_N.tolist()):
    at = int(np.argmax(room >= length))
    if room[at] < length:
      at = int(np.argmin(room))
      rows.append(open_rows[at])
      open_rows[at], room[at] = [], seq_len
    open_rows[at].append(i)
    room[at] = 0 if len(open_rows[at]) == max_samples else room[at] - length
  return rows + [row for row in open_rows if row]


def assemble_row(
  samples: Sequence[Mapping[str, np.ndarray]], seq_len: int, epoch: int
) -> Row:
  """The arrays [L] of a row.

  Args:
    samples: tokens, block_starts, target_spans, sample_id and is_text of each, as
      `prepare.Prepared.sample` returns them, perhaps with a cue (`cue.WithCue`).
    seq_len: L, at least the number of tokens in `samples`.
    epoch: which pass over the data this is, from 0.
  """
  row = {name: np.zeros(seq_len, dtype) for name, dtype in DTYPES.items()}
  start = 0
  for number, sample in enumerate(samples, 1):
    tokens = sample["tokens"]
    at = slice(start, start + len(tokens))
    row["tokens"][at] = tokens
    row["segment_ids"][at] = number
    block_starts = np.zeros(len(tokens), np.int32)
    block_starts[sample["block_starts"][1:]] = 1
    row["block_ids"][at] = np.cumsum(block_starts)
    # In a chat, instructions and responses alternate; a text has no responses.
    row["is_response"][at] = (row["block_ids"][at] % 2 == 1) & (not sample["is_text"])
    for begin, end in sample["target_spans"].reshape(-1, 2):
      row["loss_weight"][start + begin : start + end] = 1
    if "cue" in sample:
      begin, weight = sample["cue"]
      row["loss_weight"][start + begin : start + len(tokens)] = weight
      row["is_response"][start + begin : start + len(tokens)] = False
    row["sample_ids"][at] = sample["sample_id"]
    row["epochs"][at] = epoch
    start += len(tokens)
  return row


def first_tokens(sample: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
  """A sample of `assemble_row`, cut to its first `count` tokens."""
  starts = sample["block_starts"]
  return dict(sample) | {
    "tokens": sample["tokens"][:count],
    "block_starts": starts[starts < count],
    "target_spans": np.minimum(sample["target_spans"], count),
  }


def weigh_samples_equally(row: Row) -> Row:
  """Divides the weight of each target by the number of targets in its sample.

  LongAlign's loss (2401.18058): the mean over a sample's targets, averaged over the
  samples that have targets. Σ weight is then the number of these samples, so the step's
  Σ weight·loss / Σ weight is that mean, for any distribution of the samples over rows,
  microbatches and devices.
  """
  segment_L, weight_L = row["segment_ids"], row["loss_weight"]
  # Nothing predicts the first token of a sample, so it must not be counted.
  assert not weight_L[np.diff(segment_L, prepend=0) > 0].any()
  targets_S = np.bincount(segment_L, weight_L)
  share_L = weight_L / np.maximum(targets_S, 1)[segment_L]
  return row | {"loss_weight": share_L.astype(np.float32)}


def without_mask(row: Row) -> Row:
  """The row as one sample: its tokens attend to all before them (PackedSFT, §4).

  Blocks are numbered through the whole row, so positions run or skip through it too.
  The id is a hash of the samples' ids: the same samples in the same order in a row
  always get the same random draw.
  """
  segment_L, block_L = row["segment_ids"], row["block_ids"]
  used_L = segment_L > 0
  starts_L = np.diff(segment_L, prepend=segment_L[:1]) != 0
  starts_L |= np.diff(block_L, prepend=block_L[:1]) != 0
  firsts_L = np.diff(segment_L, prepend=0) > 0
  members = row["sample_ids"][firsts_L].astype("<u4").tobytes()
  digest = hashlib.blake2b(members, digest_size=4).digest()
  return row | {
    "segment_ids": used_L.astype(np.int32),
    "block_ids": (np.cumsum(starts_L) * used_L).astype(np.int32),
    "sample_ids": np.uint32(int.from_bytes(digest, "little")) * used_L,
  }

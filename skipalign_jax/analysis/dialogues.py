"""Samples as the lengths of their blocks, and the batches that positions are drawn for.

Positions depend on lengths and ids only, so no token is read: a million dialogues are
some tens of megabytes of numbers, streamed from the tokenized cache in pieces.

Shapes: N samples, C blocks of all samples one after another, R rows, L tokens per row.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from skipalign_jax.data import packing, prepare

PIECE = 4096  # samples that are in memory at a time


@dataclasses.dataclass(frozen=True)
class Dialogues:
  """N samples.

  Attributes:
    length: tokens of each.
    blocks: blocks of each, at least one.
    size: tokens of each block.
    sample_id: uint32, the key of the random draws.
    is_text: plain text, which has no responses.
  """

  length: np.ndarray
  blocks: np.ndarray
  size: np.ndarray
  sample_id: np.ndarray
  is_text: np.ndarray


def read(prepared: Sequence[prepare.Prepared], limit: int = 0) -> Iterator[Dialogues]:
  """All usable samples, each once, in pieces of at most `PIECE`.

  Args:
    prepared: tokenized sources; their weights are not used.
    limit: the number of samples, from the first; 0 for all.
  """
  left = limit or sum(len(p.usable) for p in prepared)
  for p in prepared:
    for begin in range(0, len(p.lengths), PIECE):
      at = np.arange(begin, min(begin + PIECE, len(p.lengths)))
      at = at[p.lengths[at] > 0][:left]
      if len(at):
        left -= len(at)
        yield _piece(p, begin, at)


def _piece(p: prepare.Prepared, begin: int, at: np.ndarray) -> Dialogues:
  column = p.rows.table.column("block_starts").slice(begin, PIECE).combine_chunks()
  blocks = column.value_lengths().to_numpy()
  starts = column.flatten().to_numpy()
  mine = np.isin(np.repeat(np.arange(len(blocks)), blocks), at - begin)
  start_C, blocks_N = starts[mine], blocks[at - begin]
  end_C = np.append(start_C[1:], 0)
  end_C[np.cumsum(blocks_N) - 1] = p.lengths[at]
  return Dialogues(
    length=p.lengths[at],
    blocks=blocks_N,
    size=end_C - start_C,
    sample_id=p.sample_ids[at],
    is_text=p.is_text[at],
  )


def one_by_one(piece: Dialogues) -> Iterator[Dialogues]:
  """The samples of a piece, one at a time."""
  ends = np.cumsum(piece.blocks)
  for i, end in enumerate(ends.tolist()):
    yield Dialogues(
      length=piece.length[i : i + 1],
      blocks=piece.blocks[i : i + 1],
      size=piece.size[end - piece.blocks[i] : end],
      sample_id=piece.sample_id[i : i + 1],
      is_text=piece.is_text[i : i + 1],
    )


def batches(
  piece: Dialogues, seq_len: int, rows: int
) -> Iterator[dict[str, np.ndarray]]:
  """The arrays [R, L] that `positions.synthesize` reads, and `is_text`.

  Samples share rows: packing does not change the draws, and less padding is less work.

  Args:
    piece: samples of at most `seq_len` tokens.
    seq_len: L.
    rows: R; the last batch is filled up with empty rows, so that all have one shape.
  """
  plan = packing.plan_rows(piece.length, seq_len, max_samples=seq_len)
  first_block_N = np.cumsum(piece.blocks) - piece.blocks
  for begin in range(0, len(plan), rows):
    chosen = plan[begin : begin + rows]
    order = np.concatenate(chosen)
    length_M = piece.length[order]
    in_row = np.array([len(members) for members in chosen])
    number_M = spread(np.ones_like(in_row), in_row)  # in its row, from 1
    row_M = np.repeat(np.arange(len(chosen)), in_row)
    before_M = np.cumsum(length_M) - length_M
    before_M -= before_M[number_M == 1][row_M]

    blocks_M = piece.blocks[order]
    size_B = piece.size[spread(first_block_N[order], blocks_M)]
    index_B = spread(np.zeros_like(blocks_M), blocks_M)
    speaks_B = ~np.repeat(piece.is_text[order], blocks_M)
    per_token = lambda x_M, n=length_M: np.repeat(x_M, n)
    place = spread(row_M * seq_len + before_M, length_M)

    def arranged(values, dtype, place=place):
      array = np.zeros(rows * seq_len, dtype)
      array[place] = values
      return array.reshape(rows, seq_len)

    yield {
      "segment_ids": arranged(per_token(number_M), np.int32),
      "block_ids": arranged(np.repeat(index_B, size_B), np.int32),
      "is_response": arranged(np.repeat((index_B % 2 == 1) & speaks_B, size_B), bool),
      "sample_ids": arranged(per_token(piece.sample_id[order]), np.uint32),
      "epochs": np.zeros((rows, seq_len), np.int32),
      "is_text": arranged(per_token(piece.is_text[order]), bool),
    }


def spread(begin_N: np.ndarray, count_N: np.ndarray) -> np.ndarray:
  """begin, begin + 1 …: `count` numbers of each, one after another."""
  shift_N = begin_N - (np.cumsum(count_N) - count_N)
  return np.repeat(shift_N, count_N) + np.arange(count_N.sum())

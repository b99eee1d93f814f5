"""Samples as the lengths of their blocks, and the batches that positions are drawn for.

Positions depend on lengths and ids only, so no token is read: a million dialogues are
some tens of megabytes of numbers, streamed from the tokenized cache in pieces.

Shapes: N samples, C blocks of all samples one after another, R rows, L tokens a row.
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
    length_N: tokens of each.
    blocks_N: blocks of each, at least one.
    size_C: tokens of each block.
    sample_id_N: uint32, what the draws are keyed by.
    is_text_N: plain text, in which nobody responds.
  """

  length_N: np.ndarray
  blocks_N: np.ndarray
  size_C: np.ndarray
  sample_id_N: np.ndarray
  is_text_N: np.ndarray


def read(prepared: Sequence[prepare.Prepared], limit: int = 0) -> Iterator[Dialogues]:
  """All usable samples, each once, in pieces of at most `PIECE`.

  Args:
    prepared: tokenized sources; their weights play no part.
    limit: only the first so many samples; 0 for all.
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
  column = p.rows.data.column("block_starts").slice(begin, PIECE).combine_chunks()
  blocks = column.value_lengths().to_numpy()
  starts = column.flatten().to_numpy()
  mine = np.isin(np.repeat(np.arange(len(blocks)), blocks), at - begin)
  start_C, blocks_N = starts[mine], blocks[at - begin]
  end_C = np.append(start_C[1:], 0)
  end_C[np.cumsum(blocks_N) - 1] = p.lengths[at]
  return Dialogues(
    length_N=p.lengths[at],
    blocks_N=blocks_N,
    size_C=end_C - start_C,
    sample_id_N=p.sample_ids[at],
    is_text_N=p.is_text[at],
  )


def batches(
  piece: Dialogues, seq_len: int, rows: int
) -> Iterator[dict[str, np.ndarray]]:
  """The arrays [R, L] that `positions.synthesize` reads, and `is_text`.

  Samples share rows: packing changes no draw, and less padding is less work.

  Args:
    piece: samples of at most `seq_len` tokens.
    seq_len: L.
    rows: R; the last batch is filled up with empty rows, so that one program serves.
  """
  plan = packing.plan_rows(piece.length_N, seq_len, most_samples=seq_len)
  first_block_N = np.cumsum(piece.blocks_N) - piece.blocks_N
  for begin in range(0, len(plan), rows):
    chosen = plan[begin : begin + rows]
    order = np.concatenate(chosen)
    length_M = piece.length_N[order]
    in_row = np.array([len(members) for members in chosen])
    number_M = spread(np.ones_like(in_row), in_row)  # in its row, from 1
    row_M = np.repeat(np.arange(len(chosen)), in_row)
    before_M = np.cumsum(length_M) - length_M
    before_M -= before_M[number_M == 1][row_M]

    blocks_M = piece.blocks_N[order]
    size_B = piece.size_C[spread(first_block_N[order], blocks_M)]
    index_B = spread(np.zeros_like(blocks_M), blocks_M)
    speaks_B = ~np.repeat(piece.is_text_N[order], blocks_M)
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
      "sample_ids": arranged(per_token(piece.sample_id_N[order]), np.uint32),
      "epochs": np.zeros((rows, seq_len), np.int32),
      "is_text": arranged(per_token(piece.is_text_N[order]), bool),
    }


def spread(begin_N: np.ndarray, count_N: np.ndarray) -> np.ndarray:
  """begin, begin + 1 … of `count` numbers each, one after another."""
  shift_N = begin_N - (np.cumsum(count_N) - count_N)
  return np.repeat(shift_N, count_N) + np.arange(count_N.sum())

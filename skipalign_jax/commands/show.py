"""Rows of the training data, as the model sees them."""

import dataclasses
import itertools

import ml_collections
import numpy as np
import transformers
from rich import table as rich_table

from skipalign_jax.data import packing, pipeline
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.runtime import errors, terminal
from skipalign_jax.training import preview, resolve, unread

STYLES = {
  "instruction": "blue",
  "text": "blue",
  "response": "dark_orange",
  "target": "bold green",
}


def run(
  config: ml_collections.ConfigDict,
  n: int,
  max_tokens_per_block: int,
  every_token: bool,
  console: terminal.Console,
) -> None:
  """Prints the first `n` rows of the training data.

  Args:
    config: the whole config.
    n: number of rows; with packing a row holds several samples.
    max_tokens_per_block: the middle of longer spans is shown as "…"; 0 shows all.
    every_token: one line per token.
    console: where it is printed; in colour if it is a terminal.

  Raises:
    UserError: `n` is out of range, or config or data cannot be used.
  """
  recipe = resolve.check(config)
  crop = config.data.seq_len if config.data.text_window else 0
  tokenizer = tokenizer_lib.resolve(config)
  data = pipeline.build(config, tokenizer, 0, 1, console)
  rows = data.train_rows.filled
  if not 1 <= n <= rows:
    raise errors.UserError(
      f"--n={n}: the training data has {rows} rows; give 1 to {rows}"
    )
  if max_tokens_per_block < 0:
    raise errors.UserError("--max_tokens_per_block must be 0 (shows all) or more")
  console.print(data.report)
  for note in unread.keys(config):
    console.print(f"NOTE: {note}")
  for i in range(n):
    batch = {name: array_L[None] for name, array_L in data.train_rows[i].items()}
    batch = preview.as_trained(recipe, config.seed, batch, crop)
    row = {name: array_BL[0] for name, array_BL in batch.items()}
    positions_L = row["positions"]
    shown = spans(row)
    if every_token:
      shown = [
        dataclasses.replace(span, begin=at, end=at + 1)
        for span in shown
        for at in range(span.begin, span.end)
      ]
    table = draw(row, shown, positions_L, tokenizer, max_tokens_per_block)
    console.print(f"row {i}: {int((row['segment_ids'] > 0).sum())} tokens")
    console.print(table)


@dataclasses.dataclass(frozen=True)
class Span:
  """Consecutive tokens that share sample, block and target flag.

  Attributes:
    segment: number of the sample in its row, from 1.
    block: number of the block in its sample, from 0.
    is_response: whether the assistant speaks.
    is_target: whether the loss counts these tokens.
    begin, end: indices in the row.
  """

  segment: int
  block: int
  is_response: bool
  is_target: bool
  begin: int
  end: int


def spans(row: packing.Row) -> list[Span]:
  """The spans of a row of arrays [L], in order; padding is left out."""
  kind_4L = np.stack(
    [row["segment_ids"], row["block_ids"], row["is_response"], row["loss_weight"] > 0]
  )
  used = int((row["segment_ids"] > 0).sum())
  changes = np.flatnonzero((kind_4L[:, 1:used] != kind_4L[:, : used - 1]).any(0)) + 1
  edges = [0, *changes.tolist(), used]
  found = []
  for begin, end in itertools.pairwise(edges):
    segment, block, response, target = kind_4L[:, begin].tolist()
    found.append(Span(segment, block, bool(response), bool(target), begin, end))
  return found


def draw(
  row: packing.Row,
  shown: list[Span],
  positions_L: np.ndarray,
  tokenizer: transformers.PreTrainedTokenizerFast,
  max_tokens_per_block: int,
) -> rich_table.Table:
  """A table row per span of a row of arrays [L] at `positions_L`."""
  table = rich_table.Table()
  for name in ("seg", "blk"):
    table.add_column(name, justify="right", no_wrap=True)
  table.add_column("role", no_wrap=True)
  table.add_column("loss", no_wrap=True)
  table.add_column("positions", justify="right", no_wrap=True)
  table.add_column("text", ratio=1, overflow="fold")
  chats = set(row["segment_ids"][row["is_response"]].tolist())
  for span in shown:
    other = "instruction" if span.segment in chats else "text"
    role = "response" if span.is_response else other
    style = STYLES["target" if span.is_target else role]
    first, last = positions_L[span.begin], positions_L[span.end - 1]
    text = _text(row["tokens"][span.begin : span.end], tokenizer, max_tokens_per_block)
    table.add_row(
      str(span.segment),
      str(span.block),
      terminal.text(role, STYLES[role]),
      "yes" if span.is_target else "",
      preview.places(first, last, span.end - span.begin)
      if last > first
      else f"{first}",
      terminal.text(text, style),
    )
  return table


def _text(
  tokens: np.ndarray, tokenizer: transformers.PreTrainedTokenizerFast, limit: int
) -> str:
  decode = lambda ids: tokenizer.decode(ids.tolist())
  if limit and len(tokens) > limit:
    tail = limit // 2
    head = limit - tail
    text = f"{decode(tokens[:head])} … {decode(tokens[len(tokens) - tail :])}"
  else:
    text = decode(tokens)
  return text

"""Prints samples as the model sees them: python -m skipalign_jax.show --config=FILE.

One line a run of tokens that share sample, block and target flag, with the
positions that training gives them; --every_token=1 gives each token its line.
"""

import dataclasses
import itertools
import sys

import ml_collections
import numpy as np
import transformers
from rich import console as rich_console
from rich import table as rich_table
from rich import text as rich_text

from skipalign_jax import cli
from skipalign_jax.data import packing, pipeline
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.method import positions
from skipalign_jax.runtime import errors, terminal
from skipalign_jax.training import resolve

USAGE = """python -m skipalign_jax.show --config=FILE[:variant] [--n=1]
    [--max_tokens_per_block=40] [--every_token=0] [--config.some.key=value …]"""
STYLES = {
  "instruction": "blue",
  "text": "blue",
  "response": "dark_orange",
  "target": "bold green",
}


def main() -> int:
  config, flags = cli.parse(
    sys.argv, USAGE, n=1, max_tokens_per_block=40, every_token=0
  )
  console = terminal.Console()
  every_token = bool(flags["every_token"])
  show(config, flags["n"], flags["max_tokens_per_block"], every_token, console)
  return 0


def show(
  config: ml_collections.ConfigDict,
  n: int,
  max_tokens_per_block: int,
  every_token: bool,
  console: rich_console.Console,
) -> None:
  """Prints the first `n` rows of the training data.

  Args:
    config: the whole config.
    n: rows; under packing a row holds several samples.
    max_tokens_per_block: longer runs lose their middle to "…"; 0 for all.
    every_token: a line a token.
    console: where to; in colour if it is a terminal.

  Raises:
    UserError: n is out of range, or config or data are unusable.
  """
  recipe = resolve.check(config)
  tokenizer = tokenizer_lib.resolve(config)
  data = pipeline.build(config, tokenizer, 0, 1, console)
  if not 1 <= n <= len(data.train_rows):
    raise errors.UserError(f"--n={n}: this run has 1 to {len(data.train_rows)} rows")
  if max_tokens_per_block < 0:
    raise errors.UserError("--max_tokens_per_block must be 0 (all) or more")
  console.print(data.report)
  for i in range(n):
    row = data.train_rows[i]
    batch = {name: array_L[None] for name, array_L in row.items()}
    positions_L = np.asarray(positions.synthesize(recipe, config.seed, batch))[0]
    parts = runs(row)
    if every_token:
      parts = [
        dataclasses.replace(run, begin=at, end=at + 1)
        for run in parts
        for at in range(run.begin, run.end)
      ]
    table = draw(row, parts, positions_L, tokenizer, max_tokens_per_block)
    console.print(f"row {i}: {int((row['segment_ids'] > 0).sum())} tokens")
    console.print(table)


@dataclasses.dataclass(frozen=True)
class Run:
  """Neighbouring tokens that share sample, block and target flag.

  Attributes:
    segment: number of the sample in its row, from 1.
    block: number of the block in its sample, from 0.
    is_response: who speaks.
    is_target: predicting these tokens is trained.
    begin, end: places in the row.
  """

  segment: int
  block: int
  is_response: bool
  is_target: bool
  begin: int
  end: int


def runs(row: packing.Row) -> list[Run]:
  """The runs of a row of arrays [L], in order; padding is left out."""
  kind_4L = np.stack(
    [row["segment_ids"], row["block_ids"], row["is_response"], row["loss_weight"] > 0]
  )
  used = int((row["segment_ids"] > 0).sum())
  changes = np.flatnonzero((kind_4L[:, 1:used] != kind_4L[:, : used - 1]).any(0)) + 1
  edges = [0, *changes.tolist(), used]
  found = []
  for begin, end in itertools.pairwise(edges):
    segment, block, response, target = kind_4L[:, begin].tolist()
    found.append(Run(segment, block, bool(response), bool(target), begin, end))
  return found


def draw(
  row: packing.Row,
  parts: list[Run],
  positions_L: np.ndarray,
  tokenizer: transformers.PreTrainedTokenizerFast,
  max_tokens_per_block: int,
) -> rich_table.Table:
  """A line for each part of a row of arrays [L] at `positions_L`."""
  table = rich_table.Table()
  for name in ("seg", "blk"):
    table.add_column(name, justify="right", no_wrap=True)
  table.add_column("role", no_wrap=True)
  table.add_column("loss", no_wrap=True)
  table.add_column("positions", justify="right", no_wrap=True)
  table.add_column("text", ratio=1, overflow="fold")
  chats = set(row["segment_ids"][row["is_response"]].tolist())
  for run in parts:
    other = "instruction" if run.segment in chats else "text"
    role = "response" if run.is_response else other
    style = STYLES["target" if run.is_target else role]
    first, last = positions_L[run.begin], positions_L[run.end - 1]
    text = _text(row["tokens"][run.begin : run.end], tokenizer, max_tokens_per_block)
    table.add_row(
      str(run.segment),
      str(run.block),
      rich_text.Text(role, STYLES[role]),
      "yes" if run.is_target else "",
      f"{first}-{last}" if last > first else f"{first}",
      rich_text.Text(text, style),
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
  return text.replace("\n", "\\n")


if __name__ == "__main__":
  errors.run_command(main)

"""From a config to batches, which `train` iterates over.

Batches are dicts of numpy arrays [rows, L], named in packing.DTYPES. L is one number
for all batches, unless data.batching=sorted makes it one of `config.buckets`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import ml_collections
import numpy as np
from absl import flags

from skipalign_jax import config as config_lib
from skipalign_jax.data import cue as cue_lib
from skipalign_jax.data import (
  holdout,
  packing,
  preferences,
  prepare,
  sources,
  template_text,
)
from skipalign_jax.data import rows as rows_lib
from skipalign_jax.runtime import errors, signals, terminal

if TYPE_CHECKING:
  import transformers

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Data:
  """All data of a run, as one process sees it.

  Attributes:
    steps: number of batches in the whole run.
    report: what was read and what was left out, a few lines.
    fingerprint: hash of the samples, their lengths and the tokenizer; it depends on
      neither the machine nor the number of processes.
    several_turns: number of samples with a second instruction, or block of a text.
    train_rows: rows of all processes, in training order.
    eval_batches: this process' held-out batches, as many as every other process has;
      empty without held-out data.
  """

  steps: int
  report: str
  fingerprint: str
  several_turns: int
  train_rows: rows_lib.TrainRows
  eval_batches: list[Batch]
  _rows_per_share: int
  _share: tuple[int, int]  # index, count
  _workers: int

  def first_rows(self, count: int) -> Batch:
    """The first `count` rows of the run, stacked; of all processes."""
    rows = [self.train_rows[i] for i in range(count)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def train_iterator(self, state: dict[str, int] | None = None) -> TrainIterator:
    """Batches from the first step, or from the place that `state` describes."""
    import grain
    import grain.multiprocessing

    start = TrainIterator.next_batch(state)
    index, count = self._share
    dataset = grain.MapDataset.source(self.train_rows)[index::count]
    dataset = dataset.batch(self._rows_per_share, drop_remainder=True)
    if start >= len(dataset):  # Grain refuses an empty dataset
      return TrainIterator(iter(()), start)
    dataset = dataset[start:]
    # Grain keeps 500 elements ready by default; ours are whole batches.
    read = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    dataset = dataset.to_iter_dataset(read)
    if self._workers:
      # Grain reads its absl flags, which no command here parses.
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
      options = grain.multiprocessing.MultiprocessingOptions(
        num_workers=self._workers, per_worker_buffer_size=2
      )
      dataset = dataset.mp_prefetch(options, worker_init_fn=_live_with_parent)
    return TrainIterator(iter(dataset), start)


def _live_with_parent(*_) -> None:
  """In a data worker: makes it end when its parent has ended, and not earlier.

  A worker whose parent was killed would wait for it forever. And Ctrl-C, SLURM and a
  terminal that is closed send signals to the whole process group, while the parent
  still needs batches up to the step at which all processes stop.
  """
  for number in signals.ALL:
    signal.signal(number, signal.SIG_IGN)

  def wait():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


class TrainIterator:
  """Batches and the number of the next one, which is the whole state to restore.

  Grain's own state contains the number of workers. Here batch n holds the same rows for
  every number of hosts and workers, so a run may resume with other numbers.
  """

  def __init__(self, batches: Iterator[Batch], start: int):
    self._batches, self._next = batches, start

  def __iter__(self) -> TrainIterator:
    return self

  def __next__(self) -> Batch:
    """The next batch; UserError if a data worker was killed."""
    try:
      batch = next(self._batches)
    except RuntimeError as error:
      if "Worker process was terminated" not in str(error):  # Grain's words
        raise
      raise errors.UserError(
        "a data worker was killed, perhaps because memory ran out. Run the same "
        "command again to resume from the latest checkpoint, if needed with a lower "
        "data.workers"
      ) from error
    self._next += 1
    return batch

  def close(self) -> None:
    """Ends the workers."""
    if hasattr(self._batches, "close"):
      self._batches.close()

  def get_state(self) -> dict[str, int]:
    """The state for `Data.train_iterator`; the same in all processes."""
    return {"next_index": self._next}

  @staticmethod
  def next_batch(state: dict[str, int] | None) -> int:
    """Number of the next batch, from 0; UserError if `state` does not have it."""
    if state is None:
      return 0
    if not isinstance(state.get("next_index"), int):
      raise errors.UserError(
        "the state of the data iterator in this checkpoint is of another version, "
        "which only resumes with the same data.workers; start a new --workdir with "
        "model.init_from set to the old one"
      )
    return state["next_index"]


def build(
  config: ml_collections.ConfigDict,
  tokenizer: transformers.PreTrainedTokenizerFast,
  share_index: int,
  share_count: int,
  console: terminal.Console,
) -> Data:
  """Reads, tokenizes and plans the data of a run.

  Args:
    config: the whole config.
    tokenizer: carries the chat template.
    share_index, share_count: which rows of each batch this process reads (see
      `sharding.process_share`).
    console: shows the progress of slow work.

  Raises:
    UserError: see `sources` and `prepare`; or too little data for one batch.
  """
  if config.batch_size % share_count:
    raise errors.UserError(
      f"batch_size={config.batch_size} does not divide among {share_count} processes"
    )
  c, cue = (
    config.data.copy_and_resolve_references(),
    cue_lib.tokens_of(config, tokenizer),
  )
  c.seq_len -= len(cue)
  pairs = config_lib.has_pairs(config)
  train = _prepare_all(c.train, c, tokenizer, console, pairs)
  usable, held_out = [p.usable for p in train], []
  if holdout.is_taken_out(c):
    usable, held_out = holdout.take_out(train, c)
  elif c.eval:
    found = _prepare_all(c.eval, c, tokenizer, console, pairs)
    holdout.check_no_weights(found)
    held_out = [(p, p.usable) for p in found]
  if c.text_window:
    _check_texts(train)
  rows = rows_lib.TrainRows(_with_cue(train, cue, config), usable, config)
  steps = _add_epochs(rows, config)
  return Data(
    steps=steps,
    report=_report(train, held_out, rows, steps, config, tokenizer),
    fingerprint=_fingerprint(train, usable, held_out, tokenizer),
    several_turns=sum(p.several_turns() for p in train),
    train_rows=rows,
    eval_batches=_eval_batches(held_out, config, share_index, share_count),
    _rows_per_share=config.batch_size // share_count,
    _share=(share_index, share_count),
    _workers=c.workers,
  )


def _with_cue(
  train: list[prepare.Prepared], tokens: np.ndarray, config: ml_collections.ConfigDict
) -> list[prepare.Prepared] | list[cue_lib.WithCue]:
  """The sources with the cue of a config after each sample, if it has one."""
  if not len(tokens):
    return train
  return [cue_lib.WithCue(p, tokens, config.positions.cue_weight) for p in train]


def _prepare_all(
  spec: str | Sequence[str],
  data: ml_collections.ConfigDict,
  tokenizer: transformers.PreTrainedTokenizerFast,
  console: terminal.Console,
  pairs: bool,
) -> list[prepare.Prepared]:
  """The tokenized sources of `data.train` or `data.eval`."""
  return [
    prepare.prepare(source, data, tokenizer, console, pairs)
    for source in sources.parse(spec)
  ]


def _check_texts(train: list[prepare.Prepared]) -> None:
  """Raises UserError if data.text_window would crop a chat."""
  for p in train:
    if not p.is_text[p.usable].all():
      raise errors.UserError(
        "data.text_window crops rows of plain text, and data source "
        f"{p.source.name} has chats; remove it, or set data.text_window=0"
      )


def _add_epochs(rows: rows_lib.TrainRows, config: ml_collections.ConfigDict) -> int:
  """Plans as many epochs as the run needs; returns its number of steps."""
  if config.epochs is None:
    while len(rows) < config.steps * config.batch_size:
      rows.add_epoch()
    return config.steps
  for _ in range(config.epochs):
    rows.add_epoch()
  rows.fill_last_batch()
  return len(rows) // config.batch_size


def _report(
  train: list[prepare.Prepared],
  held_out: list[holdout.HeldOut],
  rows: rows_lib.TrainRows,
  steps: int,
  config: ml_collections.ConfigDict,
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> str:
  """What was read and what was left out, a few lines."""
  lines = [p.report() for p in train]
  if copies := holdout.copies(train):
    lines.append(f"{copies:,} of the samples are copies of others")
  if held_out:
    lines.append(f"held out: {sum(len(usable) for _, usable in held_out):,} samples")
    if not holdout.is_taken_out(config.data) and (
      copies := holdout.trained_on(train, held_out)
    ):
      lines.append(f"NOTE: {copies:,} of the held-out samples are training data, too")
  elif config.data.eval == "holdout":
    lines.append("NOTE: nothing is held out, because there are fewer than 10 samples")
  strategy = config.positions.strategy
  if config.data.text_blocks != "none" and not any(
    p.is_text[p.usable].any() for p in train
  ):
    lines.append("NOTE: data.text_blocks has no effect on chats, and there is no text")
  if any(p.is_text[p.usable].any() for p in train):
    if strategy.startswith("skip_") and config.data.text_blocks == "none":
      lines.append(
        "NOTE: data.text_blocks=none makes a text one block, so texts do not skip"
      )
    if _jumps_before_blocks(config) and config.data.text_blocks == "none":
      lines.append(
        "NOTE: data.text_blocks=none makes a text one block, so texts do not jump; "
        "distill.split=token jumps anywhere"
      )
    if strategy in ("endprompt", "logo") and config.positions.terminal != "cue":
      lines.append(f"NOTE: strategy {strategy} moves replies, so texts stay contiguous")
  if not all(p.is_text[p.usable].all() for p in train):
    if opened := template_text.opened(tokenizer):
      lines.append(
        f"NOTE: the chat template asks for a reply after {opened!r}; replies that do "
        "not begin with it are learned without it"
      )
  if config.data.batching == "sorted":
    lines.append(rows.describe_sorted())
  used = steps * config.batch_size
  if len(train) > 1 or train[0].source.weight != 1:
    counts = zip(train, rows.samples_by_source(used), strict=True)
    seen = ", ".join(f"{count:,} of {p.source.name}" for p, count in counts)
    lines.append(f"the run trains on {seen}")
  lines += _ends(rows, used, config)
  return "\n".join(lines)


def _jumps_before_blocks(config: ml_collections.ConfigDict) -> bool:
  d = config.distill
  return d.weight > 0 and d.view == "jump" and d.split == "block"


def _ends(
  rows: rows_lib.TrainRows, used: int, config: ml_collections.ConfigDict
) -> list[str]:
  """A line on where the run ends, if that is inside an epoch or a batch."""
  if config.epochs is None and (rest := rows.not_reached(used)):
    return [
      f"the run ends inside epoch {rows.epochs:,} (steps={config.steps}), and {rest:,} "
      "of the rows of that epoch are not read; to read all, set epochs instead of steps"
    ]
  if empty := len(rows) - rows.filled:
    return [
      f"the last batch has the last {config.batch_size - empty} of {rows.filled:,} "
      f"rows, and {empty} empty ones, which weigh nothing"
    ]
  return []


def _fingerprint(
  train: list[prepare.Prepared],
  usable: list[np.ndarray],
  held_out: list[holdout.HeldOut],
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> str:
  found = hashlib.sha256(prepare.tokenizer_identity(tokenizer).encode("utf-8"))
  for p, rows in (*zip(train, usable, strict=True), *held_out):
    found.update(p.sample_ids[rows].astype("<u4"))  # hashes of the content
    found.update(p.lengths[rows].astype("<i8"))
  return found.hexdigest()[:16]


def _eval_batches(
  held_out: list[holdout.HeldOut],
  config: ml_collections.ConfigDict,
  share_index: int,
  share_count: int,
) -> list[Batch]:
  """All held-out rows in batches of one microbatch; the last one is padded.

  Every target has the same weight, whatever loss.reduction is. Samples share rows, and
  attend to each other or not, as in training; of a piece of text that training crops,
  the first seq_len tokens are used, and of a pair the chosen reply.
  """
  c = config.data
  all_rows = []
  for p, usable in held_out:
    lengths = np.minimum(p.lengths[usable], c.seq_len)
    for members in packing.plan_rows(lengths, c.seq_len, config_lib.max_packed(c)):
      samples = [preferences.parts(p.sample(int(usable[i])))[0] for i in members]
      samples = [packing.first_tokens(sample, c.seq_len) for sample in samples]
      row = packing.assemble_row(samples, c.seq_len, epoch=0)
      all_rows.append(row if c.packing_mask else packing.without_mask(row))
  size = config.batch_size // config.grad_accum
  if all_rows:
    blank = packing.assemble_row([], c.seq_len, epoch=0)
    all_rows += [blank] * (-len(all_rows) % size)
  batches = []
  for start in range(0, len(all_rows), size):
    mine = all_rows[start : start + size][share_index::share_count]
    batches.append({name: np.stack([row[name] for row in mine]) for name in blank})
  return batches

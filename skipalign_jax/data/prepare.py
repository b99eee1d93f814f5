"""Tokenizes a source once, into an Arrow file on disk that later runs reuse.

Every raw record becomes at least one table row, also if it is unusable: `status` is
"ok", "truncated" or the reason. So the reported counts always come from the data that
is trained on, whether it was prepared now or a week ago.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_collections
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import (
  chat,
  preferences,
  schemas,
  sources,
  text,
  token_cache,
  token_table,
  verdicts,
)
from skipalign_jax.data import dialogues as dialogues_lib
from skipalign_jax.hf import template_dates
from skipalign_jax.runtime import (
  caches,
  errors,
  paths,
  progress,
  storage,
  terminal,
  untrusted,
)

if TYPE_CHECKING:
  import transformers

FORMAT = 14  # of the table rows; increase it when they or the encoding change
_COUNTS = (
  *(
    "length",
    "targets",
    "turns",
    "split",
    "named",
    "sample_id",
    "held_id",
    "rejected_start",
  ),
  *token_table.NOT_LEARNED,
)
_Pair = tuple[dialogues_lib.Dialogue, dialogues_lib.Dialogue]
_Parsed = dialogues_lib.Dialogue | _Pair | str | dialogues_lib.BadSample
_BATCH, _BATCH_SIZE = 512, 8 << 20  # records tokenized at a time; bytes, about


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A tokenized source.

  Attributes:
    source: where the records come from.
    rows: of the Arrow table, memory-mapped.
    usable: indices of the table rows to train on.
    lengths: tokens per table row; 0 where unusable.
    sample_ids: uint32 per table row.
    is_text: bool per table row: a piece of plain text, not a chat.
  """

  source: sources.Source
  rows: token_table.Rows
  usable: np.ndarray
  lengths: np.ndarray
  sample_ids: np.ndarray
  is_text: np.ndarray

  def sample(self, row: int) -> dict[str, np.ndarray]:
    """The sample in a table row as `packing.assemble_row` needs it; a pair in one.

    Its arrays are views of the memory map.
    """
    one = {"sample_id": self.sample_ids[row], "is_text": self.is_text[row]}
    one["rejected_start"] = int(self.rows.rejected_start[row])
    return self.rows.lists(row) | one

  def several_turns(self) -> int:
    """Number of samples with a second instruction, or a second block of a text.

    Replies that are not learned are not asked for: their turns skip, too.
    """
    of_one = self.rows.blocks() // np.where(self.rows.rejected_start > 0, 2, 1)
    return int(np.sum(of_one > np.where(self.is_text, 1, 2)))

  def report(self) -> str:
    """Counts, in a few lines: samples, tokens, unusable records."""
    return verdicts.report(self.source, self.rows, self.is_text[self.usable].all())


def prepare(
  source: sources.Source,
  config: ml_collections.ConfigDict,
  tokenizer: transformers.PreTrainedTokenizerFast,
  console: terminal.Console,
  pairs: bool = False,
) -> Prepared:
  """The tokenized source: read from the cache, or written there first.

  Args:
    source: what to read.
    config: the `data` part of a config.
    tokenizer: carries the chat template.
    console: shows progress if it is a terminal.
    pairs: each record is a preference pair, of which each reply may have half a row.

  Raises:
    UserError: the source cannot be read, has no usable sample, or more unusable
      records than `max_bad_fraction` allows; the message lists them.
  """
  import pyarrow

  name = _fingerprint(source, config, tokenizer, pairs)
  write = lambda new: _write(new, source, config, tokenizer, console, pairs)
  folder = None
  try:
    folder = _cache(config.cache_dir, name)
    path = token_cache.file_of(folder, name, write, console)
  except OSError as error:
    raise errors.UserError(
      f"data.cache_dir={config.cache_dir or caches.HOME} cannot be used: "
      f"{storage.explain(error, folder)}"
    ) from error
  try:
    rows = token_table.Rows(path)
  except pyarrow.ArrowException as error:
    raise errors.UserError(
      f"data.cache_dir={path.parent}: {path} cannot be read by this version of pyarrow "
      f"({errors.first_line(error)}); delete it and start again"
    ) from error
  lengths = rows.column("length")
  verdicts.check(source, rows, config.max_bad_fraction)
  return Prepared(
    source=source,
    rows=rows,
    usable=np.flatnonzero(lengths > 0),
    lengths=lengths,
    sample_ids=rows.column("sample_id"),
    is_text=rows.column("is_text"),
  )


def _cache(given: str, name: str) -> pathlib.Path:
  """The folder of `data.cache_dir`, for files whose names begin so."""
  if not given:
    return caches.folder("", name)
  return paths.output(given, f"data.cache_dir={given}")


def tokenizer_identity(tokenizer: transformers.PreTrainedTokenizerFast) -> str:
  """Everything in a tokenizer that changes the samples, as one text."""
  backend = json.loads(tokenizer.backend_tokenizer.to_str())
  for left_by_calls in ("truncation", "padding"):  # the encoder uses neither
    backend.pop(left_by_calls)
  parts = (
    json.dumps(backend),
    tokenizer.chat_template,
    (tokenizer.bos_token, tokenizer.eos_token),
  )
  date = template_dates.date_of(tokenizer)
  return repr(parts if date is None else (*parts, date))


def _fingerprint(
  source: sources.Source,
  config: ml_collections.ConfigDict,
  tokenizer: transformers.PreTrainedTokenizerFast,
  pairs: bool,
) -> str:
  parts = (
    FORMAT,
    source.identity(),
    tokenizer_identity(tokenizer),
    config.seq_len,
    config.system_prompt,
    config.rewritten,
    config.learn_tool_calls,
    config.overlong,
    config.max_message_bytes,
    sorted(ignored_keys(config)),
    config.text_blocks,
    config.text_window,
    pairs,
  )
  return hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()[:32]


def ignored_keys(config: ml_collections.ConfigDict) -> frozenset[str]:
  """The keys of records and turns that `data.ignore_keys` names."""
  return frozenset(filter(None, map(str.strip, config.ignore_keys.split(","))))


def _write(
  path: pathlib.Path,
  source: sources.Source,
  config: ml_collections.ConfigDict,
  tokenizer: transformers.PreTrainedTokenizerFast,
  console: terminal.Console,
  pairs: bool,
) -> None:
  chats = chat.Encoder(
    tokenizer,
    config.seq_len // 2 if pairs else config.seq_len,
    config.system_prompt,
    config.rewritten,
    config.learn_tool_calls,
    config.overlong,
  )
  texts = text.Encoder(tokenizer, config_lib.row_length(config), config.text_blocks)
  bar = progress.Counter(console, f"tokenizing {source.name}")
  ignored = ignored_keys(config)
  with bar, path.open("wb") as stream, token_table.Writer(stream) as writer:
    for batch in _batches(_numbered(source)):
      parsed = [
        _parse(one.record, config.max_message_bytes, ignored, pairs) for one in batch
      ]
      dialogues = iter(_encoded(chats, parsed, pairs))
      documents = texts([one for one in parsed if isinstance(one, str)])
      for numbered, one in zip(batch, parsed, strict=True):
        if isinstance(one, str):
          samples = next(documents)
        else:
          samples = [one] if _is_bad(one) else next(dialogues)
        for sample in samples:
          writer.write(_row(sample, isinstance(one, str), numbered))
      bar.add(len(batch))


class _Numbered(NamedTuple):
  """A record, its number in the source, and its place for messages."""

  number: int
  place: str
  record: Any


def _numbered(source: sources.Source) -> Iterator[_Numbered]:
  last = 0
  for name, records in source.parts():
    before = last
    for number, record in records:
      last = before + number
      yield _Numbered(last, f"{name}:{number}", record)


def _batches(records: Iterator[_Numbered]) -> Iterator[list[_Numbered]]:
  """Groups of `_BATCH` records, or of fewer where these are long."""
  batch, size = [], 0
  for numbered in records:
    batch.append(numbered)
    size += untrusted.size(numbered.record)
    if len(batch) == _BATCH or size >= _BATCH_SIZE:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _is_bad(parsed: Any) -> bool:
  return isinstance(parsed, dialogues_lib.BadSample)


def _encoded(
  chats: chat.Encoder, parsed: Sequence[_Parsed], pairs: bool
) -> list[list[chat.Result]]:
  """The samples of each dialogue or pair; texts and bad records have none."""
  found = [one for one in parsed if not isinstance(one, str) and not _is_bad(one)]
  if not pairs:
    return chats.samples(found)
  results = iter(chats([dialogue for pair in found for dialogue in pair]))
  return [[preferences.join(*both)] for both in zip(results, results, strict=True)]


def _parse(
  record: Any,
  max_bytes: int,
  ignored: frozenset[str] = frozenset(),
  pairs: bool = False,
) -> _Parsed:
  """The record's dialogue, its pair, its text, or why it has none."""
  try:
    if untrusted.size(record) > untrusted.MAX_RECORD_BYTES:
      raise dialogues_lib.BadSample(
        f"record over {untrusted.MAX_RECORD_BYTES >> 20} MiB"
      )
    if isinstance(record, bytes):
      record = schemas.parse_line(record)
    if pairs:
      return preferences.pair_of(record, max_bytes, ignored)
    document = text.text_of(record, ignored)
    return (
      schemas.dialogue_of(record, max_bytes, ignored) if document is None else document
    )
  except dialogues_lib.BadSample as bad:
    return bad


def is_text(record: Any, ignored: frozenset[str] = frozenset()) -> bool:
  """Whether a record of a source is a text; False for a chat and for a bad record."""
  return isinstance(_parse(record, untrusted.MAX_RECORD_BYTES, ignored), str)


def _row(
  sample: chat.Sample | dialogues_lib.BadSample, is_text: bool, numbered: _Numbered
) -> dict[str, Any]:
  if isinstance(sample, dialogues_lib.BadSample):
    none = np.zeros(0, np.int32)
    empty = dict.fromkeys(token_table.LISTS, none)
    zero = dict.fromkeys(_COUNTS, 0)
    example = f"{numbered.place}: {sources.example(numbered.record)}"
    source = dict(status=sample.reason, number=numbered.number, example=example)
    return empty | zero | source | _lost(sample) | dict(is_text=is_text)
  edges = np.flatnonzero(np.diff(sample.targets, prepend=False, append=False))
  return dict(
    tokens=sample.tokens,
    block_starts=np.flatnonzero(np.diff(sample.block_ids, prepend=-1)).astype(np.int32),
    target_spans=edges.astype(np.int32),
    length=len(sample.tokens),
    targets=int(sample.targets.sum()),
    turns=sample.turns,
    **{name: getattr(sample, name) for name in token_table.NOT_LEARNED},
    split=sample.split,
    named=sample.named,
    **_lost(sample),
    rejected_start=sample.rejected_start,
    sample_id=sample.sample_id,
    held_id=sample.sample_id if sample.chosen_id is None else sample.chosen_id,
    is_text=is_text,
    status="truncated" if sample.truncated else "ok",
    number=numbered.number,
    example="",
  )


def _lost(sample: chat.Sample | dialogues_lib.BadSample) -> dict[str, int]:
  return dict(lost=sample.lost.tokens, lost_targets=sample.lost.targets)

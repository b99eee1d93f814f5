"""Long-short misalignment (arXiv 2506.11769): does more context change predictions?

  E SCE(g(x[−l1:]), g(x[−l2:])),   l1, l2 ~ U{⌈l/2⌉ … l}

where g is the next-token distribution, SCE(p, q) = H(p, q) + H(q, p) and l the length
at which the model was trained. SCE is at least H(p) + H(q); the rest of it is
KL(p‖q) + KL(q‖p), which is reported too. Positions of a context start at its first
token, as in generation; nothing is put before it.

Two passes give many pairs. A sample draws l1 and l2, and a window of l tokens at a
random place. One pass reads the window, the other one the window without its first
d = |l1 − l2| tokens: after token number n of the window their contexts have n and n − d
tokens, and the same end. All n from ⌈l/2⌉ + d to l count equally. Given d, the shorter
of two independent uniform lengths is uniform over ⌈l/2⌉ … l − d, and d itself is drawn.
So the mean of the samples' means is the expectation above, for places uniform in the
text.

In chats only places before an assistant target count, and a window is inside one
dialogue: a sample takes the next dialogue in which its d leaves such a place. Records
are read until there are enough samples; notes have the counts of those that cannot be
used, and of samples that were not found.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipalign_jax.data import chat, schemas, source_names, sources
from skipalign_jax.data import dialogues as dialogues_lib
from skipalign_jax.evals import haystack, intervals, option_values
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors

if TYPE_CHECKING:  # imports jax
  from skipalign_jax.evals import runner

TEXTS = (".txt", ".txt.gz")
DIALOGUES = 256  # tokenized at a time
MAX_MESSAGE_BYTES = 1 << 20
REASONS = 5  # that a note lists


@dataclasses.dataclass(frozen=True)
class Options:
  """What to read, and for which training lengths."""

  source: str = ""  # .txt or .txt.gz files, or chats in the form of data.train
  lengths: str = "2048,4096"  # l: tokens of the sequences used in training
  samples: int = 32  # pairs of passes per length
  seed: int = 0  # of lengths and places


@dataclasses.dataclass(frozen=True)
class Document:
  """A text or dialogue; `counts[i]`: whether the prediction of token i counts."""

  name: str
  tokens: np.ndarray
  counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pair:
  """A window, and the two passes over it.

  Attributes:
    tokens: of the window.
    left_out: so many first tokens are not part of the second pass.
    places: indices of the tokens after which both predictions are compared.
  """

  tokens: tuple[int, ...]
  left_out: int
  places: tuple[int, ...]


class LeftOut:
  """Records of chats that were read and cannot be used."""

  def __init__(self):
    """None yet."""
    self.read = 0
    self._reasons: collections.Counter[str] = collections.Counter()
    self._first: dict[str, str] = {}

  def add(self, reason: str, place: str) -> None:
    """Counts one; `place` is its file and number."""
    self._reasons[reason] += 1
    self._first.setdefault(reason, place)

  def __str__(self) -> str:
    """In one line; empty if there are none."""
    if not (total := self._reasons.total()):
      return ""
    listed = [
      f"{n:,} x {reason} (first at {self._first[reason]})"
      for reason, n in self._reasons.most_common(REASONS)
    ]
    if (more := len(self._reasons) - REASONS) > 0:
      listed.append(f"and {more} other reasons")
    return (
      f"{total:,} of the {self.read:,} records that were read cannot be used and are "
      f"left out: {', '.join(listed)}"
    )


def run(
  options: Options,
  subject: subject_lib.Subject,
  evaluation: runner.Evaluation,
  limit: int,
) -> tuple[list[items_lib.Record], dict[str, Any]]:
  """The records of all samples, and the summary; notes say what was left out.

  Raises:
    UserError: as `items` and `runner.Evaluation.records`.
  """
  found = items(options, subject, evaluation.notes.append)
  measure_batch = functools.partial(measure, options, subject)
  records = evaluation.records(found[: limit or None], measure_batch)
  return records, summarize(options, records)


def items(
  options: Options,
  subject: subject_lib.Subject,
  note: Callable[[str], object] = lambda line: None,
) -> list[items_lib.Item]:
  """One pair of passes per length and sample.

  Args:
    options: of the task.
    subject: the model.
    note: receives what a reader of the results has to know.

  Raises:
    UserError: numbers out of range, or a source without texts that are long enough.
  """
  lengths = option_values.numbers("lengths", options.lengths)
  if lengths[0] < 2:
    raise errors.UserError(f"--lengths={options.lengths}: give 2 or more")
  option_values.at_least(options, samples=1, seed=0)
  found: dict[int, list[items_lib.Item]] = {length: [] for length in lengths}
  longest, left_out = 0, LeftOut()
  for document in documents(options.source, subject, lengths[-1], left_out):
    longest = max(longest, len(document.tokens))
    for length, done in found.items():
      if len(done) < options.samples:
        item = _item(document, length, options.seed, len(done))
        done += [item] if item else []
    if all(len(done) == options.samples for done in found.values()):
      break
  for length, done in found.items():
    if not done:
      raise errors.UserError(
        f"--source={options.source}: no dialogue has a target after enough tokens for "
        f"--lengths={length} (the longest dialogue has {longest} tokens)"
        + (f". {left_out}" if str(left_out) else "")
      )
    if len(done) < options.samples:
      note(
        f"{len(done)} of {options.samples} samples for --lengths={length}: the source "
        "has no more dialogues with a target after enough tokens"
      )
  if str(left_out):
    note(str(left_out))
  return list(itertools.chain(*found.values()))


def _item(document: Document, length: int, seed: int, number: int):
  """Sample `number` of a length, from this document; None if no window fits."""
  rng = np.random.default_rng([seed, length, number])
  shortest = (length + 1) // 2
  one, other = rng.integers(shortest, length + 1, 2)
  left_out = int(abs(one - other))
  starts = np.arange(len(document.tokens) - length + 1)
  # After token t the prediction of t + 1 is compared; the first such t of a window:
  first = left_out + shortest - 1
  before_N = np.concatenate([[0], np.cumsum(document.counts)])
  starts = starts[before_N[starts + length + 1] > before_N[starts + first + 1]]
  if not len(starts):
    return None
  start = int(rng.choice(starts))
  counts = document.counts[start + first + 1 : start + length + 1]
  places = tuple((np.flatnonzero(counts) + first).tolist())
  tokens = tuple(document.tokens[start : start + length].tolist())
  return items_lib.Item(
    id=f"{length}/{number}",
    places=2 * length,
    query=Pair(tokens, left_out, places),
    record={
      "length": length,
      "left_out": left_out,
      "from": document.name,
      "start": start,
      "pairs": len(places),
    },
    group=(length,),
    rows=2,
  )


def documents(
  source: str, subject: subject_lib.Subject, longest: int, left_out: LeftOut
) -> Iterator[Document]:
  """Texts, in an endless cycle, or dialogues, once.

  Args:
    source: as in the options.
    subject: its tokenizer makes the tokens.
    longest: tokens that each text must have.
    left_out: counts the records that cannot be used.

  Raises:
    UserError: `source` is empty or cannot be read, or a text has fewer than `longest`
      tokens.
  """
  if not source.strip():
    raise errors.UserError(
      "--source is needed: .txt or .txt.gz files with commas between them, or chats: "
      f"{source_names.FORMS}"
    )
  if not all(name.strip().endswith(TEXTS) for name in source.split(",")):
    yield from _dialogues(source, subject, left_out)
    return
  texts = []
  for name, text in haystack.read_files("source", source).items():
    tokens = subject.tokens(text, literal=True)
    if len(tokens) < longest:
      raise errors.UserError(
        f"--source: {name} has {len(tokens)} tokens, fewer than --lengths={longest}"
      )
    # The prediction after the last token counts too; it needs no next token.
    texts.append(Document(name, tokens, np.ones(len(tokens) + 1, bool)))
  yield from itertools.cycle(texts)


def _dialogues(
  source: str, subject: subject_lib.Subject, left_out: LeftOut
) -> Iterator[Document]:
  """Dialogues with a target; the other records are counted."""
  if not subject.tokenizer.chat_template:
    raise errors.UserError(
      f"--source={source}: the tokenizer has no chat template; use --template=tulu"
    )
  encoder = chat.Encoder(subject.tokenizer, seq_len=1 << 30)
  for name, records in _parts(source):
    while batch := list(itertools.islice(records, DIALOGUES)):
      left_out.read += len(batch)
      yield from _usable(name, batch, encoder, left_out)


def _usable(
  name: str, batch: Sequence[tuple[int, Any]], encoder: chat.Encoder, left_out: LeftOut
) -> list[Document]:
  """The dialogues of numbered records of a file."""
  places, dialogues = [], []
  for number, record in batch:
    try:
      if isinstance(record, bytes):
        record = schemas.parse_line(record)
      dialogues.append(schemas.dialogue_of(record, MAX_MESSAGE_BYTES))
      places.append(f"{name}:{number}")
    except dialogues_lib.BadSample as bad:
      left_out.add(bad.reason, f"{name}:{number}")
  found = []
  for place, sample in zip(places, encoder(dialogues), strict=True):
    if isinstance(sample, dialogues_lib.BadSample):
      left_out.add(sample.reason, place)
    else:
      counts = np.append(sample.targets, False)
      found.append(Document(place, sample.tokens, counts))
  return found


def _parts(source: str) -> Iterator[tuple[str, Iterator[tuple[int, Any]]]]:
  """The files of all sources, and their records; UserError for a weight."""
  for one in sources.parse(source):
    if one.weight != 1:
      raise errors.UserError(
        f"--source={source}: the weight *{one.weight:g} has no effect here"
      )
    yield from one.parts()


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Means over the places of each pair, nats."""
  from skipalign_jax.evals import paired_terms  # jax is slow to load

  del options
  pairs = [item.query for item in batch]
  length = len(pairs[0].tokens)
  shown = length - (length + 1) // 2 + 1  # last places, where contexts are long enough
  engine = subject.engine
  # Rows are aligned at their ends: a token has the same place in both passes.
  hidden_RLD = engine.hidden(
    [pair.tokens for pair in pairs] + [pair.tokens[pair.left_out :] for pair in pairs]
  )
  with engine.on_mesh():
    sce_BC, symmetric_kl_BC = map(
      np.asarray,
      paired_terms.of_rows(engine.params, engine.config, hidden_RLD, len(pairs), shown),
    )
  records = []
  for row, pair in enumerate(pairs):
    at = np.array(pair.places) - (length - shown)
    records.append(
      {
        "sce": float(sce_BC[row, at].mean(dtype=np.float64)),
        "symmetric_kl": float(symmetric_kl_BC[row, at].mean(dtype=np.float64)),
      }
    )
  return records


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """Means of the samples' means, nats, over all and by training length."""
  del options
  lengths = sorted({record["length"] for record in records})
  names = ("sce", "symmetric_kl")

  def means(found: list[items_lib.Record]) -> dict[str, Any]:
    return {name: intervals.of_values([r[name] for r in found]) for name in names}

  overall = means(list(records))
  return {
    "average": overall["sce"]["mean"],
    **overall,
    "by_length": {
      str(length): means([r for r in records if r["length"] == length])
      | {"pairs": sum(r["pairs"] for r in records if r["length"] == length)}
      for length in lengths
    },
  }

"""Long-short misalignment (arXiv 2506.11769): does more context change predictions?

  E SCE(g(x[−l1:]), g(x[−l2:])),   l1, l2 ~ U{⌈l/2⌉ … l}

where g is the next-token distribution, SCE(p, q) = H(p, q) + H(q, p) and l the length
that the model was trained at. SCE has a floor, H(p) + H(q); what lies above it is
KL(p‖q) + KL(q‖p), reported too. Positions of a context count from its first token, as
when the model is asked; nothing is put in front of it.

Two passes serve many pairs. A sample draws l1 and l2, and a window of l tokens at a
random place. One pass reads the window, the other the window without its first
d = |l1 − l2| tokens: behind its token number n they have contexts of n and n − d tokens
that end alike. All n from ⌈l/2⌉ + d to l count, with the same share. Given d, the
shorter length of two independent uniform ones is uniform over ⌈l/2⌉ … l − d, and d
itself comes from the draw: so the mean of the samples' means is the expectation above,
for places uniform in the text.

Of chats only places before an assistant target count, and a window lies in one
dialogue: a sample takes the next one in which its d leaves such a place.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from skipalign_jax.data import chat, schemas, sources
from skipalign_jax.evals import haystack, intervals, needle
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors

TEXTS = (".txt", ".txt.gz")
DIALOGUES = 256  # tokenized at a time
MAX_MESSAGE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Options:
  """What to read, and for which training lengths."""

  source: str = ""  # .txt or .txt.gz files, or chats as data.train names them
  lengths: str = "2048,4096"  # l: tokens that the model was trained at
  samples: int = 32  # pairs of passes a length
  seed: int = 0  # of what is drawn


@dataclasses.dataclass(frozen=True)
class Document:
  """A text or dialogue; `counts[i]` where the prediction of token i does."""

  name: str
  tokens: np.ndarray
  counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pair:
  """A window, the tokens that the second pass leaves out, the places that count.

  `places` are indices of tokens behind which both predictions are compared.
  """

  tokens: tuple[int, ...]
  left_out: int
  places: tuple[int, ...]


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """A pair of passes each.

  Raises:
    UserError: numbers out of range, or a source without texts that are long enough.
  """
  lengths = needle.numbers("lengths", options.lengths)
  if lengths[0] < 2:
    raise errors.UserError(f"--lengths={options.lengths}: give 2 or more")
  if options.samples < 1:
    raise errors.UserError(f"--samples={options.samples}: take at least one")
  if options.seed < 0:
    raise errors.UserError(f"--seed={options.seed} must be 0 or more")
  found: dict[int, list[items_lib.Item]] = {length: [] for length in lengths}
  longest = 0
  for document in documents(options.source, subject, lengths[-1]):
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
        f"--source={options.source}: no dialogue has a target behind enough of "
        f"--lengths={length} tokens (the longest one has {longest})"
      )
  return list(itertools.chain(*found.values()))


def _item(document: Document, length: int, seed: int, number: int):
  """Sample `number` of a length in this document; None if it has no place for it."""
  rng = np.random.default_rng([seed, length, number])
  shortest = (length + 1) // 2
  one, other = rng.integers(shortest, length + 1, 2)
  left_out = int(abs(one - other))
  starts = np.arange(len(document.tokens) - length + 1)
  # Behind token t the prediction of t + 1 is compared; the first such t of a window:
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
    places=2 * length,  # two rows
    ask=Pair(tokens, left_out, places),
    record={
      "length": length,
      "left_out": left_out,
      "from": document.name,
      "start": start,
      "pairs": len(places),
    },
    group=(length,),
  )


def documents(
  source: str, subject: subject_lib.Subject, longest: int
) -> Iterator[Document]:
  """Texts, over and over, or dialogues, once.

  Raises:
    UserError: nothing is named, it cannot be read, or a text has fewer than `longest`
      tokens.
  """
  if not source.strip():
    raise errors.UserError(
      "--source is needed: .txt or .txt.gz files with commas between them, or chats: "
      f"{sources.FORMS}"
    )
  if not all(name.strip().endswith(TEXTS) for name in source.split(",")):
    yield from _dialogues(source, subject)
    return
  texts = []
  for name, text in haystack.read_files("source", source).items():
    tokens = np.array(subject.encode(text), np.int32)
    if len(tokens) < longest:
      raise errors.UserError(
        f"--source: {name} has {len(tokens)} tokens, fewer than --lengths={longest}"
      )
    # Also what comes behind the last token counts: a text goes on, and is not asked.
    texts.append(Document(name, tokens, np.ones(len(tokens) + 1, bool)))
  yield from itertools.cycle(texts)


def _dialogues(source: str, subject: subject_lib.Subject) -> Iterator[Document]:
  """Dialogues with a target; unusable records are left out."""
  if not subject.tokenizer.chat_template:
    raise errors.UserError(
      f"--source={source}: the tokenizer has no chat template; use --template=tulu"
    )
  encoder = chat.Encoder(subject.tokenizer, seq_len=1 << 30)
  for part in sources.parse(source):
    records = part.records()
    while batch := list(itertools.islice(records, DIALOGUES)):
      numbers, messages = [], []
      for number, record in batch:
        try:
          if isinstance(record, bytes):
            record = schemas.parse_line(record)
          messages.append(schemas.messages_of(record, MAX_MESSAGE_BYTES))
          numbers.append(number)
        except schemas.BadSample:
          continue
      for number, sample in zip(numbers, encoder(messages), strict=True):
        if isinstance(sample, chat.Sample):
          counts = np.append(sample.targets, False)
          yield Document(f"{part.name}:{number}", sample.tokens, counts)


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Means over the places of each pair, nats."""
  from skipalign_jax.evals import paired_terms  # jax is slow to load

  del options
  pairs = [item.ask for item in batch]
  length = len(pairs[0].tokens)
  shown = length - (length + 1) // 2 + 1  # last places, where contexts are long enough
  engine = subject.engine
  # Rows end alike, so the same token stands at the same place of both passes.
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

"""What lm-evaluation-harness asks of a model, as items: tokens in, answers out.

Knows nothing of the harness itself; harness_lm.py turns its requests into these.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

from skipalign_jax.evals import items
from skipalign_jax.evals import subject as subject_lib


@dataclasses.dataclass(frozen=True)
class Next:
  """How likely are these single tokens behind one context?"""

  tokens: tuple[int, ...]
  candidates: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Score:
  """How likely are the tokens from `start` on, given those before them?"""

  tokens: tuple[int, ...]
  start: int


@dataclasses.dataclass(frozen=True)
class Reply:
  """How does a text go on?

  Attributes:
    tokens: of the text.
    max_new_tokens: of the reply.
    stop_ids: the reply ends before any of these tokens.
    until: it ends before any of these strings.
    temperature: 0 is greedy.
    top_p: of sampling.
  """

  tokens: tuple[int, ...]
  max_new_tokens: int
  stop_ids: tuple[int, ...]
  until: tuple[str, ...]
  temperature: float = 0.0
  top_p: float = 1.0


def item(id: str, ask: Next | Score | Reply) -> items.Item:
  """The item of a question; items of one batch are of one kind."""
  tokens = len(ask.tokens)
  if isinstance(ask, Reply):
    group = ("reply", ask.stop_ids, ask.temperature, ask.top_p)
    return items.Item(id, tokens + ask.max_new_tokens, ask, {"tokens": tokens}, group)
  if isinstance(ask, Score):  # the last token is predicted, never read
    return items.Item(id, tokens - 1, ask, {"tokens": tokens}, ("score",))
  return items.Item(id, tokens, ask, {"tokens": tokens}, ("next",))


def measure(
  subject: subject_lib.Subject, batch: Sequence[items.Item]
) -> list[dict[str, Any]]:
  """What the model says to items of one kind.

  Returns:
    Of Next and Score: {"log_p": [of each candidate | sum], "likeliest": [bool, …]}.
    Of Reply: {"reply": text}.
  """
  asks = [item.ask for item in batch]
  match asks[0]:
    case Next():
      scored = subject.engine.score_next(
        [ask.tokens for ask in asks], [ask.candidates for ask in asks]
      )
      return [
        {"log_p": log_p.tolist(), "likeliest": likeliest.tolist()}
        for log_p, likeliest in scored
      ]
    case Score():
      scored = subject.engine.score(
        [ask.tokens for ask in asks], [ask.start for ask in asks]
      )
      return [
        {"log_p": [float(log_p.sum())], "likeliest": [bool(likeliest.all())]}
        for log_p, likeliest in scored
      ]
  return [{"reply": reply} for reply in replies(subject, asks, batch[0].id)]


def replies(
  subject: subject_lib.Subject, asks: Sequence[Reply], name: str
) -> list[str]:
  """Texts that go on from prompts of one group; the batch ends with its last row.

  Args:
    subject: the model.
    asks: equal in stop_ids, temperature and top_p.
    name: of the batch; sampled batches of different names draw differently.
  """
  first = asks[0]
  steps = subject.engine.generate(
    [ask.tokens for ask in asks],
    max(ask.max_new_tokens for ask in asks),
    first.stop_ids,
    first.temperature,
    first.top_p,
    seed=zlib.crc32(name.encode()),
  )
  rows = [Row(subject, ask) for ask in asks]
  for tokens in steps:
    for row, token in zip(rows, tokens, strict=True):
      row.add(token)
    if not any(row.running for row in rows):
      break
  return [cut(subject.decode(row.tokens), row.ask.until) for row in rows]


class Row:
  """A reply that grows, and notices a stop string as soon as it is there.

  Attributes:
    running: whether more is wanted.
  """

  def __init__(self, subject: subject_lib.Subject, ask: Reply):
    self.ask = ask
    self.tokens: list[int] = []
    self.running = True
    self._decode = subject.decode
    # A token has at least a byte of text, so a stop string that ends with the
    # newest token lies in so many of them.
    self._reach = max((len(stop.encode()) for stop in ask.until), default=0)

  def add(self, token: int | None) -> None:
    """One more token; None once the model has ended its reply."""
    if not self.running:
      return
    if token is None:
      self.running = False
      return
    self.tokens.append(token)
    self.running = len(self.tokens) < self.ask.max_new_tokens and not self._stopped()

  def _stopped(self) -> bool:
    if not self._reach:
      return False
    # Cheap first: of all the text only its end is new. Alone it may read otherwise
    # than in place, so the whole text decides.
    end = self._decode(self.tokens[-self._reach - 1 :])
    if not any(stop in end for stop in self.ask.until):
      return False
    whole = self._decode(self.tokens)
    return cut(whole, self.ask.until) != whole


def cut(text: str, until: Sequence[str]) -> str:
  """The text before the first of these strings."""
  for stop in until:
    text = text.split(stop, 1)[0]
  return text

"""What lm-evaluation-harness needs of a model, as items: tokens in, answers out.

This module does not import the harness; adapter.py turns its requests into queries.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

from skipalign_jax.evals import items
from skipalign_jax.evals import subject as subject_lib


@dataclasses.dataclass(frozen=True)
class Next:
  """The log-probabilities of several single tokens after one context."""

  tokens: tuple[int, ...]
  candidates: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Score:
  """The log-probability of the tokens from `start` on, given those before them."""

  tokens: tuple[int, ...]
  start: int


@dataclasses.dataclass(frozen=True)
class Reply:
  """A continuation of a prompt.

  Attributes:
    tokens: of the prompt.
    max_new_tokens: of the reply.
    stop_ids: the reply ends before any of these tokens.
    until: it ends before any of these strings.
    temperature: 0 is greedy decoding.
    top_p: of sampling.
  """

  tokens: tuple[int, ...]
  max_new_tokens: int
  stop_ids: tuple[int, ...]
  until: tuple[str, ...]
  temperature: float = 0.0
  top_p: float = 1.0


Query = Next | Score | Reply


def item(id: str, query: Query) -> items.Item:
  """The item of a query; all items of one batch are of one kind."""
  tokens = len(query.tokens)
  record = {"tokens": tokens}
  if isinstance(query, Reply):
    group = ("reply", query.stop_ids, query.temperature, query.top_p)
    return items.Item(id, tokens + query.max_new_tokens, query, record, group)
  if isinstance(query, Score):  # the last token is predicted, never read
    return items.Item(id, tokens - 1, query, record, ("score",))
  return items.Item(id, tokens, query, record, ("next",))


def measure(
  subject: subject_lib.Subject, batch: Sequence[items.Item]
) -> list[dict[str, Any]]:
  """The model's answers to items of one kind.

  Returns:
    For Next and Score: {"log_p": [of each candidate | sum], "likeliest": [bool, …]}.
    For Reply: {"reply": text}.
  """
  queries = [item.query for item in batch]
  match queries[0]:
    case Next():
      scored = subject.engine.score_next(
        [query.tokens for query in queries], [query.candidates for query in queries]
      )
      return [
        {"log_p": log_p.tolist(), "likeliest": likeliest.tolist()}
        for log_p, likeliest in scored
      ]
    case Score():
      scored = subject.engine.score(
        [query.tokens for query in queries], [query.start for query in queries]
      )
      return [
        {"log_p": [float(log_p.sum())], "likeliest": [bool(likeliest.all())]}
        for log_p, likeliest in scored
      ]
  return [{"reply": reply} for reply in replies(subject, queries, batch[0].id)]


def replies(
  subject: subject_lib.Subject, queries: Sequence[Reply], name: str
) -> list[str]:
  """Continuations of prompts of one group; generation ends with the last reply.

  Args:
    subject: the model.
    queries: equal in stop_ids, temperature and top_p.
    name: of the batch; sampled batches of different names have different seeds.
  """
  first = queries[0]
  steps = subject.engine.generate(
    [query.tokens for query in queries],
    max(query.max_new_tokens for query in queries),
    first.stop_ids,
    first.temperature,
    first.top_p,
    seed=zlib.crc32(name.encode()),
  )
  rows = [Row(subject, query) for query in queries]
  for tokens in steps:
    for row, token in zip(rows, tokens, strict=True):
      row.add(token)
    if not any(row.running for row in rows):
      break
  return [cut(subject.decode(row.tokens), row.query.until) for row in rows]


class Row:
  """A growing reply that stops at the first stop string.

  Attributes:
    query: that it answers.
    tokens: so far.
    running: whether it needs more tokens.
  """

  def __init__(self, subject: subject_lib.Subject, query: Reply):
    self.query = query
    self.tokens: list[int] = []
    self.running = True
    self._decode = subject.decode
    # A token has at least one byte of text, so a stop string that ends with the newest
    # token is inside so many last tokens.
    self._reach = max((len(stop.encode()) for stop in query.until), default=0)

  def add(self, token: int | None) -> None:
    """Adds one token; None: the model has ended its reply."""
    if not self.running:
      return
    if token is None:
      self.running = False
      return
    self.tokens.append(token)
    full = len(self.tokens) == self.query.max_new_tokens
    self.running = not full and not self._stopped()

  def _stopped(self) -> bool:
    if not self._reach:
      return False
    # To save time only the end of the text is decoded first. Decoded alone it may
    # differ from the end of the whole text, which therefore decides.
    end = self._decode(self.tokens[-self._reach - 1 :])
    if not any(stop in end for stop in self.query.until):
      return False
    whole = self._decode(self.tokens)
    return cut(whole, self.query.until) != whole


def cut(text: str, until: Sequence[str]) -> str:
  """The text before the first of these strings."""
  for stop in until:
    text = text.split(stop, 1)[0]
  return text

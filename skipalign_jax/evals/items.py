"""What a task asks, one item a question, and answers by greedy decoding."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from skipalign_jax.evals import subject as subject_lib

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Item:
  """One question.

  Attributes:
    id: unique in its task and the same in every run.
    places: of the KV cache that it takes, old and new tokens.
    ask: what the task's `measure` needs; plain data with a stable `repr`.
    record: what is written of it, beside the id and what `measure` finds; JSON.
    group: items of one batch agree in it.
  """

  id: str
  places: int
  ask: Any
  record: Record
  group: tuple = ()


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Something to be continued.

  Attributes:
    tokens: of the whole prompt.
    max_new_tokens: of the answer.
    stop_ids: the answer ends before any of these.
    min_new_tokens: the first so many are none of `stop_ids`.
  """

  tokens: tuple[int, ...]
  max_new_tokens: int
  stop_ids: tuple[int, ...]
  min_new_tokens: int = 0


def asked(id: str, prompt: Prompt, **record: Any) -> Item:
  """The item of a prompt."""
  return Item(
    id=id,
    places=len(prompt.tokens) + prompt.max_new_tokens,
    ask=prompt,
    record={"tokens": len(prompt.tokens)} | record,
    group=(prompt.stop_ids, prompt.min_new_tokens),
  )


def answers(subject: subject_lib.Subject, items: Sequence[Item]) -> list[str]:
  """Greedy answers to items made by `asked`, of one group."""
  prompts = [item.ask for item in items]
  first = prompts[0]
  steps = subject.engine.generate(
    [prompt.tokens for prompt in prompts],
    max(prompt.max_new_tokens for prompt in prompts),
    first.stop_ids,
    min_new_tokens=first.min_new_tokens,
  )
  replies: list[list[int]] = [[] for _ in prompts]
  for tokens in steps:
    for reply, prompt, token in zip(replies, prompts, tokens, strict=True):
      if token is not None and len(reply) < prompt.max_new_tokens:
        reply.append(token)
  return [subject.decode(reply) for reply in replies]


def batches(
  subject: subject_lib.Subject, items: Sequence[Item]
) -> Iterator[list[Item]]:
  """Items of one group and of like length together, the longest first."""
  room = {item.id: subject.engine.room(item.places) for item in items}
  order = sorted(items, key=lambda item: (-room[item.id], item.group, -item.places))
  batch: list[Item] = []
  for item in order:
    if batch:
      same = (room[item.id], item.group) == (room[batch[0].id], batch[0].group)
      rows = max(subject.engine.row_shards, subject.batch_tokens // room[batch[0].id])
      if not same or len(batch) == rows:
        yield batch
        batch = []
    batch.append(item)
  if batch:
    yield batch


def digest(items: Sequence[Item]) -> str:
  """A name for these questions: changes with data, template and tokenizer."""
  found = hashlib.sha256()
  for item in items:
    found.update(repr((item.id, item.ask, item.record)).encode())
  return found.hexdigest()[:16]

"""Items of a task, batches of them, and greedy replies to prompts."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors, files

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Item:
  """One question of a task.

  Attributes:
    id: unique in its task and the same in every run.
    places: of the KV cache that it takes, for the prompt and for new tokens.
    query: what the task's `measure` needs; plain data with a stable `repr`.
    record: what is saved with the id and with what `measure` returns; JSON.
    group: equal for all items of a batch.
    rows: of a batch that it takes, which share its places alike.
  """

  id: str
  places: int
  query: Any
  record: Record
  group: tuple = ()
  rows: int = 1


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt and the limits of the reply.

  Attributes:
    tokens: of the whole prompt.
    max_new_tokens: of the reply.
    stop_ids: the reply ends before any of these.
    min_new_tokens: so many tokens come before the first of `stop_ids`.
  """

  tokens: tuple[int, ...]
  max_new_tokens: int
  stop_ids: tuple[int, ...]
  min_new_tokens: int = 0


def of_prompt(id: str, prompt: Prompt, **record: Any) -> Item:
  """The item of a prompt."""
  return Item(
    id=id,
    places=len(prompt.tokens) + prompt.max_new_tokens,
    query=prompt,
    record={"tokens": len(prompt.tokens)} | record,
    group=(prompt.stop_ids, prompt.min_new_tokens),
  )


def replies(subject: subject_lib.Subject, items: Sequence[Item]) -> list[str]:
  """Greedy replies to items of one group that `of_prompt` made."""
  prompts = [item.query for item in items]
  first = prompts[0]
  steps = subject.engine.generate(
    [prompt.tokens for prompt in prompts],
    max(prompt.max_new_tokens for prompt in prompts),
    first.stop_ids,
    min_new_tokens=first.min_new_tokens,
  )
  found: list[list[int]] = [[] for _ in prompts]
  for tokens in steps:
    for reply, prompt, token in zip(found, prompts, tokens, strict=True):
      if token is not None and len(reply) < prompt.max_new_tokens:
        reply.append(token)
  return [subject.decode(reply) for reply in found]


def measured(
  subject: subject_lib.Subject,
  measure: Callable[[Sequence[Item]], Sequence[Record]],
  batch: Sequence[Item],
) -> list[Record]:
  """The records of a batch: id, `Item.record` and what was measured.

  Raises:
    UserError: the model's output for an item is NaN or infinite.
  """
  try:
    found = measure(batch)
    for row, more in enumerate(found):
      if files.not_finite(more):
        raise errors.NotFiniteError(row)
  except errors.NotFiniteError as error:
    raise errors.UserError(
      f"{subject.identity['model']}: its output for item {batch[error.row].id} is NaN "
      f"or infinite; {errors.NOT_FINITE}"
    ) from error
  pairs = zip(batch, found, strict=True)
  return [{"id": item.id} | item.record | more for item, more in pairs]


def batches(
  subject: subject_lib.Subject, items: Sequence[Item]
) -> Iterator[list[Item]]:
  """Batches of items of one group and of similar length, the longest first."""
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
  """Identifies these items; it depends on data, chat template and tokenizer.

  It also depends on the names of queries and of their fields. Folders of earlier
  evaluations have it in their protocols, so that these names stay as they are.
  """
  found = hashlib.sha256()
  for item in items:
    found.update(repr((item.id, item.query, item.record)).encode())
  return found.hexdigest()[:16]

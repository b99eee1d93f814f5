"""Preference pairs: two replies to one prompt, chosen and rejected.

A pair is one sample on its way through the token cache and the plan of rows: the tokens
of the dialogue with the chosen reply, then those of the dialogue with the rejected one.
In a row they are two segments, one after the other, with one sample id.

Only the last message differs. So both have the same blocks, and one draw of positions
serves both: `sample_sizes`, the tokens of the longer one, is what a strategy takes for
the length of either.

Shapes: L tokens per row, S segments of a row, P pairs of a row.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skipalign_jax.data import chat, dialogues, packing, record_keys, schemas

CHOSEN, REJECTED = "chosen", "rejected"


def pair_of(
  record: Any, max_message_bytes: int, ignored: frozenset[str] = frozenset()
) -> tuple[dialogues.Dialogue, dialogues.Dialogue]:
  """The dialogues with the chosen and with the rejected reply of a record.

  Only the last reply of each is learned.

  Args: as `schemas.dialogue_of`.

  Raises:
    BadSample: one of the replies is missing or bad, both are equal, or more than the
      last message differs.
  """
  record = record_keys.without(record, ignored)
  if isinstance(record, Mapping):
    for column in (CHOSEN, REJECTED):
      if record.get(column) is None:
        raise dialogues.BadSample(f"no {column} reply")
    _check_copies(record)
  chosen, rejected = (
    schemas.dialogue_of(record, max_message_bytes, ignored, (column,))
    for column in (CHOSEN, REJECTED)
  )
  if chosen.messages == rejected.messages:
    raise dialogues.BadSample("chosen and rejected are equal")
  if chosen.messages[:-1] != rejected.messages[:-1]:
    raise dialogues.BadSample("chosen and rejected differ before the last reply")
  if not (chosen.messages[-1].learned and rejected.messages[-1].learned):
    raise dialogues.BadSample("nothing to learn: the last reply is excluded")
  return _last_only(chosen), _last_only(rejected)


def _check_copies(record: Mapping[str, Any]) -> None:
  """Raises BadSample for a dialogue that is not the chosen one again."""
  for column in schemas.CHAT_COLUMNS:
    if record.get(column) not in (None, record[CHOSEN]):
      raise dialogues.BadSample(f"{column} next to chosen and rejected")


def _last_only(dialogue: dialogues.Dialogue) -> dialogues.Dialogue:
  """The dialogue whose earlier replies are only read."""
  *before, last = dialogue.messages
  before = [m._replace(learned=False) if m.role == "assistant" else m for m in before]
  return dataclasses.replace(dialogue, messages=(*before, last))


def join(chosen: chat.Result, rejected: chat.Result) -> chat.Result:
  """One sample of both, or why there is none."""
  for one in (chosen, rejected):
    if isinstance(one, dialogues.BadSample):
      if any(one.lost):  # it is too long, and the other one is lost with it
        return dialogues.BadSample(one.reason, _whole(chosen, rejected))
      return one
  if not _same_prompt(chosen, rejected):
    return dialogues.BadSample("the chat template writes two different prompts")
  if np.array_equal(chosen.tokens, rejected.tokens):
    reason = "nothing to learn: equal after truncation"
    return dialogues.BadSample(reason, _whole(chosen, rejected))
  blocks = 1 + int(chosen.block_ids.max())
  return chat.Sample(
    tokens=np.concatenate([chosen.tokens, rejected.tokens]),
    block_ids=np.concatenate([chosen.block_ids, blocks + rejected.block_ids]),
    is_response=np.concatenate([chosen.is_response, rejected.is_response]),
    targets=np.concatenate([chosen.targets, rejected.targets]),
    sample_id=_id(chosen.sample_id, rejected.sample_id),
    turns=blocks // 2,
    truncated=chosen.truncated or rejected.truncated,
    lost=_sum(chosen.lost, rejected.lost),
    split=chosen.split + rejected.split,
    rejected_start=len(chosen.tokens),
    chosen_id=chosen.sample_id,
  )


def _whole(*results: chat.Result) -> dialogues.Lost:
  """All tokens and targets, those that are kept included."""
  kept = [
    (len(one.tokens), int(one.targets.sum()))
    for one in results
    if isinstance(one, chat.Sample)
  ]
  return _sum(*(one.lost for one in results), *kept)


def _sum(*lost: tuple[int, int]) -> dialogues.Lost:
  return dialogues.Lost(*map(sum, zip(*lost, strict=True)))


def _same_prompt(chosen: chat.Sample, rejected: chat.Sample) -> bool:
  """Whether all that comes before the first target is the same."""
  first = int(np.argmax(chosen.targets))
  return first == np.argmax(rejected.targets) and all(
    np.array_equal(getattr(chosen, name)[:first], getattr(rejected, name)[:first])
    for name in ("tokens", "block_ids")
  )


def _id(*ids: int) -> int:
  digest = hashlib.blake2b(np.array(ids, "<u4").tobytes(), digest_size=4).digest()
  return int.from_bytes(digest, "little")


def parts(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The samples of `packing.assemble_row` in one of the token cache: a pair has two."""
  start = sample["rejected_start"]
  if not start:
    return [dict(sample)]
  blocks, spans = sample["block_starts"], sample["target_spans"]
  return [
    dict(sample)
    | {
      "tokens": sample["tokens"][here],
      "block_starts": blocks[inside(blocks)] - here.start,
      "target_spans": spans[inside(spans - np.arange(len(spans)) % 2)] - here.start,
    }
    for here, inside in (
      (slice(0, start), lambda x: x < start),
      (slice(start, None), lambda x: x >= start),
    )
  ]


def with_pairs(row: packing.Row, log_probs: Sequence[np.ndarray]) -> packing.Row:
  """The row with the arrays that only pairs have, `packing.PAIR_DTYPES`.

  Args:
    row: its segments are pairs.
    log_probs: log π0 of the chosen reply and of the rejected one, of each pair.
  """
  segment_L = row["segment_ids"]
  sizes_S = np.bincount(segment_L)[1:]
  sizes_S = np.repeat(sizes_S.reshape(-1, 2).max(axis=1), 2)
  reference_L = np.zeros(len(segment_L), np.float32)
  reference_L[np.diff(segment_L, prepend=0) > 0] = np.ravel(log_probs)
  sizes_L = np.concatenate([[0], sizes_S])[segment_L].astype(np.int32)
  return row | {"sample_sizes": sizes_L, "reference": reference_L}

"""Chats with more tokens than a row has: what is lost, and how they are split.

A long chat is never rendered whole (see beginnings.py). What of it is lost is counted
exactly as far as it was rendered; the messages that follow are taken to have as many
tokens per character, and around each content, as those before.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

from skipalign_jax.data import chat_tokens, dialogues

TRUNCATE, SPLIT, DROP = "truncate", "split", "drop"
DROPPED = "longer than data.seq_len"
_MEASURED = 1 << 12  # characters of a message that are encoded to estimate the others


@dataclasses.dataclass(frozen=True)
class Rest:
  """The messages of a chat that are not rendered.

  Attributes:
    before: the messages that are.
    messages: those that follow.
    learned: per message that follows, whether it is learned.
  """

  before: Sequence[dialogues.Message]
  messages: Sequence[dialogues.Message]
  learned: Sequence[bool]

  def count(self, tokens: chat_tokens.Encoder, rendered: int) -> dialogues.Lost:
    """About how many tokens the messages have.

    Args:
      tokens: encodes the messages before.
      rendered: tokens of the messages before, with all that is around them.
    """
    own, rate = _measured(tokens, self.before)
    sizes = [rate * len(_text(one)) for one in self.messages]
    # The header of the first message that follows is rendered.
    share = (len(sizes) - 0.5) / (len(self.before) + 0.5)
    whole = sum(sizes) + max(0, rendered - own) * share
    learned = itertools.compress(sizes, self.learned)
    return dialogues.Lost(round(whole), round(sum(size + 1 for size in learned)))


def lost_by_each(
  tokens: chat_tokens.Encoder, dialogue: dialogues.Dialogue, ends: Sequence[int]
) -> list[dialogues.Lost]:
  """About what is lost with the samples of replies, of which each has all before it.

  Args:
    tokens: encodes the first messages.
    dialogue: has them.
    ends: per sample, how many messages it has; the last one is learned.
  """
  if not ends:
    return []
  _, rate = _measured(tokens, dialogue.messages[: ends[0]])
  sizes = [rate * len(_text(one)) for one in dialogue.messages]
  whole = list(itertools.accumulate(sizes))
  return [
    dialogues.Lost(round(whole[end - 1]), round(sizes[end - 1]) + 1) for end in ends
  ]


def _measured(
  tokens: chat_tokens.Encoder, messages: Sequence[dialogues.Message]
) -> tuple[float, float]:
  """About the tokens of the messages' contents, and their number per character."""
  texts = list(map(_text, messages))
  parts = [one[:_MEASURED] for one in texts]
  found = sum(len(one.ids) for one in tokens.of_texts(parts, literal=True))
  rate = found / max(1, sum(map(len, parts)))
  return rate * sum(map(len, texts)), rate


def _text(message: dialogues.Message) -> str:
  return message.content + (str(dict(message.more)) if message.more else "")


def pieces(
  dialogue: dialogues.Dialogue,
  kept: Callable[[dialogues.Dialogue], float],
) -> Iterator[dialogues.Dialogue]:
  """A chat as consecutive shorter ones, each with as many exchanges as fit.

  An exchange is a user's message and all that answers it. The system prompt and the
  tools are those of the chat. An exchange that does not fit is a piece by itself.

  Args:
    dialogue: the chat.
    kept: of a chat, how many of its exchanges begin within the tokens of a row; inf
      if it fits as a whole, and 0 if it cannot be used.
  """
  messages = dialogue.messages
  system = messages[:1] if dialogue.has_system else ()
  starts = [i for i, one in enumerate(messages) if one.role == "user"]
  edges = [*starts, len(messages)]

  @functools.lru_cache(maxsize=64)  # a piece is one of those that `kept` was asked for
  def part(begin: int, count: int) -> dialogues.Dialogue:
    own = messages[edges[begin] : edges[begin + count]]
    return dataclasses.replace(dialogue, messages=(*system, *own))

  begin, count = 0, 0
  while begin < len(starts):
    kept_of = lambda n: kept(part(begin, n))  # noqa: B023 (called before begin changes)
    count = _most(kept_of, high=len(starts) - begin, guess=count + 1)
    yield part(begin, count)
    begin += count


def _most(kept: Callable[[int], float], high: int, guess: int) -> int:
  """The largest number in 1 … `high` that fits, or 1, in few tries."""
  low, count = 1, min(high, guess)
  while low < high:
    found = kept(count)
    if found > count:
      low = count
    elif found:
      high = max(low, min(int(found), count - 1))
    else:
      high = max(low, count // 2)
    count = min(high, 2 * count) if found > count else high
  return low

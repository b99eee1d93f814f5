"""What a record becomes: a dialogue, or the reason why it cannot be trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Of a turn: what its author thinks before the content, apart from it.
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
THOUGHT_MARKUP = ("<think>", "</think>")  # around a thought in a content


class Lost(NamedTuple):
  """What is not trained on because a chat is longer than data.seq_len.

  Attributes:
    tokens: all of them.
    targets: those that would have been learned.
  """

  tokens: int = 0
  targets: int = 0


NOTHING_LOST = Lost()


class BadSample(Exception):  # noqa: N818 (a verdict on data, not an error)
  """A record that cannot be trained on.

  Attributes:
    reason: short and stable.
    lost: tokens that are left out because of their number alone.
  """

  def __init__(self, reason: str, lost: Lost = NOTHING_LOST):
    super().__init__(reason)
    self.reason, self.lost = reason, lost


class Message(NamedTuple):
  """A turn.

  Attributes:
    role: system, user, assistant or tool.
    content: "" only of a reply that calls tools, and of a tool's result.
    learned: False of a reply that the data says is not to be learned.
    more: what the chat template gets besides: tool_calls, name, tool_call_id, a
      thought; content where it is None.
  """

  role: str
  content: str
  learned: bool = True
  more: Mapping[str, Any] | None = None

  @property
  def calls(self) -> Sequence[Mapping[str, Any]]:
    """The calls of tools in it."""
    return (self.more or {}).get("tool_calls", ())

  @property
  def thought_key(self) -> str:
    """The one of `THOUGHT_KEYS` that it has; "" without a thought."""
    return next((key for key in THOUGHT_KEYS if key in (self.more or {})), "")

  @property
  def thought(self) -> str:
    """Its thought; "" without one."""
    return str((self.more or {}).get(self.thought_key, ""))

  def with_thought(self, thought: str, key: str = "") -> Message:
    """With another thought in place of the one that it has.

    Args:
      thought: "" for none.
      key: one of `THOUGHT_KEYS`; "" for the same.
    """
    more = {k: v for k, v in (self.more or {}).items() if k not in THOUGHT_KEYS}
    if thought:
      more[key or self.thought_key] = thought
    return self._replace(more=more or None)

  def for_template(self) -> dict[str, Any]:
    """As transformers' chat templates take it."""
    return {"role": self.role, "content": self.content} | dict(self.more or {})


@dataclasses.dataclass(frozen=True)
class Dialogue:
  """Messages: [system], and then turns of the user, each with what answers it.

  An answer is a reply, or replies that call tools, each followed by the tools' results,
  and a last reply. The last message is a reply.

  Attributes:
    messages: in their order.
    tools: that the assistant may call, as transformers' `tools` argument.
  """

  messages: tuple[Message, ...]
  tools: tuple[Mapping[str, Any], ...] = ()

  @property
  def has_system(self) -> bool:
    """Whether the first message is a system prompt."""
    return self.messages[0].role == "system"

  def is_call(self, number: int) -> bool:
    """Whether a message calls tools, in keys or in its text."""
    if self.messages[number].role != "assistant":
      return False
    following = self.messages[number + 1 : number + 2]
    is_asked = bool(following) and following[0].role == "tool"
    return is_asked or bool(self.messages[number].calls)

  def asked_by(self, number: int) -> int:
    """The number of the user's message that a message is, or answers."""
    while self.messages[number].role != "user":
      number -= 1
    return number

  def until(self, end: int) -> Dialogue:
    """Only the first `end` messages."""
    return dataclasses.replace(self, messages=self.messages[:end])

  def then(self, *messages: Message) -> Dialogue:
    """With more messages at its end."""
    return dataclasses.replace(self, messages=(*self.messages, *messages))

  def id(self) -> int:
    """uint32 name of the dialogue: a hash of all that it has."""
    parts: list[Any] = [
      one[:2] if one.learned and not one.more else [*one[:3], dict(one.more or {})]
      for one in self.messages
    ]
    if self.tools:
      parts.append(list(self.tools))
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def plain(pairs: Sequence[tuple[str, str]]) -> Dialogue:
  """The dialogue of (role, content) pairs."""
  return Dialogue(tuple(Message(*pair) for pair in pairs))

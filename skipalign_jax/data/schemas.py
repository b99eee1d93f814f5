"""One record of any known schema to the messages of a dialogue, or a reason."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from skipalign_jax.runtime import untrusted

Message = tuple[str, str]  # role, content

ROLES = {
  "system": "system",
  "user": "user",
  "human": "user",
  "assistant": "assistant",
  "gpt": "assistant",
  "chatgpt": "assistant",
}


class BadSample(Exception):  # noqa: N818 (a verdict on data, not an error)
  """A record that cannot be trained on; `reason` is short and stable."""

  def __init__(self, reason: str):
    super().__init__(reason)
    self.reason = reason


def parse_line(line: bytes) -> Any:
  """One JSONL line to a value; raises BadSample."""
  try:
    return untrusted.parse_json(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise BadSample("not UTF-8") from error
  except ValueError as error:
    raise BadSample("not valid JSON") from error


def messages_of(record: Any, max_message_bytes: int) -> list[Message]:
  """The dialogue in a record: [system], user, assistant, user, assistant, …

  Reads `messages` (role, content), ShareGPT's `conversations` (from, value) and
  Alpaca's columns (instruction, input, output, and optionally system and
  history). An empty system prompt is dropped. A user turn after the last reply is
  dropped: it has no target. A dialogue that opens with the assistant, as some
  ShareGPT ones do, does not alternate and is refused.

  Raises:
    BadSample: anything else.
  """
  messages = _alternating(_canonical(_turns(record)))
  for _, content in messages:
    try:
      size = len(content.encode("utf-8"))
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
      raise BadSample("not UTF-8") from error
    if size > max_message_bytes:
      raise BadSample(f"message over {max_message_bytes} bytes")
    if not content.strip():
      raise BadSample("empty content")
  return messages


def _turns(record: Any) -> Sequence[Any]:
  """The record's turns as (role, content), not checked yet."""
  if not isinstance(record, Mapping):
    raise BadSample("unrecognised columns")
  for column, role, content in (
    ("messages", "role", "content"),
    ("conversations", "from", "value"),
  ):
    turns = record.get(column)
    if turns is None:
      continue
    if not isinstance(turns, list) or not all(isinstance(t, Mapping) for t in turns):
      raise BadSample("unrecognised columns")
    return [(turn.get(role), turn.get(content)) for turn in turns]
  if not isinstance(record.get("instruction"), str) or "output" not in record:
    raise BadSample("unrecognised columns")
  turns = [("system", record.get("system") or "")]
  history = record.get("history") or []
  pairs = isinstance(history, list) and all(isinstance(p, list) for p in history)
  if not pairs or not all(len(pair) == 2 for pair in history):
    raise BadSample("unrecognised columns")
  for question, reply in history:
    turns += [("user", question), ("assistant", reply)]
  instruction = record["instruction"]
  if added := record.get("input"):
    if not isinstance(added, str):
      raise BadSample("content is not text")
    instruction = f"{instruction}\n{added}"
  return [*turns, ("user", instruction), ("assistant", record["output"])]


def _canonical(turns: Sequence[tuple[Any, Any]]) -> list[Message]:
  messages = []
  for role, content in turns:
    if role is None:
      raise BadSample("missing role")
    if not isinstance(role, str) or role not in ROLES:
      raise BadSample("unknown role")
    if content is not None and not isinstance(content, str):
      raise BadSample("content is not text")
    messages.append((ROLES[role], content or ""))
  return messages


def _alternating(messages: list[Message]) -> list[Message]:
  if messages and messages[0][0] == "system" and not messages[0][1].strip():
    messages = messages[1:]
  if messages and messages[-1][0] == "user":
    messages = messages[:-1]
  has_system = bool(messages) and messages[0][0] == "system"
  roles = [role for role, _ in messages[has_system:]]
  if "assistant" not in roles:
    raise BadSample("no assistant turn")
  if roles != ["user", "assistant"] * (len(roles) // 2):
    raise BadSample("roles do not alternate")
  return messages


def sample_id(messages: Sequence[Message]) -> int:
  """uint32 name of a dialogue: a hash of its messages."""
  text = json.dumps(list(messages), ensure_ascii=False, separators=(",", ":"))
  digest = hashlib.blake2b(text.encode("utf-8"), digest_size=4).digest()
  return int.from_bytes(digest, "little")

"""One record of any known schema to the messages of a dialogue, or a reason."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from skipalign_jax.runtime import untrusted

Message = tuple[str, str]  # role, content

ROLES = {
  "system": "system",
  "developer": "system",
  "user": "user",
  "human": "user",
  "assistant": "assistant",
  "gpt": "assistant",
  "chatgpt": "assistant",
  "bing": "assistant",
  "bard": "assistant",
  "model": "assistant",
}

CHAT_COLUMNS = ("messages", "conversations", "conversation")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_SYSTEM_KEYS = ("system", "system_prompt")
# Keys of records and turns that say where a chat comes from, not what is in it.
_NEUTRAL = frozenset(
  "category country created date dataset domain hash header id idx index lang language "
  "license model name rating redacted score scores source split state subject subset "
  "tags task timestamp title topic toxic turn turns type url uuid views".split()
)
_NEUTRAL_ENDS = (
  "_date", "_hash", "_id", "_idx", "_identifier", "_index", "_ip", "_moderation",
  "_name", "_score", "_source", "_tokens", "_type", "_url",
)  # fmt: skip
# Keys that say whether a reply is to be learned; 1 and true change nothing.
_LEARNED = ("label", "loss", "loss_mask", "train", "trainable", "weight")


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


def messages_of(
  record: Any, max_message_bytes: int, ignored: frozenset[str] = frozenset()
) -> list[Message]:
  """The dialogue in a record: [system], user, assistant, user, assistant, …

  Reads turns in `messages`, `conversations` or `conversation` (role and content, or
  ShareGPT's from and value), Alpaca's columns (instruction, input, output, and
  optionally history), and pairs of prompt and completion. A `system` key of the record
  is its system prompt. An empty system prompt is dropped. A user turn after the last
  reply is dropped: it has no target. A dialogue that opens with the assistant, as some
  ShareGPT ones do, does not alternate and is refused.

  Every other key is known to be neutral, in `ignored`, or refuses the record: what is
  not understood may change what is to be learned. An unset key (None, or empty) never
  does.

  Args:
    record: a JSON value.
    max_message_bytes: of one message, in UTF-8.
    ignored: further keys that do not matter.

  Raises:
    BadSample: anything else.
  """
  messages = _alternating(_canonical(_turns(record, ignored)))
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


def _turns(record: Any, ignored: frozenset[str]) -> list[tuple[Any, Any]]:
  """The record's turns as (role, content), not checked yet."""
  if not isinstance(record, Mapping):
    raise BadSample("unrecognised columns")
  columns = [name for name in CHAT_COLUMNS if record.get(name) is not None]
  if len(columns) > 1:
    raise BadSample(f"two dialogues: {' and '.join(columns)}")
  if columns:
    # `text` is the rendered dialogue; `prompt` its first message, in some data sets.
    turns = [_turn(turn, ignored) for turn in _list(record[columns[0]])]
    used = {*columns, "text"}
    if record.get("prompt") in [content for _, content in turns]:
      used.add("prompt")
  elif isinstance(record.get("instruction"), str) and "output" in record:
    turns, used = _alpaca(record), {"instruction", "input", "output", "history"}
  elif isinstance(record.get("prompt"), str) and "completion" in record:
    turns = [("user", record["prompt"]), ("assistant", record["completion"])]
    used = {"prompt", "completion"}
  else:
    raise BadSample("unrecognised columns")
  _check_keys(record, used | {*_SYSTEM_KEYS}, ignored, "key")
  return _with_system(record, turns)


def _list(turns: Any) -> list[Mapping[str, Any]]:
  if not isinstance(turns, list) or not all(isinstance(t, Mapping) for t in turns):
    raise BadSample("unrecognised columns")
  return turns


def _turn(turn: Mapping[str, Any], ignored: frozenset[str]) -> tuple[Any, Any]:
  """(role, content) of one turn."""
  _check_keys(turn, {*_ROLE_KEYS, *_CONTENT_KEYS}, ignored, "turn key")
  role, content = (
    next((turn[key] for key in keys if turn.get(key) is not None), None)
    for keys in (_ROLE_KEYS, _CONTENT_KEYS)
  )
  return role, _text(content)


def _text(content: Any) -> Any:
  """The text of a content that is a list of text parts; any other one as it is."""
  if not isinstance(content, list):
    return content
  texts = []
  for part in content:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
      raise BadSample("content is not text")
    if part["type"] != "text" or not isinstance(part.get("text"), str):
      raise BadSample(f"{_shown(part['type'])} in content")
    texts.append(part["text"])
  return "".join(texts)


def _alpaca(record: Mapping[str, Any]) -> list[tuple[Any, Any]]:
  history = record.get("history") or []
  pairs = isinstance(history, list) and all(isinstance(p, list) for p in history)
  if not pairs or not all(len(pair) == 2 for pair in history):
    raise BadSample("unrecognised columns")
  turns: list[tuple[Any, Any]] = []
  for question, reply in history:
    turns += [("user", question), ("assistant", reply)]
  instruction = record["instruction"]
  if added := record.get("input"):
    if not isinstance(added, str):
      raise BadSample("content is not text")
    instruction = f"{instruction}\n{added}"
  return [*turns, ("user", instruction), ("assistant", record["output"])]


def _with_system(
  record: Mapping[str, Any], turns: list[tuple[Any, Any]]
) -> list[tuple[Any, Any]]:
  """The turns after the system prompts that the record has in keys of their own."""
  prompts = [record[key] for key in _SYSTEM_KEYS if _is_set(record.get(key))]
  if not prompts:
    return turns
  if turns and isinstance(turns[0][0], str) and ROLES.get(turns[0][0]) == "system":
    prompts.append(turns[0][1])
    turns = turns[1:]
  if any(prompt != prompts[0] for prompt in prompts):
    raise BadSample("two system prompts")
  return [("system", prompts[0]), *turns]


def _is_set(value: Any) -> bool:
  """Whether a key has a value; tables give all records the keys of any."""
  return value is not None and value not in ("", [], {})


def _check_keys(
  found: Mapping[str, Any], used: set[str], ignored: frozenset[str], where: str
) -> None:
  """Raises BadSample for a key that may matter and is not understood."""
  for key, value in found.items():
    if key in used or key in ignored or not _is_set(value):
      continue
    if key in _LEARNED:
      if value != 1:
        raise BadSample(f"{where} {key} is not 1, which is not supported")
    elif key not in _NEUTRAL and not str(key).endswith(_NEUTRAL_ENDS):
      raise BadSample(f"{where} {_shown(key)} is not understood")


def _shown(text: Any) -> str:
  """A name from a record for a message: short, without control characters."""
  return ascii(str(text))[1:-1][:40]


def _canonical(turns: Sequence[tuple[Any, Any]]) -> list[Message]:
  messages = []
  for role, content in turns:
    if role is None:
      raise BadSample("missing role")
    known = ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
      raise BadSample(f"unknown role {_shown(role)}")
    if content is not None and not isinstance(content, str):
      raise BadSample("content is not text")
    messages.append((known, content or ""))
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

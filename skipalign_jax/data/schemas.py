"""One record of any known shape to a dialogue, or a reason."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from skipalign_jax.data import dialogues, record_keys, tool_calls
from skipalign_jax.runtime import untrusted

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
  "function_call": "assistant",
  "tool": "tool",
  "function": "tool",
  "observation": "tool",
}

CHAT_COLUMNS = ("messages", "conversations", "conversation")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_ALPACA_KEYS = ("instruction", "input", "output", "history")
_SYSTEM_KEYS = ("system", "system_prompt")
_REPLY_KEYS = ("completion", "chosen")  # after a prompt
_DIALOGUE_COLUMNS = (*CHAT_COLUMNS, "instruction", "prompt", *_REPLY_KEYS)
_OF_A_PAIR = ("chosen", "rejected", *CHAT_COLUMNS)
# What may follow a turn; the first one follows None.
_NEXT = {
  None: ("system", "user"),
  "system": ("user",),
  "user": ("assistant",),
  "assistant": ("user", "tool"),
  "tool": ("tool", "assistant"),
}
KNOWN_COLUMNS = (  # what to do about a record with other columns
  "A chat is an object with messages, conversations or conversation; instruction and "
  "output; prompt and completion, or prompt and chosen. A document has text. Rename "
  "the columns."
)
_SHOWN = 6  # names of columns in a reason


class _Turn(NamedTuple):
  """A turn as a record has it, not checked yet."""

  role: Any
  content: Any
  keys: Mapping[str, Any] = {}


def parse_line(line: bytes) -> Any:
  """One JSONL line to a value; raises BadSample."""
  try:
    return untrusted.parse_json(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise dialogues.BadSample("not UTF-8") from error
  except ValueError as error:
    raise dialogues.BadSample("not valid JSON") from error


def has_dialogue(record: Mapping[str, Any]) -> bool:
  """Whether a record has a column of a dialogue, next to which `text` means nothing."""
  return any(record.get(column) is not None for column in _DIALOGUE_COLUMNS)


def may_have_dialogue(columns: Iterable[str]) -> bool:
  """Whether records with these columns can have a dialogue."""
  return not set(_DIALOGUE_COLUMNS).isdisjoint(columns)


def dialogue_of(
  record: Any,
  max_message_bytes: int,
  ignored: frozenset[str] = frozenset(),
  reply_keys: Sequence[str] = _REPLY_KEYS,
) -> dialogues.Dialogue:
  """The dialogue in a record.

  Reads turns in `messages`, `conversations` or `conversation` (role and content, or
  ShareGPT's from and value), Alpaca's columns (instruction, input, output, and
  optionally history), and a prompt with its completion, or with the chosen one of two
  replies. A `system` key of the record is its system prompt; an empty one is dropped.
  Turns after the last reply are dropped: they have no target. A dialogue that opens
  with the assistant, as some ShareGPT ones do, is refused.

  Every other key is known to be neutral, in `ignored`, or refuses the record; see
  `record_keys`. An unset key (None, or empty) never does.

  Args:
    record: a JSON value.
    max_message_bytes: of one message, or of all tools, in UTF-8.
    ignored: keys of the record and its turns that are not read, whatever they are.
    reply_keys: columns of the reply to a prompt; a pair is read once for each of its.

  Raises:
    BadSample: anything else; the reason names the key, role or shape.
  """
  record = record_keys.without(record, ignored)
  turns = _turns(record, ignored, reply_keys)
  tools = tool_calls.tools_of(record)
  found, why = [], {}
  for turn in turns:
    message, reason = _message(turn)
    found.append(message)
    if message.role == "assistant":
      why[reason] = None
  messages = _in_order(found)
  for message in messages:
    _check_content(message, max_message_bytes)
  if len(_encoded(tools)) > max_message_bytes:
    raise dialogues.BadSample(f"tools over {max_message_bytes} bytes")
  if not any(one.learned for one in messages if one.role == "assistant"):
    raise dialogues.BadSample(f"nothing to learn: {_joined(why)} in every reply")
  return dialogues.Dialogue(tuple(messages), tools)


def _turns(
  record: Any, ignored: frozenset[str], reply_keys: Sequence[str]
) -> list[_Turn]:
  """The record's turns, not checked yet."""
  if isinstance(record, dialogues.BadSample):  # too large to be read, see `tables`
    raise record
  if not isinstance(record, Mapping):
    raise dialogues.BadSample(f"the record is {_kind(record)}")
  # A column that is the chosen dialogue again is a copy (UltraFeedback).
  copies = (None, record.get("chosen"))
  columns = [name for name in CHAT_COLUMNS if record.get(name) not in copies]
  replies = [name for name in reply_keys if record.get(name) is not None]
  if len(columns) > 1:
    raise dialogues.BadSample(f"two dialogues: {' and '.join(columns)}")
  if columns:
    # `text` is the rendered dialogue; `prompt` its first message, in some data sets.
    turns = _list(record[columns[0]], columns[0], ignored)
    used = {*columns, "text"}
    if record.get("prompt") in [turn.content for turn in turns]:
      used.add("prompt")
  elif isinstance(record.get("instruction"), str) and "output" in record:
    turns, used = _alpaca(record), {*_ALPACA_KEYS, "text"}
  elif replies and (record.get("prompt") is not None or replies[0] != "completion"):
    turns, used = _reply(record, replies[0], ignored), {"prompt", replies[0], "text"}
    used.update(_OF_A_PAIR if replies[0] != "completion" else ())
  else:
    names = [record_keys.shown(key) for key, value in record.items() if value]
    more = ", …" if len(names) > _SHOWN else ""
    raise dialogues.BadSample(
      f"unrecognised columns: {', '.join(sorted(names)[:_SHOWN])}{more}"
    )
  used |= {*_SYSTEM_KEYS, *tool_calls.TOOL_KEYS}
  record_keys.check_record(record, used)
  return _with_system(record, turns)


def _list(turns: Any, column: str, ignored: frozenset[str]) -> list[_Turn]:
  turns = tool_calls.parsed(turns)  # tables have turns of different kinds as text
  if not isinstance(turns, list) or not all(isinstance(t, Mapping) for t in turns):
    raise dialogues.BadSample(f"{column} is not a list of turns")
  return [_turn(record_keys.without(turn, ignored)) for turn in turns]


def _turn(turn: Mapping[str, Any]) -> _Turn:
  role, content = (
    next(iter(_said(turn, keys)), None) for keys in (_ROLE_KEYS, _CONTENT_KEYS)
  )
  return _Turn(role, content, turn)


def _said(turn: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
  """What some keys of a turn say: those that are not empty; of empty ones, one."""
  found = [
    _known_role(turn[key]) if key in _ROLE_KEYS else _text(turn[key])
    for key in keys
    if turn.get(key) is not None
  ]
  return [one for one in found if record_keys.is_set(one)] or found[:1]


def _check_once(turn: Mapping[str, Any]) -> None:
  """Raises BadSample if two keys of a turn say different things."""
  for keys in (_ROLE_KEYS, _CONTENT_KEYS):
    said = _said(turn, keys)
    if any(one != said[0] for one in said):
      raise dialogues.BadSample(f"turn keys {' and '.join(keys)} differ")


def _known_role(role: Any) -> Any:
  """One of `ROLES` under its common name; others, and calls, as they are."""
  lower = role.lower() if isinstance(role, str) else role
  return lower if lower == "function_call" else ROLES.get(str(lower), role)


def _text(content: Any) -> Any:
  """The text of a content that is a list of text parts; any other one as it is."""
  if not isinstance(content, list):
    return content
  texts = []
  for part in content:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
      raise dialogues.BadSample("content is a list of parts without types")
    if part["type"] != "text" or not isinstance(part.get("text"), str):
      raise dialogues.BadSample(f"{record_keys.shown(part['type'])} in content")
    texts.append(part["text"])
  return "".join(texts)


def _alpaca(record: Mapping[str, Any]) -> list[_Turn]:
  history = record.get("history") or []
  pairs = isinstance(history, list) and all(isinstance(p, list) for p in history)
  if not pairs or not all(len(pair) == 2 for pair in history):
    raise dialogues.BadSample("history is not a list of pairs")
  turns: list[_Turn] = []
  for question, reply in history:
    turns += [_Turn("user", question), _Turn("assistant", reply)]
  instruction = record["instruction"]
  if added := record.get("input"):
    if not isinstance(added, str):
      raise dialogues.BadSample(f"input is {_kind(added)}, not text")
    instruction = f"{instruction}\n{added}"
  return [*turns, _Turn("user", instruction), _Turn("assistant", record["output"])]


def _reply(
  record: Mapping[str, Any], column: str, ignored: frozenset[str]
) -> list[_Turn]:
  """A prompt and its completion, or the chosen one; each a text or a list of turns."""
  prompt, reply = record.get("prompt"), record[column]
  if isinstance(reply, list):
    turns = _list(reply, column, ignored)
    if turns and ROLES.get(str(turns[0].role).lower()) != "assistant":
      if not _begins(turns, prompt, ignored):
        raise dialogues.BadSample(f"{column} does not begin with the prompt")
      return turns
  else:
    turns = [_Turn("assistant", reply)]
  if prompt is None:
    raise dialogues.BadSample(f"{column} without a prompt is not a list of turns")
  before = [_Turn("user", prompt)]
  if isinstance(prompt, list):
    before = _list(prompt, "prompt", ignored)
  return [*before, *turns]


def _begins(turns: Sequence[_Turn], prompt: Any, ignored: frozenset[str]) -> bool:
  """Whether turns begin with a prompt."""
  if prompt is None:
    return True
  if isinstance(prompt, list):
    return list(turns[: len(prompt)]) == _list(prompt, "prompt", ignored)
  return prompt in [turn.content for turn in turns[:2]]


def _with_system(record: Mapping[str, Any], turns: list[_Turn]) -> list[_Turn]:
  """The turns after the system prompts that the record has in keys of their own."""
  is_set = record_keys.is_set
  prompts = [record[key] for key in _SYSTEM_KEYS if is_set(record.get(key))]
  if not prompts:
    return turns
  first = turns[0].role if turns else None
  if isinstance(first, str) and ROLES.get(first.lower()) == "system":
    prompts.append(turns[0].content)
    turns = turns[1:]
  if any(prompt != prompts[0] for prompt in prompts):
    raise dialogues.BadSample("two system prompts")
  return [_Turn("system", prompts[0]), *turns]


def _message(turn: _Turn) -> tuple[dialogues.Message, str]:
  """The turn as a message, and the key that says that it is not learned."""
  role, content = turn.role, turn.content
  if role is None:
    raise dialogues.BadSample("missing role")
  known = ROLES.get(role.lower()) if isinstance(role, str) else None
  if known is None:
    raise dialogues.BadSample(f"unknown role {record_keys.shown(role)}")
  _check_once(turn.keys)
  used = {*_ROLE_KEYS, *_CONTENT_KEYS}
  if known == "assistant":
    used.update(tool_calls.CALL_KEYS, dialogues.THOUGHT_KEYS)
  record_keys.check(turn.keys, used, "turn key")
  reason = record_keys.not_learned(turn.keys, "turn key", default=known == "assistant")
  calls = tool_calls.calls_of(turn.keys) if known == "assistant" else []
  if role.lower() == "function_call":
    calls, content = tool_calls.calls_in(content, "turn of function_call"), None
  if content is not None and not isinstance(content, str):
    raise dialogues.BadSample(f"content is {_kind(content)}, not text")
  more: dict[str, Any] = {}
  if calls:
    content = content if (content or "").strip() else None
    more = {"tool_calls": calls} | ({"content": None} if content is None else {})
  elif known == "tool":
    wanted = ("name", "tool_call_id")
    more = {key: turn.keys[key] for key in wanted if turn.keys.get(key) is not None}
  if known == "assistant":
    more |= record_keys.thought_of(turn.keys, content or "")
  return dialogues.Message(known, content or "", not reason, more or None), reason


def _kind(value: Any) -> str:
  kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
  return "null" if value is None else kinds.get(type(value), "a number")


def _in_order(messages: list[dialogues.Message]) -> list[dialogues.Message]:
  """The messages without an empty system prompt and without those after the replies."""
  if messages and messages[0].role == "system" and not messages[0].content.strip():
    messages = messages[1:]
  before = None
  for message in messages:
    if message.role not in _NEXT[before]:
      place = f"after {before}" if before else "first"
      raise dialogues.BadSample(f"roles do not alternate: {message.role} {place}")
    before = message.role
  while messages and messages[-1].role != "assistant":
    messages = messages[:-1]
  if not messages:
    raise dialogues.BadSample("no assistant turn")
  return messages


def _check_content(message: dialogues.Message, max_bytes: int) -> None:
  if len(_encoded(message.content)) + len(_encoded(message.more)) > max_bytes:
    raise dialogues.BadSample(f"message over {max_bytes} bytes")
  may_be_empty = message.role == "tool" or bool(message.calls)
  if not message.content.strip() and not may_be_empty:
    raise dialogues.BadSample(f"empty content ({message.role})")


def _encoded(value: Any) -> bytes:
  """A text, or another value as JSON; raises BadSample if there is none for it."""
  if not value:
    return b""
  try:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8")
  except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
    raise dialogues.BadSample("not UTF-8") from error
  except (TypeError, ValueError) as error:  # tables have dates and bytes
    raise dialogues.BadSample("a tool or call has a value that is not JSON") from error


def _joined(reasons: Mapping[str, None]) -> str:
  return " or ".join(sorted(reasons))

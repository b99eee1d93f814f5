"""Tools and calls of them in records, in the form that chat templates take.

That is transformers' form: {"type": "function", "function": {"name", "arguments"}}.
Older data has `functions`, `function_call`, arguments as JSON text, or names alone.
Calls may have lost their names, or all that they were; these are read, never learned.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from skipalign_jax.data import dialogues, record_keys
from skipalign_jax.runtime import untrusted

TOOL_KEYS = ("tools", "functions")  # of a record
CALL_KEYS = ("tool_calls", "function_call")  # of a turn


def tools_of(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
  """The tools of a record; () if it has none.

  Args:
    record: perhaps with one of `TOOL_KEYS`.

  Raises:
    BadSample: they are not a list of functions with names.
  """
  found = _set(TOOL_KEYS, record)
  if not found:
    return ()
  if len(found) > 1:
    raise dialogues.BadSample("two lists of tools: tools and functions")
  (key,) = found
  tools = parsed(record[key]) or []
  tools = list(map(parsed, tools)) if isinstance(tools, list) else [None]
  if not all(map(_name_of, tools)):
    raise dialogues.BadSample(f"key {key} is not a list of functions with names")
  if key == "functions":
    tools = [{"type": "function", "function": tool} for tool in tools]
  return tuple(tools)


def calls_of(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The calls in a turn, with arguments as objects; [] if it has none.

  Args:
    turn: perhaps with one of `CALL_KEYS`.

  Raises:
    BadSample: a call or its arguments are not an object, or its name is not text.
  """
  found = _set(CALL_KEYS, turn)
  if len(found) > 1:
    raise dialogues.BadSample("two lists of calls: tool_calls and function_call")
  value = parsed(turn[found[0]]) if found else None
  return calls_in(value, f"turn key {found[0]}") if record_keys.is_set(value) else []


def _set(keys: Sequence[str], found: Mapping[str, Any]) -> list[str]:
  """Those of the keys that have a value."""
  return [key for key in keys if record_keys.is_set(found.get(key))]


def calls_in(value: Any, where: str) -> list[dict[str, Any]]:
  """The calls in a value: one or several, or JSON text of them.

  Args:
    value: of a key, or the content of a turn that is a call.
    where: the value's name, for the reason.

  Raises:
    BadSample: as `calls_of`.
  """
  calls = parsed(value)
  calls = list(map(parsed, calls)) if isinstance(calls, list) else [calls]
  if not calls or not all(map(_is_call, calls)):
    raise dialogues.BadSample(f"{where} has a call that is not a JSON object")
  return [_call(call, where) for call in calls]


def names_of(calls: Any) -> list[str]:
  """The functions' names of tools or calls, of those that have one."""
  return [name for name in map(_name_of, calls) if name]


def arguments_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
  """The arguments of a call of `calls_in`; {} if it has none."""
  return parsed((call.get("function") or {}).get("arguments")) or {}


def is_nameless(call: Mapping[str, Any]) -> bool:
  """Whether a call does not say what it calls."""
  return _name_of(call) is None


def is_empty(call: Mapping[str, Any]) -> bool:
  """Whether a call has neither a name nor arguments: nothing that can be written."""
  return is_nameless(call) and not arguments_of(call)


def with_arguments(call: Mapping[str, Any], arguments: Any) -> dict[str, Any]:
  """A call of `calls_in`, which has arguments, with others."""
  return dict(call) | {"function": call["function"] | {"arguments": arguments}}


def _is_call(call: Any) -> bool:
  """Whether a value has the form of a call, which may be empty."""
  return isinstance(call, Mapping) and isinstance(call.get("function") or {}, Mapping)


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
  inner = ("name", "arguments")
  function = dict(call.get("function") or {k: call[k] for k in inner if k in call})
  outer = {key: value for key, value in call.items() if key not in inner}
  if not isinstance(function.get("name") or "", str):
    raise dialogues.BadSample(f"{where} has a name that is not text")
  arguments = parsed(function.get("arguments") or {})
  if not isinstance(arguments, Mapping):
    raise dialogues.BadSample(f"{where} has arguments that are not a JSON object")
  if not arguments and is_nameless({"function": function}):
    return dict(call)
  function["arguments"] = dict(arguments)
  return {"type": "function"} | outer | {"function": function}


def _name_of(one: Any) -> str | None:
  """The name of a tool or call; None if it has none."""
  function = (one.get("function") or one) if isinstance(one, Mapping) else None
  name = function.get("name") if isinstance(function, Mapping) else None
  return name if isinstance(name, str) and name.strip() else None


def parsed(value: Any) -> Any:
  """JSON text as its value; other values, and other texts, as they are."""
  if not isinstance(value, str):
    return value
  try:
    return untrusted.parse_json(value)
  except ValueError:
    return value

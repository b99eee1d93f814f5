"""Keys of records and turns next to the dialogue: what each may say.

A key is used, known to be neutral, named by the user, or makes the record unusable:
what is not understood may change what is to be learned.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from skipalign_jax.data import dialogues

# They say where a chat comes from, not what is in it.
_NEUTRAL = frozenset(
  "__index_level_0__ category country created date dataset domain hash header id idx "
  "index lang language length license model name parallel_tool_calls rating redacted "
  "score score_chosen score_rejected scores skip_prompt_formatting source split state "
  "subject subset tags task timestamp title topic toxic turn turns type url uuid "
  "views".split()
)
_NEUTRAL_ENDS = (
  "_date", "_hash", "_id", "_idx", "_identifier", "_index", "_ip", "_moderation",
  "_model", "_name", "_rating", "_score", "_source", "_tokens", "_type", "_url",
)  # fmt: skip
# Of documents, what is known about a text is neutral too: data sets for pretraining
# have many such columns.
_ABOUT_TEXT = frozenset(
  "added attributes author authors book_title bytes content_type corpus crawl dump "
  "encoding extension file file_path filename format genre isbn length licenses meta "
  "metadata pages path perplexity publication_date published publisher quality repo "
  "revision segment sha1 sha256 size snapshot top_langs version warcinfo year".split()
)
_ABOUT_TEXT_ENDS = (
  *_NEUTRAL_ENDS, "_author", "_count", "_format", "_lang", "_langs", "_language",
  "_length", "_license", "_licenses", "_path", "_prob", "_script", "_set_name", "_size",
  "_subset", "_time", "_timestamp", "_title", "_version",
)  # fmt: skip
_SHOWN = 24  # names in a reason; some data sets have as many columns
# They say whether a reply is to be learned: 0 and false, 1 and true.
_LEARNED = ("label", "loss", "loss_mask", "train", "trainable", "weight")


def is_neutral(key: Any) -> bool:
  """Whether a key changes nothing."""
  return key in _NEUTRAL or str(key).endswith(_NEUTRAL_ENDS)


def is_about_text(key: Any) -> bool:
  """Whether a key next to a document changes nothing."""
  return is_neutral(key) or key in _ABOUT_TEXT or str(key).endswith(_ABOUT_TEXT_ENDS)


def is_set(value: Any) -> bool:
  """Whether a key has a value; tables give all records the keys of any."""
  return value is not None and value not in ("", [], {})


def without(found: Any, ignored: frozenset[str]) -> Any:
  """A record or turn without the keys that the user has named; others as they are."""
  if not ignored or not isinstance(found, Mapping):
    return found
  return {key: value for key, value in found.items() if key not in ignored}


def check(found: Mapping[str, Any], used: Iterable[str], where: str) -> None:
  """Raises BadSample for keys that are not understood, with all their names.

  Args:
    found: a record or a turn.
    used: keys that the caller reads.
    where: "key" or "turn key", for the reason.
  """
  known = {*used, *_LEARNED}
  names = sorted(
    shown(key)
    for key, value in found.items()
    if key not in known and is_set(value) and not is_neutral(key)
  )
  if len(names) == 1:
    raise dialogues.BadSample(f"{where} {names[0]} is not understood")
  if names:
    more = ", …" if len(names) > _SHOWN else ""
    listed = ", ".join(names[:_SHOWN]) + more
    raise dialogues.BadSample(f"{where}s {listed} are not understood")


def check_record(record: Mapping[str, Any], used: Iterable[str]) -> None:
  """Raises BadSample for a key that is not understood, or leaves the record out.

  Args: as of `check`.
  """
  check(record, used, "key")
  if reason := not_learned(record, "key", default=True):
    raise dialogues.BadSample(f"nothing to learn: {reason}")


def not_learned(found: Mapping[str, Any], where: str, default: bool) -> str:
  """The key, with its value, that says that something is not learned; "" if none does.

  Args:
    found: a record or a turn.
    where: as in `check`.
    default: whether it is learned if no key says anything.

  Raises:
    BadSample: a value is neither 0 nor 1, or asks for what is never learned.
  """
  says = ""
  for key in _LEARNED:
    value = found.get(key)
    if not is_set(value):
      continue
    if not isinstance(value, int | float) or value not in (0, 1):
      raise dialogues.BadSample(f"{where} {key} is not 0 or 1")
    if value and not default:
      raise dialogues.BadSample(
        f"{where} {key} is 1 in a turn that is no reply, which is never learned"
      )
    if not value:
      says = says or f"{where} {key} is {json.dumps(value)}"
  return says


def thought_of(turn: Mapping[str, Any], content: str) -> dict[str, str]:
  """The thought of a turn under its key; {} if it has none.

  Args:
    turn: perhaps with one of `dialogues.THOUGHT_KEYS`, or several that are equal.
    content: of the turn.

  Raises:
    BadSample: it is not text, or there are two thoughts.
  """
  found, (mark, _) = {}, dialogues.THOUGHT_MARKUP
  for key in dialogues.THOUGHT_KEYS:
    value = turn.get(key)
    if value in (None, [], {}):
      continue
    if not isinstance(value, str):
      raise dialogues.BadSample(f"turn key {key} is not text")
    if value.strip():
      found[key] = value
  keys = list(found)
  if len(set(found.values())) > 1:
    raise dialogues.BadSample(f"two thoughts: turn keys {' and '.join(keys)}")
  if keys and content.lstrip().startswith(mark):
    raise dialogues.BadSample(f"two thoughts: turn key {keys[0]} and {mark} in content")
  return {key: found[key] for key in keys[:1]}


def shown(text: Any, length: int = 40) -> str:
  """A name from a record for a message: short, without control characters."""
  return ascii(str(text))[1:-1][:length]

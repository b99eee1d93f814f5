"""The chats that the study trains on: several turns, short, and none of its test words.

A line per chat, in the order of the file that they come from, in the schema `messages`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from skipalign_jax.data import sources, templates
from skipalign_jax.evals import fact_kinds
from skipalign_jax.hf import chat_template, reference
from skipalign_jax.runtime import errors, files

FORBIDDEN = frozenset(word.lower() for word in fact_kinds.WORDS)


@dataclasses.dataclass
class Counts:
  """How many chats there were, and why others are left out."""

  kept: int = 0
  one_turn: int = 0
  words: int = 0
  long: int = 0


def chosen(
  records: Iterator[dict[str, Any]], tokenizer: Any, max_tokens: int, counts: Counts
) -> Iterator[dict[str, Any]]:
  """The records that are kept.

  Args:
    records: of chats, in the schema `messages`.
    tokenizer: with the template of training.
    max_tokens: of a chat, with all that the template writes.
    counts: is updated.
  """
  for record in records:
    messages = record["messages"]
    said = " ".join(message["content"] for message in messages)
    if sum(message["role"] == "user" for message in messages) < 2:
      counts.one_turn += 1
    elif fact_kinds.words_of(said) & FORBIDDEN:
      counts.words += 1
    elif len(tokenizer.encode(chat_template.render(tokenizer, messages))) > max_tokens:
      counts.long += 1
    else:
      counts.kept += 1
      yield {"messages": messages}


def make(chats: str, weights: str, path: pathlib.Path, max_tokens: int) -> Counts:
  """Writes the file, all of it or nothing.

  Raises:
    UserError: the chats or the tokenizer cannot be read, or no chat is left.
  """
  tokenizer = reference.load_tokenizer(weights)
  templates.set_template(tokenizer, "tulu")
  counts = Counts()
  records = (record for _, record in sources.Source(chats).records())
  parsed = (json.loads(x) if isinstance(x, bytes) else x for x in records)
  lines = [
    json.dumps(record) + "\n"
    for record in chosen(parsed, tokenizer, max_tokens, counts)
  ]
  if not lines:
    raise errors.UserError(f"{chats} has no chat of two user turns that can be used")
  files.write_text(path, "".join(lines))
  return counts

"""Which tokens of a chat are learned with real chat templates, against transformers.

python benchmarks/templates.py 'TITLE=FOLDER' … [--out=FILE.md]

A folder has tokenizer.json and tokenizer_config.json, and perhaps chat_template.jinja.
A few chats become samples, each reply and call learned once (`data.rewritten=each`,
`data.learn_tool_calls`), and are compared with what transformers makes of the same
folder:

text     all tokens of the chat are those of `apply_chat_template(chat)`
prompts  the tokens before a reply are those of `apply_chat_template(chat up to there,
         add_generation_prompt=True)`
stops    of the tokens of a reply the last one ends generation, and no other

Writes a table, the differences, and the tokens of two chats as they are read or learned
by default. They replace what follows the line `MARK` in the file.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import transformers

from skipalign_jax.data import chat, dialogues, schemas
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import reference
from skipalign_jax.runtime import errors

MARK = "<!-- what follows is written by benchmarks/templates.py -->"
SEQ_LEN = 4096
SHOWN = ("two turns", "reasoning")
MAX_RUN = 40  # tokens of a run that are shown; the middle of longer ones is left out


def turns(*contents: str, system: str = "") -> dict:
  """A record of messages; a user's turn first."""
  roles = ("user", "assistant") * len(contents)
  found = [
    {"role": role, "content": content}
    for role, content in zip(roles, contents, strict=False)
  ]
  first = [{"role": "system", "content": system}] if system else []
  return {"messages": first + found}


def tools() -> dict:
  """A record with a call of a tool, its result and a reply."""
  place = {"type": "string", "description": "a city"}
  parameters = {
    "type": "object",
    "properties": {"place": place},
    "required": ["place"],
  }
  about = {"name": "weather", "description": "Is it raining?", "parameters": parameters}
  call = {"name": "weather", "arguments": {"place": "Rome"}}
  calls = [{"type": "function", "id": "abcdefghi", "function": call}]
  record = turns("Rain?", "", "Thanks.", "Bye.")
  record["messages"][1]["tool_calls"] = calls
  result = {"role": "tool", "name": "weather", "content": "dry"}
  result["tool_call_id"] = "abcdefghi"
  record["messages"][2:2] = [result, {"role": "assistant", "content": "No rain."}]
  return record | {"tools": [{"type": "function", "function": about}]}


def thinking() -> dict:
  """A record with thoughts apart from the contents."""
  record = turns("2+2?", "4", "Sure?", "Yes.")
  record["messages"][1]["reasoning_content"] = "Two twos."
  record["messages"][3]["reasoning_content"] = "Count again."
  return record


CHATS = {
  "one turn": turns("Hi!", "Hello. How are you?"),
  "two turns": turns("Hi!", "{1, 2}", "And now?", "Three.", system="Be brief."),
  "thoughts": turns(
    "2+2?",
    "<think>\nTwo twos.\n</think>\n\n4",
    "Sure?",
    "<think>\nCount again.\n</think>\n\nYes.",
  ),
  "reasoning": thinking(),
  "tools": tools(),
}
WRITTEN = ("Count again.", "Rome")  # of the last thought and the call


@dataclasses.dataclass(frozen=True)
class Pair:
  """A tokenizer as it is read here and by transformers, and its stop ids."""

  ours: transformers.PreTrainedTokenizerFast
  theirs: transformers.PreTrainedTokenizerBase
  stop_ids: tuple[int, ...]

  def samples(self, record: dict, rewritten: str) -> list[chat.Sample]:
    """The samples of a record; raises BadSample."""
    dialogue = schemas.dialogue_of(record, 1 << 20)
    encoder = chat.Encoder(
      self.ours, SEQ_LEN, rewritten=rewritten, learn_calls=rewritten == "each"
    )
    (found,) = encoder.samples([dialogue])
    for one in found:
      if isinstance(one, dialogues.BadSample):
        raise one
    return found

  def asked(self, record: dict, end: int | None = None) -> list[int]:
    """The tokens of a record, or the prompt for its message `end`, by transformers."""
    return self.theirs.apply_chat_template(
      record["messages"][:end],
      tools=record.get("tools"),
      add_generation_prompt=end is not None,
    )["input_ids"]

  def readable(self, record: dict) -> dict:
    """The record with thoughts and arguments as the template reads them."""
    wanted = [word for word in WRITTEN if word in json.dumps(record)]
    keys = ("reasoning_content", "thinking", "reasoning", None)
    for key, as_text in itertools.product(keys, (False, True)):
      found = spelled_for(record, key, as_text)
      try:
        text = self.ours.decode(self.asked(found))
      except Exception:  # of the template, in any way
        continue
      if all(word in text for word in wanted):
        return found
    return spelled_for(record, None, False)


def spelled_for(record: dict, key: str | None, as_text: bool) -> dict:
  """A record with thoughts under this key (None: in contents), arguments as text."""
  record = copy.deepcopy(record)
  for one in record["messages"]:
    thought = one.pop("reasoning_content", None)
    if thought and key:
      one[key] = thought
    elif thought:
      one["content"] = f"<think>\n{thought}\n</think>\n\n{one['content']}"
    for call in one.get("tool_calls", ()):
      if as_text:
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
  return record


def read(folder: str) -> Pair:
  """The tokenizer of a folder."""
  ours = reference.load_tokenizer(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
  return Pair(ours, theirs, tokenizer_lib.stop_token_ids(ours, ()))


def learned(sample: chat.Sample) -> list[np.ndarray]:
  """The indices of the tokens of each reply that is learned."""
  edges = np.flatnonzero(np.diff(sample.targets, prepend=False, append=False))
  return [np.arange(begin, end) for begin, end in edges.reshape(-1, 2)]


def replies(samples: Sequence[chat.Sample]) -> Iterator[tuple[chat.Sample, np.ndarray]]:
  """Each reply's sample and tokens; of several samples each is about its last one."""
  for sample in samples:
    found = learned(sample)
    for at in found if len(samples) == 1 else found[-1:]:
      yield sample, at


@dataclasses.dataclass(frozen=True)
class Result:
  """What became of a chat.

  Attributes:
    learned: how many of how many replies.
    differences: from transformers, by what was compared.
  """

  learned: str
  differences: dict[str, str]


def check(pair: Pair, record: dict) -> Result:
  """Compares a chat's samples with transformers."""
  samples, theirs = pair.samples(record, "each"), pair.readable(record)
  numbers = [i for i, m in enumerate(record["messages"]) if m["role"] == "assistant"]
  found = list(replies(samples))
  prompts, stops = [], []
  for number, (sample, at) in zip(numbers, found, strict=False):
    ours = sample.tokens[: at[0]].tolist()
    prompts.append(difference(pair, ours, pair.asked(theirs, number)))
    ends = np.isin(sample.tokens[at], pair.stop_ids)
    stops += [] if ends[-1] and not ends[:-1].any() else [f"message {number + 1}"]
  whole = samples[-1].tokens.tolist()
  text = difference(pair, whole, pair.asked(theirs))
  if (
    text
    and samples[-1].split
    and pair.ours.decode(whole) == pair.ours.decode(pair.asked(theirs))
  ):
    text = f"{samples[-1].split} replies encoded apart from their headers"
  different = {
    "text": text,
    "prompts": "; ".join(dict.fromkeys(filter(None, prompts))),
    "stops": ", ".join(stops),
  }
  return Result(
    f"{len(found)} of {len(numbers)}", {k: v for k, v in different.items() if v}
  )


def difference(pair: Pair, ours: list[int], theirs: list[int]) -> str:
  """Where two lists of tokens part; "" if they are equal."""
  if ours == theirs:
    return ""
  if ours == theirs[: len(ours)]:
    return f"transformers' ends with `{spelled(pair, theirs[len(ours) :])}` more"
  at = next(
    (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
    min(len(ours), len(theirs)),
  )
  return (
    f"at token {at}: `{spelled(pair, ours[at : at + 3])}` here, "
    f"`{spelled(pair, theirs[at : at + 3])}` in transformers"
  )


def spelled(pair: Pair, ids: Sequence[int]) -> str:
  """Tokens with a space between them; "·" is a space in a token."""
  signs = {"Ġ": "·", "▁": "·", "Ċ": "\\n", "<0x0A>": "\\n"}
  tokens = pair.ours.convert_ids_to_tokens(list(map(int, ids)))
  for sign, shown in signs.items():
    tokens = [token.replace(sign, shown) for token in tokens]
  if len(tokens) > MAX_RUN:
    left, half = len(tokens) - MAX_RUN, MAX_RUN // 2
    tokens = [*tokens[:half], f"[{left} more]", *tokens[-half:]]
  return " ".join(tokens)


def shown(pair: Pair, record: dict) -> list[str]:
  """A chat's tokens, a line for each run that is read or learned."""
  (sample,) = pair.samples(record, "last")
  edges = np.flatnonzero(np.diff(sample.targets, prepend=~sample.targets[:1]))
  lines = []
  for begin, end in zip(edges, [*edges[1:], len(sample.tokens)], strict=True):
    state = "learned" if sample.targets[begin] else "read"
    lines.append(f"{state:8}{spelled(pair, sample.tokens[begin:end])}")
  return lines


def table_row(title: str, pair: Pair) -> tuple[str, list[tuple[str, str]]]:
  """A tokenizer's row of the table, and what differs in which chat."""
  stops = spelled(pair, pair.stop_ids).replace("|", "\\|")
  cells, notes = [title, f"`{stops}`"], []
  for name, record in CHATS.items():
    try:
      found = check(pair, record)
      cells.append(found.learned + ("*" if found.differences else ""))
      differences = found.differences
    except (dialogues.BadSample, errors.UserError) as error:
      cells.append("refused")
      differences = {"refused": getattr(error, "reason", str(error))}
    notes += [(name, f"{k}: {v}") for k, v in differences.items()]
  return " | ".join(cells), notes


def page(tokenizers: dict[str, Pair]) -> str:
  """The table, the differences, and tokens of some chats."""
  head = ["tokenizer", "ends of replies", *CHATS]
  rows = [" | ".join(head), " | ".join("---" for _ in head)]
  notes: dict[tuple[str, str], list[str]] = {}
  blocks = []
  for title, pair in tokenizers.items():
    row, found = table_row(title, pair)
    rows.append(row)
    for note in found:
      notes.setdefault(note, []).append(title)
    for name in SHOWN:
      try:
        lines = shown(pair, CHATS[name])
      except (dialogues.BadSample, errors.UserError):
        continue
      blocks += ["", f"{title}, {name}", "", "```", *lines, "```"]
  table = [f"| {row} |" for row in rows]
  listed = [f"- *{k}*: {v} ({', '.join(titles)})" for (k, v), titles in notes.items()]
  parts = ["## Chats", "", *table, "", "## Differences", "", *listed, "", "## Tokens"]
  return "\n".join([*parts, *blocks]) + "\n"


def main() -> None:
  """Prints the page, and writes it to a file."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("tokenizers", nargs="+", metavar="TITLE=FOLDER")
  parser.add_argument("--out", default="", help="Markdown file")
  args = parser.parse_args()
  titles = (one.rsplit("=", 1) for one in args.tokenizers)
  text = page({title: read(folder) for title, folder in titles})
  print(text)
  if args.out:
    path = pathlib.Path(args.out)
    head = path.read_text(encoding="utf-8").partition(MARK)[0] if path.exists() else ""
    path.write_text(f"{head}{MARK}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
  main()

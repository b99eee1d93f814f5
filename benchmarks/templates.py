"""Which tokens of a chat are learned with real chat templates, against transformers.

python benchmarks/templates.py 'TITLE=FOLDER' … [--out=FILE.md]

A folder has tokenizer.json and tokenizer_config.json, and perhaps chat_template.jinja.
A few chats become samples, each reply learned once (`data.rewritten=each`), and are
compared with what transformers makes of the same folder:

text     all tokens of the chat are those of `apply_chat_template(chat)`
prompts  the tokens before a reply are those of `apply_chat_template(chat up to there,
         add_generation_prompt=True)`
stops    of the tokens of a reply the last one ends generation, and no other

Writes a table of this, and the tokens of two chats as they are read or learned by
default.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import transformers

from skipalign_jax.data import chat, dialogues, schemas
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import reference
from skipalign_jax.runtime import errors

SEQ_LEN = 4096
SHOWN = ("two turns", "thoughts")
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


CALL = {"name": "weather", "arguments": {"place": "Rome"}}
CHATS = {
  "one turn": turns("Hi!", "Hello. How are you?"),
  "two turns": turns("Hi!", "{1, 2}", "And now?", "Three.", system="Be brief."),
  "thoughts": turns(
    "2+2?",
    "<think>\nTwo twos.\n</think>\n\n4",
    "Sure?",
    "<think>\nCount again.\n</think>\n\nYes.",
  ),
  "tool": {
    "messages": [
      {"role": "user", "content": "Rain in Rome?"},
      {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": CALL}],
      },
      {"role": "tool", "name": "weather", "content": "dry"},
      {"role": "assistant", "content": "No rain."},
    ]
  },
}


@dataclasses.dataclass(frozen=True)
class Pair:
  """A tokenizer as it is read here and by transformers, and its stop ids."""

  ours: transformers.PreTrainedTokenizerFast
  theirs: transformers.PreTrainedTokenizerBase
  stop_ids: tuple[int, ...]

  def samples(self, record: dict, rewritten: str) -> list[chat.Sample]:
    """The samples of a record; raises BadSample."""
    dialogue = schemas.dialogue_of(record, 1 << 20)
    encoder = chat.Encoder(self.ours, SEQ_LEN, rewritten=rewritten)
    (found,) = encoder.samples([dialogue])
    for one in found:
      if isinstance(one, dialogues.BadSample):
        raise one
    return found

  def asked(self, messages: Sequence[dict], **options: bool) -> list[int]:
    """The tokens of messages by transformers."""
    return self.theirs.apply_chat_template(list(messages), **options)["input_ids"]


def read(folder: str) -> Pair:
  """The tokenizer of a folder."""
  ours = reference.load_tokenizer(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
  return Pair(ours, theirs, tokenizer_lib.stop_token_ids(ours, ()))


def learned(sample: chat.Sample) -> Iterator[tuple[int, np.ndarray]]:
  """The number of each reply that is learned, from 0, and its tokens' indices."""
  for block in np.unique(sample.block_ids[sample.targets]):
    yield int(block) // 2, np.flatnonzero(sample.targets & (sample.block_ids == block))


def check(pair: Pair, record: dict) -> list[str]:
  """What of a chat's samples differs from transformers: text, prompts, stops."""
  samples, messages = pair.samples(record, "each"), record["messages"]
  replies = [i for i, one in enumerate(messages) if one["role"] == "assistant"]
  prompts, stops, count = [], [], 0
  for sample in samples:
    for number, at in learned(sample):
      count += 1
      ours = sample.tokens[: at[0]].tolist()
      theirs = pair.asked(messages[: replies[number]], add_generation_prompt=True)
      prompts += [] if ours == theirs else [difference(pair, ours, theirs)]
      ends = np.isin(sample.tokens[at], pair.stop_ids)
      stops += [] if ends[-1] and not ends[:-1].any() else [f"reply {number + 1}"]
  whole = samples[-1].tokens.tolist()
  text = difference(pair, whole, pair.asked(messages))
  if (
    text
    and samples[-1].split
    and pair.ours.decode(whole) == pair.ours.decode(pair.asked(messages))
  ):
    text = f"equal, but {samples[-1].split} encoded apart from their headers"
  return [
    f"{count} of {len(replies)}",
    text or "equal",
    "; ".join(dict.fromkeys(prompts)) or "equal",
    "; ".join(stops) or "the last token of each",
  ]


def difference(pair: Pair, ours: list[int], theirs: list[int]) -> str:
  """Where two lists of tokens part; "" if they are equal."""
  if ours == theirs:
    return ""
  if ours == theirs[: len(ours)]:
    return f"transformers' ends with {spelled(pair, theirs[len(ours) :])} more"
  at = next(
    (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
    min(len(ours), len(theirs)),
  )
  return (
    f"at token {at}: {spelled(pair, ours[at : at + 3])} here, "
    f"{spelled(pair, theirs[at : at + 3])} in transformers"
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


def section(title: str, folder: str) -> str:
  """The part of the page on one tokenizer."""
  pair = read(folder)
  stops = spelled(pair, pair.stop_ids)
  lines = [f"## {title}", "", f"Ends of replies: `{stops}`", ""]
  lines += ["| chat | learned | text | prompts | stops |", "|---|---|---|---|---|"]
  blocks = []
  for name, record in CHATS.items():
    try:
      cells = [cell.replace("|", "\\|") for cell in check(pair, record)]
      if name in SHOWN:
        blocks += ["", f"*{name}*", "", "```", *shown(pair, record), "```"]
    except (dialogues.BadSample, errors.UserError) as error:
      cells = [f"unusable: {getattr(error, 'reason', error)}", "", "", ""]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines + blocks)


def main() -> None:
  """Prints the sections, and writes them to a file."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("tokenizers", nargs="+", metavar="TITLE=FOLDER")
  parser.add_argument("--out", default="", help="file for the sections, Markdown")
  args = parser.parse_args()
  page = "\n\n".join(section(*one.rsplit("=", 1)) for one in args.tokenizers) + "\n"
  print(page)
  if args.out:
    pathlib.Path(args.out).write_text(page, encoding="utf-8")


if __name__ == "__main__":
  main()

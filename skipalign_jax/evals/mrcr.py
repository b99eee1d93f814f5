"""MRCR, our offline version: repeat the i-th of several replies to the same request.

A chat has --needles replies to one request among replies to similar ones
(`mrcr_chats`), as many as fit into --lengths tokens together with the answer and 32
tokens more. The last message asks for one of them, after a random code. Task and score
are those of OpenAI's MRCR; replies are sentences of --haystack instead of texts by a
model, so that only order and copying are tested, and the summary says "ours".

The score is 0 unless the reply begins with the code, and else difflib's similarity to
the right text, with difflib's usual heuristic for frequent characters (autojunk). Two
floors are computed from the chats: the score of copying any of their replies after the
code, and of copying any of the --needles ones.
"""

import dataclasses
import difflib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.data import dialogues, prompts
from skipalign_jax.evals import books as books_lib
from skipalign_jax.evals import curves, fill, intervals, mrcr_chats, option_values
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors

MORE_TOKENS = 32  # of a reply than the answer has


@dataclasses.dataclass(frozen=True)
class Options:
  """How many needles, in chats of which lengths."""

  needles: str = "2,4,8"  # equal requests in a chat, 1 to 8
  haystack: str = ""  # books: .txt or .txt.gz files
  lengths: str = "4096,8192"  # tokens of a prompt and its reply, at most
  samples: int = 5  # per number of needles and length
  chat: bool = True  # use the chat template
  seed: int = 0  # of the chats


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """One prompt per number of needles, length and sample.

  Raises:
    UserError: numbers out of range, books that cannot be used, or a length that is too
      short.
  """
  option_values.at_least(options, samples=1, seed=0)
  counts = option_values.numbers("needles", options.needles)
  if counts[-1] > len(mrcr_chats.ORDINALS):
    raise errors.UserError(
      f"--needles={options.needles}: at most {len(mrcr_chats.ORDINALS)}"
    )
  lengths = option_values.numbers("lengths", options.lengths)
  books = books_lib.read(options.haystack)
  return [
    _item(options, subject, books, needles, length, sample)
    for needles in counts
    for length in lengths
    for sample in range(options.samples)
  ]


def _item(options, subject, books, needles, length, sample) -> items_lib.Item:
  rng = np.random.default_rng([options.seed, needles, length, sample])
  replies, seed = mrcr_chats.replies_of(books, rng), rng.integers(1 << 32)
  made = lambda turns: mrcr_chats.make(
    replies, np.random.default_rng(seed), needles, turns
  )
  tokens = lambda turns: _tokens(options, subject, made(turns))
  _check_books(needles, len(replies) >= needles, length)
  new_tokens = len(subject.encode(made(needles).gold, literal=True)) + MORE_TOKENS
  count = lambda turns: len(tokens(turns))
  turns = fill.most(count, length - new_tokens, needles, len(replies))
  if not turns:
    raise errors.UserError(
      f"--lengths={length}: the shortest chat with {needles} needles has "
      f"{count(needles)} tokens, and its reply {new_tokens}"
    )
  _check_books(needles, turns < len(replies), length)
  chat = made(turns)
  any_reply, any_needle = floors(chat)
  return items_lib.of_prompt(
    f"{needles}/{length}/{sample}",
    items_lib.Prompt(tuple(tokens(turns)), new_tokens, subject.stop_ids),
    needles=needles,
    length=length,
    turns=turns,
    wanted=chat.needles.index(chat.wanted) + 1,
    code=chat.code,
    answer=chat.turns[chat.wanted][1],
    floor_any_reply=any_reply,
    floor_any_needle=any_needle,
  )


def _check_books(needles: int, enough: bool, length: int) -> None:
  if not enough:
    raise errors.UserError(
      f"--haystack: the books have too few sentences for a chat of {length} tokens "
      f"with {needles} needles; name more books, or shorten --lengths"
    )


def _tokens(options, subject, chat: mrcr_chats.Chat) -> list[int]:
  """The tokens of a prompt."""
  if not options.chat:
    lines = [f"{role.title()}: {content}\n" for role, content in chat.messages]
    return subject.encode_prompt("".join(lines) + "Assistant:", chat=False)[0]
  if not subject.tokenizer.chat_template:
    subject.chat("")  # raises the error that says so
  try:
    return prompts.of_dialogue(subject.tokenizer, dialogues.plain(chat.messages))
  except dialogues.BadSample as bad:
    raise errors.UserError(
      f"the chat template refuses a chat of several turns ({bad.reason}); use "
      "--chat=False"
    ) from bad


def similarity(text: str, expected: str) -> float:
  """difflib's ratio of two texts, 0 to 1; not symmetric."""
  return difflib.SequenceMatcher(None, text, expected).ratio()


def score(reply: str, code: str, answer: str) -> float:
  """0 unless the reply begins with the code, else the similarity of what follows.

  White space before the reply does not count.
  """
  reply = reply.lstrip()
  return similarity(reply[len(code) :], answer) if reply.startswith(code) else 0.0


def floors(chat: mrcr_chats.Chat) -> tuple[float, float]:
  """Expected scores of copying, after the code, any reply and any needle."""
  answer = chat.turns[chat.wanted][1]
  found = [similarity(reply, answer) for _, reply in chat.turns]
  return float(np.mean(found)), float(np.mean([found[i] for i in chat.needles]))


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Replies, their scores, and whether they begin with the code."""
  del options
  found = []
  for item, reply in zip(batch, items_lib.replies(subject, batch), strict=True):
    code = item.record["code"]
    found.append(
      {
        "reply": reply,
        "begins": reply.lstrip().startswith(code),
        "score": score(reply, code, item.record["answer"]),
      }
    )
  return found


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """Mean scores, 0 to 1: of all, by needles, by length, by both; and the floors."""
  del options
  overall = intervals.of_scores([record["score"] for record in records])
  mean = lambda key, some: float(np.mean([record[key] for record in some]))
  groups = {
    count: [record for record in records if str(record["needles"]) == count]
    for count in dict.fromkeys(str(record["needles"]) for record in records)
  }
  floor_names = ("floor_any_reply", "floor_any_needle")
  return {
    "average": overall["mean"],
    "version": "ours, offline: sentences of books as replies",
    "begins_with_the_code": mean("begins", records),
    **{name: mean(name, records) for name in floor_names},
    "interval": overall,
    "by_needles": intervals.by("needles", records),
    "by_length": intervals.by("length", records),
    "floors_by_needles": {
      count: {name: mean(name, some) for name in floor_names}
      for count, some in groups.items()
    },
    "table": {
      f"{count} needles": {
        length: found["mean"] for length, found in intervals.by("length", some).items()
      }
      for count, some in groups.items()
    },
  }


def draw(
  options: Options, results: dict[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
  """mrcr.png: score by length, one line per number of needles."""
  del options
  summary = results["summary"]
  title = f"MRCR (ours): {100 * summary['average']:.1f}"
  return curves.draw_table(results, folder / "mrcr.png", title, "score")

"""BABILong, our offline version of qa1, qa2 and qa3: facts of a story among sentences.

Tasks and score are those of BABILong (2406.10149); stories are simulated
(`babilong_stories`), books of --haystack take the place of PG19, and the words are our
own. So names say "ours", and scores are not those of the original. Background are
sentences of at least ten words, from a random one on, without those that name one of
the story's people; the last one is cut so that prompt and longest reply together have
at most --lengths tokens. Each fact goes to a random gap between sentences; facts keep
their order and may touch. Length 0 is the story alone. A story has at most a line for
eight tokens of background.

A reply is right if the rooms in its first sentence, without those in the question, are
exactly the expected one. A random room has 1/6.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import (
  babilong_stories,
  curves,
  fill,
  intervals,
  option_values,
)
from skipalign_jax.evals import books as books_lib
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors

MAX_NEW_TOKENS = 32
FRAME = 300  # tokens of a length that are not background, as in BABILong
RULES = {
  "qa1": (
    "The facts say which room people go to. The latest move of a person counts.",
    "PERSON is in the ROOM.",
  ),
  "qa2": (
    "The facts say which room people go to and what they pick up and put down. A thing "
    "is where the person is who holds it, or where it was put down.",
    "The THING is in the ROOM.",
  ),
  "qa3": (
    "The facts say which room people go to and what they pick up and put down. A thing "
    "goes with the person who holds it. You are asked in which room it was just before "
    "another one.",
    "Before the ROOM the THING was in the ROOM.",
  ),
}
# Two solved stories each, of other people, rooms and things.
EXAMPLES = {
  "qa1": (
    "Olga went over to the library. Peter came into the cellar. Olga headed for the "
    "attic.\nWhere is Olga?\nOlga is in the attic.",
    "Peter walked into the garage. Olga hurried to the library.\nWhere is Peter?\n"
    "Peter is in the garage.",
  ),
  "qa2": (
    "Olga went over to the library. Olga took the lamp. Olga headed for the attic.\n"
    "Where is the lamp?\nThe lamp is in the attic.",
    "Peter walked into the garage. Peter lifted the ladder. Peter came into the "
    "cellar. Peter dropped the ladder. Peter headed for the attic.\n"
    "Where is the ladder?\nThe ladder is in the cellar.",
  ),
  "qa3": (
    "Olga went over to the library. Olga took the lamp. Olga headed for the attic.\n"
    "Where was the lamp before the attic?\n"
    "Before the attic the lamp was in the library.",
    "Peter walked into the garage. Peter lifted the ladder. Peter came into the "
    "cellar. Peter hurried to the attic.\nWhere was the ladder before the cellar?\n"
    "Before the cellar the ladder was in the garage.",
  ),
}


@dataclasses.dataclass(frozen=True)
class Options:
  """Which tasks, in which text, and at which lengths."""

  tasks: str = "qa1,qa2,qa3"  # commas between them
  haystack: str = ""  # books: .txt or .txt.gz files
  lengths: str = "1024,2048,4096"  # tokens of a prompt and its reply; 0: no background
  samples: int = 10  # per task and length
  chat: bool = True  # use the chat template
  seed: int = 0  # of stories and places


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """One prompt per task, length and sample.

  Raises:
    UserError: unknown task, books that cannot be used, numbers out of range, or a
      length that is too short.
  """
  names = option_values.names("tasks", options.tasks, tuple(babilong_stories.LINES))
  option_values.at_least(options, samples=1, seed=0)
  lengths = option_values.numbers("lengths", options.lengths, least=0)
  background = background_of(books_lib.read(options.haystack))
  return [
    _item(options, subject, background, name, length, sample)
    for name in names
    for length in lengths
    for sample in range(options.samples)
  ]


def background_of(books: books_lib.Books) -> books_lib.Books:
  """The sentences that may stand between facts.

  Raises:
    UserError: there are none.
  """
  people = set(babilong_stories.PEOPLE)
  kept = tuple(
    sentence
    for sentence in books.sentences
    if len(sentence.split()) >= 10 and not any(name in sentence for name in people)
  )
  if not kept:
    raise errors.UserError(
      "--haystack: the books have no sentence of ten words or more; name other ones"
    )
  return books_lib.Books(kept)


def _item(options, subject, background, name, length, sample) -> items_lib.Item:
  rng = np.random.default_rng([options.seed, int(name[2:]), length, sample])
  low, high = babilong_stories.LINES[name]
  most = (length - FRAME) // 8 if length else high
  if most < low:
    raise errors.UserError(
      f"--lengths={length}: stories of {name} need at least {FRAME + 8 * low} tokens"
    )
  story = babilong_stories.tell(name, rng, most)
  first, seed = rng.integers(len(background.sentences)), rng.integers(1 << 32)

  def tokens(words: int) -> list[int]:
    text = _mixed(background.words(int(first), words), story.lines, seed)
    before, after = subject.around(options.chat, "" if options.chat else "\n")
    whole = before + prompt(name, text, story.question) + after
    return subject.encode_prompt(whole, options.chat)[0]

  words = _words_that_fit(tokens, name, length) if length else 0
  return items_lib.of_prompt(
    f"{name}/{length}/{sample}",
    items_lib.Prompt(tuple(tokens(words)), MAX_NEW_TOKENS, subject.stop_ids),
    task=f"babilong_{name} (ours)",
    length=length,
    facts=len(story.lines),
    question=story.question,
    expected=story.answer,
  )


def _mixed(sentences: Sequence[str], facts: Sequence[str], seed: int) -> str:
  """Sentences with each fact at a random place; facts keep their order."""
  rng = np.random.default_rng(seed)
  places = sorted(rng.integers(len(sentences) + 1, size=len(facts)).tolist())
  return " ".join(books_lib.put_between(sentences, facts, places))


def _words_that_fit(tokens, name: str, length: int) -> int:
  words = fill.most(lambda words: len(tokens(words)), length - MAX_NEW_TOKENS, 1)
  if not words:
    raise errors.UserError(
      f"--lengths={length}: a prompt of {name} has {len(tokens(1))} tokens without "
      f"background, and its reply {MAX_NEW_TOKENS}"
    )
  return words


def prompt(name: str, text: str, question: str) -> str:
  """The content of the user message."""
  rule, form = RULES[name]
  examples = "\n\n".join(f"<example>\n{x}\n</example>" for x in EXAMPLES[name])
  return (
    f"Facts about people stand in a text that is about something else. {rule} Answer "
    f"the question after the text from these facts alone.\n\n{examples}\n\n"
    f"Reply with one sentence of this form and nothing else: {form}\n\n"
    f"<context>\n{text}\n</context>\n\n{question}"
  )


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Replies and whether they are right."""
  del options
  found = []
  for item, reply in zip(batch, items_lib.replies(subject, batch), strict=True):
    right = is_right(reply, item.record["question"], item.record["expected"])
    found.append({"reply": reply, "score": float(right)})
  return found


def is_right(reply: str, question: str, expected: str) -> bool:
  """Whether the reply's first sentence names the expected room and no other.

  Rooms of the question do not count. What follows "<context>" or "<example>" is not
  part of the reply.
  """
  text = reply.lower()
  for end in (".", "<context>", "<example>"):
    text = text.partition(end)[0]
  asked = question.lower()
  named = {x for x in babilong_stories.ROOMS if x in text and x not in asked}
  return named == {expected}


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """Shares of right replies: of all, by task, by length, and by both."""
  del options
  overall = intervals.of_scores([record["score"] for record in records])
  names = dict.fromkeys(record["task"] for record in records)
  by_length = {
    name: intervals.by("length", [x for x in records if x["task"] == name])
    for name in names
  }
  return {
    "average": overall["mean"],
    "version": "ours, offline: simulated stories, books as background",
    "random_room": 1 / len(babilong_stories.ROOMS),
    "interval": overall,
    "by_task": intervals.by("task", records),
    "by_length": intervals.by("length", records),
    "table": {
      name: {length: found["mean"] for length, found in row.items()}
      for name, row in by_length.items()
    },
  }


def draw(
  options: Options, results: dict[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
  """babilong.png: right replies by length, one line per task."""
  del options
  summary = results["summary"]
  title = f"BABILong (ours): {100 * summary['average']:.1f}"
  return curves.draw_table(results, folder / "babilong.png", title, "right replies")

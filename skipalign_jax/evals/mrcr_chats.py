"""Chats in which the same request stands several times, with a different reply each.

A request asks for a format about a topic. Replies are runs of sentences of books, so
nothing but order leads from a request to its reply. Other requests share the format or
the topic with the repeated one.
"""

import dataclasses
import string
from collections.abc import Sequence

import numpy as np

from skipalign_jax.evals import books as books_lib

FORMATS = (
  "anecdote", "blog post", "diary entry", "fable", "letter", "news report", "poem",
  "postcard", "review", "scene", "sermon", "speech",
)  # fmt: skip
TOPICS = (
  "apples", "bees", "boats", "bridges", "candles", "caves", "chess", "clocks",
  "deserts", "dreams", "eagles", "fog", "forests", "gardens", "glass", "harvests",
  "horses", "islands", "keys", "ladders", "lighthouses", "maps", "markets", "mirrors",
  "moths", "mountains", "music", "night trains", "owls", "patience", "pirates",
  "rivers", "shadows", "snow", "teachers", "tea", "thunder", "umbrellas", "volcanoes",
  "wool",
)  # fmt: skip
ORDINALS = (
  "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth",
)  # fmt: skip
SENTENCES = (3, 6)  # of a reply
WORDS = (10, 150)  # of a reply; runs with fewer or more are passed over
CODE_LENGTH = 10
# What precedes the chat in its first message. Its format and topic are in no list.
EXAMPLE = (
  "This is a chat in which you write short texts. In the end you are asked to repeat "
  "one of them. This is how such a chat goes:\n\n"
  "User: Write a riddle about stairs.\n"
  "Assistant: I go up and down and never move. Who am I?\n"
  "User: Write a riddle about stairs.\n"
  "Assistant: The more of me you climb, the fewer are left. What am I?\n"
  "User: Reply with 7bQx20LmZe and directly after it the second riddle about stairs of "
  "this chat, word for word and without anything else.\n"
  "Assistant: 7bQx20LmZeThe more of me you climb, the fewer are left. What am I?\n\n"
  "Now the chat begins.\n\n"
)


@dataclasses.dataclass(frozen=True)
class Chat:
  """A chat and what is asked at its end.

  Attributes:
    turns: request and reply.
    needles: numbers of the turns that have the same request, in order.
    wanted: number of the turn whose reply is asked for.
    code: letters and digits that the answer begins with.
    ask: the last message.
  """

  turns: tuple[tuple[str, str], ...]
  needles: tuple[int, ...]
  wanted: int
  code: str
  ask: str

  @property
  def gold(self) -> str:
    """The right answer."""
    return self.code + self.turns[self.wanted][1]

  @property
  def messages(self) -> list[tuple[str, str]]:
    """(role, content) of all messages, the example in the first."""
    found = []
    for request, reply in self.turns:
      found += [("user", request), ("assistant", reply)]
    found[0] = ("user", EXAMPLE + found[0][1])
    return [*found, ("user", self.ask)]


def make(
  replies: Sequence[str], rng: np.random.Generator, needles: int, turns: int
) -> Chat:
  """A chat; the answer is the same for every number of turns.

  Args:
    replies: at least `turns`; each is used once at most.
    rng: draws the chat.
    needles: times that the request stands in it.
    turns: requests and replies, at least `needles`.
  """
  wanted = int(rng.integers(needles))
  code = "".join(rng.choice(list(string.ascii_letters + string.digits), CODE_LENGTH))
  kind, topic = str(rng.choice(FORMATS)), str(rng.choice(TOPICS))
  at = sorted(rng.spawn(1)[0].choice(turns, needles, replace=False).tolist())
  asked = [(kind, topic)] * needles + _others(kind, topic, turns - needles, rng)
  pairs = list(zip(map(_request, asked), replies[:turns], strict=True))
  rest = iter(pairs[needles:])
  order = [pairs[at.index(i)] if i in at else next(rest) for i in range(turns)]
  ask = (
    f"Reply with {code} and directly after it the {ORDINALS[wanted]} {kind} about "
    f"{topic} of this chat, word for word and without anything else."
  )
  return Chat(tuple(order), tuple(at), at[wanted], code, ask)


def _request(asked: tuple[str, str]) -> str:
  kind, topic = asked
  return f"Write {'an' if kind[0] in 'aeiou' else 'a'} {kind} about {topic}."


def _others(
  kind: str, topic: str, count: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
  """Requests that share the format or the topic, not both."""
  found = []
  for _ in range(count):
    if rng.random() < 0.5:
      found.append((kind, str(rng.choice([x for x in TOPICS if x != topic]))))
    else:
      found.append((str(rng.choice([x for x in FORMATS if x != kind])), topic))
  return found


def replies_of(books: books_lib.Books, rng: np.random.Generator) -> list[str]:
  """Runs of sentences from a random one on, once through the books."""
  total = len(books.sentences)
  first, used = int(rng.integers(total)), 0
  found = []
  while used + SENTENCES[0] <= total:
    count = min(int(rng.integers(SENTENCES[0], SENTENCES[1] + 1)), total - used)
    run = [books.sentences[(first + used + i) % total] for i in range(count)]
    used += count
    if WORDS[0] <= sum(len(sentence.split()) for sentence in run) <= WORDS[1]:
      found.append(" ".join(run))
  return found

"""Facts of eight kinds, each with values of its own, for the task `facts`."""

import dataclasses
import itertools
import re

import numpy as np

from skipalign_jax.runtime import errors

ABSENT = 8  # values of its kind that an answer is compared with


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of fact.

  Attributes:
    name: of the kind.
    statement: a sentence; {value} is the value.
    question: that asks for the value.
    reply: the beginning of the reply, up to the value.
    values: all of them; none is a part of another.
  """

  name: str
  statement: str
  question: str
  reply: str
  values: tuple[str, ...]


def _numbers(least: int, end: int) -> tuple[str, ...]:
  return tuple(map(str, range(least, end)))


SHIPS = (
  "Albacore", "Antares", "Bellerophon", "Calypso", "Cormorant", "Dauntless", "Endymion",
  "Erebus", "Fearless", "Gannet", "Halcyon", "Hesperus", "Icarus", "Juno", "Kestrel",
  "Leviathan", "Meridian", "Narwhal", "Oberon", "Petrel", "Quantock", "Rosamund",
  "Sirius", "Tantalus", "Undine", "Vanguard", "Wyvern", "Zephyr",
)  # fmt: skip
CATS = (
  "Bramble", "Cinders", "Domino", "Figaro", "Fluff", "Ginkgo", "Hobnob", "Inky",
  "Jinx", "Kipper", "Loki", "Marmalade", "Mittens", "Noodles", "Oreo", "Pickles",
  "Pumpkin", "Rascal", "Sooty", "Tabitha", "Tigger", "Truffle", "Velcro", "Waffles",
  "Whiskers", "Widget", "Yoyo", "Ziggy",
)  # fmt: skip
FRUITS = (
  "apricot", "avocado", "blackcurrant", "cantaloupe", "clementine", "coconut",
  "cranberry", "damson", "elderberry", "gooseberry", "grapefruit", "guava", "kumquat",
  "lychee", "mango", "mulberry", "nectarine", "papaya", "persimmon", "pineapple",
  "pomegranate", "quince", "raspberry", "satsuma", "starfruit", "tamarind",
  "tangerine", "watermelon",
)  # fmt: skip
CITIES = (
  "Antwerp", "Basel", "Bergen", "Bilbao", "Bologna", "Bratislava", "Cardiff",
  "Gdansk", "Ghent", "Innsbruck", "Leipzig", "Ljubljana", "Maastricht", "Malaga",
  "Nairobi", "Odense", "Osaka", "Palermo", "Porto", "Reykjavik", "Salzburg", "Tallinn",
  "Tampere", "Trieste", "Utrecht", "Valencia", "Vilnius", "Zagreb",
)  # fmt: skip
_FIRST = "acorn,badger,cobalt,dragon,ember,falcon,gravel,heron,indigo,juniper".split(
  ","
)
_SECOND = "anvil,beacon,comet,dagger,engine,fiddle,gasket,hatchet,inkwell".split(",")
PASSWORDS = tuple(map("".join, itertools.product(_FIRST, _SECOND)))

KINDS = (
  Kind(
    "pass key",
    "The pass key of the vault is {value}.",
    "What is the pass key of the vault?",
    "The pass key of the vault is ",
    _numbers(10_000, 100_000),
  ),
  Kind(
    "ship",
    "The ship that lies in the harbour is called {value}.",
    "What is the ship that lies in the harbour called?",
    "The ship that lies in the harbour is called ",
    SHIPS,
  ),
  Kind(
    "cat",
    "The cat of the lighthouse keeper has the name {value}.",
    "Which name does the cat of the lighthouse keeper have?",
    "The cat of the lighthouse keeper has the name ",
    CATS,
  ),
  Kind(
    "fruit",
    "The fruit that the painter likes best is the {value}.",
    "Which fruit does the painter like best?",
    "The fruit that the painter likes best is the ",
    FRUITS,
  ),
  Kind(
    "city",
    "The next meeting of the chess club is in {value}.",
    "In which city is the next meeting of the chess club?",
    "The next meeting of the chess club is in ",
    CITIES,
  ),
  Kind(
    "price",
    "The price of the blue carpet is {value} dollars.",
    "What is the price of the blue carpet?",
    "The price of the blue carpet is ",
    _numbers(1000, 10_000),
  ),
  Kind(
    "password",
    "The password of the printer is {value}.",
    "What is the password of the printer?",
    "The password of the printer is ",
    PASSWORDS,
  ),
  Kind(
    "platform",
    "The train to the mountains leaves from platform {value}.",
    "From which platform does the train to the mountains leave?",
    "The train to the mountains leaves from platform ",
    _numbers(11, 100),
  ),
)
# Words that no training text may have, where the test is to ask for new ones.
WORDS = (*SHIPS, *CATS, *FRUITS, *CITIES, *PASSWORDS)
_WORD = re.compile(r"\w+")
# In the line 0, 1, -1, 2, -2 … shifted by 0 … 7, each kind follows each other one once.
_LINE = (0, 1, 7, 2, 6, 3, 5, 4)


def order(text: int) -> list[Kind]:
  """The kinds of a text by depth: a line of a Latin square, balanced for neighbours.

  Over eight texts in a row each kind is at each depth once, and right after each other
  kind once.
  """
  n = len(KINDS)
  return [KINDS[(place + text) % n] for place in _LINE]


def words_of(text: str) -> set[str]:
  """All words and numbers of a text, in lower case."""
  return set(_WORD.findall(text.lower()))


def draw(kind: Kind, rng: np.random.Generator, present: set[str]) -> list[str]:
  """Different values of a kind that a text does not have: the answer, then the absent.

  All orders are equally likely, so that a guess that does not read the text prefers
  the answer to the others by nothing on average.

  Args:
    kind: whose values are drawn.
    rng: draws.
    present: words of the text, as of `words_of`.

  Raises:
    UserError: there are too few.
  """
  left = [value for value in kind.values if value.lower() not in present]
  if len(left) <= ABSENT:
    raise errors.UserError(
      f"--haystack: its text has so many values of the kind {kind.name!r} that only "
      f"{len(left)} are left; {ABSENT + 1} are needed: choose another book"
    )
  return [left[i] for i in rng.choice(len(left), ABSENT + 1, replace=False)]

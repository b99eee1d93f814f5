"""Built-in dialogues: facts in the first turn, questions about them turns later.

The default data, which needs no download, and test data with known long-range
dependencies. `record` is a pure function of (seed, index).
"""

import itertools
from typing import Any

import numpy as np

_PEOPLE = (
  "Amara", "Bastian", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hiro", "Ingrid",
  "Jonas", "Kamila", "Leandro", "Mireille", "Noor", "Oskar", "Priya", "Quentin",
  "Rosalind", "Soren", "Tamsin", "Umberto", "Vera", "Wanjiru", "Yusuf", "Zofia",
)  # fmt: skip
_PLACES = (
  "the old lighthouse", "the bakery on Mill Lane", "the north station", "the botanical "
  "garden", "the harbour office", "the music school", "the stone bridge", "the market "
  "hall", "the observatory", "the ferry pier", "the glass workshop", "the mountain hut",
)  # fmt: skip
_THINGS = (
  "a brass compass", "a green umbrella", "a jar of honey", "a violin case", "a map of "
  "the coast", "a red bicycle", "a box of chalk", "a silver whistle", "a paper kite",
  "a wool blanket", "a telescope", "a set of keys", "a clay teapot", "a bag of seeds",
)  # fmt: skip
_DAYS = (
  "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip

# Each kind of fact: its statements, its questions, its answers.
_FACTS = {
  "code": (
    ("the door code of {place} is {value}", "to enter {place} one types {value}"),
    ("What is the door code of {place}?", "Which code opens {place}?"),
    ("The code of {place} is {value}.", "It is {value}."),
  ),
  "meeting": (
    ("{person} meets us on {value}", "the meeting with {person} is on {value}"),
    ("On which day do we meet {person}?", "When is the meeting with {person}?"),
    ("You meet {person} on {value}.", "On {value}."),
  ),
  "gift": (
    ("{person} wants {value} for the birthday", "the gift for {person} is {value}"),
    ("What is the gift for {person}?", "What did {person} want for the birthday?"),
    ("{person} gets {value}.", "It is {value}."),
  ),
  "home": (
    ("{person} now lives near {value}", "{person} moved to a flat by {value}"),
    ("Where does {person} live now?", "Near what is {person}'s flat?"),
    ("{person} lives near {value}.", "Near {value}."),
  ),
}
_VALUES = {"meeting": _DAYS, "gift": _THINGS, "home": _PLACES}

_OPENINGS = (
  "Please remember this for later: {facts}.",
  "A few notes before we start: {facts}.",
  "Keep in mind that {facts}.",
)
_NOTED = (
  "Noted. Ask me whenever you need it.",
  "I will remember that.",
  "All right, I have made a note of it.",
)

# Other turns between facts and questions; {n} and {m} are small numbers.
_FILLER = (
  ("What is {n} plus {m}?", "{n} plus {m} is {sum}."),
  ("Is {n} an even number?", "{parity}"),
  ("How do I keep bread fresh for {n} days?",
   "Wrap it in a cloth, keep it in a box away from the sun, and toast it when it gets "
   "dry. For longer than {n} days, slice it and put it into the freezer."),
  ("Give me an idea for a walk of {n} kilometres.",
   "Start at {place}, follow the water for about {m} kilometres, rest under the trees, "
   "and come back by the road past {other}."),
  ("I slept only {n} hours. Any advice?",
   "Drink water, take a short walk in daylight, keep lunch light, and go to bed an "
   "hour earlier tonight."),
  ("How many minutes are {n} hours?", "{n} hours are {minutes} minutes."),
  ("Name something I could cook with {n} potatoes.",
   "Boil the {n} potatoes, slice them, and bake them with onions, cream and a little "
   "nutmeg until the top is brown."),
)  # fmt: skip


def record(seed: int, index: int) -> dict[str, Any]:
  """Dialogue number `index`: 2 to 8 user turns, in the `messages` schema."""
  rng = np.random.default_rng((seed, index))
  pick = lambda options: options[rng.integers(len(options))]
  people = [_PEOPLE[i] for i in rng.permutation(len(_PEOPLE))]
  places = [_PLACES[i] for i in rng.permutation(len(_PLACES))]

  facts = []
  for person, place in zip(people, places[: rng.integers(1, 4)], strict=False):
    kind = pick(tuple(_FACTS))
    value = str(rng.integers(1000, 10_000)) if kind == "code" else pick(_VALUES[kind])
    facts.append((kind, dict(person=person, place=place, value=value)))
  stated = [pick(_FACTS[kind][0]).format(**names) for kind, names in facts]

  turns = [(pick(_OPENINGS).format(facts=", and ".join(stated)), pick(_NOTED))]
  for _ in range(rng.integers(0, 5)):
    n, m = (int(x) for x in rng.integers(2, 60, 2))
    words = dict(
      n=n,
      m=m,
      sum=n + m,
      minutes=60 * n,
      parity=f"{'No' if n % 2 else 'Yes'}, {n} is {'odd' if n % 2 else 'even'}.",
      place=pick(_PLACES),
      other=pick(_PLACES),
    )
    question, answer = pick(_FILLER)
    turns.append((question.format(**words), answer.format(**words)))
  for i in rng.permutation(len(facts)):
    kind, names = facts[i]
    turns.append((pick(_FACTS[kind][1]).format(**names),
                  pick(_FACTS[kind][2]).format(**names)))  # fmt: skip
  messages = []
  for question, answer in turns:
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": answer})
  return {"id": f"recall/{seed}/{index}", "messages": messages}


def pair(seed: int, index: int) -> dict[str, Any]:
  """Preference pair number `index`: facts, a question, and the right and a wrong reply.

  They are the first and the last turn of a `record`; the wrong reply is that of a
  later one.
  """
  messages = record(seed, index)["messages"]
  others = (record(seed, index + i)["messages"][-1] for i in itertools.count(1))
  wrong = next(reply for reply in others if reply != messages[-1])
  prompt = [*messages[:2], messages[-2]]
  return {
    "id": f"pairs/{seed}/{index}",
    "chosen": [*prompt, messages[-1]],
    "rejected": [*prompt, wrong],
  }

"""Built-in documents: reports whose last sentence refers to the first paragraph.

Plain text that needs no download, with sentences, paragraphs and a dependency that is
as long as the document. `record` is a pure function of (seed, index).
"""

from typing import Any

import numpy as np

_NAMES = (
  "Abel", "Benedikta", "Carsten", "Dolores", "Emeka", "Friederike", "Giorgos", "Hanna",
  "Ismail", "Jadwiga", "Kenji", "Lucia", "Malik", "Nadia", "Olof", "Paulina",
)  # fmt: skip
_THINGS = (
  "the blue ledger", "a sealed letter", "the spare key", "the tide table", "a roll of "
  "film", "the brass lamp", "a basket of pears", "the seed catalogue", "a folded sail",
)  # fmt: skip
_PLACES = (
  "the boat shed", "the upper gallery", "the post room", "the orchard wall",
  "the clock tower", "the weighing house", "the reading room", "the old kiln",
)  # fmt: skip
_SENTENCES = (
  "The wind came from the {side} and the {crowd} went home early.",
  "At {hour} o'clock the ferry left with {count} passengers.",
  "Somebody had painted the door of {place} again.",
  "{name} counted {count} crates and wrote the number down twice.",
  "It rained for {hour} hours; then the street was quiet.",
  "\"Is that all?\" asked {name}, and nobody answered.",
  "The {crowd} spoke about the harvest and about the price of salt.",
  "A cart with {count} sacks stood in front of {place}.",
)  # fmt: skip
_SIDES = ("north", "south", "east", "west")
_CROWDS = ("children", "fishermen", "clerks", "visitors", "musicians")


def record(seed: int, index: int) -> dict[str, Any]:
  """Document number `index`: 3 to 12 paragraphs; every sixteenth has 80 to 120."""
  rng = np.random.default_rng((seed, index))
  pick = lambda options: options[rng.integers(len(options))]
  owner, thing, place = pick(_NAMES), pick(_THINGS), pick(_PLACES)
  paragraphs = [f"{owner} left {thing} at {place}. Nobody else was there to see it."]
  for _ in range(rng.integers(*((80, 121) if index % 16 == 15 else (3, 13)))):
    sentences = [
      pick(_SENTENCES).format(
        name=pick(_NAMES),
        place=pick(_PLACES),
        side=pick(_SIDES),
        crowd=pick(_CROWDS),
        hour=rng.integers(2, 12),
        count=rng.integers(12, 90),
      )
      for _ in range(rng.integers(2, 7))
    ]
    paragraphs.append(" ".join(sentences))
  paragraphs.append(
    f"In the end {owner} went back to {place}. It was still there: {thing}."
  )
  return {"id": f"text/{seed}/{index}", "text": "\n\n".join(paragraphs) + "\n"}

"""Stories of people, rooms and things in the manner of bAbI's first three tasks.

qa1: where is a person (the last move counts). qa2: where is a thing (with who holds it,
or where it was put down). qa3: where was a thing before a room. Stories, words and
questions are simulated here; nothing is taken from bAbI (1502.05698).
"""

import dataclasses

import numpy as np

PEOPLE = ("Mary", "John", "Sandra", "Daniel")
ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
MOVES = ("walked into", "went over to", "headed for", "came into", "hurried to")
TAKES = ("picked up", "took", "got hold of", "lifted")
DROPS = ("put down", "dropped", "let go of")
LINES = {"qa1": (2, 10), "qa2": (4, 30), "qa3": (8, 60)}  # of a story
_SHARE_OF_MOVES = 0.6  # where something else is possible


@dataclasses.dataclass(frozen=True)
class Story:
  """Facts in their order, a question about them, and its answer.

  Attributes:
    lines: one fact each.
    question: ends with a question mark.
    answer: a room.
    sentence: the answer in the form that a reply should have.
  """

  lines: tuple[str, ...]
  question: str
  answer: str
  sentence: str


class World:
  """Where everything is, and the facts that say so.

  A thing is anywhere until somebody takes it, which shows where it was.

  Attributes:
    rooms: of people who have moved.
    holders: of things that somebody holds.
    trails: of each thing the known rooms, in order; no room follows itself.
    lines: the facts so far.
  """

  def __init__(self, rng: np.random.Generator, things: bool):
    """Nothing has happened yet; without `things` people only move."""
    self.rooms: dict[str, str] = {}
    self.holders: dict[str, str] = {}
    self.trails: dict[str, list[str]] = {}
    self.lines: list[str] = []
    self._rng = rng
    self._things = THINGS if things else ()

  def _one_of(self, options) -> str:
    return options[self._rng.integers(len(options))]

  def step(self) -> None:
    """Somebody moves, takes something or puts something down."""
    person = self._one_of(PEOPLE)
    held = [thing for thing in self._things if self.holders.get(thing) == person]
    here = self.rooms.get(person)
    free = [
      thing
      for thing in self._things
      if here
      and thing not in self.holders
      and self.trails.get(thing, [here])[-1] == here
    ]
    if not held + free or self._rng.random() < _SHARE_OF_MOVES:
      self._move(person, held)
      return
    thing = self._one_of(held + free)
    if thing in held:
      del self.holders[thing]
      self.lines.append(f"{person} {self._one_of(DROPS)} the {thing}.")
    else:
      self.holders[thing] = person
      self.trails.setdefault(thing, [here])
      self.lines.append(f"{person} {self._one_of(TAKES)} the {thing}.")

  def _move(self, person: str, held: list[str]) -> None:
    room = self._one_of([room for room in ROOMS if room != self.rooms.get(person)])
    self.rooms[person] = room
    for thing in held:
      self.trails[thing].append(room)
    self.lines.append(f"{person} {self._one_of(MOVES)} the {room}.")

  def questions(self, task: str) -> list[tuple[str, str, str]]:
    """All questions of a task with one answer: question, answer, its sentence."""
    if task == "qa1":
      return [
        (f"Where is {one}?", room, f"{one} is in the {room}.")
        for one, room in self.rooms.items()
      ]
    if task == "qa2":
      return [
        (f"Where is the {one}?", trail[-1], f"The {one} is in the {trail[-1]}.")
        for one, trail in self.trails.items()
      ]
    return [
      (
        f"Where was the {one} before the {room}?",
        trail[i],
        f"Before the {room} the {one} was in the {trail[i]}.",
      )
      for one, trail in self.trails.items()
      for i, room in enumerate(trail[1:])
      if trail.count(room) == 1
    ]


def tell(task: str, rng: np.random.Generator, most: int) -> Story:
  """A story of at most `most` lines, cut at its question.

  Args:
    task: one of LINES.
    rng: draws it.
    most: at least the first number of LINES.
  """
  low, high = LINES[task]
  while True:
    world = World(rng, things=task != "qa1")
    for _ in range(rng.integers(low, min(high, most) + 1)):
      world.step()
    if asked := world.questions(task):
      question, answer, sentence = asked[rng.integers(len(asked))]
      return Story(tuple(world.lines), question, answer, sentence)

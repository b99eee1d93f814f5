"""What a chat template writes before a message: its text, with holes for thoughts."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from skipalign_jax.data import thoughts
from skipalign_jax.runtime import errors

DEPENDS = "writes a message depending on its content"


class UnusableError(errors.UserError):
  """A template in whose text spans cannot be found."""

  def __init__(self, problem: str):
    super().__init__(
      f"the tokenizer's chat template {problem}, so replies cannot be separated from "
      "the rest; set data.template=tulu"
    )


class Call(NamedTuple):
  """Where a reply that calls tools is in a part.

  Attributes:
    begin: its first character.
    end: of its stop token.
    stable: what precedes it is its prompt.
  """

  begin: int
  end: int
  stable: bool = True


@dataclasses.dataclass(frozen=True)
class Part:
  """A fixed part, before a marked message.

  Attributes:
    text: the whole part.
    block: its first characters end the message before.
    prompt: the text up to the end of the generation prompt, which may differ from the
      beginning of `text`. Before a reply only.
    stable: it and what precedes are the same when nothing follows the message.
    first: its first characters end the first message that it ends.
    calls: by the number of a message that calls tools; None where the call is not what
      a model is asked for.
    thinking: numbers of the messages whose thoughts are the holes in `text`.
  """

  text: str
  block: int
  prompt: str = ""
  stable: bool = True
  first: int = 0
  calls: Mapping[int, Call | None] = dataclasses.field(default_factory=dict)
  thinking: tuple[int, ...] = ()

  def beginning(self) -> str:
    """What every text has here: `text`, or `prompt` where a reply may add to it."""
    begins = self.text.startswith(self.prompt or "\0")
    return (self.prompt if begins else self.text).partition(thoughts.HOLE)[0]

  def filled(self, texts: Sequence[str]) -> Part:
    """The part with a text in each hole."""
    pieces = self.text.split(thoughts.HOLE)
    ends = list(itertools.accumulate(len(piece) + 1 for piece in pieces))

    def moved(place: int) -> int:
      before = bisect.bisect_right(ends, place)
      return place + sum(len(text) - 1 for text in texts[:before])

    filled = "".join(itertools.chain(*zip(pieces, (*texts, ""), strict=True)))
    calls = {
      number: call and call._replace(begin=moved(call.begin), end=moved(call.end))
      for number, call in self.calls.items()
    }
    return dataclasses.replace(
      self,
      text=filled,
      block=moved(self.block),
      first=moved(self.first),
      calls=calls,
    )

  def prompt_in(self, text: str, at: int) -> int:
    """Characters of the generation prompt that `text` has at `at`."""
    return len(self.prompt if text.startswith(self.prompt, at) else self.text)

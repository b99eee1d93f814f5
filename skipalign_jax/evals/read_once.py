"""A text that is read once, and several questions and answers after it."""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors


@dataclasses.dataclass(frozen=True)
class Text:
  """A text, and the questions after it.

  Attributes:
    shared: token ids of the text and of what comes before it.
    tails: for each question and each answer that is scored after it, in this order,
      token ids of the question and the reply, answer included.
    starts: for each tail, the index at which the answer begins.
  """

  shared: tuple[int, ...]
  tails: tuple[tuple[int, ...], ...]
  starts: tuple[int, ...]

  @property
  def tokens(self) -> int:
    """Of the text with its longest tail."""
    return len(self.shared) + max(map(len, self.tails))


def split(
  task: str,
  subject: subject_lib.Subject,
  text: str,
  tails: Sequence[tuple[str, str]],
  chat: bool,
) -> Text:
  """The tokens of a text with each tail, divided where the text ends.

  Tokens of both the text and a tail belong to the tail, and tokens of both a question
  and its answer to the answer.

  Args:
    task: its name, for the error.
    subject: whose tokens count.
    text: what all tails follow, with all that the chat template writes before it.
    tails: (what comes before an answer, the answer).
    chat: as in `Subject.encode_prompt`.

  Raises:
    UserError: the tokens of the text depend on the question.
  """
  shared: list[int] | None = None
  parts, starts = [], []
  for before, answer in tails:
    ids, ends = subject.encode_prompt(text + before + answer, chat)
    n = bisect.bisect_right(ends, len(text))
    shared = ids[:n] if shared is None else shared
    if ids[:n] != shared:
      raise errors.UserError(
        f"{task}: with this tokenizer the tokens of a text depend on the question "
        "after it, so that the text cannot be read once for all questions; use needle"
      )
    parts.append(tuple(ids[n:]))
    starts.append(bisect.bisect_right(ends, len(text + before)) - n)
  return Text(tuple(shared or ()), tuple(parts), tuple(starts))


def score(
  subject: subject_lib.Subject, text: Text, row: int
) -> tuple[list[float], list[float]]:
  """For each tail: log p of its answer in nats, and 1 where greedy decoding writes it.

  Args:
    subject: the model.
    text: what it reads.
    row: the number of the text in its batch, for the error.

  Raises:
    NotFiniteError: of this row.
  """
  try:
    scored = subject.engine.score_after(text.shared, text.tails, text.starts)
  except errors.NotFiniteError as error:
    raise errors.NotFiniteError(row) from error
  log_p = [round(float(np.sum(log_p)), 4) for log_p, _ in scored]
  return log_p, [float(likeliest.all()) for _, likeliest in scored]

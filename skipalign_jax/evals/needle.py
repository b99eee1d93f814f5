"""Needle in a haystack: can a model find one sentence in a long text?

sandwich: the sentence of Kamradt's test with the score of Fu et al., as in SkipAlign's
Figure 3. passkey: five random digits (Mohtashami and Jaggi, 2305.16300). A prompt has
exactly the given number of tokens, chat template and question included (see
`haystack.Haystack.fill`). The needle goes to depth · length and from there back to the
last full stop; at depth 1 it is the end of the text.
"""

import dataclasses
import pathlib
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import haystack, heatmap, intervals, option_values
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors

FACT = (
  "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on "
  "a sunny day."
)
FACT_QUESTION = "What is the best thing to do in San Francisco?"
FACT_ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day."
KEY = "The secret pass key is {key}. Keep in mind that {key} is the pass key."
KEY_QUESTION = "What is the secret pass key? Reply with its digits."
BEFORE = "Here is a long text. A question about it follows.\n\n"
AFTER = "\n\nThe text ends here. Answer from the text alone.\nQuestion: {question}"


@dataclasses.dataclass(frozen=True)
class Options:
  """What to hide, where, and in which text."""

  variant: str = "passkey"  # passkey or sandwich
  score: str = "fu"  # of sandwich: fu (a perfect answer has 11/12) or recall
  haystack: str = ""  # .txt or .txt.gz files; by default generated sentences
  lengths: str = "1024,2048,4096"  # tokens of the whole prompt
  depths: str = "5"  # a count of evenly spread depths, or a list of fractions
  samples: int = 1  # per length and depth; each has its own passkey
  own_pages: bool = False  # each sample begins at its own place in the haystack
  max_new_tokens: int = 32  # of a reply, at most
  chat: bool = True  # use the chat template
  seed: int = 0  # of keys and generated text


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """One prompt per length, depth and sample.

  Raises:
    UserError: an unknown variant or score, numbers out of range, or a length that is
      too short.
  """
  if options.variant not in ("passkey", "sandwich"):
    raise errors.UserError(f"--variant={options.variant}: choose passkey or sandwich")
  if options.score not in ("fu", "recall"):
    raise errors.UserError(f"--score={options.score}: choose fu or recall")
  if options.variant == "passkey" and options.score != Options.score:
    raise errors.UserError(
      f"--score={options.score} is for --variant=sandwich; a passkey is in the reply "
      "or not. Leave it out"
    )
  if options.variant == "sandwich" and options.samples > 1 and not options.own_pages:
    raise errors.UserError(
      f"--samples={options.samples}: with --variant=sandwich the samples of a length "
      "and depth are the same prompt; give --own_pages=True, or --samples=1"
    )
  option_values.at_least(options, samples=1, max_new_tokens=1, seed=0)
  texts = haystack.of_samples(
    subject, options.haystack, options.seed, options.samples, options.own_pages
  )
  return [
    _item(options, subject, text, length, depth, sample)
    for length in option_values.numbers("lengths", options.lengths)
    for depth in option_values.depths(options.depths)
    for sample, text in enumerate(texts)
  ]


def asked(
  subject: subject_lib.Subject, question: str, reply: str, chat: bool, **names: str
) -> str:
  """What follows a text up to an answer: the question, and the reply's beginning.

  Without a template the reply is a line of its own.

  Args:
    subject: whose chat template is used.
    question: with names in braces.
    reply: its beginning, with names in braces.
    chat: whether to use the chat template.
    names: what stands for them.
  """
  lead = reply.format(**names)
  _, after = subject.around(chat, lead if chat else "\n" + lead)
  return AFTER.format(question=question.format(**names)) + after


def _item(options, subject, text, length, depth, sample) -> items_lib.Item:
  if options.variant == "passkey":
    answer = _key(options.seed, length, depth, sample)
    fact, question = KEY.format(key=answer), KEY_QUESTION
  else:
    fact, question, answer = FACT, FACT_QUESTION, FACT_ANSWER
  head, tail = subject.around(options.chat)
  _, prompt = text.fill(
    length,
    head + BEFORE,
    [(depth, " " + fact)],
    AFTER.format(question=question) + tail,
    options.chat,
  )
  return items_lib.of_prompt(
    f"{length}/{depth:g}/{sample}",
    items_lib.Prompt(tuple(prompt), options.max_new_tokens, subject.stop_ids),
    length=length,
    depth=depth,
    answer=answer,
  )


def _key(seed: int, length: int, depth: float, sample: int) -> str:
  rng = np.random.default_rng([seed, length, round(1e6 * depth), sample])
  return str(rng.integers(10_000, 100_000))


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Replies and their scores."""
  records = []
  for item, reply in zip(batch, items_lib.replies(subject, batch), strict=True):
    expected = item.record["answer"]
    if options.variant == "passkey":
      found = {"score": float(expected in reply)}
    else:
      found = {"fu": fu_score(reply, expected), "recall": recall(reply, expected)}
      found["score"] = found[options.score]
    records.append({"reply": reply} | found)
  return records


def fu_score(reply: str, expected: str) -> float:
  """The score of Fu et al. (2402.10171): common words over expected words.

  Words are split at white space and lower-cased; punctuation stays on them. A repeated
  word counts twice in the denominator and once in the numerator, so that a perfect
  reply has 11/12.
  """
  words = expected.lower().split()
  return len(set(reply.lower().split()) & set(words)) / len(words)


def recall(reply: str, expected: str) -> float:
  """Share of the different expected words in the reply, without punctuation."""
  words = lambda text: {w.strip(string.punctuation) for w in text.lower().split()}
  return len(words(reply) & words(expected)) / len(words(expected))


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """The mean of all scores, 0 to 1, and by length."""
  overall = intervals.of_scores([record["score"] for record in records])
  return {
    "average": overall["mean"],
    "score": "exact" if options.variant == "passkey" else options.score,
    "interval": overall,
    "by_length": intervals.by("length", records),
  }


def panel(results: dict[str, Any]) -> dict[str, Any]:
  """The heat map of results; see `heatmap.draw`."""
  variant = results["protocol"]["options"]["variant"]
  title = f"{variant}, {results['summary']['score']}"
  return heatmap.panel(results, title, results["items"])


def draw(
  options: Options, results: dict[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
  """needle.png, like SkipAlign's Figure 3."""
  del options
  return [heatmap.draw([panel(results)], folder / "needle.png")]

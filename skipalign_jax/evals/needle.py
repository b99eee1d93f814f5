"""Needle in a haystack: can a model say what stands somewhere in a long text?

sandwich: the sentence of Kamradt's test, with Fu et al.'s score, as in SkipAlign's
Figure 3. passkey: five random digits (Mohtashami and Jaggi, 2305.16300). A prompt has
exactly the length it says, template and question included. The needle goes to
depth · length and back to the last full stop before it.
"""

import dataclasses
import pathlib
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import haystack, heatmap, intervals
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
BEHIND = "\n\nThe text ends here. Answer from the text alone.\nQuestion: {question}"


@dataclasses.dataclass(frozen=True)
class Options:
  """What to hide, where, and in what."""

  variant: str = "passkey"  # or sandwich
  score: str = "fu"  # of sandwich: fu (a perfect answer has 11/12) or recall
  haystack: str = ""  # .txt or .txt.gz files; generated sentences by default
  lengths: str = "1024,2048,4096"  # tokens of the whole prompt
  depths: str = "5"  # so many, evenly spread, or a list of fractions
  samples: int = 1  # a length and depth; each has its own key
  own_pages: bool = False  # each sample begins elsewhere in the haystack
  max_new_tokens: int = 32  # of a reply, at most
  chat: bool = True  # ask through the chat template
  seed: int = 0  # of keys and generated text


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """A prompt a length, depth and sample."""
  if options.variant not in ("passkey", "sandwich"):
    raise errors.UserError(f"--variant={options.variant}: choose passkey or sandwich")
  if options.score not in ("fu", "recall"):
    raise errors.UserError(f"--score={options.score}: choose fu or recall")
  texts = haystack.of_samples(
    subject, options.haystack, options.seed, options.samples, options.own_pages
  )
  head, tail = subject.around(options.chat)
  question = KEY_QUESTION if options.variant == "passkey" else FACT_QUESTION
  before = [*head, *subject.encode(BEFORE)]
  behind = [*subject.encode(BEHIND.format(question=question)), *tail]
  found = []
  for length in numbers("lengths", options.lengths):
    for depth in spread(options.depths):
      for sample, text in enumerate(texts):
        key = _key(options.seed, length, depth, sample)
        passkey = options.variant == "passkey"
        needle = subject.encode(" " + (KEY.format(key=key) if passkey else FACT))
        hay = length - len(before) - len(needle) - len(behind)
        if hay < 0:
          raise errors.UserError(
            f"--lengths={length}: question and needle alone have {length - hay} tokens"
          )
        tokens, stops = text.cut(hay)
        at = max(stop for stop in stops if stop <= int(depth * hay))
        prompt = [*before, *tokens[:at], *needle, *tokens[at:], *behind]
        assert len(prompt) == length
        found.append(
          items_lib.asked(
            f"{length}/{depth:g}/{sample}",
            items_lib.Prompt(tuple(prompt), options.max_new_tokens, subject.stop_ids),
            length=length,
            depth=depth,
            answer=key if passkey else FACT_ANSWER,
          )
        )
  return found


def _key(seed: int, length: int, depth: float, sample: int) -> str:
  rng = np.random.default_rng([seed, length, round(1e6 * depth), sample])
  return str(rng.integers(10_000, 100_000))


def numbers(flag: str, text: str) -> list[int]:
  """Positive integers with commas between them."""
  try:
    found = [int(part) for part in text.split(",")]
  except ValueError:
    found = []
  if not found or min(found) < 1:
    raise errors.UserError(f"--{flag}={text}: give positive numbers like 1024,2048")
  return sorted(set(found))


def spread(text: str) -> list[float]:
  """ "5" → the middles of five equal parts; "0,0.5,1" → these."""
  try:
    found = [float(part) for part in text.split(",")]
    if len(found) == 1 and found[0] >= 1 and found[0] == int(found[0]):
      n = int(found[0])
      return [round((i + 0.5) / n, 4) for i in range(n)]
  except ValueError:
    found = []
  if not found or not all(0 <= depth <= 1 for depth in found):
    raise errors.UserError(
      f"--depths={text}: give a count like 5, or fractions like 0,1"
    )
  return sorted(set(found))


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Replies and their scores."""
  records = []
  for item, reply in zip(batch, items_lib.answers(subject, batch), strict=True):
    expected = item.record["answer"]
    if options.variant == "passkey":
      found = {"score": float(expected in reply)}
    else:
      found = {"fu": fu_score(reply, expected), "recall": recall(reply, expected)}
      found["score"] = found[options.score]
    records.append({"reply": reply} | found)
  return records


def fu_score(reply: str, expected: str) -> float:
  """Fu et al.'s score (2402.10171): words in common over words expected.

  Words are split at white space and lower-cased, punctuation stays on them. Repeated
  words count twice below and once above, so a perfect reply has 11/12.
  """
  words = expected.lower().split()
  return len(set(reply.lower().split()) & set(words)) / len(words)


def recall(reply: str, expected: str) -> float:
  """Share of the different words expected that the reply has, without punctuation."""
  words = lambda text: {w.strip(string.punctuation) for w in text.lower().split()}
  return len(words(reply) & words(expected)) / len(words(expected))


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """The mean over all cells, 0 to 1, and by length."""
  overall = intervals.of_scores([record["score"] for record in records])
  by_length = {
    str(length): intervals.of_scores(
      [record["score"] for record in records if record["length"] == length]
    )
    for length in sorted({record["length"] for record in records})
  }
  shown = "exact" if options.variant == "passkey" else options.score
  return {
    "average": overall["mean"],
    "score": shown,
    "interval": overall,
    "by_length": by_length,
  }


def panel(results: dict[str, Any]) -> dict[str, Any]:
  """The heat map of results; see `heatmap.draw`."""
  protocol, summary = results["protocol"], results["summary"]
  return {
    "title": f"{protocol['model']}\n{protocol['options']['variant']}, "
    f"{summary['score']}: {100 * summary['average']:.1f}",
    "window": protocol["window"],
    "cells": results["items"],
  }


def draw(
  options: Options, results: dict[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
  """needle.png, like SkipAlign's Figure 3."""
  del options
  return [heatmap.draw([panel(results)], folder / "needle.png")]

"""Several pass keys in one long text, each with its own question.

As `needle`'s passkey, but each key has an owner ("the pass key of the old mill is
48213"), there is one key per depth, and the text is read once for all questions. The
beginning of the reply ("The pass key of the old mill is ") is given, so that the score
measures what the model finds and not how it words its answer: a key counts if each of
its tokens is the likeliest one, which is what greedy decoding would write. The
log-probability of the key is reported too; it changes before hits do. With `rivals`,
each question is also scored with the text's other keys: a model may find keys at any
distance and not know whose they are. The owner margin says how much it knows: log p of
a key after its own question minus the mean log p of it after the others.
"""

import bisect
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import haystack, heatmap, intervals, needle, option_values
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors

KEY = " The pass key of {owner} is {key}. Keep in mind that {key} is its pass key."
QUESTION = "What is the pass key of {owner}?"
REPLY = "The pass key of {owner} is "
KINDS = "old,north,blue,stone,small,new,south,green,wooden,tall".split(",")
PLACES = "mill,gate,cabin,library,office,tower,garden,inn".split(",")
OWNERS = tuple(f"the {kind} {place}" for kind in KINDS for place in PLACES)


@dataclasses.dataclass(frozen=True)
class Options:
  """How many keys to hide, where, and in which text."""

  haystack: str = ""  # .txt or .txt.gz files; by default generated sentences
  lengths: str = "1024,2048,4096"  # tokens of the longest prompt of a text
  depths: str = "5"  # a count of evenly spread keys per text, or a list of fractions
  samples: int = 1  # texts per length; each has its own keys
  chat: bool = True  # use the chat template
  own_pages: bool = False  # each sample begins at its own place in the haystack
  rivals: bool = False  # score all keys of the text after each question
  seed: int = 0  # of keys, owners and generated text


@dataclasses.dataclass(frozen=True)
class Text:
  """A text with keys, and the questions after it.

  Attributes:
    shared: token ids of the text and of what comes before it.
    tails: for each question and each key that is scored after it, in this order, token
      ids of the question and the reply, key included.
    starts: for each tail, the index at which the key begins.
  """

  shared: tuple[int, ...]
  tails: tuple[tuple[int, ...], ...]
  starts: tuple[int, ...]


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """One text per length and sample.

  Raises:
    UserError: numbers out of range, or a length that is too short.
  """
  depths = option_values.depths(options.depths)
  if len(depths) > len(OWNERS):
    raise errors.UserError(f"--depths={options.depths}: at most {len(OWNERS)} keys")
  option_values.at_least(options, samples=1, seed=0)
  texts = haystack.of_samples(
    subject, options.haystack, options.seed, options.samples, options.own_pages
  )
  return [
    _item(options, subject, text, length, depths, sample)
    for length in option_values.numbers("lengths", options.lengths)
    for sample, text in enumerate(texts)
  ]


def _item(options, subject, text, length, depths, sample) -> items_lib.Item:
  rng = np.random.default_rng([options.seed, length, sample])
  owners = [OWNERS[i] for i in rng.permutation(len(OWNERS))[: len(depths)]]
  keys = rng.permutation(np.arange(10_000, 100_000))[: len(depths)].astype(str)
  pairs = list(zip(owners, keys, strict=True))
  scored = itertools.product(owners, keys) if options.rivals else pairs
  tails = [_tail(options, subject, owner) + key for owner, key in scored]
  needles = [KEY.format(owner=owner, key=key) for owner, key in pairs]
  head, _ = subject.around(options.chat)
  head += needle.BEFORE
  longest = max(tails, key=lambda tail: len(subject.encode(tail)))
  needles = list(zip(depths, needles, strict=True))
  hay, _ = text.fill(length, head, needles, longest, options.chat)
  query = _split(subject, head + hay, tails, len(keys[0]), options.chat)
  tokens = len(query.shared) + max(map(len, query.tails))
  return items_lib.Item(
    id=f"{length}/{sample}",
    places=tokens,
    query=query,
    record={"tokens": tokens, "length": length, "depths": depths, "keys": list(keys)},
  )


def _tail(options, subject, owner: str) -> str:
  """What follows the text, before the key: the question and the reply's beginning."""
  _, after = subject.around(options.chat, REPLY.format(owner=owner))
  return needle.AFTER.format(question=QUESTION.format(owner=owner)) + after


def _split(
  subject: subject_lib.Subject, text: str, tails: list[str], digits: int, chat: bool
) -> Text:
  """The tokens of the text with each tail, divided where the text ends.

  Each tail ends with a key of so many digits. Tokens of both the text and a tail belong
  to the tail, and tokens of both question and key to the key.

  Raises:
    UserError: the tokens of the text depend on the question.
  """
  shared: list[int] | None = None
  parts, starts = [], []
  for tail in tails:
    ids, ends = subject.encode_prompt(text + tail, chat)
    n = bisect.bisect_right(ends, len(text))
    shared = ids[:n] if shared is None else shared
    if ids[:n] != shared:
      raise errors.UserError(
        "keys: with this tokenizer the tokens of a text depend on the question after "
        "it, so that the text cannot be read once for all questions; use needle"
      )
    parts.append(tuple(ids[n:]))
    starts.append(bisect.bisect_right(ends, len(text + tail) - digits) - n)
  return Text(tuple(shared or ()), tuple(parts), tuple(starts))


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Which keys of each text were found, and the log-probability of each."""
  records = []
  for row, item in enumerate(batch):
    text = item.query
    try:
      scored = subject.engine.score_after(text.shared, text.tails, text.starts)
    except errors.NotFiniteError as error:
      raise errors.NotFiniteError(row) from error
    log_p = [round(float(log_p.sum()), 4) for log_p, _ in scored]
    found = [float(likeliest.all()) for _, likeliest in scored]
    record = {"found": found, "log_p": log_p}
    if options.rivals:
      K = math.isqrt(len(scored))
      own = slice(None, None, K + 1)  # the diagonal: each question's own key
      record = {"found": found[own], "log_p": log_p[own]}
      record["log_p_of_keys"] = [log_p[q * K : (q + 1) * K] for q in range(K)]
    records.append(record)
  return records


def cells(records: Sequence[items_lib.Record]) -> list[dict[str, Any]]:
  """One cell per key: length, text, depth, key, score (found or not) and log_p.

  The name of a text is all its keys.
  """
  parts = ("depths", "keys", "found", "log_p")
  names = ("depth", "key", "score", "log_p")
  return [
    {"length": record["length"], "text": _name(record)}
    | dict(zip(names, cell, strict=True))
    for record in records
    for cell in zip(*(record[part] for part in parts), strict=True)
  ]


def whose(records: Sequence[items_lib.Record]) -> list[dict[str, Any]]:
  """One cell per question after which all keys of the text were scored.

  Returns:
    length; text and key, as in `cells`; any_key: the probability of all keys of the
    text together, 0 to 1; likeliest: the likeliest of them; own_key: whether that is
    the right one.
  """
  return [
    {
      "length": record["length"],
      "text": _name(record),
      "key": record["keys"][question],
      "any_key": float(np.exp(log_p_K).sum()),
      "likeliest": record["keys"][np.argmax(log_p_K)],
      "own_key": float(np.argmax(log_p_K) == question),
    }
    for record in records
    for question, log_p_K in enumerate(record.get("log_p_of_keys", ()))
  ]


def owner_margins(record: items_lib.Record) -> list[float]:
  """How much each question raises the log p of its own key, in nats.

  The log p of a key after its own question minus its mean log p after the text's other
  questions. A model that does not know whose a key is has 0, however well it finds
  keys; so has one that finds none.

  Args:
    record: of a text with rivals and at least two keys.
  """
  log_p_QK = np.array(record["log_p_of_keys"])
  own_K = np.diag(log_p_QK)
  others_K = (log_p_QK.sum(axis=0) - own_K) / (len(own_K) - 1)
  return (own_K - others_K).tolist()


def _margin_of_text(record: items_lib.Record) -> dict[str, Any]:
  return {
    "length": record["length"],
    "owner_margin": float(np.mean(owner_margins(record))),
  }


def _name(record: items_lib.Record) -> str:
  return " ".join(record["keys"])


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """The share of keys found, 0 to 1, and by length; mean log p in nats per key.

  With rivals also any_key and own_key by length, as in `whose`, and the owner margin in
  nats, whose interval is over texts.
  """
  found = cells(records)
  overall = intervals.of_scores([cell["score"] for cell in found])
  summary = {
    "average": overall["mean"],
    "interval": overall,
    "by_length": intervals.by("length", found),
    "log_p": intervals.by("length", found, "log_p", intervals.of_values),
  }
  if options.rivals:
    scored = whose(records)
    summary |= {
      "any_key": intervals.by("length", scored, "any_key", intervals.of_shares),
      "own_key": intervals.by("length", scored, "own_key"),
    }
    if all(len(record["keys"]) > 1 for record in records):
      margins = [_margin_of_text(record) for record in records]
      summary["owner_margin"] = intervals.by(
        "length", margins, "owner_margin", intervals.of_values
      )
  return summary


def panel(results: dict[str, Any]) -> dict[str, Any]:
  """The heat map of results; see `heatmap.draw`."""
  protocol, summary = results["protocol"], results["summary"]
  return {
    "title": f"{protocol['model']}\nkeys found: {100 * summary['average']:.1f}",
    "window": protocol["window"],
    "cells": cells(results["items"]),
  }


def draw(
  options: Options, results: dict[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
  """keys.png, depth over length."""
  del options
  return [heatmap.draw([panel(results)], folder / "keys.png")]

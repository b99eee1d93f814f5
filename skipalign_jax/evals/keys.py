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

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import (
  haystack,
  heatmap,
  intervals,
  needle,
  option_values,
  read_once,
)
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
  pairs = draw_pairs(rng, len(depths))
  tails = asked(subject, pairs, options.rivals, options.chat)
  needles = [KEY.format(owner=owner, key=key) for owner, key in pairs]
  head, _ = subject.around(options.chat)
  head += needle.BEFORE
  longest = max(map("".join, tails), key=lambda tail: len(subject.encode(tail)))
  needles = list(zip(depths, needles, strict=True))
  hay, _ = text.fill(length, head, needles, longest, options.chat)
  query = read_once.split("keys", subject, head + hay, tails, options.chat)
  return items_lib.Item(
    id=f"{length}/{sample}",
    places=query.tokens,
    query=query,
    record={
      "tokens": query.tokens,
      "length": length,
      "depths": depths,
      "keys": [key for _, key in pairs],
    },
  )


def draw_pairs(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
  """So many different owners, each with its key."""
  owners = [OWNERS[i] for i in rng.permutation(len(OWNERS))[:count]]
  keys = rng.permutation(np.arange(10_000, 100_000))[:count].astype(str)
  return list(zip(owners, keys, strict=True))  # digests have the type of these keys


def asked(
  subject: subject_lib.Subject,
  pairs: Sequence[tuple[str, str]],
  rivals: bool,
  chat: bool,
) -> list[tuple[str, str]]:
  """What follows the text up to a key, and the key, for each key that is scored.

  Args:
    subject: whose chat template is used.
    pairs: owners and keys.
    rivals: all keys after each owner's question; otherwise the owner's own.
    chat: whether to use the chat template.
  """
  keys = [key for _, key in pairs]
  return [
    (needle.asked(subject, QUESTION, REPLY, chat, owner=owner), other)
    for owner, key in pairs
    for other in (keys if rivals else [key])
  ]


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Which keys of each text were found, and the log-probability of each."""
  records = []
  for row, item in enumerate(batch):
    log_p, found = read_once.score(subject, item.query, row)
    rivals = with_rivals(log_p, found) if options.rivals else {}
    records.append({"found": found, "log_p": log_p} | rivals)
  return records


def with_rivals(log_p: list[float], found: list[float]) -> items_lib.Record:
  """The record of K questions after each of which all K keys were scored."""
  K = math.isqrt(len(log_p))
  own = slice(None, None, K + 1)  # the diagonal: each question's own key
  return {
    "found": found[own],
    "log_p": log_p[own],
    "log_p_of_keys": [log_p[q * K : (q + 1) * K] for q in range(K)],
  }


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
  return heatmap.panel(results, "keys found", cells(results["items"]))


def draw(
  options: Options, results: dict[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
  """keys.png, depth over length."""
  del options
  return [heatmap.draw([panel(results)], folder / "keys.png")]

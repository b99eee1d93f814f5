"""Eight facts of eight kinds in one text, each asked for by itself.

A pass key, a ship, a cat, a fruit, a city, a price, a password and a platform. As in
`keys` the text is read once for all questions and the beginning of each reply is given.
Each value has its own kind, so that no question is about whose it is. The gain is log p
of the answer minus the mean log p of eight values of its kind that are not in the text,
in nats: a model that guesses has gain 0, whatever it thinks of the values. Also: hits,
which greedy decoding would write; and choices, where the answer is the likeliest of
the nine (1/9 by guessing). Kinds and depths form a Latin square over eight samples.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import (
  fact_kinds,
  haystack,
  heatmap,
  intervals,
  needle,
  option_values,
  read_once,
)
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import keys as keys_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors

DEPTHS = option_values.depths(str(len(fact_kinds.KINDS)))
SCORES = ("gain", "hit", "choice")


@dataclasses.dataclass(frozen=True)
class Options:
  """Which texts, and what else is in them."""

  haystack: str = ""  # .txt or .txt.gz files; by default generated sentences
  lengths: str = "1024,2048,4096"  # tokens of the longest prompt of a text
  samples: int = 8  # texts per length; eight have each kind at each depth once
  keys: int = 0  # also so many keys of owners, each scored with its rivals, as in keys
  own_pages: bool = True  # each sample begins at its own place in the haystack
  chat: bool = True  # use the chat template
  seed: int = 0  # of values, owners and generated text


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """One text per length and sample.

  Raises:
    UserError: numbers out of range, a length that is too short, or a text that has too
      many of the values.
  """
  option_values.at_least(options, samples=1, keys=0, seed=0)
  if options.keys == 1 or options.keys > len(keys_lib.OWNERS):
    raise errors.UserError(
      f"--keys={options.keys}: 0, or 2 to {len(keys_lib.OWNERS)}, which have rivals"
    )
  texts = haystack.of_samples(
    subject, options.haystack, options.seed, options.samples, options.own_pages
  )
  return [
    _item(options, subject, text, length, sample)
    for length in option_values.numbers("lengths", options.lengths)
    for sample, text in enumerate(texts)
  ]


def _item(options, subject, text, length, sample) -> items_lib.Item:
  rng = np.random.default_rng([options.seed, length, sample])
  kinds = fact_kinds.order(sample)
  pairs = keys_lib.draw_pairs(rng, options.keys)
  present = fact_kinds.words_of(text.cut(length)[0]) | {str(key) for _, key in pairs}
  values = [fact_kinds.draw(kind, rng, present) for kind in kinds]
  needles = [
    (depth, " " + kind.statement.format(value=value))
    for depth, kind, (value, *_) in zip(DEPTHS, kinds, values, strict=True)
  ]
  key_depths = option_values.depths(str(options.keys)) if options.keys else []
  needles += [
    (depth, keys_lib.KEY.format(owner=owner, key=key))
    for depth, (owner, key) in zip(key_depths, pairs, strict=True)
  ]
  tails = [
    (needle.asked(subject, kind.question, kind.reply, options.chat), value)
    for kind, nine in zip(kinds, values, strict=True)
    for value in nine
  ]
  tails += keys_lib.asked(subject, pairs, True, options.chat)
  head, _ = subject.around(options.chat)
  head += needle.BEFORE
  longest = max(map("".join, tails), key=lambda tail: len(subject.encode(tail)))
  hay, _ = text.fill(length, head, sorted(needles), longest, options.chat)
  query = read_once.split("facts", subject, head + hay, tails, options.chat)
  return items_lib.Item(
    id=f"{length}/{sample}",
    places=query.tokens,
    query=query,
    record={
      "tokens": query.tokens,
      "length": length,
      "depths": DEPTHS,
      "kinds": [kind.name for kind in kinds],
      "values": values,
      **({"keys": [str(key) for _, key in pairs]} if pairs else {}),
    },
    group=(sample,),  # a batch is one text, which is saved when it is read
  )


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Gain, hit and choice of each fact; of keys what `keys.with_rivals` has."""
  records = []
  for row, item in enumerate(batch):
    log_p, written = read_once.score(subject, item.query, row)
    nine, facts = fact_kinds.ABSENT + 1, len(fact_kinds.KINDS)
    log_p_FV = [log_p[f * nine : (f + 1) * nine] for f in range(facts)]
    record = {"log_p_of_values": log_p_FV, "hit": written[: facts * nine : nine]}
    record |= {name: [_SCORE[name](x) for x in log_p_FV] for name in _SCORE}
    if options.keys:
      rest = keys_lib.with_rivals(log_p[facts * nine :], written[facts * nine :])
      record |= {"log_p_of_keys": rest["log_p_of_keys"], "found": rest["found"]}
    records.append(record)
  return records


def gain(log_p_V: Sequence[float]) -> float:
  """log p of the answer minus the mean of the absent values, nats."""
  return round(float(log_p_V[0] - np.mean(log_p_V[1:])), 4)


def choice(log_p_V: Sequence[float]) -> float:
  """1 where the answer is the likeliest, 1/n where it is one of n; else 0."""
  likeliest = np.equal(log_p_V, max(log_p_V))
  return float(likeliest[0] / likeliest.sum())


_SCORE = {"gain": gain, "choice": choice}


def cells(records: Sequence[items_lib.Record]) -> list[dict[str, Any]]:
  """One cell per fact: length, depth, kind, gain, hit, choice; score is the hit."""
  parts = {"depth": "depths", "kind": "kinds"} | {name: name for name in SCORES}
  return [
    {"length": record["length"], "score": cell[2 + SCORES.index("hit")]}
    | dict(zip(parts, cell, strict=True))
    for record in records
    for cell in zip(*(record[part] for part in parts.values()), strict=True)
  ]


def of_texts(records: Sequence[items_lib.Record]) -> list[dict[str, Any]]:
  """One per text: its length, and the means over its facts; maybe the owner margin."""
  return [
    {"length": record["length"]}
    | {name: float(np.mean(record[name])) for name in SCORES}
    | (
      {"owner_margin": float(np.mean(keys_lib.owner_margins(record)))}
      if "log_p_of_keys" in record
      else {}
    )
    for record in records
  ]


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """Means by length. Intervals are over texts: facts of one are not independent.

  Gains are in nats, hits and choices are shares; a guess has gain 0 and choice 1/9.
  """
  texts = of_texts(records)
  by_length = lambda name, interval: intervals.by("length", texts, name, interval)
  overall = intervals.of_shares([text["hit"] for text in texts])
  facts = [cell | {"depth": f"{cell['depth']:g}"} for cell in cells(records)]
  mean = lambda values: round(float(np.mean(values)), 4)
  summary = {
    "average": overall["mean"],
    "interval": overall,
    "by_length": by_length("hit", intervals.of_shares),
    "gain": by_length("gain", intervals.of_values),
    "choice": by_length("choice", intervals.of_shares),
    "guessed_choice": 1 / (fact_kinds.ABSENT + 1),
    "gain_by_kind": intervals.by("kind", facts, "gain", mean),
    "gain_by_depth": intervals.by("depth", facts, "gain", mean),
  }
  if options.keys:
    summary["owner_margin"] = by_length("owner_margin", intervals.of_values)
  return summary


def panel(results: dict[str, Any]) -> dict[str, Any]:
  """The heat map of results; see `heatmap.draw`."""
  return heatmap.panel(results, "facts found", cells(results["items"]))


def draw(
  options: Options, results: dict[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
  """facts.png, depth over length."""
  del options
  return [heatmap.draw([panel(results)], folder / "facts.png")]

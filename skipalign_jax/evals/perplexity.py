"""Perplexity of long texts, by the number of tokens before a token; LongPPL.

Windows have `length` tokens and follow each other from the beginning of a file. With
stride=0 each token is scored in one window, given the tokens before it there. A stride
S > 0 moves the window by S tokens and scores the last S tokens of each window (all
tokens of the first one), so that each token has at least length − S tokens before it,
as soon as there are so many (sliding evaluation, Press et al. 2012.15832, section 2).

LongPPL (2410.23771) counts only key tokens: those that a long context makes likelier,
log p(x | long) − log p(x | short) > alpha, and likely, log p(x | long) > beta. Two
choices differ from the paper. The evaluated model chooses the key tokens, instead of a
separate, stronger model: compare LongPPL of similar models only, together with their
shares of key tokens. And a short context has `short` to 5/4 `short` tokens, because one
pass of the model scores short / 4 tokens.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import curves, haystack, intervals, option_values
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import errors


@dataclasses.dataclass(frozen=True)
class Options:
  """Which files to read, and in which windows."""

  files: str = ""  # .txt or .txt.gz, commas between them
  length: int = 8192  # tokens of a window
  documents: int = 4  # windows of each file, at most
  stride: int = 0  # tokens by which the window moves; 0: its length
  bucket: int = 0  # positions per bucket; 0: powers of two
  longppl: bool = False  # also compute LongPPL, the perplexity of key tokens
  short: int = 4096  # tokens of LongPPL's short context
  alpha: float = 2.0  # smallest gain of a key token, nats
  beta: float = -2.0  # smallest log p of a key token, nats


@dataclasses.dataclass(frozen=True)
class Window:
  """Tokens; those from index `start` on are scored."""

  tokens: tuple[int, ...]
  start: int


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """One item per window.

  Raises:
    UserError: numbers out of range; a file is missing, or shorter than a window.
  """
  head = subject.encode("", special=True)  # begins every window, as every text
  _check(options, len(head))
  width = options.length - len(head)
  found = []
  for name, text in haystack.read_files("files", options.files).items():
    tokens = subject.tokens(text, literal=True)
    if len(tokens) < width:
      raise errors.UserError(
        f"--files: {name} has {len(tokens)} tokens; a window of "
        f"--length={options.length} needs {width}"
      )
    for i in range(options.documents):
      first = i * (options.stride or width)
      window = tokens[first : first + width]
      if len(window) < width:
        break
      new = options.stride if options.stride and i else width
      found.append(
        items_lib.Item(
          id=f"{name}/{i}",
          places=options.length,
          # Without a head there is nothing before the first token of a window.
          query=Window((*head, *window.tolist()), max(1, options.length - new)),
          record={"file": name, "first": first},
        )
      )
  return found


def _check(options: Options, head: int) -> None:
  """Raises UserError; `head` is the number of tokens that begin every text."""
  room = options.length - head
  if not options.files.strip():
    raise errors.UserError("--files is needed: .txt or .txt.gz, commas between them")
  if room < 2:
    raise errors.UserError(f"--length={options.length} leaves no tokens to score")
  option_values.at_least(options, documents=1, bucket=0)
  if not 0 <= options.stride < room:
    raise errors.UserError(
      f"--stride={options.stride} must be at least 0 and less than the {room} tokens "
      "of text in a window"
    )
  if not (math.isfinite(options.alpha) and math.isfinite(options.beta)):
    raise errors.UserError(
      f"--alpha={options.alpha} and --beta={options.beta} must be finite numbers"
    )
  for name in ("short", "alpha", "beta"):
    value = getattr(options, name)
    if not options.longppl and value != getattr(Options, name):
      raise errors.UserError(
        f"--{name}={value} has no effect without --longppl=True; add that, or leave "
        f"out --{name}"
      )
  if options.longppl and not 1 <= options.short < room - 1:
    raise errors.UserError(
      f"--short={options.short} must be at least 1 and less than {room - 1}: a window "
      f"has {room} tokens of text"
    )


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Sums of −log p over all scored tokens, each bucket and the key tokens."""
  windows = [item.query for item in batch]
  scored = subject.engine.score(
    [window.tokens for window in windows], [window.start for window in windows]
  )
  records = []
  for row, (window, (log_p_N, _)) in enumerate(zip(windows, scored, strict=True)):
    nll_N = -log_p_N.astype(np.float64)
    low_N = lower_edges(np.arange(window.start, options.length), options.bucket)
    record = {
      "nll": float(nll_N.sum()),
      "tokens": len(nll_N),
      "buckets": {
        str(low): [float(nll_N[low_N == low].sum()), int(np.sum(low_N == low))]
        for low in np.unique(low_N)
      },
    }
    if options.longppl:
      try:
        gain_N = log_p_N - short_log_p(options, subject, window, log_p_N)
      except errors.NotFiniteError as error:
        raise errors.NotFiniteError(row) from error
      key_N = (gain_N > options.alpha) & (log_p_N > options.beta)
      record["key_nll"] = float(nll_N[key_N].sum())
      record["key_tokens"] = int(key_N.sum())
    records.append(record)
  return records


def lower_edges(position_N: np.ndarray, bucket: int) -> np.ndarray:
  """First position of each position's bucket; there are i tokens before position i."""
  if bucket:
    return position_N // bucket * bucket
  return 2 ** np.floor(np.log2(position_N)).astype(int)


def short_log_p(
  options: Options,
  subject: subject_lib.Subject,
  window: Window,
  long_N: np.ndarray,
) -> np.ndarray:
  """log p of the scored tokens of a window, given a short context.

  Tokens with no more tokens than that before them keep their log p, `long_N`.
  """
  head = subject.encode("", special=True)
  tokens, step = window.tokens, max(1, options.short // 4)
  # A short context begins as every text does, like the long one.
  firsts = range(max(window.start, len(head) + options.short + 1), len(tokens), step)
  parts = [
    (*head, *tokens[first - options.short : min(first + step, len(tokens))])
    for first in firsts
  ]
  start = len(head) + options.short
  room = subject.engine.room(start + step)
  rows = max(subject.engine.row_shards, subject.batch_tokens // room)
  short_N = long_N.copy()
  for i in range(0, len(parts), rows):
    some = parts[i : i + rows]
    scored = subject.engine.score(some, [start] * len(some))
    for first, (log_p, _) in zip(firsts[i : i + rows], scored, strict=True):
      at = first - window.start
      short_N[at : at + len(log_p)] = log_p
  return short_N


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """Perplexity of all scored tokens, by bucket, and of key tokens.

  `nll` is the mean of the windows' means, with an interval from their spread.
  """
  nll, tokens = (sum(r[name] for r in records) for name in ("nll", "tokens"))
  edges = sorted({int(low) for record in records for low in record["buckets"]})
  by_bucket = {}
  for low in edges:
    found = [r["buckets"][str(low)] for r in records if str(low) in r["buckets"]]
    in_nll, in_tokens = map(sum, zip(*found, strict=True))
    high = low + options.bucket if options.bucket else 2 * low
    by_bucket[f"{low}-{min(high, options.length) - 1}"] = {
      "perplexity": _exp(in_nll, in_tokens),
      "tokens": in_tokens,
    }
  files = list(dict.fromkeys(record["file"] for record in records))
  summary = {
    "perplexity": _exp(nll, tokens),
    "nll": intervals.of_values([r["nll"] / r["tokens"] for r in records]),
    "tokens": tokens,
    "windows": {name: sum(r["file"] == name for r in records) for name in files},
    "by_bucket": by_bucket,
  }
  if options.longppl:
    keys = sum(record["key_tokens"] for record in records)
    key_nll = sum(record["key_nll"] for record in records)
    summary |= {
      "longppl": _exp(key_nll, keys) if keys else None,
      "key_tokens": keys,
    }
  return summary


def _exp(nll: float, tokens: int) -> float:
  """The perplexity of a sum of −log p.

  Raises:
    UserError: it is larger than any number of 64 bits.
  """
  try:
    return math.exp(nll / tokens)
  except OverflowError as error:
    raise errors.UserError(
      f"the perplexity is exp({nll / tokens:.0f}), too large for a number; the model's "
      "weights are damaged, or --rope does not fit them"
    ) from error


def draw(
  options: Options, results: dict[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
  """perplexity.png: perplexity by position, one point at the end of each bucket."""
  protocol, summary = results["protocol"], results["summary"]
  points = [
    (int(name.partition("-")[2]) + 1, bucket["perplexity"])
    for name, bucket in summary["by_bucket"].items()
  ]
  title = f"{protocol['model']}\nperplexity {summary['perplexity']:.2f}"
  if options.longppl and summary["longppl"]:
    title += f", LongPPL {summary['longppl']:.2f}"
  return [
    curves.draw(
      {"perplexity": points},
      folder / "perplexity.png",
      title,
      "tokens before it, up to",
      "perplexity",
      protocol["window"],
    )
  ]

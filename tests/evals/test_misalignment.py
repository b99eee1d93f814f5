"""The misalignment metric equals its definition, computed literally."""

import collections
import dataclasses
import functools
import gzip
import itertools
import json

import jax
import numpy as np
import pytest
import tiny
import tiny_subject
from rich import console as rich_console

from skipalign_jax.data import chat
from skipalign_jax.evals import (
  intervals,
  misalignment,
  paired_terms,
  runner,
  tasks,
)
from skipalign_jax.model import backends
from skipalign_jax.runtime import errors

SUBJECT = tiny_subject.make(batch_tokens=200)
QUIET = rich_console.Console(quiet=True)
MAX_LENGTH = 24  # tokens of the longest context here
LOGITS = jax.jit(functools.partial(tiny.naive_logits, config=tiny_subject.CONFIG))


@pytest.fixture(autouse=True)
def small_lengths(monkeypatch):
  monkeypatch.setattr(backends, "TILE", 8)
  monkeypatch.setattr(backends, "CPU_BLOCK", 8)
  monkeypatch.setattr(paired_terms, "CHUNK", 4)


@functools.cache
def predict(context):
  """g(context): the next-token distribution, by a separate full forward pass."""
  logits_LV = LOGITS(
    tiny_subject.PARAMS,
    tokens_L=np.pad(context, (0, MAX_LENGTH - len(context))),
    positions_L=np.arange(MAX_LENGTH),
    mask_LL=np.tri(MAX_LENGTH, dtype=bool),
  )
  logits_V = np.asarray(logits_LV[len(context) - 1], np.float64)
  p_V = np.exp(logits_V - logits_V.max())
  return p_V / p_V.sum()


def sce(p_V, q_V):
  return -np.sum(p_V * np.log(q_V)) - np.sum(q_V * np.log(p_V))


def symmetric_kl(p_V, q_V):
  return np.sum(p_V * np.log(p_V / q_V)) + np.sum(q_V * np.log(q_V / p_V))


def measured(pairs):
  made = [misalignment.items_lib.Item(str(i), 0, p, {}) for i, p in enumerate(pairs)]
  return misalignment.measure(misalignment.Options(), SUBJECT, made)


def tokens_of(count, seed=0):
  return tuple(np.random.default_rng(seed).integers(4, 260, count).tolist())


@pytest.mark.parametrize("length", [9, 10])
def test_places_of_a_pair_are_contexts_of_two_lengths(length):
  x = tokens_of(length)
  shortest = (length + 1) // 2
  pairs = [
    misalignment.Pair(x, d, tuple(range(d + shortest - 1, length)))
    for d in range(length - shortest + 1)
  ]
  for pair, record in zip(pairs, measured(pairs), strict=True):
    found = [
      (predict(x[: n + 1]), predict(x[pair.left_out : n + 1])) for n in pair.places
    ]
    expected = np.mean([sce(*both) for both in found])
    assert record["sce"] == pytest.approx(expected, rel=1e-5)
    apart = np.mean([symmetric_kl(*both) for both in found])
    assert record["symmetric_kl"] == pytest.approx(apart, rel=1e-4, abs=1e-6)
    assert apart > 0.01 or not pair.left_out


def test_equal_windows_have_no_divergence_but_entropy():
  x = tokens_of(12)
  (record,) = measured([misalignment.Pair(x, 0, (7, 9, 11))])
  assert record["symmetric_kl"] == 0
  entropies = [
    -np.sum(p * np.log(p)) for p in (predict(x[: n + 1]) for n in (7, 9, 11))
  ]
  assert record["sce"] == pytest.approx(2 * np.mean(entropies), rel=1e-5)


def test_expectation_is_the_definition():
  """Σ over all draws of a text = E over l1, l2 and places, term by term."""
  length, text = 7, tokens_of(11, seed=1)
  shortest = 4
  lengths = range(shortest, length + 1)
  starts = range(len(text) - length + 1)
  literal = np.mean(
    [
      sce(predict(text[end - one : end]), predict(text[end - other : end]))
      for one, other in itertools.product(lengths, lengths)
      for end in (start + max(one, other) for start in starts)
    ]
  )
  # `items` draws l1 and l2, which give d, and a start.
  draws = collections.Counter(
    abs(one - other) for one, other in itertools.product(lengths, lengths)
  )
  pairs, weights = [], []
  for d, start in itertools.product(draws, starts):
    places = tuple(range(d + shortest - 1, length))
    pairs.append(misalignment.Pair(text[start : start + length], d, places))
    weights.append(draws[d])
  values = [record["sce"] for record in measured(pairs)]
  assert np.average(values, weights=weights) == pytest.approx(literal, rel=1e-6)
  # A mean over all places, with equal weights of all pairs, is another number.
  assert np.mean(values) != pytest.approx(literal, rel=1e-4)


@pytest.fixture
def book(tmp_path):
  rng = np.random.default_rng(3)
  path = tmp_path / "book.txt"
  path.write_bytes(bytes(rng.integers(97, 123, 400).tolist()))
  return path


def made(**options):
  return misalignment.items(misalignment.Options(**options), SUBJECT)


def test_draws_from_a_text(book):
  length, shortest, samples = 8, 4, 3000
  items = made(source=str(book), lengths=f"{length}", samples=samples)
  assert len(items) == samples
  text = tuple(SUBJECT.encode(book.read_text()))
  shares = collections.Counter(item.query.left_out for item in items)
  for d in range(length - shortest + 1):
    n = length - shortest + 1
    expected = (2 if d else 1) * (n - d) / n**2  # |l1 − l2| of two uniform lengths
    assert shares[d] / samples == pytest.approx(expected, abs=0.03)
  starts = set()
  for item in items:
    start = item.record["start"]
    assert item.query.tokens == text[start : start + length]
    assert item.query.places == tuple(range(item.query.left_out + shortest - 1, length))
    starts.add(start)
  assert min(starts) == 0 and max(starts) == len(text) - length
  again = made(source=str(book), lengths=f"{length}", samples=samples)
  assert again == items
  assert made(source=str(book), lengths="8", samples=9, seed=1) != items[:9]


def write_chats(path, dialogues):
  lines = [
    json.dumps({"messages": [{"role": r, "content": c} for r, c in dialogue]})
    for dialogue in dialogues
  ]
  data = ("\n".join(["not json", *lines]) + "\n").encode()
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path


def test_draws_from_chats(tmp_path):
  rng = np.random.default_rng(0)
  say = lambda low, high: "".join(
    rng.choice(list("abcdefgh"), rng.integers(low, high)).tolist()
  )
  dialogues = [
    [("user", say(1, 30)), ("assistant", say(1, 30))] * int(rng.integers(1, 4))
    for _ in range(80)
  ]
  path = write_chats(tmp_path / "chats.jsonl.gz", [d for d in dialogues])
  length, shortest = 64, 32
  items = made(source=str(path), lengths="20,64", samples=12)
  encoded = chat.Encoder(SUBJECT.tokenizer, 10_000)(dialogues)
  used = [item for item in items if item.record["length"] == length]
  assert len({item.record["from"] for item in used}) == len(used) == 12
  for item in used:
    name, _, line = item.record["from"].rpartition(":")
    sample = encoded[int(line) - 2]
    assert name == str(path)
    start, d = item.record["start"], item.query.left_out
    assert item.query.tokens == tuple(sample.tokens[start : start + length].tolist())
    expected = [
      n
      for n in range(d + shortest - 1, length)
      if start + n + 1 < len(sample.tokens) and sample.targets[start + n + 1]
    ]
    assert item.query.places == tuple(expected) and expected
  results = runner.run(
    "misalignment",
    misalignment,
    tasks.options("misalignment", dict(source=str(path), lengths="20", samples=4)),
    SUBJECT,
    tmp_path / "out",
    QUIET,
  )
  record = results["items"][0]
  pair = next(i.query for i in items if i.id == record["id"])
  found = [
    sce(predict(pair.tokens[: n + 1]), predict(pair.tokens[pair.left_out : n + 1]))
    for n in pair.places
  ]
  assert record["sce"] == pytest.approx(np.mean(found), rel=1e-5)


def test_batches_and_summary(book, tmp_path):
  options = tasks.options(
    "misalignment", dict(source=str(book), lengths="12,20", samples=5)
  )
  results = runner.run(
    "misalignment", misalignment, options, SUBJECT, tmp_path / "out", QUIET
  )
  records, summary = results["items"], results["summary"]
  alone = [measured([item.query])[0] for item in misalignment.items(options, SUBJECT)]
  for record, one in zip(records, alone, strict=True):
    assert record["sce"] == pytest.approx(one["sce"], rel=1e-5)
    assert record["symmetric_kl"] == pytest.approx(one["symmetric_kl"], abs=1e-5)
  at_12 = [r for r in records if r["length"] == 12]
  assert summary["by_length"]["12"]["symmetric_kl"] == intervals.of_values(
    [r["symmetric_kl"] for r in at_12]
  )
  assert summary["by_length"]["12"]["pairs"] == sum(r["pairs"] for r in at_12)
  assert summary["sce"] == intervals.of_values([r["sce"] for r in records])
  assert summary["average"] == summary["sce"]["mean"]


def test_only_windows_beyond_the_models_are_noted(book):
  one = lambda length: runner.notes(SUBJECT, made(source=str(book), lengths=length))
  assert one(str(SUBJECT.window)) == []  # two passes, each within the window
  assert "items need more than the model's window" in one(str(SUBJECT.window + 1))[0]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(source=""), "--source is needed"),
    (dict(source="nowhere.txt"), "--source: nowhere.txt cannot be read"),
    (dict(source="nowhere.jsonl"), "no such file"),
    (dict(source="book.pdf"), "'book.pdf' is unknown"),
    (dict(lengths="1"), "2 or more"),
    (dict(lengths="12,a"), "positive numbers"),
    (dict(lengths="12,401"), "has 400 tokens, fewer than --lengths=401"),
    (dict(samples=0), "--samples=0 must be at least 1"),
    (dict(seed=-1), "--seed=-1 must be at least 0"),
  ],
)
def test_refused(book, options, message):
  with pytest.raises(errors.UserError, match=message):
    made(**dict(source=str(book), lengths="12") | options)


def test_what_is_left_out_is_noted(tmp_path):
  good = [("user", "hello there"), ("assistant", "hi, how are you")]
  wizard = [("wizard", "abra"), ("assistant", "cadabra")]
  path = write_chats(tmp_path / "a.jsonl", [good, wizard, wizard, good, wizard])
  options = misalignment.Options(source=str(path), lengths="12", samples=20)
  results = runner.run(
    "misalignment", misalignment, options, SUBJECT, tmp_path / "out", QUIET
  )
  assert len(results["items"]) == 2
  assert results["notes"] == [
    "2 of 20 samples for --lengths=12: the source has no more dialogues with a target "
    "after enough tokens",
    "4 of the 6 records that were read cannot be used and are left out: 3 x unknown "
    f"role wizard (first at {path}:3), 1 x not valid JSON (first at {path}:1)",
  ]
  write_chats(path, [wizard])
  with pytest.raises(errors.UserError, match=r"0 tokens.*2 of the 2 records.*wizard"):
    misalignment.items(options, SUBJECT)
  kinds = [[(f"r{i}", "x"), ("assistant", "y")] for i in range(7)]
  write_chats(path, [*kinds, good, good])
  notes = []
  one = dataclasses.replace(options, samples=1)
  assert len(misalignment.items(one, SUBJECT, notes.append)) == 1
  (note,) = notes
  assert note.startswith("8 of the 10") and note.endswith(", and 3 other reasons")


def test_a_weight_is_refused(tmp_path):
  good = [("user", "hello there"), ("assistant", "hi, how are you")]
  path = write_chats(tmp_path / "a.jsonl", [good])
  options = misalignment.Options(source=f"{path}*0.5", lengths="12")
  with pytest.raises(errors.UserError, match=r"the weight \*0.5 has no effect here"):
    misalignment.items(options, SUBJECT)


def test_nothing_is_noted_of_good_chats(tmp_path):
  good = [("user", "hello there"), ("assistant", "hi, how are you")]
  path = write_chats(tmp_path / "a.jsonl", [good, good])
  path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
  options = misalignment.Options(source=str(path), lengths="12", samples=2)
  results = runner.run(
    "misalignment", misalignment, options, SUBJECT, tmp_path / "out", QUIET, limit=1
  )
  assert results["notes"] == [] and len(results["items"]) == 1


def test_refuses_chats_that_are_too_short(tmp_path):
  path = write_chats(
    tmp_path / "short.jsonl", [[("user", "hello"), ("assistant", "hi")]]
  )
  with pytest.raises(errors.UserError, match=r"lengths=500 \(the longest dialogue"):
    made(source=str(path), lengths="8,500", samples=2)


def test_refuses_chats_without_a_template(tmp_path):
  bare = tiny_subject.make()
  bare.tokenizer.chat_template = None
  path = write_chats(tmp_path / "a.jsonl", [[("user", "hello"), ("assistant", "hi")]])
  with pytest.raises(errors.UserError, match="--template=tulu"):
    misalignment.items(misalignment.Options(source=str(path)), bare)

"""Facts of eight kinds: where they are, what is scored, and what a guess gets."""

import collections
import dataclasses
import itertools
import re

import numpy as np
import pytest
import tiny_subject

from skipalign_jax.data import recall
from skipalign_jax.evals import fact_kinds, facts, keys, runner
from skipalign_jax.runtime import errors, terminal

SUBJECT = tiny_subject.make(window=256)
OPTIONS = facts.Options(lengths="2600", samples=2)
KINDS = [kind.name for kind in fact_kinds.KINDS]


def stub(monkeypatch, log_p):
  """The engine gives each answer the log p that a function of its text says."""

  def score_after(shared, tails, starts):
    values = [
      SUBJECT.tokenizer.decode(tail[start:])
      for tail, start in zip(tails, starts, strict=True)
    ]
    return [(np.array([log_p(value)]), np.array([False])) for value in values]

  monkeypatch.setattr(SUBJECT.engine, "score_after", score_after)


def measured(options):
  items = facts.items(options, SUBJECT)
  found = facts.measure(options, SUBJECT, items)
  return [item.record | one for item, one in zip(items, found, strict=True)]


def test_each_kind_is_at_each_depth_once_and_after_each_other_kind_once():
  square = [[kind.name for kind in fact_kinds.order(text)] for text in range(8)]
  for line in (*square, *zip(*square, strict=True)):
    assert sorted(line) == sorted(KINDS)
  follows = [pair for line in square for pair in itertools.pairwise(line)]
  assert len(set(follows)) == 8 * 7
  assert fact_kinds.order(8) == fact_kinds.order(0)


def test_no_value_is_a_part_of_another_or_of_a_question():
  for kind in fact_kinds.KINDS:
    assert len(set(kind.values)) == len(kind.values) >= 28
    assert kind.statement.startswith(kind.reply) and "{value}" in kind.statement
  words = [word.lower() for word in fact_kinds.WORDS]
  assert len(set(words)) == len(words)
  said = " ".join(
    kind.statement + kind.question for kind in fact_kinds.KINDS
  ) + keys.KEY.join(keys.OWNERS)
  assert not fact_kinds.words_of(said) & set(words)
  built_in = fact_kinds.words_of(str([recall.record(0, i) for i in range(300)]))
  assert not built_in & set(words)


@pytest.mark.parametrize(("chat", "count"), [(True, 0), (False, 3)])
def test_texts_have_their_facts_and_no_other_values(chat, count):
  options = dataclasses.replace(OPTIONS, chat=chat, keys=count)
  texts = []
  for item in facts.items(options, SUBJECT):
    query, record = item.query, item.record
    longest = max(map(len, query.tails))
    assert len(query.shared) + longest == record["length"] == record["tokens"]
    assert len(query.tails) == 8 * 9 + count**2
    text = SUBJECT.tokenizer.decode(query.shared)
    texts.append(text)
    words, at = re.findall(r"\w+", text), []
    for number, (name, nine) in enumerate(
      zip(record["kinds"], record["values"], strict=True)
    ):
      kind = fact_kinds.KINDS[KINDS.index(name)]
      assert text.count(kind.statement.format(value=nine[0])) == 1
      at.append(text.index(kind.reply))
      assert words.count(nine[0]) == 1 and not set(nine[1:]) & set(words)
      assert len(set(nine)) == 9
      for value, tail, start in zip(
        nine,
        query.tails[9 * number : 9 * number + 9],
        query.starts[9 * number : 9 * number + 9],
        strict=True,
      ):
        asked = SUBJECT.tokenizer.decode(tail[:start])
        assert kind.question in asked and asked.endswith(kind.reply)
        assert SUBJECT.tokenizer.decode(tail[start:]) == value
    assert at == sorted(at)
    assert all(f" is {key}." in text for key in record.get("keys", ()))
  assert texts[0][:400] != texts[1][:400]  # own pages


def test_values_of_the_book_are_neither_answers_nor_absent_ones(tmp_path):
  book = tmp_path / "book.txt"
  known = fact_kinds.FRUITS[:19]
  book.write_text(f"Of {', '.join(known).upper()} there were many. " * 40)
  options = dataclasses.replace(OPTIONS, haystack=str(book))
  for item in facts.items(options, SUBJECT):
    fruits = item.record["values"][item.record["kinds"].index("fruit")]
    assert sorted(fruits) == sorted(fact_kinds.FRUITS[19:])
  book.write_text(f"Of {', '.join(fact_kinds.FRUITS[:20])} there were many. " * 40)
  with pytest.raises(errors.UserError, match=r"'fruit' that only 8 are left"):
    facts.items(options, SUBJECT)


def test_a_guess_gains_nothing(monkeypatch):
  stub(monkeypatch, lambda value: -5.0)
  for record in measured(OPTIONS):
    assert record["gain"] == [0.0] * 8 and record["hit"] == [0.0] * 8
    np.testing.assert_allclose(record["choice"], 1 / 9)


def test_a_guess_with_opinions_gains_nothing_on_average():
  opinion = collections.defaultdict(np.random.default_rng(1).standard_normal)
  kind, rng = fact_kinds.KINDS[KINDS.index("city")], np.random.default_rng(0)
  drawn = [fact_kinds.draw(kind, rng, set()) for _ in range(4000)]
  gains = [facts.gain([opinion[value] for value in nine]) for nine in drawn]
  assert abs(np.mean(gains)) < 3 * np.std(gains) / 4000**0.5 < 0.06


def test_a_model_that_knows_the_answers_gains_what_it_knows(monkeypatch):
  options = dataclasses.replace(OPTIONS, keys=2)
  log_p = [[-1.0 if i % 9 == 0 else -4.0] for i in range(8 * 9)] + [[-2.0]] * 4
  scored = [(np.array(one), np.array([False])) for one in log_p]
  monkeypatch.setattr(SUBJECT.engine, "score_after", lambda *_: scored)
  records = measured(options)
  for record in records:
    assert record["gain"] == [3.0] * 8 and record["choice"] == [1.0] * 8
    assert keys.owner_margins(record) == [0.0, 0.0]
  summary = facts.summarize(options, records)
  assert summary["gain"]["2600"]["mean"] == 3 and summary["gain"]["2600"]["n"] == 2
  assert summary["gain_by_kind"].keys() == set(KINDS)
  assert summary["gain_by_depth"]["0.0625"] == 3
  assert summary["owner_margin"]["2600"]["mean"] == 0
  assert summary["average"] == 0


def test_a_text_is_saved_when_it_is_read_and_not_read_again(tmp_path, monkeypatch):
  def run(folder):
    return runner.run(
      "facts", facts, OPTIONS, SUBJECT, tmp_path / folder, terminal.Console(quiet=True)
    )

  monkeypatch.setattr(runner.plotting, "possible", lambda *_: False)
  read = []

  def stops(shared, tails, starts):
    if len(read) == 1:
      read.append(None)
      raise KeyboardInterrupt
    read.append(shared)
    return [(np.array([-float(len(read))]), np.array([True]))] * len(tails)

  monkeypatch.setattr(SUBJECT.engine, "score_after", stops)
  with pytest.raises(KeyboardInterrupt):
    run("stopped")
  resumed = run("stopped")
  (first, _, second) = read  # one text before the stop, one after it
  assert first != second
  assert [item["log_p_of_values"][0][0] for item in resumed["items"]] == [-1, -3]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(lengths="300"), "without other text has"),
    (dict(samples=0), "--samples=0 must be at least 1"),
    (dict(keys=1), "--keys=1: 0, or 2 to 80"),
    (dict(keys=81), "--keys=81"),
  ],
)
def test_bad_options_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    facts.items(dataclasses.replace(OPTIONS, **changes), SUBJECT)

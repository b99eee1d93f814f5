"""RULER: its questions, prompts of maximal length, scores."""

import collections
import re

import numpy as np
import pytest
import tiny_subject
from rich import console as rich_console

from skipalign_jax.evals import fill, haystack, items, runner, tasks
from skipalign_jax.evals.ruler import questions
from skipalign_jax.evals.ruler import task as ruler_task
from skipalign_jax.runtime import errors

SUBJECT = tiny_subject.make()
HEAD = SUBJECT.encode(SUBJECT.around(True)[0])
QUIET = rich_console.Console(quiet=True)


def draws(seed=0):
  return np.random.default_rng(seed)


def made(**options):
  return ruler_task.items(ruler_task.Options(**options), SUBJECT)


def test_words_are_different_and_not_parts_of_each_other():
  nouns = set(haystack.PARTS)
  pairs = {a + b for a in nouns for b in nouns if a != b}
  assert len(nouns) == 147 and len(pairs) == 147 * 146
  for among in (nouns, pairs):
    for word in among:
      inner = {word[i:j] for i in range(len(word)) for j in range(i + 3, len(word) + 1)}
      assert (inner & among) == {word}
  for count, kind in ((1, nouns), (147, nouns), (148, pairs), (4000, pairs)):
    words = haystack.words(count, draws())
    assert len(words) == len(set(words)) == count and set(words) <= kind
  many = haystack.words(len(pairs) + 1, draws())
  assert len(set(many)) == len(pairs) + 1 and not set(many) & pairs


def test_single_hides_one_needle_in_noise_anywhere():
  depths = set()
  for seed in range(30):
    question = questions.single(draws(seed), 9, 0)
    (value,) = question.expected
    assert re.fullmatch(r"\d{7}", value)
    lines = question.text.split("\n\n")[1].splitlines()
    assert lines.count(questions.NOISE) == 9 and len(lines) == 10
    (depth,) = [i for i, line in enumerate(lines) if value in line]
    depths.add(depth)
    key = re.search(r"number of (\w+) is", lines[depth])[1]
    assert key in question.text.split("\n\n")[2] and key in question.lead
    assert value not in question.lead
  assert {0, 9} < depths


@pytest.mark.parametrize("name", ["niah_multikey_2", "niah_multikey_3"])
def test_multikey_is_all_needles_with_one_answer(name):
  places = set()
  for seed in range(20):
    question = questions.TASKS[name].make(draws(seed), 7, 0)
    needles = dict(re.findall(r"of (\S+) is (\S+)\.", question.text))
    assert len(needles) == 7 == len(set(needles.values()))
    (key,) = re.findall(r"of (\S+) in this text\?$", question.text)
    assert question.expected == (needles[key],) and key in question.lead
    places.add(list(needles).index(key))
  assert len(places) > 4
  if name == "niah_multikey_3":
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(uuid, x) for pair in needles.items() for x in pair)


def follow(text, value):
  """Names that have a value after the assignments of a text, in their order."""
  held = {}
  for name, source in re.findall(r"SET (\w+) = (\w+)", text):
    held[name] = source if source.isdigit() else held[source]
  return [name for name, found in held.items() if found == value]


def test_variables_are_a_chain_of_four_hops_in_order():
  for seed in range(20):
    question = questions.variables(draws(seed), 6, 0)
    example, text = question.text.split("in the end?")[:2]
    value = re.search(r"the value (\d+)$", text.strip())[1]
    assert value in question.lead and len(question.expected) == 5
    assert follow(text, value) == list(question.expected)
    assert text.count(questions.NOISE) == 6
    # The solution of the example begins like the reply.
    (solved,) = re.findall(r"variables hold the value (\d+): (.*)", text)
    assert follow(example, solved[0]) == solved[1].split(", ")
    assert not set(question.expected) & set(solved[1].split(", "))


@pytest.mark.parametrize(
  ("length", "shown", "counts"), [(2048, (3, 1), (6, 1)), (4096, (10, 3), (30, 3))]
)
def test_common_words(length, shown, counts):
  question = questions.common_words(draws(), 25, length)
  example, text = re.findall(r"in mind\.\n\n(.*?)\n\nWhich", question.text, re.DOTALL)
  for listed, (often, seldom) in ((example, shown), (text, counts)):
    words = re.findall(r"\d+\. (\w+)", listed)
    numbers = [int(n) for n in re.findall(r"(\d+)\. ", listed)]
    assert numbers == list(range(1, len(words) + 1))
    counts = collections.Counter(words)
    common = [word for word, n in counts.items() if n == often]
    assert len(common) == 10
    assert {n for word, n in counts.items() if word not in common} == {seldom}
  assert set(common) == set(question.expected) and len(counts) == 10 + 25
  solved = question.text.split("list are: ")[1].split("\n")[0]
  shown_counts = collections.Counter(re.findall(r"\d+\. (\w+)", example))
  assert {w for w, _ in shown_counts.most_common(10)} == set(
    re.findall(r"\d+\. (\w+)", solved)
  )


@pytest.mark.parametrize("units", [74, 100, 1000])
def test_frequent_words_follow_the_zeta_law(units):
  question = questions.frequent_words(draws(), units, 20_000)
  text = question.text.split("\n\n")[1].split()
  counts = collections.Counter(text)
  dots = counts.pop("...")
  ranked = counts.most_common()
  assert [word for word, _ in ranked[:3]] == list(question.expected)
  assert ranked[2][1] > ranked[3][1]  # no tie for the last place
  normalizer = sum(1 / k**2 for k in range(1, 100_000))
  shares = [n / units for n in (dots, *dict(ranked).values())]
  for k, share in enumerate(shares, 1):
    assert 0 <= 1 / (normalizer * k**2) - share < 1 / units + 1e-6


def test_fewer_units_than_min_units_can_tie():
  counts = [questions.zeta_counts(units, 5) for units in range(40, 400)]
  least = questions.TASKS["fwe"].min_units
  assert all(n[3] > n[4] for n in counts[least - 40 :])
  assert any(n[3] == n[4] for n in counts[: least - 40])


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("name", list(questions.TASKS))
def test_prompts_are_as_long_as_possible(name, chat):
  lengths = (2700, 7001)
  found = made(tasks=name, lengths="2700,7001", samples=2, chat=chat)
  assert [item.id for item in found] == [
    f"{name}/{length}/{i}" for length in lengths for i in (0, 1)
  ]
  unit = dict(niah_single_1=80, niah_multikey_2=60, niah_multikey_3=110, vt=80)
  for item in found:
    prompt, record = item.query, item.record
    assert len(prompt.tokens) == record["tokens"]
    assert prompt.max_new_tokens == dict(vt=30, cwe=120, fwe=50).get(name, 128)
    assert item.places == record["tokens"] + prompt.max_new_tokens <= record["length"]
    # A rare word of cwe is in the long list three times.
    assert record["length"] - item.places < unit.get(name, 80)
    text = SUBJECT.tokenizer.decode(prompt.tokens)
    if chat:
      assert list(prompt.tokens[: len(HEAD)]) == HEAD
      question, lead = text.split("<|im_end|>\n<|im_start|>assistant\n")
    else:
      question, lead = text.rsplit("\n", 1)
    assert not lead.endswith(" ") and lead[-1] in ":s"
    assert all(expected not in lead for expected in record["expected"])
    assert all(expected in question for expected in record["expected"])
  texts = {item.query.tokens for item in found}
  assert len(texts) == 4
  assert made(tasks=name, lengths="2700,7001", samples=2, chat=chat) == found
  other = made(tasks=name, lengths="2700", samples=1, chat=chat, seed=1)
  assert other[0].query != found[0].query


def test_fill_finds_the_maximum_in_few_calls():
  sizes = np.cumsum(draws().integers(3, 9, 5000))
  for length in (100, 1000, 12_345):
    calls = []
    n = fill.most(lambda n: calls.append(n) or int(sizes[n]), length, 2)  # noqa: B023
    assert sizes[n] <= length < sizes[n + 1]
    assert len(calls) < 25
  assert fill.most(lambda n: n, 7, 7) == 7
  assert fill.most(lambda n: n, 6, 7) == 0
  for end in (7, 8, 100):
    assert fill.most(lambda n: n, 90, 7, end) == min(90, end)


def test_score_is_the_share_of_strings_found():
  assert ruler_task.recall("It is ABCD, bcde.", ["abcd", "BCDE", "xyz", "no"]) == 0.5
  assert ruler_task.recall("", ["a"]) == 0
  assert ruler_task.recall("12345678", ["2345"]) == 1
  for task, expected in (("vt", 0.5), ("qa_1", 1.0), ("qa_2", 1.0)):  # one is enough
    record = {"task": task, "expected": ["abcd", "xyz"]}
    assert ruler_task.score(record, "abcd") == expected
    assert ruler_task.score(record, "abc") == 0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(tasks="vt,niah"), "'niah' is unknown"),
    (dict(tasks=""), "unknown"),
    (dict(samples=0), "--samples=0 must be at least 1"),
    (dict(seed=-1), "--seed=-1 must be at least 0"),
    (dict(lengths="1024,x"), "positive numbers"),
    (dict(lengths="0"), "positive numbers"),
    (dict(lengths="300", tasks="vt"), r"prompt of vt has 1280 tokens, .* reply 30"),
  ],
)
def test_refused(options, message):
  with pytest.raises(errors.UserError, match=message):
    made(**options)


def test_needs_a_chat_template():
  bare = tiny_subject.make()
  bare.tokenizer.chat_template = None
  with pytest.raises(errors.UserError, match="--chat=False"):
    ruler_task.items(ruler_task.Options(), bare)


def test_from_questions_to_a_picture(tmp_path, monkeypatch):
  monkeypatch.setattr(items, "replies", lambda _, batch: [
    " " + " ".join(item.record["expected"][:1]) if item.record["length"] == 3000 else ""
    for item in batch
  ])  # fmt: skip
  options = tasks.options("ruler", dict(lengths="3000,3500", samples=2))
  results = runner.run("ruler", ruler_task, options, SUBJECT, tmp_path / "out", QUIET)
  summary = results["summary"]
  parts = dict(vt=1 / 5, cwe=1 / 10, fwe=1 / 3)
  for name in questions.TASKS:
    part = parts.get(name, 1)
    assert summary["table"][name] == {"3000": pytest.approx(part), "3500": 0}
    assert summary["by_task"][name]["mean"] == pytest.approx(part / 2)
  at_3000 = (3 + sum(parts.values())) / 6
  assert summary["by_length"]["3000"]["mean"] == pytest.approx(at_3000)
  assert summary["by_length"]["3000"]["n"] == 12
  assert summary["average"] == pytest.approx(at_3000 / 2)
  assert (tmp_path / "out" / "ruler.png").stat().st_size > 10_000


def test_a_model_is_evaluated(tmp_path):
  options = ruler_task.Options(tasks="vt", lengths="1400", samples=1)
  results = runner.run("ruler", ruler_task, options, SUBJECT, tmp_path / "out", QUIET)
  (record,) = results["items"]
  assert isinstance(record["reply"], str)
  assert record["score"] == ruler_task.recall(record["reply"], record["expected"])

"""BABILong, our version: stories that answer their questions, prompts, scores."""

import re

import numpy as np
import pytest
import tiny_subject
from rich import console as rich_console

from skipalign_jax.evals import babilong, babilong_stories, books, items, runner, tasks
from skipalign_jax.runtime import errors

SUBJECT = tiny_subject.make()
QUIET = rich_console.Console(quiet=True)
PROSE = " ".join(
  f"This is line {i} of the plain old book that nobody here reads. Mary reads it and "
  "the other one too, every day and every night. Short one."
  for i in range(60)
)
MOVES, TAKES, DROPS = (
  "|".join(getattr(babilong_stories, name)) for name in ("MOVES", "TAKES", "DROPS")
)


def made(book, **options):
  return babilong.items(babilong.Options(haystack=book, **options), SUBJECT)


def solve(lines, question):
  """The answers that a reader of the facts gives, who knows nothing else."""
  rooms, holders, trails = {}, {}, {}
  for line in lines:
    person, rest = line.rstrip(".").split(" ", 1)
    verb, name = re.fullmatch(rf"({MOVES}|{TAKES}|{DROPS}) the (\w+)", rest).groups()
    if verb in babilong_stories.MOVES:
      assert rooms.get(person) != name
      rooms[person] = name
      for thing, holder in holders.items():
        if holder == person:
          trails[thing].append(name)
    elif verb in babilong_stories.TAKES:
      assert name not in holders and person in rooms
      assert trails.get(name, [rooms[person]])[-1] == rooms[person]  # it is there
      holders[name] = person
      trails.setdefault(name, [rooms[person]])
    else:
      assert holders.pop(name) == person
  if found := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
    trail, room = trails[found[1]], found[2]
    return [trail[i] for i in range(len(trail) - 1) if trail[i + 1] == room]
  (name,) = re.fullmatch(r"Where is (?:the )?(\w+)\?", question).groups()
  return [rooms[name] if name in rooms else trails[name][-1]]


@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3"])
def test_stories_have_the_answers_that_a_reader_finds(task):
  low, high = babilong_stories.LINES[task]
  lengths, answers, questions = set(), set(), set()
  for seed in range(150):
    story = babilong_stories.tell(task, np.random.default_rng(seed), 45)
    assert solve(story.lines, story.question) == [story.answer]
    assert babilong.is_right(story.sentence, story.question, story.answer)
    lengths.add(len(story.lines))
    answers.add(story.answer)
    questions.add(story.question)
  assert answers == set(babilong_stories.ROOMS)
  assert low <= min(lengths) and max(lengths) <= min(high, 45)
  assert len(lengths) > 0.6 * (min(high, 45) - low) and len(questions) > 2


def test_solved_examples_are_right():
  """They have the form that is asked for, and other rooms than the task."""
  for task, examples in babilong.EXAMPLES.items():
    form = re.sub("[A-Z]{2,}", r"(\\w+)", re.escape(babilong.RULES[task][1]))
    for example in examples:
      facts, question, answer = example.split("\n")
      lines = re.findall(r"[^.]+\.", facts)
      *_, room = re.fullmatch(form, answer).groups()
      assert solve([line.strip() for line in lines], question) == [room]
      assert not any(room in example for room in babilong_stories.ROOMS)


def test_the_verdict_on_a_reply():
  right = babilong.is_right
  ask = "Where was the apple before the kitchen?"
  assert right("Before the kitchen the apple was in the Garden", ask, "garden")
  assert right("GARDEN. Then the office.", ask, "garden")
  assert right("garden<context> office", ask, "garden")
  assert right("garden <example> office", ask, "garden")
  assert not right("the garden or the office", ask, "garden")
  assert not right("the kitchen", ask, "garden")
  assert not right("", ask, "garden") and not right("Well. Garden", ask, "garden")
  assert not right("the office", "Where is Mary?", "garden")


def test_background_has_long_sentences_without_people_of_the_story(book):
  found = babilong.background_of(books.read(book))
  assert len(found.sentences) == 60
  assert all(line.startswith("This is line") for line in found.sentences)
  with pytest.raises(errors.UserError, match="no sentence of ten words"):
    babilong.background_of(books.Books(("Too short.",)))


@pytest.mark.parametrize(
  ("task", "chat"), [("qa1", False), ("qa2", True), ("qa3", False)]
)
def test_prompts_are_as_long_as_possible(book, task, chat):
  found = made(book, tasks=task, lengths="3000,3901", samples=1, chat=chat)
  assert [item.id for item in found] == [
    f"{task}/{length}/0" for length in (3000, 3901)
  ]
  for item in found:
    record = item.record
    assert item.query.max_new_tokens == 32
    assert record["length"] - 12 < item.places <= record["length"]
    text = SUBJECT.tokenizer.decode(item.query.tokens)
    inside = re.search(r"<context>\n(.*)\n</context>\n\n(.*)", text, re.DOTALL)
    assert inside[2].startswith(record["question"])
    fact = rf"(?:Mary|John|Sandra|Daniel) (?:{MOVES}|{TAKES}|{DROPS}) the \w+\."
    facts = re.findall(fact, inside[1])
    assert len(facts) == record["facts"] <= (record["length"] - 300) // 8
    assert solve(facts, record["question"]) == [record["expected"]]
    # What is left is the background, in its order.
    plain = [int(i) for i in re.findall(r"line (\d+)", inside[1])]
    assert plain == [(plain[0] + i) % 60 for i in range(len(plain))] and len(plain) > 3
    assert text.endswith("assistant\n" if chat else "\n")
  again = made(book, tasks=task, lengths="3901", samples=1, chat=chat)
  assert again[-1] == found[1]
  assert made(book, tasks=task, lengths="3000", seed=1)[0].query != found[0].query


def test_facts_are_spread_over_the_text(book):
  places = []
  for item in made(book, tasks="qa1", lengths="2200", samples=20):
    text = SUBJECT.tokenizer.decode(item.query.tokens)
    inside = text.split("<context>")[1]
    at = [m.start() / len(inside) for m in re.finditer(f"({MOVES}) the", inside)]
    places += at
  assert min(places) < 0.1 and max(places) > 0.8
  assert 0.4 < np.mean(places) < 0.6


def test_length_zero_is_the_story_alone(book):
  found = made(book, lengths="0", samples=2)
  assert len(found) == 6
  for item in found:
    text = SUBJECT.tokenizer.decode(item.query.tokens)
    inside = text.split("<context>\n")[1].split("\n</context>")[0]
    assert inside.count(".") == item.record["facts"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(tasks="qa4"), "'qa4' is unknown; choose from qa1, qa2, qa3"),
    (dict(samples=0), "--samples=0"),
    (dict(lengths="-1"), "--lengths=-1: give numbers from 0 on"),
    (dict(lengths="310", tasks="qa1"), "qa1 need at least 316 tokens"),
    (dict(lengths="800", tasks="qa3"), r"prompt of qa3 has \d+ tokens .* reply 32"),
  ],
)
def test_refused(book, options, message):
  with pytest.raises(errors.UserError, match=message):
    made(book, **options)


def test_books_are_needed():
  with pytest.raises(errors.UserError, match="--haystack=FILES is needed"):
    made("")


def test_from_stories_to_a_picture(book, tmp_path, monkeypatch):
  """Every question is answered for the first sample of a length, with its fact."""
  monkeypatch.setattr(items, "replies", lambda _, batch: [
    f"It is the {item.record['expected']}." if item.id.endswith("/0") else "Hm."
    for item in batch
  ])  # fmt: skip
  options = tasks.options("babilong", dict(haystack=book, lengths="0,3000", samples=2))
  results = runner.run("babilong", babilong, options, SUBJECT, tmp_path / "out", QUIET)
  summary = results["summary"]
  assert summary["average"] == 0.5 and "ours" in summary["version"]
  assert summary["random_room"] == pytest.approx(1 / 6)
  names = [f"babilong_qa{i} (ours)" for i in (1, 2, 3)]
  assert summary["table"] == {name: {"0": 0.5, "3000": 0.5} for name in names}
  assert summary["by_length"]["3000"]["n"] == 6
  assert (tmp_path / "out/babilong.png").stat().st_size > 10_000


def test_without_background_there_is_no_picture(book, tmp_path, monkeypatch):
  monkeypatch.setattr(items, "replies", lambda _, batch: [""] * len(batch))
  options = babilong.Options(haystack=book, lengths="0", samples=1, tasks="qa1")
  results = runner.run("babilong", babilong, options, SUBJECT, tmp_path / "out", QUIET)
  assert results["summary"]["average"] == 0
  assert not (tmp_path / "out/babilong.png").exists()

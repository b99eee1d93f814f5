"""RULER's tasks with data of the user: needles in books, questions about documents."""

import gzip
import json
import re

import numpy as np
import pytest
import tiny_subject
from rich import console as rich_console

from skipalign_jax.evals import books as books_lib
from skipalign_jax.evals import items, runner, tasks
from skipalign_jax.evals.ruler import documents, essays
from skipalign_jax.evals.ruler import task as ruler_task
from skipalign_jax.runtime import errors

SUBJECT = tiny_subject.make()
QUIET = rich_console.Console(quiet=True)
PROSE = " ".join(f"Line {i} of the book is plain." for i in range(90))
NUMBER, UUID = r"[1-9]\d{6}", r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f-]{21}"


def squad():
  asks = lambda i, answers, **more: dict(
    question=f"What is {i}?", answers=[{"text": a} for a in answers], id=str(i), **more
  )
  return {
    "version": "v2.0",
    "data": [
      {
        "title": f"Title_{t}",
        "paragraphs": [
          {
            "context": f"Paragraph {t}{p} has the answer {t}{p}{p}.",
            "qas": [
              asks(f"{t}{p}", [f"{t}{p}{p}", f"{t}{p}{p}", f"the {t}{p}{p}"]),
              asks("none", [], is_impossible=True),
            ],
          }
          for p in range(3)
        ],
      }
      for t in range(4)
    ],
  }


def hotpot():
  return [
    {
      "_id": str(i),
      "question": f"Who is {i}?",
      "answer": f"person {i}",
      "supporting_facts": [[f"A{i}", 0], [f"C{i}", 1], [f"A{i}", 2]],
      "context": [[f"{x}{i}", [f"{x}{i} knows person {i}.", " More."]] for x in "ABCD"],
    }
    for i in range(5)
  ]


@pytest.fixture(scope="module")
def qa(tmp_path_factory):
  folder = tmp_path_factory.mktemp("qa")
  (folder / "dev-v2.0.json").write_text(json.dumps(squad()))
  (folder / "hotpotqa.json.gz").write_bytes(
    gzip.compress(json.dumps(hotpot()).encode())
  )
  return str(folder)


def made(**options):
  return ruler_task.items(ruler_task.Options(**options), SUBJECT)


def test_no_key_is_a_part_of_another_one():
  for i, one in enumerate(essays.ADJECTIVES):
    assert not any(o.endswith(one) for o in essays.ADJECTIVES[:i]), one
    assert not any(o.endswith(one) for o in essays.ADJECTIVES[i + 1 :]), one
  assert len(essays.DEPTHS) == len(set(essays.DEPTHS)) == 40
  assert (essays.DEPTHS[0], essays.DEPTHS[-1]) == (0, 100)


@pytest.mark.parametrize(
  ("name", "keys", "values", "asked", "kind", "form"),
  [
    ("niah_single_2", 1, 1, 1, "number", NUMBER),
    ("niah_single_3", 1, 1, 1, "code", UUID),
    ("niah_multikey_1", 4, 1, 1, "number", NUMBER),
    ("niah_multivalue", 1, 4, 1, "number", NUMBER),
    ("niah_multiquery", 4, 1, 4, "number", NUMBER),
  ],
)
def test_needles_of_each_task(book, name, keys, values, asked, kind, form):
  task = essays.task(name, books_lib.read(book))
  assert task.max_new_tokens == 128
  starts, shares = set(), set()
  for seed in range(25):
    question = task.make(np.random.default_rng(seed), 400, 0)
    _, text, ask = question.text.split("\n\n")
    found = re.findall(rf"secret {kind}s? of ([a-z]+-[a-z]+) is ({form})\.", text)
    assert len(found) == keys * values == len({value for _, value in found})
    assert len({key for key, _ in found}) == keys
    listed = re.search(rf" {kind}s? of (.*) in this text\?$", ask)[1]
    names = re.split(", and |, ", listed)
    assert len(names) == asked and f" of {listed} " in question.lead
    wanted = {value for key, value in found if key in names}
    assert set(question.expected) == wanted and len(question.expected) == asked * values
    plural = len(question.expected) > 1
    assert question.lead.endswith(" are" if plural else " is")
    assert (f"all the secret {kind}s" in ask) == plural
    # What is left without the needles is the book, from a sentence on.
    plain = re.sub(rf"(One of t|T)he secret {kind}s? of \S+ is {form}\. ?", "", text)
    assert len(plain.split()) == 400 and plain.strip()[:40] in f"{PROSE} {PROSE}"
    starts.add(plain[:8])
    at = [len(text[: text.index(value)].split(".")) for value in question.expected]
    shares |= {place / text.count(".") for place in at}
  assert len(starts) > 10
  assert min(shares) < 0.15 and max(shares) > 0.85


def test_needles_have_different_depths_of_forty(book):
  """The places are those of the formula: before sentence ⌊n·d/100⌋."""
  task = essays.task("niah_multiquery", books_lib.read(book))
  for seed in range(10):
    text = task.make(np.random.default_rng(seed), 600, 0).text.split("\n\n")[1]
    lines = books_lib.split(text)
    at = [i for i, line in enumerate(lines) if "secret" in line]
    n = len(lines) - len(at)
    places = [place - before for before, place in enumerate(at)]
    allowed = {n * depth // 100 for depth in essays.DEPTHS}
    assert len(set(places)) == 4 and set(places) <= allowed


def test_squad_has_answerable_questions_and_the_articles_other_paragraphs_near(qa):
  data = documents.read(documents.path_of(qa, "qa_1"), "qa_1")
  assert len(data.records) == 12 == len(data.documents)
  for record in data.records:
    (needed,) = record.needed
    number = re.search(r"\d\d", record.question)[0]
    assert record.answers == (f"{number}{number[1]}", f"the {number}{number[1]}")
    assert data.documents[needed].startswith(f"Title_{number[0]}\nParagraph {number}")
    near = {data.documents[i][:7] for i in record.near}
    assert len(record.near) == 2 and near == {f"Title_{number[0]}"}


def test_hotpot_needs_the_paragraphs_of_its_facts(qa):
  data = documents.read(documents.path_of(qa, "qa_2"), "qa_2")
  assert len(data.records) == 5 and len(data.documents) == 20
  for i, record in enumerate(data.records):
    names = lambda numbers: [data.documents[n].split("\n")[0] for n in numbers]
    assert names(record.needed) == [f"A{i}", f"C{i}"]
    assert names(record.near) == [f"B{i}", f"D{i}"]
    assert record.answers == (f"person {i}",)
    assert data.documents[record.needed[0]] == f"A{i}\nA{i} knows person {i}. More."


@pytest.mark.parametrize("units", [2, 3, 4, 5, 20, 27])
def test_documents_are_needed_ones_then_near_ones_then_others(qa, units):
  data = documents.read(documents.path_of(qa, "qa_2"), "qa_2")
  record = data.records[2]
  task = documents.task(data, record)
  assert (task.min_units, task.max_new_tokens) == (2, 32)
  first_places = set()
  for seed in range(8):
    question = task.make(np.random.default_rng(seed), units, 0)
    found = re.findall(r"Document (\d+): (\w)(\d)\n", question.text)
    assert [int(number) for number, _, _ in found] == list(range(1, units + 1))
    own = [name for _, name, i in found if i == "2"]
    assert {"A", "C"} <= set(own)
    if units <= 20:
      assert len({(name, i) for _, name, i in found}) == units
      assert len(own) == min(units, 4)
    first_places.add(
      next(i for i, (_, name, j) in enumerate(found) if name + j == "A2")
    )
    assert question.text.endswith("Question: Who is 2?")
  assert len(first_places) > 1


@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_as_long_as_possible(book, qa, chat):
  names = (*essays.TASKS, "qa_1", "qa_2")
  given = dict(haystack=book, qa=qa, lengths="1200,2001", samples=1, chat=chat)
  found = made(tasks=",".join(names), **given)
  assert [item.id for item in found] == [
    f"{name}/{length}/0" for name in names for length in (1200, 2001)
  ]
  for item in found:
    record = item.record
    assert item.query.max_new_tokens == (32 if record["task"][:2] == "qa" else 128)
    assert item.places <= record["length"]
    # One more word, or one more document.
    assert record["length"] - item.places < (70 if record["task"][:2] == "qa" else 12)
    text = SUBJECT.tokenizer.decode(item.query.tokens)
    which = any if record["task"][:2] == "qa" else all
    assert which(expected in text for expected in record["expected"])
  assert made(tasks="qa_2,niah_multivalue", **given) == [*found[-2:], *found[6:8]]


def test_questions_of_documents_are_the_same_at_all_lengths(qa):
  found = made(tasks="qa_1", qa=qa, lengths="900,1500", samples=4)
  expected = [item.record["expected"] for item in found]
  assert expected[:4] == expected[4:] and len({x[0] for x in expected}) == 4
  fewer = made(tasks="qa_1", qa=qa, lengths="900", samples=2)
  assert fewer == found[:2]


def test_a_record_that_is_too_long_is_replaced(tmp_path):
  content = hotpot()[:2]
  content[0]["context"][0][1][0] = "too long " * 300
  (tmp_path / "hotpotqa.json").write_text(json.dumps(content))
  found = made(tasks="qa_2", qa=str(tmp_path), lengths="900", samples=3)
  assert [item.record["expected"] for item in found] == [["person 1"]] * 3
  content[1]["context"][2][1][0] = "too long " * 300
  (tmp_path / "hotpotqa.json").write_text(json.dumps(content))
  with pytest.raises(errors.UserError, match=r"shortest prompt of qa_2 has \d{4} tok"):
    made(tasks="qa_2", qa=str(tmp_path), lengths="900", samples=3)


def test_scores_are_all_or_any():
  record = dict(task="niah_multivalue", expected=["123", "ABC"])
  assert ruler_task.score(record, "abc") == 0.5
  assert ruler_task.score(record | dict(task="qa_1"), "so abc it is") == 1
  assert ruler_task.score(record | dict(task="qa_2"), "12 3") == 0


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{", "cannot be read"),
    ("[]", "cannot be read"),
    ('{"data": [{"title": "a"}]}', "paragraphs"),
    ('{"data": [{"title": 3, "paragraphs": [{"context": "a", "qas": []}]}]}', "text"),
    ('{"data": []}', "no question with an answer"),
  ],
)
def test_damaged_data(tmp_path, content, message):
  (tmp_path / "squad.json").write_text(content)
  with pytest.raises(errors.UserError, match=rf"--qa: .*squad\.json.*{message}"):
    made(tasks="qa_1", qa=str(tmp_path))


def test_an_answer_without_characters_is_no_answer(tmp_path):
  content = hotpot()
  for record in content[1:]:
    record["answer"] = "  "
  (tmp_path / "hotpotqa.json").write_text(json.dumps(content))
  data = documents.read(documents.path_of(str(tmp_path), "qa_2"), "qa_2")
  assert [record.answers for record in data.records] == [("person 0",)]


def test_tasks_without_data_are_named(book, qa, tmp_path):
  options = lambda **given: ruler_task.Options(**given)
  assert len(ruler_task.chosen(options(haystack=book, qa=qa))) == 13
  assert ruler_task.chosen(options(haystack=book, qa=qa)) == list(ruler_task.NAMES)
  assert len(ruler_task.chosen(options(haystack=book))) == 11
  assert len(ruler_task.chosen(options())) == 6
  for name, what in (("niah_multivalue", "haystack"), ("qa_2", "qa")):
    with pytest.raises(errors.UserError, match=rf"{name} lacks its data \(no --{what}"):
      made(tasks=f"vt,{name}")
  with pytest.raises(errors.UserError, match="is not a folder"):
    made(qa=str(tmp_path / "none"))
  with pytest.raises(errors.UserError, match=r"neither dev-v2\.0\.json nor hotpot"):
    made(qa=str(tmp_path))
  (tmp_path / "squad.json").write_text(json.dumps(squad()))
  assert ruler_task.chosen(options(qa=str(tmp_path)))[-1] == "qa_1"


def test_a_summary_names_what_the_mean_lacks(book, qa, tmp_path, monkeypatch):
  monkeypatch.setattr(
    items, "replies", lambda _, batch: [i.record["expected"][0] for i in batch]
  )

  def summary(name, **given):
    options = tasks.options("ruler", dict(lengths="2500", samples=1) | given)
    folder = tmp_path / name
    return runner.run("ruler", ruler_task, options, SUBJECT, folder, QUIET)["summary"]

  whole = summary("whole", haystack=book, qa=qa)
  assert whole["mean_of"] == "13 of 13 tasks" and whole["lacks"] == []
  parts = dict(niah_multivalue=1 / 4, niah_multiquery=1 / 4, vt=1 / 5, cwe=1 / 10)
  mean = (8 + sum(parts.values()) + 1 / 3) / 13
  assert whole["average"] == pytest.approx(mean)
  assert list(whole["by_task"]) == list(ruler_task.NAMES)
  part = summary("part", haystack=book)
  assert part["mean_of"] == "11 of 13 tasks"
  assert part["lacks"] == ["qa_1 (no --qa)", "qa_2 (no --qa)"]
  one = summary("one", haystack=book, tasks="vt")
  assert one["mean_of"] == "1 of 13 tasks" and "fwe (not evaluated)" in one["lacks"]

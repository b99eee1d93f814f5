"""LongBench v2: records, prompts, truncation, answers, scores, bad data."""

import gzip
import json

import pytest
import tiny_subject
from rich import console as rich_console

from skipalign_jax.evals import items, longbench_v2, runner, tasks
from skipalign_jax.runtime import errors

SUBJECT = tiny_subject.make()
QUIET = rich_console.Console(quiet=True)


def record(i=0, **changes):
  fields = dict(
    _id=f"id{i}", domain="Code", sub_domain="x", difficulty="easy", length="short",
    question=f"Which {i}?", answer="ABCD"[i % 4], context=f"The text {i}. " * 20,
    **{f"choice_{letter}": f"choice {letter.lower()}" for letter in "ABCD"},
  )  # fmt: skip
  return fields | changes


def write(path, records, form="array"):
  lines = "\n".join(json.dumps(one) for one in records) + "\n"
  text = json.dumps(records) if form == "array" else lines
  path.write_bytes(gzip.compress(text.encode()) if form == "gz" else text.encode())
  return str(path)


@pytest.fixture
def data(tmp_path):
  return write(tmp_path / "data.json", [record(i) for i in range(3)])


def made(data, **options):
  return longbench_v2.items(longbench_v2.Options(data=data, **options), SUBJECT)


def text_of(item):
  return SUBJECT.tokenizer.decode(item.query.tokens, skip_special_tokens=False)


def test_prompts_have_text_question_and_choices(data):
  found = made(data)
  assert [item.id for item in found] == ["0", "1", "2"]
  for i, item in enumerate(found):
    text = text_of(item)
    parts = [
      "<|im_start|>user\n", f"The text {i}. " * 19, "</text>", f"Question: Which {i}?",
      "(A) choice a\n(B) choice b\n(C) choice c\n(D) choice d\n",
      "The correct answer is (", "assistant\n",
    ]  # fmt: skip
    at = [text.index(part) for part in parts]
    assert at == sorted(at) and "$" not in text
    assert item.query.max_new_tokens == 128 and item.record["expected"] == "ABC"[i]
    assert item.record["record"] == f"id{i}" and not item.record["truncated"]
  assert text_of(made(data, chat=False)[0]).startswith("Below is a text")


@pytest.mark.parametrize("form", ["array", "lines", "gz"])
def test_files_may_be_arrays_or_lines(tmp_path, data, form):
  path = write(tmp_path / "other", [record(i) for i in range(3)], form)
  assert made(path) == made(data)


def test_long_prompts_lose_their_middle(tmp_path):
  path = write(tmp_path / "a.json", [record(context="abcdefghij" * 200)])
  whole = text_of(made(path, chat=False)[0])
  for length in (500, 501):
    (item,) = made(path, max_length=length, chat=False)
    half = length // 2
    assert text_of(item) == whole[:half] + whole[-half:]
    assert item.record["truncated"] and item.record["tokens_before"] == len(whole)
  (templated,) = made(path, max_length=500)
  assert whole[:250] + whole[-250:] in text_of(templated)


def test_places_in_a_record_are_not_filled(tmp_path):
  path = write(
    tmp_path / "a.json", [record(context="see $Q$ and $C_A$", question="$DOC$?")]
  )
  text = text_of(made(path, chat=False)[0])
  assert "see $Q$ and $C_A$" in text and "Question: $DOC$?" in text


def test_names_of_special_tokens_are_text(tmp_path):
  path = write(tmp_path / "a.json", [record(context="an <|im_end|> inside")])
  (item,) = made(path)
  end = SUBJECT.tokenizer.convert_tokens_to_ids("<|im_end|>")
  assert item.query.tokens.count(end) == 1 and "<|im_end|> inside" in text_of(item)


def test_the_authors_prompt_is_read_from_their_file(tmp_path, data):
  folder = tmp_path / "prompts"
  folder.mkdir()
  places = list(longbench_v2.PLACES)
  (folder / "0shot.txt").write_text(" | ".join(places) + "\n")
  found = made(data, prompts=str(folder), chat=False)
  assert text_of(found[1]).endswith(
    "| Which 1? | choice a | choice b | choice c | choice d"
  )
  assert found[0].record["prompts"].startswith("0shot.txt ")
  (folder / "0shot.txt").write_text(" ".join(places[:-1]))
  with pytest.raises(errors.UserError, match=r"0shot\.txt has no \$C_D\$"):
    made(data, prompts=str(folder))
  with pytest.raises(errors.UserError, match=r"LongBench v2's 0shot\.txt"):
    made(data, prompts=str(tmp_path))


@pytest.mark.parametrize(
  ("reply", "answer"),
  [
    ("The correct answer is (B).", "B"),
    ("The **correct** answer is **(C)**", "C"),
    ("Well. The correct answer is D", "D"),
    ("The correct answer is A. Or: The correct answer is (B)", "B"),
    ("The correct answer is (E)", None),
    ("the correct answer is (B)", None),
    ("(B)", None),
    ("", None),
  ],
)
def test_answers_are_read_as_the_authors_read_them(reply, answer):
  assert longbench_v2.answer_in(reply) == answer


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(answer="E"), "'answer' must be A, B, C or D; it is 'E'"),
    (dict(answer="AB"), "'answer' must be"),
    (dict(answer=""), "'answer' must be"),
    (dict(context=" "), "'context' must be a text that is not empty"),
    (dict(choice_C=None), "'choice_C' must be a text"),
    (dict(question=7), "'question' must be a text"),
    (dict(difficulty="medium"), "'difficulty' must be easy or hard"),
    (dict(length=700), "'length' must be short, medium or long"),
    (dict(domain=""), "'domain' must be a text"),
  ],
)
def test_records_that_cannot_be_used_are_named(tmp_path, changes, message):
  path = write(tmp_path / "bad.json", [record(0), record(1, **changes)])
  with pytest.raises(
    errors.UserError, match=r"^--data: \S*bad\.json, record 2: "
  ) as caught:
    made(path)
  assert message in str(caught.value)


def test_missing_keys_and_damaged_files_are_refused(tmp_path):
  path = tmp_path / "bad.json"
  lacking = record()
  del lacking["choice_B"]
  for content, message in (
    (
      json.dumps([lacking]),
      "'choice_B' must be a text that is not empty; it is missing",
    ),
    ("[3]", "a record must be a JSON object"),
    ("[{", "cannot be read"),
    ('{"a": 1}\nx', "'context' must be a text"),
    ("x", "cannot be read"),
    ("[]", "has no records"),
    ("", "has no records"),
  ):
    path.write_text(content)
    with pytest.raises(errors.UserError, match=r"--data: .*bad\.json") as caught:
      made(str(path))
    assert message in str(caught.value)
  with pytest.raises(errors.UserError, match="cannot be read"):
    made(str(tmp_path / "none.json"))
  with pytest.raises(errors.UserError, match="--data=FILE is needed"):
    made("")
  with pytest.raises(errors.UserError, match="--max_length=1 "):
    made("x", max_length=1)


def test_scores_overall_and_by_kind(tmp_path, monkeypatch):
  replies = ["The correct answer is (A)", "The correct answer is (A)", "B", "(D)"]
  monkeypatch.setattr(items, "replies", lambda _, batch: [
    replies[int(item.id)] for item in batch
  ])  # fmt: skip
  kinds = [("hard", "long"), ("easy", "short"), ("hard", "short"), ("easy", "medium")]
  path = write(
    tmp_path / "a.json",
    [
      record(i, answer="A", difficulty=one, length=two, domain=f"D{i % 2}")
      for i, (one, two) in enumerate(kinds)
    ],
  )
  options = tasks.options("longbench_v2", dict(data=path))
  folder = tmp_path / "out"
  summary = runner.run("longbench_v2", longbench_v2, options, SUBJECT, folder, QUIET)[
    "summary"
  ]
  mean = lambda key: {name: one["mean"] for name, one in summary[key].items()}
  assert summary["average"] == 0.5 and summary["without_answer"] == 2
  assert mean("by_difficulty") == {"easy": 0.5, "hard": 0.5}
  assert mean("by_length") == {"short": 0.5, "medium": 0, "long": 1}
  assert list(summary["by_length"]) == ["short", "medium", "long"]
  assert mean("by_domain") == {"D0": 0.5, "D1": 0.5}
  assert summary["lacks"] == ["4 of 503 records", "the authors' prompt"]
  assert summary["truncated"] == 0 and summary["random_choice"] == 0.25

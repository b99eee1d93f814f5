"""MRCR, our version: chats, prompts, scores and floors."""

import collections
import difflib
import re

import numpy as np
import pytest
import tiny_subject
from rich import console as rich_console

from skipalign_jax.evals import books, items, mrcr, mrcr_chats, runner, tasks
from skipalign_jax.runtime import errors

SUBJECT = tiny_subject.make()
QUIET = rich_console.Console(quiet=True)
PROSE = " ".join(
  f"Number {i} said {i * i} words to number {i + 7}." for i in range(1, 900)
)


def made(book, **options):
  return mrcr.items(mrcr.Options(haystack=book, **options), SUBJECT)


def test_replies_are_runs_of_sentences_that_share_none():
  found = mrcr_chats.replies_of(
    books.Books(tuple(books.split(PROSE))), np.random.default_rng(0)
  )
  lines = [line for reply in found for line in books.split(reply)]
  assert len(lines) == len(set(lines)) > 890 and set(lines) <= set(books.split(PROSE))
  counts = collections.Counter(len(books.split(reply)) for reply in found)
  assert set(counts) == {3, 4, 5, 6} and min(counts.values()) > 20
  numbers = [int(re.match(r"Number (\d+)", reply)[1]) for reply in found]
  assert (np.diff(numbers) < 0).sum() == 1  # once round
  long = books.Books(tuple(f"{'word ' * 60}end {i}." for i in range(30)))
  assert mrcr_chats.replies_of(long, np.random.default_rng(0)) == []


@pytest.mark.parametrize("needles", [1, 2, 4, 8])
def test_a_chat_repeats_one_request_among_similar_ones(needles):
  replies = [f"Reply {i}." for i in range(60)]
  places, wanted, shared = [], set(), collections.Counter()
  for seed in range(30):
    chat = mrcr_chats.make(replies, np.random.default_rng(seed), needles, 40)
    assert [reply for _, reply in chat.turns if reply in replies[:40]]
    assert len({reply for _, reply in chat.turns}) == 40
    asks = [request for request, _ in chat.turns]
    same = asks[chat.needles[0]]
    assert [i for i, ask in enumerate(asks) if ask == same] == list(chat.needles)
    assert len(chat.needles) == needles and chat.wanted in chat.needles
    kind, topic = re.fullmatch(r"Write an? (.*) about (.*)\.", same).groups()
    for ask in asks:
      other = re.fullmatch(r"Write an? (.*) about (.*)\.", ask).groups()
      assert (kind == other[0]) + (topic == other[1]) == 1 + (ask == same)
      shared["kind"] += kind == other[0]
      shared["topic"] += topic == other[1]
    nth = chat.needles.index(chat.wanted)
    assert f"{mrcr_chats.ORDINALS[nth]} {kind} about {topic} of" in chat.ask
    assert f"Reply with {chat.code} and" in chat.ask
    assert re.fullmatch("[A-Za-z0-9]{10}", chat.code)
    assert chat.gold == chat.code + chat.turns[chat.wanted][1]
    more = mrcr_chats.make(replies, np.random.default_rng(seed), needles, 50)
    assert (more.gold, more.ask) == (chat.gold, chat.ask)
    places += chat.needles
    wanted.add(nth)
  assert wanted == set(range(needles)) or (needles == 8 and len(wanted) > 5)
  assert min(places) < 8 and max(places) > 32
  assert 0.6 < shared["kind"] / shared["topic"] < 1.6


def test_messages_alternate_and_the_example_is_first():
  chat = mrcr_chats.make(["A a.", "B b.", "C c."], np.random.default_rng(0), 2, 3)
  roles = [role for role, _ in chat.messages]
  assert roles == ["user", "assistant"] * 3 + ["user"]
  assert chat.messages[0][1] == mrcr_chats.EXAMPLE + chat.turns[0][0]
  assert chat.messages[-1][1] == chat.ask and chat.messages[3][1] == chat.turns[1][1]
  for word in (*mrcr_chats.FORMATS, *mrcr_chats.TOPICS):
    assert not re.search(rf"\b{word}\b", mrcr_chats.EXAMPLE)
  # The example is solved rightly, by its own rules.
  code, nth = re.search(
    r"Reply with (\w+) .* the (\w+) riddle", mrcr_chats.EXAMPLE
  ).groups()
  riddles = re.findall(r"riddle about stairs\.\nAssistant: (.*)", mrcr_chats.EXAMPLE)
  solved = riddles[mrcr_chats.ORDINALS.index(nth)]
  assert mrcr_chats.EXAMPLE.split("Assistant: ")[-1].startswith(f"{code}{solved}\n")


@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_as_long_as_possible(book, chat):
  found = made(book, needles="2,4", lengths="3500", samples=2, chat=chat)
  assert [item.id for item in found] == [
    f"{k}/3500/{i}" for k in (2, 4) for i in (0, 1)
  ]
  for item in found:
    record = item.record
    gold = record["code"] + record["answer"]
    assert item.query.max_new_tokens == len(SUBJECT.encode(gold)) + 32
    # One more request and reply.
    assert record["length"] - 400 < item.places <= record["length"]
    text = SUBJECT.tokenizer.decode(item.query.tokens, skip_special_tokens=False)
    assert text.count(record["answer"]) == 1
    turn = "<|im_start|>assistant\n" if chat else "\nAssistant:"
    assert text.count(turn) == record["turns"] + 1 + 3 * (not chat)
    assert text.endswith(turn) and record["wanted"] <= record["needles"]
    assert all(1 / 60 < record[f"floor_any_{x}"] < 1 for x in ("reply", "needle"))
  assert made(book, needles="4", lengths="3500", samples=1, chat=chat) == [found[2]]
  other = made(book, needles="2", lengths="3500", samples=1, chat=chat, seed=1)
  assert other[0].query != found[0].query


def test_tokens_of_a_chat_are_those_of_the_template(book):
  (item,) = made(book, needles="2", lengths="3500", samples=1)
  text = SUBJECT.tokenizer.decode(item.query.tokens, skip_special_tokens=False)
  assert SUBJECT.tokenizer.encode(text) == list(item.query.tokens)
  assert text.startswith("<|im_start|>user\nThis is a chat in which")


def test_score():
  score = mrcr.score
  assert score("abcHello there.", "abc", "Hello there.") == 1
  assert score("\n abcHello there.", "abc", "Hello there.") == 1
  assert score("Hello there.", "abc", "Hello there.") == 0
  assert score("Sure: abcHello there.", "abc", "Hello there.") == 0
  assert score("abc", "abc", "Hello there.") == 0
  half = score("abcHello", "abc", "Hello there.")
  assert half == difflib.SequenceMatcher(None, "Hello", "Hello there.").ratio()


def test_frequent_characters_are_junk_as_in_difflibs_default():
  """Long texts that share only frequent characters have a similarity of about 0."""
  one, other = (
    ("the cat sat on a mat " * 30)[:540],
    ("mate at home not here " * 30)[:540],
  )
  whole = difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()
  assert mrcr.similarity(one, other) < 0.05 < 0.3 < whole


def test_floors_are_expectations_over_replies():
  chat = mrcr_chats.make(
    [f"{c * 8}." for c in "abcdef"], np.random.default_rng(0), 2, 6
  )
  answer = chat.turns[chat.wanted][1]
  each = [
    difflib.SequenceMatcher(None, reply, answer).ratio() for _, reply in chat.turns
  ]
  any_reply, any_needle = mrcr.floors(chat)
  assert any_reply == pytest.approx(sum(each) / 6)
  assert any_needle == pytest.approx(sum(each[i] for i in chat.needles) / 2)
  assert any_needle == pytest.approx((1 + 2 / 18) / 2)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(needles="2,9"), "--needles=2,9: at most 8"),
    (dict(needles="0"), "--needles=0: give positive numbers"),
    (dict(samples=0), "--samples=0"),
    (dict(lengths="900"), r"shortest chat with 2 needles has \d+ tokens, .* reply"),
    (dict(lengths="90000"), "too few sentences for a chat of 90000 tokens"),
  ],
)
def test_refused(book, options, message):
  with pytest.raises(errors.UserError, match=message):
    made(book, **options)


def test_books_and_a_template_are_needed(book):
  with pytest.raises(errors.UserError, match="--haystack=FILES is needed"):
    made("")
  bare = tiny_subject.make()
  bare.tokenizer.chat_template = None
  with pytest.raises(errors.UserError, match="--chat=False"):
    mrcr.items(mrcr.Options(haystack=book), bare)
  bare.tokenizer.chat_template = "{{ raise_exception('one turn only') }}"
  with pytest.raises(errors.UserError, match="--chat=False"):
    mrcr.items(mrcr.Options(haystack=book), bare)


def test_a_book_with_fewer_replies_than_needles(tmp_path):
  (tmp_path / "a.txt").write_text(PROSE[:400])
  with pytest.raises(errors.UserError, match="too few sentences"):
    made(str(tmp_path / "a.txt"), needles="8")


def test_from_chats_to_a_picture(book, tmp_path, monkeypatch):
  monkeypatch.setattr(items, "replies", lambda _, batch: [
    item.record["code"] + item.record["answer"] * (item.record["needles"] == 2)
    for item in batch
  ])  # fmt: skip
  options = tasks.options(
    "mrcr", dict(haystack=book, needles="2,4", lengths="3500,4000", samples=1)
  )
  results = runner.run("mrcr", mrcr, options, SUBJECT, tmp_path / "out", QUIET)
  summary = results["summary"]
  assert summary["table"] == {
    "2 needles": {"3500": 1, "4000": 1}, "4 needles": {"3500": 0, "4000": 0}
  }  # fmt: skip
  assert summary["average"] == 0.5 and summary["begins_with_the_code"] == 1
  records = results["items"]
  mean = np.mean([record["floor_any_needle"] for record in records])
  assert summary["floor_any_needle"] == pytest.approx(mean)
  of_4 = np.mean([r["floor_any_reply"] for r in records if r["needles"] == 4])
  assert summary["floors_by_needles"]["4"]["floor_any_reply"] == pytest.approx(of_4)
  assert "ours" in summary["version"]
  assert (tmp_path / "out/mrcr.png").stat().st_size > 10_000

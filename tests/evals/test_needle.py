"""Needles: exact lengths, places, scores and options that are refused."""

import dataclasses
import gzip

import numpy as np
import pytest
import tiny_subject

from skipalign_jax.evals import facts, haystack, keys, needle, option_values
from skipalign_jax.runtime import errors

SUBJECT = tiny_subject.make(window=256)
OPTIONS = needle.Options(lengths="400,700", depths="0,0.5,1", max_new_tokens=4)


def text_of(item):
  return SUBJECT.tokenizer.decode(item.query.tokens)


@pytest.mark.parametrize("variant", ["passkey", "sandwich"])
@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_exact_and_needles_follow_a_full_stop(variant, chat):
  options = dataclasses.replace(OPTIONS, variant=variant, chat=chat)
  items = needle.items(options, SUBJECT)
  assert len(items) == 6
  keys, where = set(), {}
  for item in items:
    length, depth = item.record["length"], item.record["depth"]
    assert len(item.query.tokens) == length == item.record["tokens"]
    text = text_of(item)
    hidden = needle.FACT
    if variant == "passkey":
      hidden = needle.KEY.format(key=item.record["answer"])
      keys.add(item.record["answer"])
    assert text.count(hidden) == 1
    begin = text.index(needle.BEFORE) + len(needle.BEFORE)
    hay_before = text[begin : text.index(hidden)]
    if depth == 1:  # the end of the text, also inside a sentence
      assert text[text.index(hidden) + len(hidden) :].startswith(needle.AFTER[:9])
    else:
      assert hay_before.strip() == "" or hay_before.rstrip().endswith(".")
    hay = length - (len(text) - len(text.replace(hidden, "")))
    assert len(hay_before) <= depth * hay + 1
    where[length, depth] = len(hay_before)
    assert text.endswith("assistant\n") == chat
  for length in (400, 700):
    assert where[length, 0] <= 1 and where[length, 0.5] < where[length, 1]
    if length == 700:  # back to the last stop, by one sentence at most
      assert where[length, 0.5] > 0
  assert len(keys) == (6 if variant == "passkey" else 0)
  again = needle.items(options, tiny_subject.make(window=256))
  assert [item.query for item in again] == [item.query for item in items]


def test_stops_are_right_after_full_stops():
  text = haystack.Haystack(SUBJECT, "", seed=0)
  words, stops = text.cut(500)
  assert len(words) == 500 and len(stops) > 5
  assert stops == [0] + [i + 1 for i, c in enumerate(words) if c == "." and i < 499] + (
    [500] if words.endswith(".") else []
  )


def test_a_short_text_starts_again_and_files_join(tmp_path):
  (tmp_path / "a.txt").write_text("One a. Two a. ")
  with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
    file.write("Three b. ")
  text = haystack.Haystack(SUBJECT, f"{tmp_path}/a.txt,{tmp_path}/b.txt.gz", 0)
  words, _ = text.cut(100)
  assert len(words) == 100 and words.startswith("One a. Two a. \n\nThree b.")
  assert words.count("One a.") > 1


def test_samples_can_begin_at_their_own_pages(tmp_path):
  book = "".join(f"Here is sentence number {i:03}. " for i in range(100))
  (tmp_path / "a.txt").write_text(book)

  def begins(files, **options):
    changed = dataclasses.replace(
      OPTIONS, haystack=files, lengths="400", depths="1", samples=4, **options
    )
    texts = map(text_of, needle.items(changed, SUBJECT))
    return [text.partition(needle.BEFORE)[2][:28] for text in texts]

  several = dataclasses.replace(OPTIONS, lengths="400", depths="2", samples=3)
  answers = [item.record["answer"] for item in needle.items(several, SUBJECT)]
  assert len(set(answers)) == 6  # each has its own key

  file = str(tmp_path / "a.txt")
  sentence = "Here is sentence number {}."
  assert begins(file) == [sentence.format("000")] * 4
  # After a quarter of 100 sentences is number 25; the stop after it is the next one.
  own = [sentence.format(n) for n in ("000", "026", "051", "076")]
  assert begins(file, own_pages=True) == own
  assert len(set(begins("", own_pages=True))) == 4 and len(set(begins(""))) == 1
  text = haystack.of_samples(SUBJECT, file, 0, 4, own_pages=True)[3]
  words, _ = text.cut(len(book))
  assert words.startswith(own[3]) and sentence.format("074") in words  # and around
  (tmp_path / "b.txt").write_text("no stop anywhere here at all")
  other = haystack.of_samples(SUBJECT, str(tmp_path / "b.txt"), 0, 2, own_pages=True)[1]
  assert other.cut(8)[0].startswith("re here")


def test_needles_go_back_to_full_stops_of_other_scripts(tmp_path):
  (tmp_path / "a.txt").write_text("天气很好。我们去公园，看花！" * 200, "utf-8")
  file = str(tmp_path / "a.txt")
  options = needle.Options(haystack=file, lengths="1500", depths="0.3,0.6,0.9")
  before = [
    text_of(i).partition(" The secret")[0] for i in needle.items(options, SUBJECT)
  ]
  assert all(text.endswith("天气很好。") for text in before)
  at = [len(text.partition(needle.BEFORE)[2].encode()) / 1500 for text in before]
  assert at == sorted(at) and 0.15 < at[0] < 0.3 < at[1] < 0.6 < at[2]
  other = haystack.of_samples(SUBJECT, file, 0, 2, own_pages=True)[1]
  assert other.cut(20)[0].startswith("我们")


@pytest.mark.parametrize("task", [needle, keys, facts])
def test_a_text_without_full_stops_is_refused_where_needles_would_be_far_off(
  task, tmp_path
):
  """They were all at the beginning, whatever their depths."""
  (tmp_path / "a.py").write_text("def f(x):\n  return x + 1\n" * 100)
  options = task.Options(haystack=str(tmp_path / "a.py"), lengths="2500", chat=False)
  with pytest.raises(errors.UserError, match=r"--haystack.* no full stop .*depth 0"):
    task.items(options, SUBJECT)
  if task is needle:  # here there is nothing to go back for
    options = dataclasses.replace(options, depths="0,1")
    assert len(needle.items(options, SUBJECT)) == 2


@pytest.mark.parametrize(
  ("reply", "fu", "recall"),
  [
    (needle.FACT_ANSWER, 11 / 12, 1.0),
    ("EAT A SANDWICH and sit in dolores park on a sunny DAY.", 11 / 12, 1.0),
    ("Eat a sandwich", 3 / 12, 3 / 11),
    ("on a sunny day", 3 / 12, 4 / 11),  # "day" is not "day." for Fu et al.
    ("", 0.0, 0.0),
    ("a a a a", 1 / 12, 1 / 11),
  ],
)
def test_scores_by_hand(reply, fu, recall):
  assert needle.fu_score(reply, needle.FACT_ANSWER) == pytest.approx(fu)
  assert needle.recall(reply, needle.FACT_ANSWER) == pytest.approx(recall)


def test_replies_are_scored_by_variant(monkeypatch):
  items = needle.items(OPTIONS, SUBJECT)[:3]
  key = items[0].record["answer"]
  replies = [f"It is {key}.", "no idea", key[:4]]
  monkeypatch.setattr(needle.items_lib, "replies", lambda subject, batch: replies)
  found = needle.measure(OPTIONS, SUBJECT, items)
  assert [record["score"] for record in found] == [1.0, 0.0, 0.0]
  sandwich = dataclasses.replace(OPTIONS, variant="sandwich", score="recall")
  replies[:] = [needle.FACT_ANSWER, "", "a sandwich"]
  found = needle.measure(sandwich, SUBJECT, needle.items(sandwich, SUBJECT)[:3])
  assert [r["score"] for r in found] == [1.0, 0.0, pytest.approx(2 / 11)]
  assert found[0]["fu"] == pytest.approx(11 / 12)


def test_summary_is_the_mean_over_cells():
  records = [dict(length=n, depth=0.5, score=s) for n, s in ((1, 1), (1, 0), (2, 1))]
  summary = needle.summarize(OPTIONS, records)
  assert summary["average"] == pytest.approx(2 / 3)
  assert summary["by_length"]["1"]["mean"] == 0.5
  low, high = summary["interval"]["low"], summary["interval"]["high"]
  np.testing.assert_allclose([low, high], [0.2077, 0.9385], atol=1e-4)  # Wilson's


def test_depths_and_lengths():
  assert option_values.depths("5") == [0.1, 0.3, 0.5, 0.7, 0.9]
  assert option_values.depths("1") == [0.5]
  assert option_values.depths("1,0.25") == [0.25, 1.0]
  assert option_values.numbers("lengths", "512,256,512") == [256, 512]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(variant="pin"), "passkey or sandwich"),
    (dict(score="rouge"), "fu or recall"),
    (dict(score="recall"), "is for --variant=sandwich"),
    (dict(variant="sandwich", samples=3), "are the same prompt; give --own_pages"),
    (dict(lengths="1k"), "--lengths=1k"),
    (dict(lengths="0"), "positive"),
    (dict(lengths="64"), "without other text has"),
    (dict(depths="1.5"), "--depths"),
    (dict(depths="x"), "--depths"),
    (dict(depths="inf"), "--depths=inf"),
    (dict(depths="nan"), "--depths=nan"),
    (dict(depths="20001"), "--depths=20001: give a count like 5, at most 1,000"),
    (dict(haystack="nowhere.txt"), "nowhere.txt cannot be read"),
    (dict(max_new_tokens=0), "--max_new_tokens=0 must be at least 1"),
    (dict(max_new_tokens=-4), "--max_new_tokens=-4 must be at least 1"),
  ],
)
def test_bad_options_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    needle.items(dataclasses.replace(OPTIONS, **changes), SUBJECT)


def test_unreadable_haystacks_are_refused(tmp_path):
  for name, data in (("e.txt", b" "), ("u.txt", b"\xff\xfe"), ("c.txt.gz", b"no")):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(errors.UserError, match=name):
      haystack.read(str(tmp_path / name))


def test_sentences_do_not_repeat_soon():
  lines = haystack.sentences(200, seed=1).split(". ")
  assert len(set(lines)) > 190
  assert haystack.sentences(20, 1) != haystack.sentences(20, 2)


def test_map_is_drawn(tmp_path):
  cells = [
    dict(length=n, depth=d, score=n * d / 4096)
    for n in (1024, 4096)
    for d in (0.1, 0.9)
  ]
  results = dict(
    protocol=dict(model="tiny", options=dict(variant="passkey"), window=2048),
    summary=dict(score="exact", average=0.3),
    items=cells,
  )
  (path,) = needle.draw(OPTIONS, results, tmp_path)
  assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000

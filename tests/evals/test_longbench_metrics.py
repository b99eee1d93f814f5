"""LongBench's metrics, computed by hand and compared with lm_eval's port."""

import difflib
import importlib.util
import pathlib
import sys
import types

import hypothesis
import pytest
from hypothesis import strategies

from skipalign_jax.evals import squad
from skipalign_jax.evals.longbench import metrics


@pytest.mark.parametrize(
  ("prediction", "gold", "expected"),
  [
    ("Paris", "paris.", 1.0),
    ("The capital is Paris", "Paris", 2 * (1 / 3) * 1 / (1 / 3 + 1)),  # without the
    ("  an   apple, a day ", "Apple day!", 1.0),
    ("well-known", "well known", 0.0),  # punctuation leaves no gap
    ("well-known", "wellknown", 1.0),
    ("a-b c", "ab c", 1.0),  # the a of "ab" is not an article
    ("theory another", "ory nother", 0.0),  # articles are whole words
    ("x x y", "x y y", 2 / 3),  # with repeats
    ("x x x", "x", 0.5),
    ("", "paris", 0.0),
    ("the", "the", 0.0),  # no words remain
    ("…", "…", 1.0),  # only ASCII punctuation is removed
  ],
)
def test_f1(prediction, gold, expected):
  assert squad.f1(prediction, gold) == pytest.approx(expected, abs=1e-12)


def test_f1_removes_punctuation_before_articles():
  # "t.he" becomes "the" and is removed; the other order would keep it.
  assert squad.f1("t.he cat", "cat") == 1.0


@pytest.mark.parametrize(
  ("prediction", "gold", "expected"),
  [
    ("the cat sat", "the cat sat", 1.0),
    ("the cat sat on", "the cat ran", 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
    ("The cat", "the cat", 0.5),  # case matters
    ("cat,", "cat", 0.0),  # and so does punctuation
    ("go go go", "go", 1.0),  # a repeated word counts once
    ("b a", "a b", 0.5),  # in order: one of the two
    ("", "the cat", 0.0),
    ("the cat", "", 0.0),
    ("...", "the cat", 0.0),
  ],
)
def test_rouge_l(prediction, gold, expected):
  assert metrics.rouge_l(prediction, gold) == pytest.approx(expected, abs=1e-6)


def test_rouge_l_splits_sentences_at_full_stops():
  # Within one sentence the order counts; sentences may come in any order.
  assert metrics.rouge_l("c d. a b", "a b. c d") == pytest.approx(1, abs=1e-6)
  assert metrics.rouge_l("c d a b", "a b c d") == pytest.approx(0.5, abs=1e-6)


def test_rouge_l_is_0_if_the_package_fails():
  words = " ".join(map(str, range(1050)))
  with pytest.raises(RecursionError):
    metrics._ROUGE.get_scores([words], [words], avg=True)
  assert metrics.rouge_l(words, words) == 0.0


def test_classification_shares_the_point():
  classes = ["City", "Date", "Distance, linear measure"]
  score = lambda text: metrics.classification(text, "City", classes)
  assert score("City") == 1.0
  assert score("City or Date") == 0.5
  assert score("City, Date, Distance, linear measure") == pytest.approx(1 / 3)
  assert score("city") == 0.0  # case matters
  assert score("Date") == 0.0
  assert score("") == 0.0
  assert score("Velocity City") == 1.0  # a substring is found once


def test_classification_ignores_parts_of_the_gold_name():
  classes = ["Expression", "Expression abbreviated", "Other"]
  gold = "Expression abbreviated"
  assert metrics.classification(gold, gold, classes) == 1.0
  assert metrics.classification("Expression", gold, classes) == 0.0
  # Not the other way: the longer name is not a part of the shorter one.
  assert metrics.classification(gold, "Expression", classes) == 0.5


@pytest.mark.parametrize(
  ("classes", "expected"),
  [
    (["a", "abc"], 1.0),
    (["a", "b", "abc"], 0.5),  # b moves to a's place and is skipped
    (["a", "abc", "b"], 1.0),  # not neighbours: both are removed
    (["a", "b", "c", "abc"], 0.5),  # a and c are removed
    (["a", "b", "c", "ab", "abc"], 1 / 3),  # a and c are removed, b and ab skipped
    (["abc", "b", "c"], 0.5),
  ],
)
def test_classification_skips_the_name_after_a_removed_one(classes, expected):
  assert metrics.classification("abc", "abc", classes) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("prediction", "expected"),
  [
    ("x = foo(1)", 1.0),
    ("\n\nx = foo(1)\ny = 2", 1.0),  # without newlines before it and later lines
    ("# set x\nx = foo(1)", 1.0),
    ("// set x\nx = foo(1)", 1.0),
    ("```python\nx = foo(1)\n```", 1.0),
    ("x = foo(1)  # why", 0.0),  # a comment after code: no line remains
    ("  \nx = foo(1)", 0.33),  # a line of spaces is the first line
    ("", 0.0),
    ("# only", 0.0),
    ("x = foo(2)", 0.9),
  ],
)
def test_code_similarity(prediction, expected):
  assert metrics.code_similarity(prediction, "x = foo(1)") == expected


def test_code_similarity_is_in_whole_percents_of_difflibs_ratio():
  assert metrics.code_similarity("ab", "abc") == 0.8
  assert metrics.code_similarity("abc", "abd") == 0.67  # 2 * 2 / 6
  # The longest common subsequence is 2 of 3 (Levenshtein's ratio); difflib takes the
  # first longest block and sees 1 of 3, but not the other way round.
  assert metrics.code_similarity("aba", "bca") == 0.33
  assert metrics.code_similarity("bca", "aba") == 0.67
  # Characters that are frequent in 200 or more are junk for difflib.
  assert metrics.code_similarity("z" + "abcd" * 40, "abcd" * 40) == 1.0
  assert metrics.code_similarity("z" + "abcd" * 60, "abcd" * 60) == 0.0


def test_count_and_retrieval():
  assert metrics.count("There are 7 of them", "7") == 1.0
  assert metrics.count("7 or 8, I say 7", "7") == pytest.approx(2 / 3)
  assert metrics.count("07", "7") == 0.0
  assert metrics.count("seven", "7") == 0.0
  assert metrics.retrieval("Paragraph 12", "Paragraph 12") == 1.0
  assert metrics.retrieval("It is 12.", "Paragraph 12") == 1.0
  assert metrics.retrieval("Paragraph 1, or 12", "Paragraph 12") == 0.5
  assert metrics.retrieval("Paragraph 1", "Paragraph 12") == 0.0


@pytest.mark.parametrize(
  ("prediction", "expected"),
  [
    ("City\nType: Date", "City"),
    ("\n\nCity\n", "City"),
    (" \nCity", " "),  # spaces stay, so this line is the first
    ("", ""),
    ("\n", ""),
    ("City\r\nDate", "City\r"),
  ],
)
def test_first_line(prediction, expected):
  assert metrics.first_line(prediction) == expected


@pytest.fixture(scope="module")
def peer():
  """lm_eval's port of LongBench's metrics, without the Chinese ones' dependencies."""
  spec = importlib.util.find_spec("lm_eval")
  if spec is None:
    pytest.skip("lm_eval is not installed")
  fuzz = types.SimpleNamespace(
    ratio=lambda a, b: round(100 * difflib.SequenceMatcher(None, a, b).ratio())
  )
  stand_ins = {
    "jieba": types.ModuleType("jieba"),
    "fuzzywuzzy": types.SimpleNamespace(),
  }
  stand_ins["fuzzywuzzy"].fuzz = fuzz
  path = pathlib.Path(spec.submodule_search_locations[0], "tasks/longbench/metrics.py")
  with pytest.MonkeyPatch.context() as patch:
    for name, module in stand_ins.items():
      patch.setitem(sys.modules, name, module)
    loaded = importlib.util.spec_from_file_location("peer_metrics", path)
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
  return module


PIECES = ["the ", "a", "An ", "cat", "-", ". ", ",", "\n", " ", "7", "12", "x=1", "#"]
TEXTS = strategies.lists(strategies.sampled_from(PIECES), max_size=12).map("".join)
NAMES = strategies.lists(
  strategies.text("ab", min_size=1, max_size=4), min_size=1, max_size=8, unique=True
)


@hypothesis.given(TEXTS, TEXTS, NAMES, strategies.text("ab ", max_size=8))
@hypothesis.settings(max_examples=400, deadline=None)
def test_metrics_equal_the_port(peer, prediction, gold, classes, label):
  close = lambda x: pytest.approx(x, abs=1e-12)
  assert squad.f1(prediction, gold) == close(peer.qa_f1_score(prediction, gold))
  assert metrics.rouge_l(prediction, gold) == close(peer.rouge_score(prediction, gold))
  assert metrics.count(prediction, "7") == close(peer.count_score(prediction, "7"))
  paragraph = f"Paragraph {len(classes)}"
  assert metrics.retrieval(prediction, paragraph) == close(
    peer.retrieval_score(prediction, paragraph)
  )
  assert metrics.classification(label, classes[-1], classes) == close(
    peer.classification_score(label, classes[-1], all_classes=classes)
  )
  if all(
    map(str.strip, prediction.lstrip("\n").split("\n"))
  ):  # theirs skips blank lines
    assert metrics.code_similarity(prediction, gold) == close(
      peer.code_sim_score(prediction, gold)
    )

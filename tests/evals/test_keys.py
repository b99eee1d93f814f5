"""Several keys in one text: lengths, places, questions and scores."""

import dataclasses
import itertools

import numpy as np
import pytest
import tiny_subject
from matplotlib import image

from skipalign_jax.evals import heatmap, keys, needle
from skipalign_jax.runtime import errors

SUBJECT = tiny_subject.make(window=256)
OPTIONS = keys.Options(lengths="900,1400", depths="3", samples=2)


@pytest.mark.parametrize("chat", [True, False])
def test_each_text_has_all_keys_and_each_question_is_about_one(chat):
  items = keys.items(dataclasses.replace(OPTIONS, chat=chat), SUBJECT)
  assert [item.id for item in items] == ["900/0", "900/1", "1400/0", "1400/1"]
  seen = set()
  for item in items:
    text, record = SUBJECT.tokenizer.decode(item.query.shared), item.record
    longest = max(map(len, item.query.tails))
    assert len(item.query.shared) + longest == record["length"]
    at = []
    for key, tail, start in zip(
      record["keys"], item.query.tails, item.query.starts, strict=True
    ):
      question = SUBJECT.tokenizer.decode(tail[:start])
      assert SUBJECT.tokenizer.decode(tail[start:]) == key and key not in question
      owner = question.rpartition("The pass key of ")[2].removesuffix(" is ")
      asked = f"What is the pass key of {owner}?"
      assert asked in question
      assert chat or question.endswith(f"{asked}\nThe pass key of {owner} is ")
      assert text.count(f"The pass key of {owner} is {key}.") == 1
      at.append(text.index(f" {key}."))
      before = text[: text.index(f" The pass key of {owner}")]
      assert before.endswith((".", needle.BEFORE))
    assert at == sorted(at)
    seen |= set(record["keys"])
  assert len(seen) == 12
  again = keys.items(dataclasses.replace(OPTIONS, chat=chat), SUBJECT)
  assert [item.query for item in again] == [item.query for item in items]


def test_own_pages_change_the_text_but_not_the_questions():
  one, own = (
    keys.items(dataclasses.replace(OPTIONS, lengths="900", own_pages=pages), SUBJECT)
    for pages in (False, True)
  )
  assert [item.record for item in one] == [item.record for item in own]
  assert [item.query.tails for item in one] == [item.query.tails for item in own]
  begins = lambda items: {
    SUBJECT.tokenizer.decode(item.query.shared).partition(needle.BEFORE)[2][:40]
    for item in items
  }
  assert len(begins(one)) == 1 and len(begins(own)) == 2


def test_a_key_counts_if_all_of_it_is_likeliest(monkeypatch):
  item, *_ = keys.items(OPTIONS, SUBJECT)
  scored = [
    (np.log([0.5, 0.5]), np.array([True, True])),
    (np.log([0.9, 0.1]), np.array([True, False])),
    (np.log([0.1, 0.1]), np.array([False, False])),
  ]
  monkeypatch.setattr(SUBJECT.engine, "score_after", lambda *_: scored)
  (found,) = keys.measure(OPTIONS, SUBJECT, [item])
  assert found["found"] == [1.0, 0.0, 0.0]
  np.testing.assert_allclose(found["log_p"], np.log([0.25, 0.09, 0.01]), atol=1e-4)
  summary = keys.summarize(OPTIONS, [item.record | found])
  assert summary["average"] == pytest.approx(1 / 3)
  assert summary["by_length"]["900"]["n"] == 3
  assert summary["log_p"]["900"]["mean"] == pytest.approx(
    np.mean(found["log_p"]), abs=1e-6
  )
  cells = keys.cells([item.record | found])
  assert [cell["depth"] for cell in cells] == [0.1667, 0.5, 0.8333]


def test_measuring_runs_the_model():
  options = dataclasses.replace(OPTIONS, lengths="900", samples=1)
  (item,) = keys.items(options, SUBJECT)
  (found,) = keys.measure(options, SUBJECT, [item])
  text = item.query
  whole = SUBJECT.engine.score(
    [text.shared + tail for tail in text.tails],
    [len(text.shared) + start for start in text.starts],
  )
  np.testing.assert_allclose(
    found["log_p"], [log_p.sum() for log_p, _ in whole], rtol=1e-3
  )


def test_rivals_are_the_other_keys_after_the_same_question():
  options = dataclasses.replace(OPTIONS, lengths="900", samples=1)
  (plain,) = keys.items(options, SUBJECT)
  options = dataclasses.replace(options, rivals=True)
  (item,) = keys.items(options, SUBJECT)
  assert item.query.shared == plain.query.shared
  assert item.query.tails[::4] == plain.query.tails
  texts = [SUBJECT.tokenizer.decode(tail) for tail in item.query.tails]
  for (question, key), text in zip(
    itertools.product(range(3), item.record["keys"]), texts, strict=True
  ):
    before = SUBJECT.tokenizer.decode(plain.query.tails[question]).split("?")[0]
    assert text.startswith(before)
    assert text.endswith(key)
  (found,) = keys.measure(options, SUBJECT, [item])
  (without,) = keys.measure(OPTIONS, SUBJECT, [plain])
  assert found["found"] == without["found"]
  assert found["log_p"] == pytest.approx(without["log_p"], abs=1e-3)
  matrix = np.array(found["log_p_of_keys"])
  assert matrix.shape == (3, 3)
  np.testing.assert_array_equal(matrix.diagonal(), found["log_p"])
  (other,) = SUBJECT.engine.score(
    [item.query.shared + item.query.tails[1]],
    [len(item.query.shared) + item.query.starts[1]],
  )
  np.testing.assert_allclose(matrix[0, 1], other[0].sum(), rtol=1e-3)


def test_a_model_that_finds_keys_but_not_whose_they_are():
  half = np.log([[0.5, 0.25], [0.5, 0.25]]).tolist()
  record = {"length": 900, "depths": [0, 1], "keys": ["1", "2"]}
  record |= {"found": [1.0, 0.0], "log_p": [half[0][0], half[1][1]]}
  options = dataclasses.replace(OPTIONS, rivals=True)
  summary = keys.summarize(options, [record | {"log_p_of_keys": half}])
  assert summary["any_key"]["900"]["mean"] == pytest.approx(0.75)
  assert summary["own_key"]["900"]["mean"] == 0.5
  assert summary["owner_margin"]["900"]["mean"] == pytest.approx(0)
  assert "own_key" not in keys.summarize(OPTIONS, [record])


def test_the_owner_margin_is_what_a_key_gains_by_its_own_question():
  log_p_QK = [[-1.0, -5.0, -9.0], [-3.0, -2.0, -7.0], [-4.0, -2.0, -7.0]]
  record = {"length": 900, "depths": [0, 0.5, 1], "keys": ["1", "2", "3"]}
  record |= {"found": [0.0] * 3, "log_p": [-1, -2, -7], "log_p_of_keys": log_p_QK}
  assert keys.owner_margins(record) == [2.5, 1.5, 1.0]
  options = dataclasses.replace(OPTIONS, rivals=True)
  margin = keys.summarize(options, [record, record])["owner_margin"]["900"]
  assert (margin["mean"], margin["n"]) == (pytest.approx(5 / 3), 2)  # texts, not keys


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(lengths="64"), "without other text has"),
    (dict(depths="99"), "at most 80 keys"),
    (dict(depths="2.5"), "--depths"),
    (dict(samples=0), "--samples=0 must be at least 1"),
    (dict(haystack="nowhere.txt"), "nowhere.txt cannot be read"),
  ],
)
def test_bad_options_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    keys.items(dataclasses.replace(OPTIONS, **changes), SUBJECT)


def test_many_heat_maps_wrap_into_lines(tmp_path):
  cells = [dict(length=n, depth=0.5, score=1.0) for n in (100, 200)]
  maps = [dict(title=f"row {i}", window=100, cells=cells) for i in range(9)]

  def size(panels):
    height, width, _ = image.imread(heatmap.draw(panels, tmp_path / "maps.png")).shape
    return width, height

  line, nine = size(maps[: heatmap.ACROSS]), size(maps)
  assert nine[0] < 1.1 * line[0]  # no wider than one line
  assert nine[1] > 2 * line[1]  # three lines

"""The miniature study: its language, its statistics, its choices, and a whole run."""

import itertools
import json

import numpy as np
import pytest
import tiny
from scipy import stats

from skipalign_jax.data import chat
from skipalign_jax.runtime import errors
from studies.needles import (
  __main__,
  collect,
  figure,
  needles,
  pieces,
  recipes,
  statistics,
  tables,
  words,
)

RESULTS = tiny.ROOT / "studies/needles/results"


@pytest.fixture(scope="module")
def tokenizer():
  return words.tokenizer()


def facts_of(text):
  return [tuple(word.split("=")) for word in text if "=" in word]


def test_more_seeds_come_after_those_of_the_study():
  more = recipes.more_seeds(recipes.Settings())
  used = json.loads((RESULTS / "study_b.json").read_text())["seeds"]
  assert more.seeds == 3 and min(more.candidates) == max(used) + 1


def test_each_word_is_one_token(tokenizer):
  vocabulary = words.vocabulary()
  assert len(set(vocabulary)) == len(vocabulary) == len(tokenizer)
  assert needles.encode(tokenizer, vocabulary) == list(range(len(vocabulary)))


def test_questions_in_texts_are_about_stated_facts():
  for number in range(50):
    text = words.text(3, number, 63, copies=number % 2).split()
    assert len(text) == 63
    stated = {}
    for place, word in enumerate(text):
      if "=" in word:
        key, value = word.split("=")
        assert key not in stated
        stated[key] = value
      if word == "Q":
        key, answer = text[place + 1], text[place + 2 : place + 5]
        if answer[0] == "A":
          assert number % 2 and answer.pop(0) == "A" and answer.pop(0) == key
        assert stated[key] == answer[0]
    assert text.count("Q") == len(stated) == 6


@pytest.mark.parametrize("count", [1, 2])
def test_dialogues_fit_and_ask_for_each_fact_once(count, tokenizer):
  encoder = chat.Encoder(tokenizer, seq_len=1 << 20)
  dialogues = [
    words.dialogue(3, number, 64, per_question=count) for number in range(200)
  ]
  chats = [[(m["role"], m["content"]) for m in messages] for messages in dialogues]
  for messages, sample in zip(chats, encoder(chats), strict=True):
    assert 54 <= len(sample.tokens) <= 64
    stated, asked_for = {}, set()
    for (_, question), (_, reply) in zip(messages[::2], messages[1::2], strict=True):
      stated |= dict(facts_of(question.split()))
      if reply == "ok":
        assert "ask" not in question
        continue
      keys, values = reply.split()[::2], reply.split()[1::2]
      assert question.endswith(" ".join(["ask", *keys])) and len(keys) == count
      assert [stated[key] for key in keys] == values
      assert not asked_for & set(keys)
      asked_for |= set(keys)
    assert len(stated) == len(asked_for) + count == count * len(messages) // 2
    targets = tokenizer.decode(sample.tokens[sample.targets])
    assert targets == " ".join(f"{reply} <|end|>" for _, reply in messages[1::2])


@pytest.mark.parametrize("form, count", [("chat", 1), ("chat", 2), ("text", 1)])
@pytest.mark.parametrize("length", [64, 512])
def test_haystacks_have_each_answer_once(form, count, length, tokenizer):
  for number in range(20):
    stack = words.haystack(3, number, words.TEST, form, length, count)
    assert len(stack.words) == length
    facts = dict(facts_of(stack.words))
    assert len(facts) == 3 * count + 1 == len(facts_of(stack.words))
    keys = []
    for (start, end), depth in zip(stack.answers, stack.depths, strict=True):
      answer = stack.words[start:end]
      keys += answer[::2]
      assert answer[1::2] == [facts[key] for key in answer[::2]] and 0 <= depth <= 1
    assert len(set(keys)) == len(keys) == 3 * count


def test_seeds_and_kinds_share_no_draw():
  made = {
    (seed, kind): tuple(words.haystack(seed, 0, kind, "chat", 64).words)
    for seed in range(2)
    for kind in (words.TEST, words.VALIDATION)
  }
  assert len(set(made.values())) == 4
  assert (words.chain(0) != words.chain(1)).any()
  again = tuple(words.haystack(1, 0, words.TEST, "chat", 64).words)
  assert again == made[1, words.TEST]


def test_sign_flips():
  # Of the 32 combinations of signs, 6 sums are at least 0.7 away from 0.
  assert statistics.sign_flip([0.3, -0.1, 0.2, 0.25, 0.05]) == 6 / 32
  assert statistics.sign_flip([1, 2, 3, 4, 5]) == 1 / 16
  assert statistics.sign_flip([0.4]) == 1
  # Many pairs of one size: a binomial test.
  d = np.array([1] * 30 + [-1] * 14 + [0] * 100)
  exact = stats.binomtest(30, 44).pvalue
  assert statistics.sign_flip(d) == pytest.approx(exact, rel=0.15)
  # Of a difference that no random sign reaches, p is the smallest there is.
  assert statistics.sign_flip([1] * 200) == 1 / (statistics.FLIPS + 1)


def test_sign_flips_of_the_results():
  content = json.loads((RESULTS / "study_b.json").read_text())
  for pair in (content["claims"] | content["others"]).values():
    for where in ("beyond", "longest", "window"):
      found = statistics.sign_flip(pair[where]["by_seed"])
      assert found == pytest.approx(pair[where]["p_seeds"])


def test_verdicts():
  better, worse = [0.9, 0.8, 0.85], [0.5, 0.42, 0.45]
  assert statistics.compare(better, worse)["verdict"] == "holds"
  assert statistics.compare(worse, better)["verdict"] == "fails"
  assert statistics.compare([0.9, 0.1, 0.5], worse)["verdict"] == "open"


def scores(accuracy):
  hits = round(100 * accuracy)
  return {
    "hits": ["1"] * hits + ["0"] * (100 - hits),
    "depths": [[1, 2]] * 5,
    "words": [9, 9],
  }


def put(study, seed, row, target, kind, accuracy):
  path = study.result(seed, row, target, kind)
  path.parent.mkdir(parents=True, exist_ok=True)
  content = {"chat": {"1": scores(1.0), "2": scores(accuracy)}}
  content["sft"] = {"held_out_loss": [0.5]}
  path.write_text(json.dumps(content))


@pytest.fixture
def study(tmp_path):
  settings = recipes.Settings(
    targets=(8, 16),
    tested=(1, 2),
    further=(),
    candidates=(0, 1, 2, 3),
    seeds=2,
    pilots=2,
  )
  study = pieces.Study(tmp_path, settings)
  for seed in (0, 1):
    put_base(study, seed, 0.95)
  return study


def put_base(study, seed, accuracy):
  path = study.base_result(seed)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps({"text": {"1": scores(accuracy)}}))


def test_seeds_are_the_first_whose_base_retrieves(study):
  assert study.seeds() == study.wanted() == [0, 1]
  put_base(study, 0, 0.5)
  assert (study.seeds(), study.wanted()) == ([1], [1, 2])
  put_base(study, 3, 1.0)  # not before 2 is known
  assert study.seeds() == [1]
  put_base(study, 2, 0.2)
  assert study.seeds() == study.wanted() == [1, 3]
  trained = {p.result for p in study.pieces() if p.result.name == "pretrain.json"}
  assert trained == {study.base_result(1), study.base_result(3)}


def test_targets_are_chosen_on_validation_needles_of_the_pilots(study):
  row = recipes.OUTER
  for seed, by_target in ((0, {8: 0.7, 16: 0.6}), (1, {8: 0.5, 16: 0.8})):
    assert study.chosen(row) is None
    for target, accuracy in by_target.items():
      put(study, seed, row, target, pieces.VALIDATION, accuracy)
      # Test needles and other seeds would choose the other target.
      put(study, seed, row, target, pieces.TEST, 0.1 if target == 16 else 1.0)
      put(study, 2, row, target, pieces.VALIDATION, 0.1 if target == 16 else 1.0)
  assert study.chosen(row) == 16
  tested_at = {
    p.result.name
    for p in study.pieces()
    if p.result.parent.name == "skip_outer" and p.result.name.endswith("test.json")
  }
  assert tested_at == {"s16.test.json"}


def test_differences_are_paired_by_seed(study):
  for row, gain in ((recipes.OUTER, 0.3), (recipes.NORMAL, 0.0)):
    for seed, target in itertools.product((0, 1), (8, 16)):
      put(study, seed, row, target, pieces.VALIDATION, 0.5)
    for seed, accuracy in ((0, 0.2), (1, 0.6)):
      put(study, seed, row, 8, pieces.TEST, accuracy + gain)
  models = list(collect._models(study))
  chosen = {row: study.chosen(row) for row in (recipes.OUTER, recipes.NORMAL)}
  pair = collect._pairs(study, models, chosen, collect.CLAIMS)["1, Normal-SFT"]
  assert pair["beyond"]["mean"] == pytest.approx(0.3)
  assert pair["beyond"]["high"] == pytest.approx(0.3)
  assert pair["window"]["mean"] == 0
  assert pair["p_haystacks"] < 0.001


def test_misalignment_is_ranked_over_rows_of_one_task():
  model = lambda row, sce, accuracy: {
    "row": row,
    "sce": sce,
    "symmetric_kl": -sce,
    "held_out_loss": 2 * sce,
    "chat_beyond": accuracy,
    "chat": {"8": 1 - accuracy},
  }
  models = [model(recipes.NORMAL, 0.1 * i, 0.2 * i) for i in range(3)]
  others = [model(f"{recipes.OUTER}, two facts", 9, 0), model(recipes.BASE, 9, 0)]
  assert collect._correlation([*models, *others, {"row": recipes.OUTER}], "8") == {
    "checkpoints": 3,
    "sce, beyond": 1,
    "sce, longest": -1,
    "symmetric_kl, beyond": -1,
    "symmetric_kl, longest": 1,
    "not packed": {
      "checkpoints": 3,
      "sce, beyond": 1,
      "sce, longest": -1,
      "symmetric_kl, beyond": -1,
      "symmetric_kl, longest": 1,
      "held_out_loss, beyond": 1,
      "held_out_loss, longest": -1,
    },
  }
  packed = [model("PackedSFT", 9, 0), model("PackedSFT, masked", 8, 0.1)]
  ranks = collect._correlation([*models, *packed], "8")
  assert ranks["checkpoints"] == 5 and ranks["sce, beyond"] < 0.5
  assert ranks["not packed"]["held_out_loss, beyond"] == 1
  assert collect._correlation(models[:2], "8") == {}


def test_a_folder_has_one_study(study):
  pieces.Study(study.folder, study.settings)
  with pytest.raises(errors.UserError, match="other settings"):
    pieces.Study(study.folder, recipes.Settings())


def test_finished_pieces_are_skipped(tmp_path):
  made = []

  def piece(name, *needs):
    path = lambda name: tmp_path / "results" / f"{name}.json"
    make = lambda: made.append(name) or {"name": name}
    return pieces.Piece(path(name), tuple(map(path, needs)), make)

  class Some:
    folder = tmp_path

    def pieces(self):
      return [piece("last", "first"), piece("first"), piece("alone")]

  silent = pieces.SILENT
  assert pieces.run(Some(), silent) and made == ["first", "last", "alone"]
  assert pieces.run(Some(), silent) and len(made) == 3
  (tmp_path / "results" / "first.json").unlink()
  assert pieces.run(Some(), silent) and made[3:] == ["first"]


def test_the_committed_tables_are_those_of_the_results():
  content = json.loads((RESULTS / "study_b.json").read_text())
  assert (RESULTS / "tables.md").read_text() == tables.report(content)


def test_all_figures_are_made_from_the_results(tmp_path):
  content = json.loads((RESULTS / "study_b.json").read_text())
  made = figure.draw(content, tmp_path)
  names = ("lengths", "sweeps", "depths", "misalignment")
  assert [path.name for path in made] == [f"study_b_{name}.png" for name in names]
  assert all(path.stat().st_size > 20_000 for path in made)


@pytest.mark.parametrize("change", recipes.FOLLOW_UPS)
def test_one_change_alone(study, change):
  one = pieces.Study(study.folder, study.settings, change)
  folders = {p.result.parent.name for p in one.pieces()}
  assert folders == {
    *("seed0", "seed1", "base"),
    *(pieces.slug(f"{row}, {change}") for row in recipes.FOLLOWED),
  }


def test_an_unknown_change(tmp_path):
  with pytest.raises(errors.UserError, match=r"'2 x'.* is not known; .*'2 x steps'"):
    __main__.main([f"--out={tmp_path / 'out'}", "--change=2 x"])
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_whole_study_and_its_second_run(tmp_path, capsys):
  command = ["--micro", f"--out={tmp_path}"]
  assert __main__.main(command) == 0
  content = json.loads((tmp_path / "study_b.json").read_text())
  assert content["table"].keys() == {
    recipes.BASE,
    recipes.BASE_NTK,
    *recipes.ROWS,
    *recipes.FOLLOW_UP_ROWS,
  }
  assert all(len(row["seeds"]) == 2 for row in content["table"].values())
  assert all(len(content["sweeps"][name]) == len(rows) + 2
             for name, rows in recipes.SWEEPS.items())  # fmt: skip
  assert content["claims"].keys() == collect.CLAIMS.keys()
  assert content["others"].keys() == collect.FOLLOW_UP_CLAIMS.keys() | collect.OTHERS
  assert content["table"]["Skip-Outer, two facts"]["chat"].keys() == {
    *("1", "2", "4", "beyond")
  }
  assert "Skip-Outer" in (tmp_path / "tables.md").read_text()
  for name in ("lengths", "sweeps", "depths"):  # no needle is found, so no correlation
    assert (tmp_path / f"study_b_{name}.png").stat().st_size > 5000
  times = {p: p.stat().st_mtime for p in tmp_path.rglob("results/**/*.json")}
  assert __main__.main(command) == 0
  assert times == {p: p.stat().st_mtime for p in tmp_path.rglob("results/**/*.json")}

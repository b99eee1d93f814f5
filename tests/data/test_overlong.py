"""Chats that are longer than a row: cut, split or dropped, and what is lost."""

import io
import itertools
import re

import hypothesis
import numpy as np
import pytest
import test_beginnings
import test_pipeline
import test_tool_chats
from hypothesis import strategies as st
from rich import console as rich_console

from skipalign_jax.commands import show
from skipalign_jax.data import beginnings, chat, dialogues, overlong
from skipalign_jax.runtime import errors

WHOLE = 1 << 20  # tokens; no chat here has as many
message = test_beginnings.message
PAIR = [message("user", "Hi there"), message("assistant", "Hello to you")]


def encoder(template, **options):
  tokenizer = test_tool_chats.make(test_beginnings.TEMPLATES[template])
  return chat.Encoder(tokenizer, **options)


def is_sample(result):
  return isinstance(result, chat.Sample)


def whole_of(template, dialogue, **options):
  """The sample of a dialogue that is rendered at once and not cut."""
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(beginnings, "of", lambda one, characters: None)
    (found,) = encoder(template, seq_len=WHOLE, **options)([dialogue])
  return found


@pytest.mark.parametrize("mode", ["truncate", "drop"])
@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(long=test_beginnings.long_chats(False), seq_len=st.integers(2, 300))
def test_what_is_lost_is_what_is_not_kept(mode, long, seq_len):
  whole = whole_of("chatml", long)
  (found,) = encoder("chatml", seq_len=seq_len, overlong=mode)([long])
  if not is_sample(whole):
    assert found.reason in (whole.reason, overlong.DROPPED, chat.NO_TARGET)
    return
  tokens, targets = len(whole.tokens), int(whole.targets.sum())
  if is_sample(found):
    assert found.truncated == (tokens > seq_len)
    assert not (mode == "drop" and found.truncated)
    kept = len(found.tokens), int(found.targets.sum())
  else:
    assert tokens > seq_len
    assert found.reason == (overlong.DROPPED if mode == "drop" else chat.NO_TARGET)
    kept = 0, 0
  expected = tokens - kept[0], targets - kept[1]
  if beginnings.of(long, chat._CHARACTERS * seq_len) is None:
    assert found.lost == expected
  else:  # characters here have one to four tokens
    for about, count in zip(found.lost, expected, strict=True):
      assert count / 3 - 20 <= about <= 3 * count + 20


@pytest.mark.parametrize("count", [1, 2, 3])
def test_exchanges_that_fill_a_row_to_its_end_share_it(count):
  full = len(whole_of("chatml", dialogues.Dialogue((*PAIR * count,))).tokens)
  for seq_len, shared in ((full, count), (full - 1, max(1, count - 1))):
    split = encoder("chatml", seq_len=seq_len, overlong="split")
    (found,) = split.samples([dialogues.Dialogue((*PAIR * 12,))])
    assert [one.turns for one in found] == [shared] * (12 // shared)


def test_what_is_not_rendered_is_counted(monkeypatch):
  long = dialogues.Dialogue((message("system", "Be kind"), *PAIR * 1000))
  whole = whole_of("chatml", long)
  sizes = test_beginnings.sizes_of_renderings(monkeypatch)
  (found,) = encoder("chatml", seq_len=256)([long])
  assert max(sizes) < 200
  tokens = len(whole.tokens) - len(found.tokens)
  assert abs(found.lost.tokens - tokens) < 0.01 * tokens
  assert found.lost.targets == (whole.targets.sum() - found.targets.sum())


@pytest.mark.parametrize("seq_len", range(148, 158))
def test_the_reply_in_place_of_the_rest_is_never_kept(seq_len, monkeypatch):
  monkeypatch.setattr(chat, "_CHARACTERS", 0.5)  # as with tokens of many characters
  pair = [message("user", "Hi there" * 4), message("assistant", "Hello to you" * 4)]
  long = dialogues.Dialogue(tuple(pair * 5))
  (found,) = encoder("chatml", seq_len=seq_len)([long])
  whole = whole_of("chatml", long)
  kept = whole.tokens[:seq_len]
  assert not is_sample(found) or found.tokens.tolist() == kept.tolist()
  assert is_sample(found) == whole.targets[:seq_len].any()


def exchanges(dialogue):
  """Groups of messages, each with one of a user at its start; no system prompt."""
  groups = []
  for one in dialogue.messages[dialogue.has_system :]:
    if one.role == "user":
      groups.append([])
    groups[-1].append(one)
  return groups


@pytest.mark.parametrize("template", ["chatml", "qwen3", "moved", "qwen"])
@hypothesis.settings(max_examples=5, deadline=None)
@hypothesis.given(data=st.data())
def test_pieces_are_whole_exchanges_and_as_long_as_they_can_be(template, data):
  with_calls = template in test_tool_chats.TEMPLATES
  long = data.draw(test_beginnings.long_chats(with_calls))
  seq_len = data.draw(st.integers(40, 400))
  groups = exchanges(long)
  system = long.messages[: long.has_system]
  naive, left = [], groups
  while left:
    count = 1
    for more in range(2, len(left) + 1):
      learned = (one._replace(learned=True) for one in itertools.chain(*left[:more]))
      part = dialogues.Dialogue((*system, *learned), long.tools)
      one = whole_of(template, part, learn_calls=True)
      if not is_sample(one) or len(one.tokens) > seq_len:
        break
      count = more
    naive.append(
      dialogues.Dialogue((*system, *itertools.chain(*left[:count])), long.tools)
    )
    left = left[count:]
  options = dict(seq_len=seq_len, learn_calls=True)
  (found,) = encoder(template, overlong="split", **options).samples([long])
  expected = encoder(template, **options)(naive)
  if len(expected) == 1:
    expected = encoder(template, **options)([long])
  assert list(map(test_beginnings.outcome, found)) == list(
    map(test_beginnings.outcome, expected)
  )
  assert [one.lost for one in found] == [one.lost for one in expected]


def test_each_reply_of_a_piece_is_a_sample():
  long = dialogues.Dialogue((message("system", "Be kind"), *PAIR * 9))
  options = dict(seq_len=150, rewritten="each")
  (found,) = encoder("qwen3", overlong="split", **options).samples([long])
  assert len(found) == 9 and all(map(is_sample, found))
  assert not any(one.truncated for one in found)
  (cut,) = encoder("qwen3", **options).samples([long])
  assert any(not is_sample(one) and one.lost.targets > 0 for one in cut)


def records():
  """Chats of 3, 40 and 1 exchanges; the last one is too long by itself."""
  many = test_pipeline.turns(*[f"question {i} or answer" for i in range(80)])
  short = test_pipeline.turns("a", "b", "c", "d", "e", "f")
  return [short, many, test_pipeline.turns("x", "y" * 900)]


def build(cache, tmp_path, **data):
  path = tmp_path / "a.jsonl"
  if not path.exists():  # a new one would be another source
    test_pipeline.write(path, records())
  c = test_pipeline.make_config(cache, train=str(path), eval="", **data)
  c.batch_size, c.steps, c.epochs = 1, None, 1
  return test_pipeline.build(c)


def lost_line(report):
  (line,) = [one for one in report.splitlines() if "lost beyond" in one]
  return line


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp("cache"))


def test_modes_have_their_own_samples_and_reports(cache, tmp_path):
  """All from one cache, in which the key counts."""
  cut, split, dropped, again = (
    build(cache, tmp_path, overlong=mode)
    for mode in ("truncate", "split", "drop", "truncate")
  )
  assert "3 samples" in cut.report and "2 truncated" in cut.report
  assert again.report == cut.report and again.fingerprint == cut.fingerprint
  assert "of 3 records" in split.report and "1 truncated" in split.report
  assert "1 samples" in dropped.report
  assert f"left out: 2 {overlong.DROPPED}" in dropped.report
  assert len({one.fingerprint for one in (cut, split, dropped)}) == 3
  targets = sum(
    len(t) + 1
    for t in [*"bdf", *(f"question {i} or answer" for i in range(1, 80, 2)), "y" * 900]
  )
  for data in (cut, split, dropped):
    line = lost_line(data.report)
    learned = sum(int(row["loss_weight"].sum()) for row in test_pipeline.rows_of(data))
    assert f" {targets - learned:,} of them targets" in line
    assert f"({1 - learned / targets:.1%} of the targets)" in line
    kept, lost = (
      int(re.search(form, data.report)[1].replace(",", ""))
      for form in (r"([\d,]+) tokens, ", r"about ([\d,]+) tokens")
    )
    assert f" tokens ({lost / (lost + kept):.1%}), " in line
  quiet = build(cache, tmp_path, seq_len=8192)
  assert "lost beyond" not in quiet.report and "records" not in quiet.report


@pytest.mark.parametrize("pack", [False, True])
def test_split_chats_are_packed_and_resume(cache, tmp_path, pack):
  data = build(cache, tmp_path, overlong="split", packing=pack)
  batches = list(data.train_iterator())
  iterator = data.train_iterator()
  next(iterator)
  rest = list(data.train_iterator(iterator.get_state()))
  test_pipeline.assert_same(rest, batches[1:])
  kept = np.concatenate([one["tokens"][one["segment_ids"] > 0] for one in batches])
  text = test_pipeline.TOKENIZER.decode(sorted(kept.tolist()))
  assert text.count("q") == sum(str(one).count("q") for one in records()[:2])


def test_a_source_of_which_nothing_is_left_is_refused(cache, tmp_path):
  path = test_pipeline.write(tmp_path / "a.jsonl", records()[1:])
  c = test_pipeline.make_config(cache, train=path, eval="", overlong="drop")
  with pytest.raises(errors.UserError, match=r"data\.overlong.*increase data\.seq_len"):
    test_pipeline.build(c)


def test_show_has_the_line(cache, tmp_path):
  path = test_pipeline.write(tmp_path / "a.jsonl", records())
  c = test_pipeline.make_config(cache, train=path, eval="")
  console = rich_console.Console(file=io.StringIO(), width=200)
  show.run(c, 1, 10, False, console)
  assert "lost beyond data.seq_len" in console.file.getvalue()

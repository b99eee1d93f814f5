"""Sources to batches: counts, cache, held-out data, order, resume."""

import ast
import errno
import io
import json
import pathlib
import pickle
import time
import types
from concurrent import futures
from unittest import mock

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from rich import console as rich_console

from skipalign_jax import config
from skipalign_jax.data import (
  chat,
  holdout,
  packing,
  pipeline,
  prepare,
  schemas,
  sources,
  templates,
  token_cache,
  token_table,
)
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.runtime import errors

TOKENIZER = tokenizer_lib.byte_tokenizer()


def turns(*contents):
  roles = ["user", "assistant"] * len(contents)
  return {"messages": [dict(role=r, content=c) for r, c in zip(roles, contents)]}  # noqa: B905


def write(path, records):
  lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
  path.write_bytes(b"\n".join(lines) + b"\n")
  return str(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp("cache"))


def make_config(cache, **data):
  c = config.tiny(config.default())
  c.data.cache_dir = cache
  c.data.update(data)
  return c


def build(c, index=0, count=1):
  quiet = rich_console.Console(file=io.StringIO())
  return pipeline.build(c, TOKENIZER, index, count, quiet)


def ids_of(batches):
  """Sample ids in order, one per segment."""
  found = []
  for batch in batches:
    for row in range(len(batch["tokens"])):
      for segment in range(1, batch["segment_ids"][row].max() + 1):
        at = batch["segment_ids"][row] == segment
        found.append(int(batch["sample_ids"][row][at][0]))
  return found


def rows_of(data):
  return [data.train_rows[i] for i in range(len(data.train_rows))]


def assert_same(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("pack", [False, True])
def test_batches(cache, pack):
  data = build(make_config(cache, packing=pack))
  batches = list(data.train_iterator())
  assert len(batches) >= data.steps == 8
  for batch in batches:
    assert {name: array.dtype for name, array in batch.items()} == packing.DTYPES
    assert all(array.shape == (8, 512) for array in batch.values())
    padding = batch["segment_ids"] == 0
    for array in batch.values():
      assert not array[padding].any()
    assert not batch["loss_weight"][~batch["is_response"]].any()
  assert any(batch["segment_ids"].max() > 1 for batch in batches) == pack


def test_arrow_rows_restore_what_was_encoded(cache, tmp_path):
  """Blocks and targets survive the compact form that the cache stores."""
  records = [turns("q", "a", "é" * 9, "b\n"), turns("x", "y")]
  c = make_config(cache, train=write(tmp_path / "a.jsonl", records), eval="")
  c.batch_size, c.steps, c.epochs = 1, None, 1
  rows = {int(row["sample_ids"][0]): row for row in rows_of(build(c))}
  dialogues = [schemas.dialogue_of(record, 100) for record in records]
  for sample in chat.Encoder(TOKENIZER, 512)(dialogues):
    row, m = rows[sample.sample_id], len(sample.tokens)
    np.testing.assert_array_equal(row["tokens"][:m], sample.tokens)
    np.testing.assert_array_equal(row["block_ids"][:m], sample.block_ids)
    np.testing.assert_array_equal(row["is_response"][:m], sample.is_response)
    np.testing.assert_array_equal(row["loss_weight"][:m], sample.targets)


@pytest.mark.parametrize("pack", [False, True])
def test_an_epoch_has_every_sample_once_and_none_of_the_held_out(cache, pack):
  c = make_config(cache, packing=pack, eval="holdout:8")
  c.batch_size, c.steps, c.epochs = 1, None, 2
  data = build(c)
  assert data.steps == len(data.train_rows)
  rows = rows_of(data)
  epochs = [int(row["epochs"][0]) for row in rows]
  assert epochs == sorted(epochs) and set(epochs) == {0, 1}
  batch = lambda epoch: [
    {name: x[None] for name, x in row.items()}
    for row, e in zip(rows, epochs, strict=True)
    if e == epoch
  ]
  first, second = ids_of(batch(0)), ids_of(batch(1))
  assert len(first) == len(set(first)) == 64 - 8
  assert sorted(first) == sorted(second) and first != second
  held_out = ids_of(data.eval_batches)
  assert len(set(held_out)) == 8 and not set(held_out) & set(first)


def test_held_out_samples_depend_on_neither_seed_nor_duplicates(cache, tmp_path):
  records = [turns(f"question {i}", f"answer {i}") for i in range(40)]
  c = make_config(cache, train=write(tmp_path / "a.jsonl", records), eval="holdout:5")
  chosen = set(ids_of(build(c).eval_batches))
  assert len(chosen) == 5
  c.seed = 1
  c.data.train = write(tmp_path / "b.jsonl", records[::-1] + records[::-1])
  data = build(c)
  assert set(ids_of(data.eval_batches)) == chosen
  assert not set(ids_of(data.train_iterator())) & chosen


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(count=st.sampled_from([2, 4, 8]), pack=st.booleans())
def test_hosts_together_see_what_one_host_sees(cache, count, pack):
  c = make_config(cache, packing=pack)
  whole = build(c)
  parts = [build(c, index, count) for index in range(count)]
  streams = zip(*(part.train_iterator() for part in parts), strict=True)
  for merged, pieces in zip(whole.train_iterator(), streams, strict=False):
    for name, array in merged.items():
      together = np.stack([piece[name] for piece in pieces], axis=1)
      np.testing.assert_array_equal(together.reshape(array.shape), array)
  for i, merged in enumerate(whole.eval_batches):
    pieces = [part.eval_batches[i]["tokens"] for part in parts]
    together = np.stack(pieces, axis=1).reshape(merged["tokens"].shape)
    np.testing.assert_array_equal(together, merged["tokens"])


def test_restored_iterator_continues_exactly(cache):
  batches = list(build(make_config(cache)).train_iterator())
  iterator = build(make_config(cache, workers=2)).train_iterator()
  assert_same([next(iterator) for _ in range(3)], batches[:3])
  state = json.loads(json.dumps(iterator.get_state()))
  assert_same(list(iterator), batches[3:])
  assert_same(list(build(make_config(cache)).train_iterator(state)), batches[3:])


def test_of_two_that_need_the_same_samples_one_tokenizes_them(monkeypatch, tmp_path):
  made, real = [], prepare._write

  def slow(*args):
    made.append(args)
    time.sleep(0.5)
    real(*args)

  monkeypatch.setattr(prepare, "_write", slow)
  one = lambda _: build(make_config(str(tmp_path), train="builtin:recall:9")).report
  with futures.ThreadPoolExecutor(2) as pool:
    first, second = pool.map(one, range(2))
  assert len(made) == 1 and first == second
  assert [path.suffix for path in tmp_path.iterdir()] == [".arrow"]


def test_an_iterator_state_of_another_version_is_refused(cache):
  with pytest.raises(errors.UserError, match="of another version"):
    build(make_config(cache)).train_iterator({"workers_state": {}})


def test_weights(cache):
  c = make_config(cache, train="builtin:recall:8*2.5", eval="")
  c.batch_size, c.steps, c.epochs = 1, None, 2
  data = build(c)
  rows = [{name: x[None] for name, x in row.items()} for row in rows_of(data)]
  assert len(rows) == 40
  for epoch in (rows[:20], rows[20:]):
    ids, counts = np.unique(ids_of(epoch), return_counts=True)
    assert len(ids) == 8 and sorted(counts) == [2] * 4 + [3] * 4
  assert "the run trains on 40 of builtin:recall:8" in data.report
  assert sorted(ids_of(rows[:20])) != sorted(ids_of(rows[20:]))


def test_fractions_of_a_sample_are_carried_over_epochs(cache):
  train = "builtin:recall:8,builtin:recall:4*0.1"
  c = make_config(cache, train=train, eval="")
  c.batch_size, c.steps, c.epochs = 1, None, 20
  data = build(c)
  assert data.steps == 8 * 20 + 8  # a tenth of 4 samples, 20 times
  seen = "trains on 160 of builtin:recall:8, 8 of builtin:recall:4"
  assert seen in data.report
  c.epochs = 2
  assert build(c).steps == 8 * 2 + 1


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize(
  "options", [{}, {"packing": True}, {"packing": True, "packing_mask": False}]
)
def test_an_epoch_is_read_to_its_last_row(cache, options, epochs):
  """Empty rows fill the last batch, in all processes together."""
  c = make_config(cache, train="builtin:recall:7", eval="", packing=False)
  c.data.update(options)
  c.batch_size, c.steps, c.epochs = 4, None, epochs
  c.loss.reduction = "token" if options else "sequence"
  parts = [build(c, index, 2) for index in range(2)]
  rows, filled = rows_of(parts[0]), parts[0].train_rows.filled
  assert options or filled == 7 * epochs
  batches = [batch for part in parts for batch in part.train_iterator()]
  steps = -(-filled // 4)
  assert [part.steps for part in parts] == [steps] * 2 and len(batches) == 2 * steps
  if options.get("packing_mask", True):
    _, counts = np.unique(ids_of(batches), return_counts=True)
    assert counts.tolist() == [epochs] * 7
  assert all(row["loss_weight"].any() for row in rows[:filled])
  assert not any(array.any() for row in rows[filled:] for array in row.values())


def test_the_end_of_a_run_inside_a_batch_or_an_epoch_is_reported(cache):
  c = make_config(cache, train="builtin:recall:7", eval="", packing=False)
  c.batch_size, c.steps, c.epochs = 4, None, 1
  assert "the last 3 of 7 rows, and 1 empty ones" in build(c).report
  c.epochs = 4
  assert "empty" not in build(c).report
  c.steps, c.epochs = 3, None
  assert "inside epoch 2 (steps=3), and 2 of the rows" in build(c).report
  c.steps = 7
  assert "inside epoch" not in build(c).report


def test_a_run_of_steps_reads_what_it_read_before(cache):
  """Epochs change what comes after the last whole batch, and nothing before it."""
  c = make_config(cache, train="builtin:recall:7", eval="", packing=False)
  c.batch_size, c.steps, c.epochs = 4, 3, None
  by_steps = list(build(c).train_iterator())[:3]
  c.steps, c.epochs = None, 2
  assert_same(list(build(c).train_iterator())[:3], by_steps)


def table(path, *rows):
  """A table of rows that have the given columns, and zeros and no text elsewhere."""
  empty = {"number": 0, "status": "ok", "example": "", "is_text": False}
  zeros = dict.fromkeys(token_table.schema().names, 0) | empty
  none = np.zeros(0, np.int32)
  with path.open("wb") as stream, token_table.Writer(stream) as writer:
    for row in rows:
      writer.write(zeros | dict.fromkeys(token_table.LISTS, none) | row)
  return token_table.Rows(path)


def test_rows_of_a_table_are_those_that_were_written(tmp_path):
  """Of several batches, with empty ones; also in another process."""
  lists = [np.arange(i % 5, dtype=np.int32) + i for i in range(2001)]
  rows = table(tmp_path / "a", *({"tokens": one, "number": 7} for one in lists))
  for found in (rows, pickle.loads(pickle.dumps(rows))):
    assert len(found) == 2001 and found.column("number").tolist() == [7] * 2001
    for row in (0, 4, 999, 1000, 1999, 2000):
      np.testing.assert_array_equal(found.lists(row)["tokens"], lists[row])
      assert found.lists(row)["tokens"].dtype == np.int32
  assert len(pickle.dumps(rows)) < 1000
  assert len(table(tmp_path / "none").column("status")) == 0


def test_a_report_names_the_commit_and_counts_replies(monkeypatch, tmp_path):
  monkeypatch.setattr(sources.hub, "dataset_revision", lambda name: "0123456789abcdef")
  counts = dict(turns=2, targets=3, rewritten=1, calls=5, excluded=6)
  counts |= dict(split=4, number=1, length=9)
  one = prepare.Prepared(
    source=sources.Source("hub:org/name"),
    rows=table(tmp_path / "rows", counts),
    usable=np.array([0]),
    lengths=np.array([9]),
    sample_ids=np.array([7], np.uint32),
    is_text=np.array([False]),
  )
  first, *states, apart = one.report().splitlines()
  assert first.startswith("hub:org/name at commit 0123456789ab: 1 samples")
  assert [line.partition(" replies")[0] for line in states] == [
    f"  not learned: {count}" for count in (1, 5, 6)
  ]
  assert "apart from their headers: 4 replies" in apart


def test_a_prompt_that_replies_do_not_continue_is_reported(cache, monkeypatch):
  c = make_config(cache, train="builtin:recall:7", eval="")
  assert "asks for a reply after" not in build(c).report
  opens = TOKENIZER.chat_template + (
    "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
  )
  monkeypatch.setattr(TOKENIZER, "chat_template", opens)
  assert "asks for a reply after '<think>\\n'" in build(c).report
  c.data.train = "builtin:text:7"
  assert "asks for a reply after" not in build(c).report


def test_turns_that_are_not_learned_count_as_turns(cache, tmp_path):
  """They skip as others do."""
  one, two = turns("x", "y"), turns("q", "a", "p", "b")
  two["messages"][1]["weight"] = 0
  path = write(tmp_path / "a.jsonl", [one, two, b"{}"])
  c = make_config(cache, train=path, eval="", max_bad_fraction=1.0)
  assert build(c).several_turns == 1
  c.data.train = write(tmp_path / "b.jsonl", [one])
  assert build(c).several_turns == 0
  c.data.train = write(tmp_path / "c.jsonl", [{"text": "One. Two."}])
  assert build(c).several_turns == 0
  c.data.text_blocks = "sentences"
  assert build(c).several_turns == 1
  c.loss.kind, c.loss.beta, c.data.text_blocks = "dpo", 0.1, "none"
  for prompt, count in (([], 0), (two["messages"][:2], 1)):
    pair = {
      key: [*prompt, *turns("p", key)["messages"]] for key in ("chosen", "rejected")
    }
    c.data.train = write(tmp_path / f"{count}.jsonl", [pair])
    assert build(c).several_turns == count


def test_sources_may_be_given_in_tuples(cache, tmp_path):
  path = write(tmp_path / "a, b.jsonl", [turns("x", "y")])
  c = make_config(cache)
  c.data.train, c.data.eval = ("builtin:recall:5", f"{path}*3"), (str(path),)
  data = build(c)
  assert f"{path}: 1 samples" in data.report
  assert len(data.eval_batches) == 1


def test_steps_and_epochs_are_exact(cache):
  c = make_config(cache, eval="holdout:8")
  c.steps, c.epochs = None, 3
  assert build(c).steps == 3 * 56 // 8
  c.steps, c.epochs = 30, None
  data = build(c)
  assert data.steps == 30 and len(data.train_rows) >= 240


def test_eval_batches_are_padded_with_empty_rows(cache):
  c = make_config(cache, eval="holdout:11")
  batches = build(c).eval_batches
  assert [batch["tokens"].shape for batch in batches] == [(8, 512)] * 2
  assert len(ids_of(batches)) == 11
  assert not any(array[3:].any() for array in batches[1].values())


def test_eval_can_be_a_source_or_nothing(cache):
  assert build(make_config(cache, eval="")).eval_batches == []
  data = build(make_config(cache, eval="builtin:recall:3"))
  assert len(ids_of(data.eval_batches)) == 3
  taken = {"holdout": True, "holdout:4": True, "holdout.jsonl": False, "": False}
  for spec, expected in taken.items():
    assert holdout.is_taken_out(make_config(cache, eval=spec).data) == expected


def test_samples_that_are_cut_elsewhere_are_other_data(cache, tmp_path):
  """Their ids, of the messages, are the same."""
  train = write(tmp_path / "long.jsonl", [turns(f"q{i}", "a" * 300) for i in range(4)])
  one, other = (
    build(make_config(cache, train=train, eval="", seq_len=n)) for n in (100, 101)
  )
  assert sorted(one.first_rows(4)["sample_ids"].max(axis=1)) == sorted(
    other.first_rows(4)["sample_ids"].max(axis=1)
  )
  assert one.fingerprint != other.fingerprint


def test_held_out_samples_that_are_trained_on_are_noted(cache, tmp_path):
  one, two = turns("x", "y"), turns("q", "a")
  train = write(tmp_path / "train.jsonl", [one, two])
  held = write(tmp_path / "held.jsonl", [two, turns("other", "b")])
  noted = "1 of the held-out samples are training data, too"
  assert noted in build(make_config(cache, train=train, eval=held)).report
  assert "training data, too" not in build(make_config(cache, eval="holdout:4")).report


@pytest.mark.parametrize(("samples", "held"), [(1, 0), (9, 0), (31, 3), (1000, 64)])
def test_a_tenth_is_held_out_by_default(cache, tmp_path, samples, held):
  records = [turns(f"q{i}", f"a{i}") for i in range(samples)]
  files = write(tmp_path / "a.jsonl", records + records[:1])
  c = make_config(cache, train=files, eval=config.default().data.eval)
  data = build(c)
  assert len(ids_of(data.eval_batches)) == held
  assert "1 of the samples are copies of others" in data.report
  assert ("nothing is held out" in data.report) == (not held)


def test_samples_that_share_only_their_id_are_no_copies():
  """Of a million samples about a hundred do."""
  prepared = types.SimpleNamespace(
    sample_ids=np.array([7, 7, 7, 2**32 - 1], np.uint32),
    lengths=np.array([20, 30, 20, 30], np.int32),
    usable=np.arange(4),
    rows=types.SimpleNamespace(
      rejected_start=np.zeros(4, int),
      column={"held_id": np.array([7, 7, 7, 2**32 - 1], np.uint32)}.get,
    ),
  )
  assert holdout.copies([prepared]) == 1
  other = dict(vars(prepared), usable=np.array([0]))
  held_out = [(prepared, np.array([1])), (prepared, np.array([2]))]
  assert holdout.trained_on([types.SimpleNamespace(**other)], held_out) == 1


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(eval="holdout:64"), "leaves nothing to train on"),
    (dict(eval="holdout:x"), "holdout:N"),
    (dict(train="builtin:recall:2*0.1", eval=""), "increase them"),
  ],
)
def test_too_little_data(cache, changes, message):
  c = make_config(cache, **changes)
  c.steps, c.epochs = None, 1
  with pytest.raises(errors.UserError, match=message):
    build(c)


@pytest.mark.parametrize(
  ("train", "noted"),
  [("builtin:recall:9", True), ("builtin:text:9,builtin:recall:9", False)],
)
def test_blocks_of_texts_without_a_text_are_noted(cache, train, noted):
  c = make_config(cache, train=train, eval="", text_blocks="sentences")
  assert ("data.text_blocks has no effect" in build(c).report) == noted


def test_a_weight_of_held_out_data_is_refused(cache):
  c = make_config(cache, train="builtin:recall:9", eval="builtin:recall:3*2")
  with pytest.raises(errors.UserError, match=r"the weight \*2 of builtin:recall:3 has"):
    build(c)


def test_batch_must_divide_among_hosts(cache):
  with pytest.raises(errors.UserError, match="batch_size=8"):
    build(make_config(cache), 0, 3)


BAD = [
  b'{"messages": [',
  turns("q", "a") | {"messages": [{"role": "robot", "content": "x"}]},
  {"messages": [{"content": "x"}]},
  turns("q", " "),
  turns("q"),
  b'{"a": "\xff"}',
  turns("q", "x" * 1_000_001),
  turns("q", "<|im_end|>"),
]
REASONS = [
  "not valid JSON",
  "unknown role robot",
  "missing role",
  "empty content (assistant)",
  "no assistant turn",
  "not UTF-8",
  "message over 1000000 bytes",
  "control token in content",
]


def test_bad_records_are_counted_and_left_out(cache, tmp_path):
  good = [turns(f"q{i}", f"a{i}") for i in range(30)]
  path = write(tmp_path / "a.jsonl", [*good[:10], *BAD, *good[10:]])
  c = make_config(cache, train=path, eval="", max_bad_fraction=0.5)
  data = build(c)
  for reason in REASONS:
    assert f"1 {reason}" in data.report
  assert "30 samples" in data.report and "(0 with several turns)" in data.report
  good_ids = {schemas.dialogue_of(record, 99).id() for record in good}
  assert set(ids_of(data.train_iterator())) == good_ids


def test_too_many_bad_records_stop_with_a_listing(cache, tmp_path):
  good = [turns(f"q{i}", f"a{i}") for i in range(30)]
  path = write(tmp_path / "a.jsonl", [*good, *BAD])
  for _ in range(2):  # also when the bad records come from the cache
    with pytest.raises(errors.UserError) as caught:
      build(make_config(cache, train=path, eval=""))
    text = str(caught.value)
    assert "8 of 38 records" in text and "max_bad_fraction=0.01" in text
    for line, reason in enumerate(REASONS, 31):
      assert f"1 x {reason}, first at {path}:{line}: " in text


def test_one_bad_record_in_a_hundred_is_tolerated(cache, tmp_path):
  good = [turns(f"q{i}", f"a{i}") for i in range(99)]
  build(make_config(cache, train=write(tmp_path / "a.jsonl", [*good, b"{"])))


def test_a_bad_record_counts_once_however_many_samples_it_would_have(cache, tmp_path):
  """A chat that is split, and of which most parts are refused."""
  good = [turns(f"q{i}", f"a{i}") for i in range(199)]
  bad = turns("q", "a" * 900, *("q", "<|im_end|>") * 30)
  path = write(tmp_path / "a.jsonl", [*good, bad])
  options = {"train": path, "eval": "", "seq_len": 64, "overlong": "split"}
  assert "30 control token in content" in build(make_config(cache, **options)).report
  with pytest.raises(errors.UserError, match=r"(?s)1 of 200 records.*30 x control"):
    build(make_config(cache, **options, max_bad_fraction=0.0))


def test_samples_without_a_target_are_dropped_but_not_bad(cache, tmp_path):
  records = [turns("q" * 600, "a"), turns("q", "a" * 600), turns("q", "a")]
  c = make_config(cache, train=write(tmp_path / "a.jsonl", records), eval="")
  c.batch_size = 1
  data = build(c)
  assert f"1 {chat.NO_TARGET}" in data.report
  assert "2 samples" in data.report and "1 truncated" in data.report
  c.data.train = write(tmp_path / "b.jsonl", records[:1])
  with pytest.raises(errors.UserError, match=r"increase data\.seq_len"):
    build(c)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_file(cache, tmp_path, content):
  path = tmp_path / "a.jsonl"
  path.write_bytes(content)
  with pytest.raises(errors.UserError, match="has no records"):
    build(make_config(cache, train=str(path)))


def prepare_in(folder, tokenizer=TOKENIZER, **data):
  c = make_config(str(folder), **data)
  (source,) = sources.parse(c.data.train)
  quiet = rich_console.Console(file=io.StringIO())
  return prepare.prepare(source, c.data, tokenizer, quiet)


def test_second_start_reads_the_cache(tmp_path, monkeypatch):
  first = prepare_in(tmp_path)
  monkeypatch.setattr(chat, "Encoder", None)  # nothing may be tokenized again
  second = prepare_in(tmp_path)
  assert second.report() == first.report()
  np.testing.assert_array_equal(second.lengths, first.lengths)
  assert len(list(tmp_path.iterdir())) == 1


def test_cache_key_covers_what_the_rows_depend_on(tmp_path):
  tulu = tokenizer_lib.byte_tokenizer()
  templates.set_template(tulu, "tulu")
  prepare_in(tmp_path)
  prepare_in(tmp_path, tulu)
  prepare_in(tmp_path, seq_len=256)
  prepare_in(tmp_path, system_prompt="Be kind.")
  prepare_in(tmp_path, train="builtin:recall:65")
  assert len(list(tmp_path.iterdir())) == 5
  TOKENIZER(["a", "bb"], padding=True, truncation=True, max_length=9)
  prepare_in(tmp_path)
  assert len(list(tmp_path.iterdir())) == 5


def test_interrupted_tokenizing_leaves_nothing(tmp_path, monkeypatch):
  def fail(record, max_bytes, ignored):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(schemas, "dialogue_of", fail)
    with pytest.raises(KeyboardInterrupt):
      prepare_in(tmp_path)
  assert list(tmp_path.iterdir()) == []
  assert len(prepare_in(tmp_path).usable) == 64


def test_unusable_cache_folder(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(errors.UserError, match=r"data\.cache_dir"):
    prepare_in(tmp_path / "file")


def test_a_cache_in_the_home_folder_is_named_by_its_path(tmp_path, monkeypatch):
  """Also by an error that names no file, as of one that is closed."""
  monkeypatch.setenv("HOME", str(tmp_path))
  failing = mock.Mock(side_effect=OSError(errno.ENOSPC, "x"))
  monkeypatch.setattr(token_cache, "file_of", failing)
  with pytest.raises(
    errors.UserError, match=rf"{tmp_path}/.cache\S*: No space .* left"
  ):
    prepare_in("")


def flipped(whole, at):
  return whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]


@pytest.mark.parametrize(
  "damage",
  [
    lambda whole: b"",
    lambda whole: b"not arrow",
    lambda whole: whole[:-1],
    lambda whole: whole[: len(whole) // 2],
    lambda whole: flipped(whole, len(whole) // 3),  # of a token
    lambda whole: flipped(whole, len(whole) - 600),
  ],
)
def test_a_damaged_cache_is_made_again(tmp_path, damage):
  rows = prepare_in(tmp_path).rows.table.to_pylist()
  (path,) = tmp_path.iterdir()
  whole = path.read_bytes()
  path.write_bytes(damage(whole))
  assert prepare_in(tmp_path).rows.table.to_pylist() == rows
  assert [p.name for p in tmp_path.iterdir()] == [path.name]
  assert path.read_bytes() == whole


def test_a_damaged_cache_is_reported(tmp_path):
  lines = []
  console = mock.Mock(is_terminal=False, print=lines.append)
  name = token_cache.file_of(tmp_path, "x", lambda new: new.write_text("a"), console)
  name.write_text("b")
  token_cache.file_of(tmp_path, "x", lambda new: new.write_text("a"), console)
  assert len(lines) == 1 and str(name) in lines[0] and "damaged" in lines[0]
  assert name.read_text() == "a"


def test_no_module_imports_jax_when_loaded():
  """Grain's workers load this package and must not need jax."""
  files = list(pathlib.Path(pipeline.__file__).parent.glob("*.py"))
  assert len(files) > 5
  for file in files:
    names = set()
    for node in ast.parse(file.read_text()).body:
      if isinstance(node, ast.Import):
        names |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        names |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.startswith("skipalign_jax")}
    assert not any(name.split(".")[0] in ("jax", "flax") for name in names), file
    plain = tuple(
      f"skipalign_jax.{name}"
      for name in (
        *("runtime.caches", "runtime.checksums", "runtime.errors", "runtime.files"),
        *("runtime.paths", "runtime.progress", "runtime.storage", "runtime.terminal"),
        *("runtime.child_", "runtime.json_limits", "runtime.signals"),
        "runtime.untrusted",
        *(
          "runtime.extras",
          "config",
          "data.",
          "hf.chat_template",
          "hf.hub",
          "hf.template_dates",
        ),
      )
    )
    assert all(name.startswith(plain) for name in ours), file

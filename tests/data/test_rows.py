"""Plans of a run: sorted batches, texts and chats, windows that the step crops."""

import io
import itertools
import json

import numpy as np
import pytest
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax.data import chat, dialogues, packing, pipeline, text, tokenizer
from skipalign_jax.runtime import errors
from skipalign_jax.training import resolve

TOKENIZER = tokenizer.byte_tokenizer()


def make_config(cache_dir, **data):
  c = config_lib.tiny(config_lib.default())
  c.data.cache_dir, c.data.seq_len, c.data.eval = cache_dir, 1024, ""
  c.data.update(data)
  c.steps, c.epochs = None, 1
  return c


def build(c, index=0, count=1):
  quiet = rich_console.Console(file=io.StringIO())
  return pipeline.build(c, TOKENIZER, index, count, quiet)


def chats(path, lengths):
  """Writes dialogues of exactly these lengths, in tokens; returns id → length."""
  lines, ids = [], {}
  for i, length in enumerate(lengths):
    message = lambda n: [("user", f"{i}"), ("assistant", "x" * n)]  # noqa: B023
    (frame,) = chat.Encoder(TOKENIZER, 4096)([message(1)])
    messages = message(1 + length - len(frame.tokens))
    turns = [dict(role=role, content=content) for role, content in messages]
    lines.append(json.dumps({"messages": turns}))
    ids[dialogues.plain(messages).id()] = length
  path.write_text("\n".join(lines))
  return ids


LENGTHS = [100] * 9 + [128] * 2 + [129, 200, 256, 257, 300, 512, 600, 900, 1024, 90, 95]


@pytest.fixture
def lengths(cache_dir, tmp_path):
  return chats(tmp_path / "chats.jsonl", LENGTHS)


@pytest.fixture
def config(cache_dir, tmp_path, lengths):
  c = make_config(cache_dir, train=str(tmp_path / "chats.jsonl"), batching="sorted")
  c.batch_size, c.epochs = 4, 3
  return c


def ids(batch):
  return [int(row[0]) for row in batch["sample_ids"]]


def test_sorted_batches_have_similar_lengths_and_every_sample_once(config, lengths):
  data = build(config)
  batches = list(data.train_iterator())
  # Two rows of an epoch wait for the next one, and those of the last for empty rows.
  assert len(batches) == data.steps == 3 * len(LENGTHS) // 4 + 1
  seen = [id_ for batch in batches for id_ in ids(batch)]
  assert seen[-2:] == [0, 0] and not batches[-1]["segment_ids"][2:].any()
  assert [seen.count(id_) for id_ in lengths] == [3] * len(lengths)
  assert len(set(seen[:20])) == 20  # the first epoch without those that wait
  order = []
  for batch in batches:
    tokens = [lengths.get(id_, 0) for id_ in ids(batch)]
    assert (batch["segment_ids"] > 0).sum(1).tolist() == tokens
    assert batch["tokens"].shape == (
      4,
      min(length for length in (128, 256, 512, 1024) if length >= max(tokens)),
    )
    order.append(max(tokens))
  first = sorted(batches[:5], key=lambda b: max(lengths[id_] for id_ in ids(b)))
  edges = [(min(t), max(t)) for t in ([lengths[i] for i in ids(b)] for b in first)]
  assert all(high <= low for (_, high), (low, _) in itertools.pairwise(edges))
  assert order[:5] != sorted(order[:5])  # batches are shuffled
  assert len({b["tokens"].shape[1] for b in batches}) >= 3


def test_sorting_cuts_nothing_but_padding(config, lengths):
  """A sorted row is the row of a shuffled run without its last zeros."""
  of = lambda data: {
    (int(row["sample_ids"][0]), int(row["epochs"][0])): row
    for row in (data.train_rows[i] for i in range(data.train_rows.filled))
  }
  cut = of(build(config))
  config.data.batching = "shuffled"
  whole = of(build(config))
  assert len(cut) == 66
  for key, row in cut.items():
    for name, array in row.items():
      padded = np.pad(array, (0, 1024 - len(array)))
      np.testing.assert_array_equal(padded, whole[key][name])


def test_hosts_agree_on_sorted_batches_and_resume_exactly(config):
  batches = list(build(config).train_iterator())
  parts = [build(config, index, 2) for index in range(2)]
  for merged, *pieces in zip(
    batches, *(part.train_iterator({"next_index": 0}) for part in parts), strict=True
  ):
    for name, array in merged.items():
      together = np.stack([piece[name] for piece in pieces], axis=1)
      np.testing.assert_array_equal(together.reshape(array.shape), array)
  rest = list(parts[1].train_iterator({"next_index": 6}))
  assert len(rest) == len(batches) - 6
  for one, other in zip(rest, batches[6:], strict=True):
    np.testing.assert_array_equal(one["tokens"], other["tokens"][1::2])


def test_report_shows_what_sorting_saves(config, lengths):
  data = build(config)
  batches = list(data.train_iterator())
  tokens = sum(int((b["segment_ids"] > 0).sum()) for b in batches)
  places = sum(b["tokens"].size for b in batches)
  shares = 1 - tokens / places, 1 - tokens / (4 * 1024 * len(batches))
  assert "{:.0%} padding, {:.0%} in rows of 1024".format(*shares) in data.report


def test_buckets():
  data = make_config("", batching="sorted").data
  for data.seq_len, expected in (
    (4096, (512, 1024, 2048, 4096)),
    (512, (128, 256, 512)),
    (1536, (384, 768, 1536)),
    (1000, (1000,)),
  ):
    assert config_lib.buckets(data) == expected
  data.batching = "shuffled"
  assert config_lib.buckets(data) == (1000,)


def test_buckets_split_over_context(config):
  config.data.seq_len = 1536
  mesh = dict(data=1, fsdp=1, tensor=1, context=256)
  with pytest.raises(errors.UserError, match="rows of 384 tokens"):
    resolve.check_mesh(config, None, mesh)


def write_texts(path, documents):
  path.write_text("\n".join(json.dumps({"text": document}) for document in documents))
  return str(path)


def test_texts_and_chats_share_rows(cache_dir, tmp_path):
  """A long document fills rows; chats fill the rest of the rows of short pieces."""
  documents = ["Long. " * 400, "Short one.\n\nOf two."]
  c = make_config(
    cache_dir,
    train=f"builtin:recall:8*2,{write_texts(tmp_path / 'a.jsonl', documents)}",
    packing=True,
    text_blocks="sentences",
  )
  c.batch_size = 1
  data = build(c)
  assert "a.jsonl: 4 samples of 2 documents (4 with several blocks)" in data.report
  found, mixed = {}, 0
  for row in data.train_iterator():
    is_text_L = (row["loss_weight"] > 0) & ~row["is_response"]
    mixed += row["is_response"].any() and is_text_L.any()
    for segment in range(1, row["segment_ids"].max() + 1):
      at = row["segment_ids"] == segment
      sample = {name: array[at] for name, array in row.items()}
      found.setdefault(int(sample["sample_ids"][0]), []).append(sample)
  for document in documents:
    ((*pieces,),) = text.Encoder(TOKENIZER, 1024, "sentences")([document])
    for piece in pieces:
      (sample,) = found.pop(piece.sample_id)
      np.testing.assert_array_equal(sample["tokens"], piece.tokens)
      np.testing.assert_array_equal(sample["block_ids"], piece.block_ids)
      np.testing.assert_array_equal(sample["loss_weight"], piece.targets)
      assert not sample["is_response"].any()
  assert mixed >= 1
  assert len(found) == 8 and {len(copies) for copies in found.values()} == {2}
  for sample, _ in found.values():
    np.testing.assert_array_equal(sample["is_response"], sample["block_ids"] % 2 == 1)


def test_configured_rows_differ_as_configured(cache_dir):
  """loss.reduction and packing_mask change the batches, not the held-out weights."""
  c = make_config(cache_dir, train="builtin:recall:64", eval="holdout:8", packing=True)
  plain = build(c)
  c = c.copy_and_resolve_references()
  c.loss.reduction, c.data.packing_mask = "sequence", False
  changed = build(c)
  one, other = (next(iter(data.train_iterator())) for data in (plain, changed))
  np.testing.assert_array_equal(one["tokens"], other["tokens"])
  assert one["segment_ids"].max() > 1 == other["segment_ids"].max()
  np.testing.assert_allclose(
    other["loss_weight"].sum(1), one["segment_ids"].max(1), rtol=1e-6
  )
  held, held_changed = plain.eval_batches[0], changed.eval_batches[0]
  np.testing.assert_array_equal(held["loss_weight"], held_changed["loss_weight"])
  assert held["segment_ids"].max() > 1 == held_changed["segment_ids"].max()
  assert config_lib.max_samples(c.data) == 1 < config_lib.max_packed(c.data)


def test_windows_are_rows_and_held_out_pieces_are_not(cache_dir):
  c = make_config(
    cache_dir, train="builtin:text:32", eval="holdout:3", seq_len=200, text_window=700
  )
  data = build(c)
  batch = next(iter(data.train_iterator()))
  assert batch["tokens"].shape == (8, 700)
  assert (batch["segment_ids"].sum(1) > 200).any()
  assert "data.text_blocks=none makes a text one block" in data.report
  (held_out,) = data.eval_batches
  assert held_out["tokens"].shape == (8, 200)
  assert {name: x.dtype for name, x in held_out.items()} == packing.DTYPES
  assert (held_out["segment_ids"].sum(1)[:3] == 200).any()
  c.data.train = "builtin:text:32,builtin:recall:8"
  with pytest.raises(errors.UserError, match="builtin:recall:8 has chats"):
    build(c)


def test_texts_without_blocks_do_not_jump_and_a_note_says_so(cache_dir):
  c = make_config(cache_dir, train="builtin:text:8", eval="")
  c.distill.weight = 1.0
  note = "so texts do not jump; distill.split=token"
  assert note in build(c).report
  for key, value in (
    ("distill.split", "token"),
    ("data.text_blocks", "sentences"),
    ("data.train", "builtin:recall:8"),
    ("distill.weight", 0.0),
  ):
    other = c.copy_and_resolve_references()
    other.update_from_flattened_dict({key: value})
    assert note not in build(other).report


def test_bad_texts_are_counted_by_record(cache_dir, tmp_path):
  documents = ["word " * 2000] * 3 + [" \n"]
  train = write_texts(tmp_path / "a.jsonl", documents)
  with pytest.raises(errors.UserError, match="1 of 4 records"):
    build(make_config(cache_dir, train=train, max_bad_fraction=0.2))
  build(make_config(cache_dir, train=train, max_bad_fraction=0.25))


def test_tiny_keeps_built_in_sources():
  c = config_lib.default()
  c.data.train, c.data.text_window = "builtin:recall:9*2, builtin:text", 16_384
  tiny = config_lib.tiny(c).data
  assert tiny.train == "builtin:recall:64*2, builtin:text:64"
  assert (tiny.seq_len, tiny.text_window) == (512, 2048)
  c.data.train, c.data.text_window = ("builtin:text", "hub:some/chats"), 0
  assert config_lib.tiny(c).data.train == "builtin:recall:64"

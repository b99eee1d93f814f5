"""Preference pairs: shapes of records, what is refused, and their rows."""

import json
import re

import numpy as np
import pytest
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax.data import chat, dialogues, packing, pipeline, preferences, prepare
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.runtime import errors

TOKENIZER = tokenizer_lib.byte_tokenizer()
MAX_BYTES = 1000


def turn(role, content, **more):
  return {"role": role, "content": content} | more


USER, SYSTEM = turn("user", "Hi"), turn("system", "Be brief.")
GOOD, BAD = turn("assistant", "Hello."), turn("assistant", "Go away.")
EARLIER = [turn("user", "One?"), turn("assistant", "Yes."), turn("user", "Two?")]
# Record, and the contents of the prompt that it means.
SHAPES = [
  ({"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."}, ["Hi"]),
  (
    {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away.", "system": "S"},
    ["S", "Hi"],
  ),
  ({"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]}, ["Hi"]),
  ({"prompt": "Hi", "chosen": [GOOD], "rejected": "Go away."}, ["Hi"]),
  (
    {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]},
    ["Be brief.", "Hi"],
  ),
  ({"chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 1}, ["Hi"]),
  ({"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, ["Hi"]),
  (  # UltraFeedback
    {"chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]},
    ["Hi"],
  ),
  (
    {"chosen": [*EARLIER, GOOD], "rejected": [*EARLIER, BAD]},
    ["One?", "Yes.", "Two?"],
  ),
]


@pytest.mark.parametrize(("record", "prompt"), SHAPES)
def test_shapes(record, prompt):
  pair = preferences.pair_of(record, MAX_BYTES)
  for dialogue, reply in zip(pair, ("Hello.", "Go away."), strict=True):
    assert [m.content for m in dialogue.messages] == [*prompt, reply]
    learned = [m.learned for m in dialogue.messages if m.role == "assistant"]
    assert learned == [False] * (len(learned) - 1) + [True]


@pytest.mark.parametrize(
  ("record", "reason"),
  [
    ({"messages": [USER, GOOD]}, "no chosen reply"),
    ({"text": "A text."}, "no chosen reply"),
    ({"prompt": "Hi", "completion": "Hello."}, "no chosen reply"),
    ({"prompt": "Hi", "chosen": "Hello."}, "no rejected reply"),
    ({"prompt": "Hi", "chosen": "Hello.", "rejected": None}, "no rejected reply"),
    ({"prompt": "Hi", "chosen": "Hello.", "rejected": ""}, "empty content (assistant)"),
    ({"prompt": "Hi", "chosen": "Hello.", "rejected": 3}, "content is a number"),
    ({"chosen": [USER, GOOD], "rejected": []}, "rejected without"),
    ({"chosen": "Hello.", "rejected": "Go away."}, "chosen without a prompt"),
    ({"prompt": "Hi", "chosen": "Hello.", "rejected": "Hello."}, "are equal"),
    (
      {"prompt": "Other", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
      "does not begin with the prompt",
    ),
    (
      {"chosen": [USER, GOOD], "rejected": [turn("user", "Hey"), BAD]},
      "differ before the last reply",
    ),
    (
      {"chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, BAD]},
      "messages next to",
    ),
    (
      {"prompt": "Hi", "chosen": [turn("assistant", "a", weight=0)], "rejected": "b"},
      "nothing to learn",
    ),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b", "images": ["x"]}, "images"),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b", "label": False}, "label"),
    ([1], "a list"),
    (None, "null"),
  ],
)
def test_refused_records(record, reason):
  with pytest.raises(dialogues.BadSample, match=re.escape(reason)):
    preferences.pair_of(record, MAX_BYTES)


def write(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


def config_of(source, cache_dir, **data):
  c = config_lib.tiny(config_lib.default())
  c.data.update(dict(train=source, cache_dir=cache_dir, eval="", seq_len=256) | data)
  c.loss.kind, c.loss.beta = "dpo", 0.1
  c.batch_size, c.steps = 2, 4
  return c


def build(c):
  return pipeline.build(c, TOKENIZER, 0, 1, rich_console.Console(quiet=True))


def some_pairs(count=12):
  return [
    {"prompt": f"Is {i} odd?", "chosen": "x" * (i % 5 + 1), "rejected": "y" * (i + 3)}
    for i in range(count)
  ]


def test_rows_have_both_replies_of_a_pair_after_their_prompt(cache_dir, tmp_path):
  c = config_of(write(tmp_path / "p.jsonl", some_pairs()), cache_dir, packing=True)
  data = build(c)
  assert "12 samples" in data.report and "not learned" not in data.report
  batch = next(data.train_iterator())
  assert batch.keys() == packing.DTYPES.keys() | packing.PAIR_DTYPES.keys()
  assert batch["segment_ids"].max() > 2
  for row, segment_L in enumerate(batch["segment_ids"]):
    for chosen in range(1, segment_L.max() + 1, 2):
      texts, ids = [], []
      for segment in (chosen, chosen + 1):
        at = segment_L == segment
        tokens, targets = batch["tokens"][row][at], batch["loss_weight"][row][at]
        first = int(np.argmax(targets))
        texts.append((tokens[:first].tolist(), TOKENIZER.decode(tokens[first:])))
        ids.append(set(batch["sample_ids"][row][at].tolist()))
        assert (targets[:first] == 0).all() and (targets[first:-1] == 1).all()
        assert batch["block_ids"][row][at][0] == 0
      (one, good), (other, bad) = texts
      assert one == other and good.startswith("x") and bad.startswith("y")
      assert ids[0] == ids[1] and len(ids[0]) == 1


def test_prompts_that_differ_as_tokens_are_refused():
  """As of a template that writes a prompt depending on its reply."""
  chats = chat.Encoder(TOKENIZER, 256)
  made = lambda prompt, reply: chats([[("user", prompt), ("assistant", reply)]])[0]
  assert preferences.join(made("Hi", "a"), made("Hi", "b")).rejected_start
  for prompt in ("Ho", "Hi!"):
    bad = preferences.join(made("Hi", "a"), made(prompt, "b"))
    assert bad.reason == "the chat template writes two different prompts"


def test_a_long_reply_has_half_a_row(cache_dir, tmp_path):
  record = {"prompt": "Hi", "chosen": "a" * 300, "rejected": "b" * 300}
  equal = {"prompt": "Hi", "chosen": "a" * 300 + "b", "rejected": "a" * 300 + "c"}
  long = {"prompt": "p" * 300, "chosen": "b", "rejected": "c"}
  source = write(
    tmp_path / "long.jsonl", [record, record | {"prompt": "Ho"}, equal, long]
  )
  c = config_of(source, cache_dir, max_bad_fraction=0.0)
  data = build(c)
  assert "2 truncated" in data.report
  assert "equal after truncation" in data.report
  assert "no target left after truncation" in data.report
  row = data.train_rows[0]
  assert np.bincount(row["segment_ids"]).tolist() == [0, 128, 128]


@pytest.mark.parametrize("mode", ["truncate", "drop"])
def test_what_is_not_kept_of_pairs_is_reported_as_lost(mode, cache_dir, tmp_path):
  short = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
  records = [
    short,
    short | {"rejected": "b" * 300},
    {"prompt": "Hi", "chosen": "a" * 300 + "b", "rejected": "a" * 300 + "c"},
    {"prompt": "p" * 300, "chosen": "b", "rejected": "c"},
  ]
  source = write(tmp_path / "lost.jsonl", records)
  whole, kept = (
    build(config_of(source, cache_dir, **options)).report.replace(",", "")
    for options in ({"seq_len": 2048}, {"overlong": mode})
  )
  numbers = lambda form, text: np.array(re.search(form, text).groups(), int)
  assert "(0 with several turns)" in whole and "(0 with several turns)" in kept
  assert ("1 truncated" in kept) == (mode == "truncate")  # of one reply only
  counts = r"(\d+) tokens (\d+) targets"
  lost = numbers(r"about (\d+) tokens .* (\d+) of them targets", kept)
  assert (numbers(counts, whole) == numbers(counts, kept) + lost).all()


def test_data_without_pairs_is_refused_by_its_reason(cache_dir, tmp_path):
  records = [{"messages": [USER, GOOD]}, {"prompt": "Hi", "completion": "there"}]
  c = config_of(write(tmp_path / "chats.jsonl", records * 3), cache_dir)
  with pytest.raises(errors.UserError, match=r"(?s)6 x no chosen reply.*loss\.kind"):
    build(c)


def test_sft_on_pairs_learns_the_chosen_reply_as_before(cache_dir, tmp_path):
  c = config_of(write(tmp_path / "q.jsonl", some_pairs()), cache_dir)
  c.loss.kind, c.loss.beta = "sft", None
  batch = next(build(c).train_iterator())
  assert batch.keys() == packing.DTYPES.keys()
  text = TOKENIZER.decode(batch["tokens"][0])
  assert "x" in text and "yyy" not in text


def test_held_out_pairs_are_removed_and_counted_by_their_chosen_reply(
  cache_dir, tmp_path
):
  c = config_of(write(tmp_path / "r.jsonl", some_pairs()), cache_dir, eval="holdout:3")
  data = build(c)
  chosen = [TOKENIZER.decode(row) for b in data.eval_batches for row in b["tokens"]]
  assert sum("x" in text for text in chosen) == 3
  assert not any("yyy" in text for text in chosen)
  held = {int(i) for b in data.eval_batches for i in np.unique(b["sample_ids"])} - {0}
  seen = {int(i) for row in data.train_rows for i in np.unique(row["sample_ids"])} - {0}
  assert len(held) == 3 and len(seen) == 9 and not held & seen


def test_a_chosen_reply_is_held_out_with_all_its_rejected_ones(cache_dir, tmp_path):
  """Data that pairs the best of several replies with each of the others."""
  records = [one | {"rejected": "z" * n} for one in some_pairs() for n in (1, 2, 3)]
  path = write(tmp_path / "u.jsonl", records)
  data = build(config_of(path, cache_dir, eval="holdout:3", seq_len=512))
  prompts = lambda rows: {
    line
    for row in rows
    for line in TOKENIZER.decode(row).splitlines()
    if "odd?" in line
  }
  held = prompts(row for batch in data.eval_batches for row in batch["tokens"])
  trained = prompts(row["tokens"] for row in data.train_rows)
  assert len(held) == 3 and len(trained) == 9 and not held & trained
  other = write(tmp_path / "v.jsonl", [one | {"rejected": "w"} for one in records[::3]])
  data = build(config_of(path, cache_dir, eval=other))
  assert "12 of the held-out samples are training data, too" in data.report


def test_every_pair_is_read_once_for_the_reference(cache_dir, tmp_path):
  c = config_of(write(tmp_path / "s.jsonl", some_pairs()), cache_dir, packing=True)
  data = build(c)
  plan = data.train_rows.each_once()
  assert sorted(member for row in plan for member in row) == [(0, i) for i in range(12)]
  known = data.train_rows.empty_reference()
  known[0][:] = np.arange(24).reshape(12, 2)
  data.train_rows.set_reference(known)
  batch = next(data.train_iterator())
  for row, segment_L in enumerate(batch["segment_ids"]):
    firsts = np.flatnonzero(np.diff(segment_L, prepend=0) > 0)
    pairs = batch["reference"][row][firsts].reshape(-1, 2)
    for (good, bad), at in zip(pairs, firsts[::2], strict=True):
      length = np.argmax(segment_L[at:] != segment_L[at]) or len(segment_L) - at
      text = TOKENIZER.decode(batch["tokens"][row][at : at + length])
      number = int(text.split("Is ")[1].split()[0])
      assert (good, bad) == (2 * number, 2 * number + 1)


def test_the_token_cache_tells_pairs_from_chats(cache_dir, tmp_path):
  path = write(tmp_path / "t.jsonl", some_pairs())
  (source,) = pipeline.sources.parse(path)
  c, quiet = config_of(path, cache_dir), rich_console.Console(quiet=True)
  both = [prepare.prepare(source, c.data, TOKENIZER, quiet, p) for p in (False, True)]
  assert [p.sample(0)["rejected_start"] > 0 for p in both] == [False, True]
  assert both[1].lengths[0] > both[0].lengths[0]

"""Damaged files: a UserError or a result, in bounded time and memory, never a crash.

The default suite takes what fuzzing once found, and a few hundred records; `-m slow`
takes all readers, more than 100,000 damaged records, and the bombs.
"""

import json
import os
import pathlib
import struct
import subprocess
import sys

import bombs
import fuzz
import hypothesis
import mutate
import pytest
import tiny_files as hf_tiny
from hypothesis import strategies as st

from skipalign_jax.data import chat, dialogues, prepare, sources
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import reference, safetensors_files
from skipalign_jax.runtime import errors, untrusted

FOLDER = pathlib.Path(__file__).parent
FILES = {  # of each reader, in the slow test
  "jsonl": 8000,
  "zipped": 1000,
  "parquet": 2000,
  "txt": 2000,
  "model_config": 8000,
  "tokenizer": 4000,
  "index": 3000,
  "safetensors": 6000,
  "gguf": 4000,
  "gguf_metadata": 5000,
}
PEAK_MIB = 1000  # of a process that reads damaged files; 330 of them are imports


def child(script: str, *arguments: str) -> list:
  """The JSON lines that a script of this folder prints."""
  done = subprocess.run(
    [sys.executable, FOLDER / script, *arguments],
    capture_output=True,
    text=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    timeout=3600,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  # The tokenizers library writes remarks of its own to stdout.
  return [
    json.loads(line)
    for line in done.stdout.splitlines()
    if line.startswith(('{"files', '["'))
  ]


@pytest.mark.slow
@pytest.mark.parametrize("reader", FILES)
def test_damaged_files(reader):
  (summary,) = child("fuzz.py", reader, str(FILES[reader]), "1000000")
  print(reader, summary)
  assert summary["failed"] == {}
  assert summary["files"] == FILES[reader]
  assert 0 < summary["refused"] or reader == "jsonl"
  assert summary["peak_mib"] < PEAK_MIB


@pytest.mark.slow
def test_bombs():
  found = child("bombs.py")
  print(*found, sep="\n")
  assert [name for name, *_ in found] == list(bombs.BOMBS)
  for name, became, seconds, mib in found:
    if name in bombs.READ:
      assert became == f"read: {bombs.READ[name]}"
    else:
      assert became.startswith("UserError"), (name, became)
    assert mib < 2500, name
    assert seconds < 400, name


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner)
  ),
  max_leaves=8,
)
CALL = st.fixed_dictionaries(
  {},
  optional={
    "function": st.fixed_dictionaries(
      {"name": st.text(max_size=3) | JSON}, optional={"arguments": JSON}
    ),
    "name": st.text(max_size=3) | JSON,
    "arguments": JSON | st.just('{"x": 1}'),
    "id": JSON,
  },
)
TURN = st.fixed_dictionaries(
  {},
  optional={
    "role": st.sampled_from(["system", "user", "assistant", "tool"]) | JSON,
    "content": st.text(max_size=12) | JSON,
    "from": st.sampled_from(["human", "gpt"]) | JSON,
    "value": st.text(max_size=12) | JSON,
    "weight": st.sampled_from([0, 1, 0.5]) | JSON,
    "tool_calls": st.lists(CALL, max_size=2) | CALL.map(json.dumps) | JSON,
    "function_call": CALL | JSON,
    "name": JSON,
  },
)
RECORD = JSON | st.fixed_dictionaries(
  {},
  optional={
    "messages": st.lists(TURN, max_size=5) | JSON,
    "conversations": st.lists(TURN, max_size=5) | JSON,
    "text": st.text(max_size=30) | JSON,
    "instruction": st.text(max_size=9) | JSON,
    "input": st.text(max_size=9) | JSON,
    "output": st.text(max_size=9) | JSON,
    "system": JSON,
    "history": st.lists(st.lists(st.text(max_size=5), max_size=3)) | JSON,
    "tools": st.lists(CALL, max_size=2) | JSON,
    "prompt": st.text(max_size=9) | st.lists(TURN, max_size=3) | JSON,
    "completion": st.text(max_size=9) | st.lists(TURN, max_size=3) | JSON,
    "chosen": st.text(max_size=9) | st.lists(TURN, max_size=4) | JSON,
  },
)
WITH_TOOLS = tokenizer_lib.byte_tokenizer()
WITH_TOOLS.chat_template = (
  "{% if tools %}{{ tools | tojson }}{% endif %}"
  + tokenizer_lib.CHATML.replace(
    "message['content'] }}",
    "(message['content'] or '') }}{{ message.tool_calls | default([]) | tojson }}",
  )
)
ENCODERS = [
  chat.Encoder(tokenizer, 4096, learn_calls=True)
  for tokenizer in (fuzz.TOKENIZER, WITH_TOOLS)
]


def outcome(record):
  """What `prepare` makes of a record's line, up to its tokens."""
  parsed = prepare._parse(json.dumps(record).encode(), 1000)
  if isinstance(parsed, dialogues.Dialogue):
    parsed, other = (encoder([parsed])[0] for encoder in ENCODERS)
    assert isinstance(other, chat.Sample | dialogues.BadSample)
  return parsed


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
@hypothesis.given(RECORD)
def test_any_record_is_a_sample_a_text_or_bad(record):
  assert isinstance(outcome(record), chat.Sample | dialogues.BadSample | str)


@pytest.mark.slow
@hypothesis.settings(max_examples=10_000, deadline=None, database=None)
@hypothesis.given(RECORD)
def test_any_record_at_length(record):
  assert isinstance(outcome(record), chat.Sample | dialogues.BadSample | str)


def test_damaged_lines_leave_their_neighbours_alone(tmp_path):
  run = fuzz.jsonl(tmp_path)  # asserts it
  assert sum(run(mutate.random.Random(seed)) for seed in range(4)) == 40


# What fuzzing found.


@pytest.mark.parametrize(
  ("record", "reason"),
  [
    (
      {"instruction": "a", "output": "b", "history": 7},
      "history is not a list of pairs",
    ),
    (
      {"instruction": "a", "output": "b", "history": [["a"]]},
      "history is not a list of pairs",
    ),
    ({"instruction": "a", "output": "b", "input": [[1]]}, "input is a list, not text"),
  ],
)
def test_records_that_stopped_a_run(record, reason):
  assert outcome(record).reason == reason


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"vocab_size": float("inf")}, "wrong type"),
    ({"num_attention_heads": 0, "head_dim": None}, "wrong type"),
    ({"rope_parameters": [1]}, "wrong type"),
    ({"rope_scaling": None, "rope_theta": float("nan")}, "rope.theta=nan"),
    ({"rms_norm_eps": float("nan")}, "norm_eps"),
    ({"vocab_size": 2**60}, "model.vocab_size=.* from 1 to 2"),
    ({"num_hidden_layers": 2**60}, "num_hidden_layers=.* from 1 to 10,000"),
    ({"x": "@deep"}, "nested too deeply"),
  ],
)
def test_configs_that_crashed(change, message, tmp_path):
  made = hf_tiny.hf_folder(tmp_path / "m")
  path = made / "config.json"
  config = json.loads(path.read_text()) | {"rope_parameters": None} | change
  path.write_text(json.dumps(config).replace('"@deep"', mutate.DEEP))
  with pytest.raises(errors.UserError, match=message):
    reference.open_model(str(made))


@pytest.mark.parametrize(
  "entry",
  [
    {"dtype": "F32", "shape": [2**70], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
    {"dtype": "X", "shape": [1], "data_offsets": [0, "4"]},
    {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]},
    {"dtype": "F32", "shape": "@deep", "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
    {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},  # the bytes of no tensor
  ],
)
def test_safetensors_headers_that_crashed(entry, tmp_path):
  made = hf_tiny.hf_folder(tmp_path / "m")
  header = json.dumps({"a": entry}).replace('"@deep"', mutate.DEEP).encode()
  whole = struct.pack("<Q", len(header)) + header + bytes(4)
  (made / "model.safetensors").write_bytes(whole)
  with pytest.raises(errors.UserError, match="truncated or damaged"):
    reference.open_model(str(made))


def safetensors_file(path, entries, size):
  """Writes a file with this header and `size` bytes of data."""
  header = json.dumps(entries).encode()
  path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


def test_tensors_must_not_share_bytes(tmp_path):
  made = hf_tiny.hf_folder(tmp_path / "m")
  one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
  for begin in (0, 4, 12):  # the same bytes, some of them, and a gap
    other = {"dtype": "F32", "shape": [2], "data_offsets": [begin, begin + 8]}
    entries = {"a": one, "b": other}
    safetensors_file(made / "model.safetensors", entries, begin + 8)
    with pytest.raises(errors.UserError, match="truncated or damaged"):
      reference.open_model(str(made))


def test_the_number_of_tensors_is_limited(tmp_path, monkeypatch):
  made = hf_tiny.hf_folder(tmp_path / "m")
  monkeypatch.setattr(safetensors_files, "MAX_TENSORS", 3)
  empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
  entries = {f"{i}.rotary_emb.inv_freq": empty for i in range(4)}
  safetensors_file(made / "model.safetensors", entries, 0)
  with pytest.raises(errors.UserError, match="4 tensors; no model has so many"):
    reference.open_model(str(made))


@pytest.mark.parametrize(
  "name", ["../../x", "/etc/passwd", "a" * 5000, "\ud800", "..", "a/b", 7, ""]
)
def test_shards_stay_in_their_folder(name, tmp_path):
  made = hf_tiny.hf_folder(tmp_path / "m", shards=2)
  (tmp_path / "x").write_bytes((made / "model-00001-of-00002.safetensors").read_bytes())
  path = made / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  index["weight_map"] = dict.fromkeys(index["weight_map"], name)
  path.write_text(json.dumps(index))
  with pytest.raises(errors.UserError, match=r"this folder|are missing|surrogate"):
    reference.open_model(str(made))


def test_tokenizers_that_crashed(tmp_path):
  made = hf_tiny.hf_folder(tmp_path / "m")
  path = made / "tokenizer_config.json"
  whole = path.read_text()
  path.write_text(json.dumps(json.loads(whole) | {"model_max_length": "x"}))
  with pytest.raises(errors.UserError, match="unreadable tokenizer"):
    reference.load_tokenizer(str(made))


SMALL_BOMBS = [name for name in bombs.BOMBS if name.startswith(("gguf", "2^60"))] + [
  "safetensors, a header of 2^60",
  "safetensors, a header of 5 GB",
  "a tokenizer.json of 5 GB",
  "a text of 2 GiB",
]


@pytest.mark.parametrize("name", SMALL_BOMBS)
def test_claims_are_not_believed(name, tmp_path):
  with pytest.raises(errors.UserError):
    bombs.BOMBS[name](tmp_path)()


def test_long_lines_are_bad_records(tmp_path, monkeypatch):
  monkeypatch.setattr(untrusted, "MAX_RECORD_BYTES", 200)
  path = tmp_path / "x.jsonl"
  long = b" " * (3 << 20) + b"{}\n"
  path.write_bytes(bombs.GOOD + long + bombs.GOOD)
  assert [len(line) for _, line in untrusted.lines(path)] == [88, 201, 88]
  path.write_bytes(bombs.GOOD + b"x" + long + bombs.GOOD)
  numbers, lines = zip(*sources.Source(str(path)).records(), strict=True)
  assert numbers == (1, 2, 3)
  assert [len(line) for line in lines] == [88, 201, 88]
  assert bombs.read_data(path)() == "ok, record over 0 MiB"


def test_text_does_not_shrink_without_end(tmp_path, monkeypatch):
  monkeypatch.setattr(untrusted, "_ALWAYS_ALLOWED_BYTES", 1 << 16)
  path = tmp_path / "x.jsonl.gz"
  for content in (b"\n", b"x"):
    path.write_bytes(fuzz.gzip.compress(content * (1 << 20)))
    with pytest.raises(errors.UserError, match="decompress to"):
      list(sources.Source(str(path)).records())

"""Specs, and files in every state in which a user may give them."""

import gzip
import json
import os

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from skipalign_jax.data import schemas, sources
from skipalign_jax.hf import hub
from skipalign_jax.runtime import errors, untrusted

RECORDS = [
  {"messages": [{"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": f"a{i}"}]}
  for i in range(5)
]  # fmt: skip
LINES = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)


def read(path):
  (source,) = sources.parse(str(path))
  return list(source.records())


def test_parse_forms():
  spec = "builtin:recall, builtin:recall:7*2,hub:some/name:train*0.5"
  assert sources.parse(spec) == [
    sources.Source("builtin:recall", 1.0),
    sources.Source("builtin:recall:7", 2.0),
    sources.Source("hub:some/name:train", 0.5),
  ]
  assert sources.parse(("builtin:recall", "builtin:recall:7*2")) == (
    sources.parse("builtin:recall,builtin:recall:7*2")
  )


@pytest.mark.parametrize(
  "spec",
  ["", "builtin:other", "builtin:recall:0", "builtin:recall:x", "builtin:recall*0",
   "builtin:text:0", "builtin:record",
   "builtin:recall*-1", "builtin:recall*nan", "builtin:recall*x", "data.txt",
   "missing.jsonl", "builtin:recall,missing.jsonl.gz", "hub:", "hub:./a", "hub:../a/b",
   "hub:/a/b", "hub:a/b/c", "hub:~/a", "hub:a\n/b", "org/name"],
)  # fmt: skip
def test_bad_specs(spec):
  with pytest.raises(errors.UserError):
    sources.parse(spec)


def test_directory_is_named_as_such(tmp_path):
  (tmp_path / "x.jsonl").mkdir()
  with pytest.raises(errors.UserError, match="is a directory"):
    sources.parse(str(tmp_path / "x.jsonl"))


@pytest.mark.parametrize("name", ["recall", "text"])
def test_builtin_counts(name):
  (source,) = sources.parse(f"builtin:{name}:3")
  records = list(source.records())
  assert [number for number, _ in records] == [1, 2, 3]
  assert len({str(record) for _, record in records}) == 3


def test_jsonl_plain_and_gzip(tmp_path):
  plain, zipped = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
  plain.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\n", 1))
  zipped.write_bytes(gzip.compress(LINES))
  numbers, lines = zip(*read(plain), strict=True)
  assert numbers == (1, 3, 4, 5, 6)  # line 2 is blank
  assert [schemas.parse_line(line) for line in lines] == RECORDS
  assert [schemas.parse_line(line) for _, line in read(zipped)] == RECORDS


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.NDJSON", "a.json.gz"])
@pytest.mark.parametrize("indent", [None, 1, "one per line"])
def test_an_array_is_its_items_whatever_the_name(tmp_path, name, indent, monkeypatch):
  monkeypatch.setattr(untrusted, "_BLOCK", 7)  # items are cut anywhere
  if indent == "one per line":
    text = "[" + ",\n".join(map(json.dumps, RECORDS)) + "]\n"
  else:
    text = json.dumps(RECORDS, indent=indent)
  data = b"\xef\xbb\xbf" + text.encode()
  (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
  assert read(tmp_path / name) == list(enumerate(RECORDS, 1))


def test_names_in_capitals_and_gzip_by_content(tmp_path):
  (tmp_path / "a.JSONL").write_bytes(gzip.compress(LINES))
  lines = [line for _, line in read(tmp_path / "a.JSONL")]
  assert [schemas.parse_line(line) for line in lines] == RECORDS


@pytest.mark.parametrize(
  "text",
  [
    '[{"a": 1}',
    '[{"a": 1}] {"b": 2}',
    '[{"a": 1} {"b": 2}]',
    '[{"a": 1},\n{"b": }]',
    "[" * 100_000,
  ],
)
def test_damaged_arrays(tmp_path, text):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(errors.UserError, match=r"a\.json cannot be read to its end"):
    read(tmp_path / "a.json")


def test_parquet(tmp_path):
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
  assert read(path) == list(enumerate(RECORDS, 1))


def test_a_text_file_is_one_document(tmp_path):
  plain, zipped = tmp_path / "a.txt", tmp_path / "a.txt.gz"
  plain.write_bytes("\ufeffOne.\r\n\r\né\n".encode())
  zipped.write_bytes(gzip.compress("One.\n\né\n".encode()))
  assert read(plain) == read(zipped) == [(1, {"text": "One.\n\né\n"})]
  plain.write_bytes(b" \n")
  assert read(plain) == []


def test_damaged_files(tmp_path):
  whole = gzip.compress(LINES * 50)
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 0xFF
  for name, content in (
    ("cut.jsonl.gz", whole[:-20]),
    ("flipped.jsonl.gz", bytes(flipped)),
    ("plain.jsonl.gz", LINES),
    ("bad.parquet", LINES),
    ("empty.parquet", b""),
    ("latin.txt", b"caf\xe9"),
    ("cut.txt.gz", whole[:-20]),
  ):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match=name):
      read(path)


def test_hub_failure_says_what_to_do(monkeypatch):
  def fail(name, split, revision):
    raise ConnectionError(f"no route to {name} {split}")

  monkeypatch.setattr(hub, "dataset_revision", lambda name: "abc")
  monkeypatch.setattr(datasets, "load_dataset", fail)
  with pytest.raises(errors.UserError, match=r"no route to .*a/b test.*local \.jsonl"):
    read("hub:a/b:test")


def test_hub_rows(monkeypatch):
  monkeypatch.setattr(
    datasets,
    "load_dataset",
    # "a/b" alone would be read from a local folder of this name.
    lambda name, split, revision: [{"text": revision}][: name == "hf://datasets/a/b"],
  )
  commits = iter(["first", "second"])
  monkeypatch.setattr(hub, "dataset_revision", lambda name: next(commits))
  (source,) = sources.parse("hub:a/b")
  assert list(source.records()) == [(1, {"text": "first"})]
  assert source.identity() == "hub:a/b second"  # another commit, another cache


class Hub:
  """A stand-in for the hub: `sha`, or no network."""

  def __init__(self, sha):
    self.sha = sha

  def dataset_info(self, name):
    if self.sha is None:
      raise ConnectionError("no network")
    return self


def test_the_commit_of_a_data_set(tmp_path, monkeypatch):
  """From the hub; without it from the cache that a download has left."""
  commit = hub.dataset_revision.__wrapped__
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub("abc"))
  assert commit("a/b") == "abc"
  monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(None))
  with pytest.raises(errors.UserError, match="a/b could not be downloaded"):
    commit("a/b")
  (tmp_path / "datasets--a--b/refs").mkdir(parents=True)
  (tmp_path / "datasets--a--b/refs/main").write_text("def")
  assert commit("a/b") == "def"


def test_identity_follows_the_file(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(LINES)
  (source,) = sources.parse(str(path))
  before = source.identity()
  assert source.identity() == before
  path.write_bytes(LINES + LINES)
  assert source.identity() != before


def test_identity_follows_content_of_the_same_size_and_time(tmp_path):
  path = tmp_path / "a.jsonl"
  data = bytearray(b"x" * (1 << 20))
  path.write_bytes(data)
  (source,) = sources.parse(str(path))
  seen = {source.identity()}
  stat = path.stat()
  for at in (0, 1 << 19, (1 << 20) - 1):
    changed = data[:]
    changed[at] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    seen.add(source.identity())
  assert len(seen) == 4

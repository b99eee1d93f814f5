"""Specs, and files in every state in which a user may give them."""

import csv
import gzip
import io
import json
import os
import shlex
import subprocess
import sys

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from skipalign_jax.data import json_files, schemas, sources
from skipalign_jax.hf import hub
from skipalign_jax.runtime import errors, terminal, untrusted

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


def named(records):
  """Bytes of a file whose replies have these names."""
  chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]
  lines = [{"messages": [chat[0], chat[1] | {"content": name}]} for name in records]
  return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def replies(source):
  """What `named` named, in the order in which a source has it."""
  records = map(parsed, source.records())
  return [record["messages"][1]["content"] for record in records]


def parsed(numbered):
  """The value of a record."""
  _, record = numbered
  return schemas.parse_line(record) if isinstance(record, bytes) else record


def folder(tmp_path):
  """Two chat files, one of them deeper; a file that is no data, and a hidden one."""
  made = tmp_path / "chats"
  (made / "a").mkdir(parents=True)
  (made / "b.jsonl").write_bytes(named("34"))
  (made / "a/z.NDJSON").write_bytes(gzip.compress(named("12")))
  (made / "README.md").write_text("about")
  (made / ".tmp.jsonl").write_bytes(b"{")
  return made


def test_a_folder_is_its_files_in_order(tmp_path):
  made = folder(tmp_path)
  (made / "a/loop").symlink_to(made)
  for spec in (str(made), f"{made}/", f"{made}*0.5"):
    (source,) = sources.parse(spec)
    assert replies(source) == list("1234")
    assert "(2 files; not read: README.md)" in source.describe()
  assert source.weight == 0.5
  names = [name for name, _ in source.parts()]
  assert names == [str(made / "a/z.NDJSON"), str(made / "b.jsonl")]


def test_a_pattern_is_the_files_that_it_matches(tmp_path):
  made = folder(tmp_path)
  for pattern, expected in (
    ("*.jsonl", "34"),
    ("**/*", "1234"),
    ("?/z.*", "12"),
    ("**/**/*", "1234"),  # each file once, though several ways lead to it
    ("[ab].jsonl*2", "34"),
  ):
    (source,) = sources.parse(f"{made}/{pattern}")
    assert replies(source) == list(expected)
  assert source.weight == 2 and source.describe() == f"{made}/[ab].jsonl"


def test_a_name_that_exists_is_taken_as_it_is(tmp_path):
  """Commas, weights and patterns are only read where no file has the whole name."""
  for name in ("a,b.jsonl", "x*2", "[1].jsonl", "c.jsonl", "x"):
    path = tmp_path / name
    path.mkdir() if "." not in name else path.write_bytes(named(name))
    if "." not in name:
      (path / "1.jsonl").write_bytes(named(name))
  for spec, expected in (
    ("a,b.jsonl", [("a,b.jsonl", 1)]),
    ("a,b.jsonl*3", [("a,b.jsonl", 3)]),
    ("c.jsonl,{}a,b.jsonl*3", [("c.jsonl", 1), ("a,b.jsonl", 3)]),
    ("c.jsonl, {}[1].jsonl", [("c.jsonl", 1), ("[1].jsonl", 1)]),
    ("x*2", [("x*2", 1)]),
    ("x*2*2", [("x*2", 2)]),
    ("x*3", [("x", 3)]),
  ):  # fmt: skip
    found = sources.parse(str(tmp_path / spec.replace("{}", f"{tmp_path}/")))
    assert [(one.name, one.weight) for one in found] == [
      (str(tmp_path / name), weight) for name, weight in expected
    ]
    for one, (name, _) in zip(found, expected, strict=True):
      assert replies(one) == list(name)


@pytest.mark.parametrize(
  "spec",
  ["empty", "empty/", "empty*2", "*.jsonl", "no.jsonl", "c.yaml", "*", "a*b.jsonl"],
)
def test_names_without_a_data_file(tmp_path, spec):
  (tmp_path / "empty").mkdir()
  (tmp_path / "c.yaml").write_text("a,b")
  with pytest.raises(errors.UserError, match=r"no data file|no such file|is unknown"):
    sources.parse(str(tmp_path / spec))


def test_identity_follows_every_file_of_a_folder(tmp_path):
  made = folder(tmp_path)
  seen = {sources.Source(str(made)).identity()}
  (made / "a/z.NDJSON").write_bytes(gzip.compress(named("13")))
  seen.add(sources.Source(str(made)).identity())
  (made / "c.jsonl").write_bytes(named("5"))
  seen.add(sources.Source(str(made)).identity())
  (made / "README.md").write_text("more")
  assert len(seen) == 3 and sources.Source(str(made)).identity() in seen


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_around_a_list_is_its_items(tmp_path, name, indent):
  for whole, expected in (
    ({"data": RECORDS}, RECORDS),
    ({"version": "1", "description": "chats", "rows": RECORDS}, RECORDS),
    (RECORDS[0], RECORDS[:1]),  # one record
    ({"data": RECORDS, "system": "Be kind"}, None),
    ({"train": RECORDS, "test": RECORDS}, None),
  ):
    data = json.dumps(whole, indent=indent).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert list(map(parsed, read(tmp_path / name))) == (expected or [whole])


def test_a_long_object_that_is_not_a_line_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(untrusted, "MAX_RECORD_BYTES", 99)
  monkeypatch.setattr(untrusted.read, "__defaults__", (99,))
  (tmp_path / "a.json").write_text(json.dumps({"data": RECORDS}, indent=1))
  with pytest.raises(errors.UserError, match=r"records one per line \(\.jsonl\)"):
    read(tmp_path / "a.json")


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_of_too_many_values_is_refused_and_an_array_is_not(
  tmp_path, monkeypatch, indent
):
  (tmp_path / "a.json").write_text(json.dumps({"data": RECORDS}, indent=indent))
  (tmp_path / "b.json").write_text(json.dumps(RECORDS, indent=indent))
  assert len(read(tmp_path / "a.json")) == 5
  monkeypatch.setattr(json_files, "_MAX_VALUES", 20)
  with pytest.raises(errors.UserError, match=r"20 values.*records one per line"):
    read(tmp_path / "a.json")
  assert len(read(tmp_path / "b.json")) == 5


@pytest.mark.parametrize("first", ['{"messages": [', '{"a": 1', "{"])
def test_a_damaged_first_line_is_one_bad_record(tmp_path, first):
  (tmp_path / "a.jsonl").write_bytes(first.encode() + b"\n" + LINES)
  lines = [line for _, line in read(tmp_path / "a.jsonl")]
  assert len(lines) == 1 + len(RECORDS)


def test_tables_have_no_null_keys(tmp_path):
  path = tmp_path / "a.parquet"
  turns = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b", "weight": 0},
  ]
  pyarrow.parquet.write_table(
    pyarrow.Table.from_pylist([{"messages": turns, "x": 1}, {"messages": turns}]), path
  )
  assert read(path) == [(1, {"messages": turns, "x": 1}), (2, {"messages": turns})]


@pytest.mark.parametrize("name", ["recall", "text", "pairs"])
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


def test_a_data_set_that_was_saved_to_disk(tmp_path):
  rows = datasets.Dataset.from_list([*RECORDS * 5, {"messages": None}])
  rows.save_to_disk(tmp_path / "one", num_shards=2)
  (source,) = sources.parse(str(tmp_path / "one"))
  assert [record for _, record in source.records()] == [*RECORDS * 5, {}]
  assert "2 files; not read: dataset_info.json, state.json" in source.describe()
  (file,) = sources.parse(str(tmp_path / "one" / "data-00000-of-00002.arrow"))
  assert next(file.records()) == (1, RECORDS[0])
  datasets.DatasetDict(test=rows, train=rows).save_to_disk(tmp_path / "both")
  with pytest.raises(errors.UserError, match=r"splits test, train; .*both/train"):
    sources.parse(str(tmp_path / "both"))
  datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "dict")
  assert len(list(sources.Source(str(tmp_path / "dict")).records())) == 26


@pytest.mark.parametrize(
  ("names", "one"),
  [
    (
      ("data/train_sft-00000-of-00001.jsonl", "data/test_sft-00000-of-00001.jsonl"),
      "data/*train*",
    ),
    (("default/train/0000.jsonl", "default/validation/0000.jsonl"), "default/train"),
    (("train.jsonl", "eval.jsonl"), "*train*"),
    (("my-train.jsonl", "my-val.jsonl", "more.jsonl"), "*train*"),
    (("x_train-00000-of-00002-ab.jsonl", "x_dev-00000-of-00001.jsonl"), "*train*"),
  ],
)
def test_a_folder_of_several_splits_is_refused(names, one, tmp_path):
  """Test data would be trained on."""
  for number, name in enumerate(names):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(named(str(number)))
  with pytest.raises(errors.UserError, match="splits train and") as caught:
    sources.parse(str(tmp_path))
  assert str(caught.value).endswith(f"such as {tmp_path}/{one}")
  (source,) = sources.parse(f"{tmp_path}/{one}")
  assert replies(source) == ["0"]
  (source,) = sources.parse(f"{tmp_path}/**/*.jsonl")  # named by the user
  assert sorted(replies(source)) == [str(i) for i in range(len(names))]


def test_files_whose_names_only_sound_like_splits_are_read(tmp_path):
  names = ("training.jsonl", "test.jsonl", "train_test.jsonl")
  more = ("train_to_pakistan.jsonl", "the_test_of_time.jsonl")
  for folder_, some in ((tmp_path / "a", names), (tmp_path / "b", more)):
    folder_.mkdir()
    for number, name in enumerate(some):
      (folder_ / name).write_bytes(named(str(number)))
    (source,) = sources.parse(str(folder_))
    assert sorted(replies(source)) == list("012"[: len(some)])


def test_arrow_files_that_nobody_saved_are_not_read(tmp_path):
  """A token cache has such files."""
  for name in ("cache.arrow", "state.json"):
    (tmp_path / name).write_bytes(LINES)
  (source,) = sources.parse(str(tmp_path))
  assert "1 files; not read: cache.arrow" in source.describe()
  with pytest.raises(errors.UserError, match=r"cache\.arrow cannot be read"):
    list(sources.Source(str(tmp_path / "cache.arrow")).records())


def test_a_text_file_is_one_document(tmp_path):
  plain, zipped = tmp_path / "a.txt", tmp_path / "a.txt.gz"
  plain.write_bytes("\ufeffOne.\r\n\r\né\n".encode())
  zipped.write_bytes(gzip.compress("One.\n\né\n".encode()))
  assert read(plain) == read(zipped) == [(1, {"text": "One.\n\né\n"})]
  plain.write_bytes(b" \n")
  assert read(plain) == []


@pytest.mark.parametrize("ending", ["csv", "TSV"])
def test_a_table_of_text_is_refused_with_a_command_that_works(ending, tmp_path):
  path = tmp_path / f"my chats é.{ending}"
  rows = [
    {"prompt": 'a, "b"\t\nc', "completion": "391"},
    {"prompt": "ü", "completion": ""},
  ]
  with path.open("w", encoding="utf-8-sig", newline="") as file:
    delimiter = "\t" if ending == "TSV" else ","
    writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
  with pytest.raises(errors.UserError) as caught:
    sources.parse(str(path))
  shown = io.StringIO()  # as on a terminal, where lines are wrapped
  console = terminal.Console(file=shown, width=80, force_terminal=True, no_color=True)
  console.print(str(caught.value))
  message, _, command = shown.getvalue().partition("as .jsonl:\n")
  assert "files are not read" in message and command
  command = command.replace("python", shlex.quote(sys.executable), 1)
  subprocess.run(command, shell=True, check=True)
  records = read(tmp_path / "my chats é.jsonl")
  assert [json.loads(line) for _, line in records] == rows


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
  def fail(name, config, split, revision):
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
    lambda name, config, split, revision: datasets.Dataset.from_list(
      [{"text": revision}][: name == "hf://datasets/a/b"]
    ),
  )
  commits = iter(["first", "second"])
  monkeypatch.setattr(hub, "dataset_revision", lambda name: next(commits))
  (source,) = sources.parse("hub:a/b")
  assert list(source.records()) == [(1, {"text": "first"})]
  assert source.identity() == "hub:a/b second"  # another commit, another cache


@pytest.mark.parametrize(
  ("name", "config", "split"),
  [
    ("hub:a/b", None, "train"),
    ("hub:a/b:test", None, "test"),
    ("hub:a/b:train[:10]", None, "train[:10]"),
    ("hub:a/b:all:test", "all", "test"),
    ("hub:a/b:all:train[5:10%]", "all", "train[5:10%]"),
  ],
)
def test_configurations_and_splits_of_the_hub(name, config, split, monkeypatch):
  asked = []

  def load(remote, *args, **options):
    asked.append((*args, options["split"]))
    raise ValueError("Config name is missing.\nPick one of: ['all']\nExample: …")

  monkeypatch.setattr(hub, "dataset_revision", lambda name: "abc")
  monkeypatch.setattr(datasets, "load_dataset", load)
  with pytest.raises(errors.UserError, match=r"missing\. Pick one of: \['all'\]\)"):
    read(name)
  assert asked == [(config, split)]


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

"""Parquet files: columns that matter, and values that are counted before they exist."""

import contextlib
import os
import signal
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from skipalign_jax.data import (
  dialogues,
  schemas,
  sources,
  table_child,
  table_rows,
  tables,
)
from skipalign_jax.runtime import errors, json_limits, untrusted

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def write(path, columns, **options):
  pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
  return path


def records(path):
  return list(sources.Source(str(path)).records())


def reason(record):
  with pytest.raises(dialogues.BadSample) as found:
    schemas.dialogue_of(record, 1000)
  return found.value.reason


def nulls(count, rows=1):
  """A column whose first row is a list of so many nulls."""
  offsets = pyarrow.array([0] + [count] * rows, pyarrow.int32())
  return pyarrow.ListArray.from_arrays(offsets, pyarrow.nulls(count, pyarrow.int32()))


def test_columns_that_change_nothing_are_not_read(tmp_path):
  path = write(
    tmp_path / "a.parquet",
    {"messages": [CHAT], "id": nulls(1_100_000), "lang": ["en"], "weight": [1]},
  )
  assert records(path) == [(1, {"messages": CHAT, "weight": 1})]
  path = write(
    tmp_path / "b.parquet",
    {"text": ["a", "b"], "meta": nulls(1_100_000, 2), "weight": [None, 0]},
  )
  assert records(path) == [(1, {"text": "a"}), (2, {"text": "b", "weight": 0})]


def test_columns_that_are_not_understood_are_read(tmp_path):
  path = write(
    tmp_path / "a.parquet",
    {"messages": [CHAT] * 3, "mood": [None, "", "bad"], "text": ["x"] * 3},
  )
  first, second, third = (record for _, record in records(path))
  schemas.dialogue_of(first, 1000)
  schemas.dialogue_of(second, 1000)
  assert reason(third) == "key mood is not understood"


def test_a_row_of_too_many_values_is_left_out_and_the_others_stay(tmp_path):
  path = write(
    tmp_path / "a.parquet",
    {"messages": [CHAT] * 40, "mood": nulls(json_limits.MAX_VALUES + 1, 40)},
  )
  found = dict(records(path))
  assert len(found) == 40 and reason(found[1]) == table_rows.TOO_MANY
  assert found[2] == {"messages": CHAT, "mood": []} and found[40] == found[2]


def test_values_are_counted_before_they_are_read(tmp_path):
  columns = {"messages": [CHAT], "mood": nulls(17_000_000)}
  path = write(tmp_path / "a.parquet", columns)
  with pytest.raises(
    errors.UserError,
    match=r"^data source \S* cannot be read: its .*claim 17,.* values.*jsonl",
  ):
    records(path)


def test_an_arrow_file_has_the_same_limits(tmp_path):
  path = tmp_path / "a.arrow"

  def stream(columns):
    table = pyarrow.table(columns)
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
      writer.write_table(table)

  mood = nulls(json_limits.MAX_VALUES + 1, 40)
  stream({"messages": [CHAT] * 40, "mood": mood, "id": nulls(9, 40)})
  found = dict(records(path))
  assert len(found) == 40 and reason(found[1]) == table_rows.TOO_MANY
  assert found[2] == {"messages": CHAT, "mood": []}
  mood = pyarrow.ListArray.from_arrays([0, 17_000_000], pyarrow.nulls(17_000_000))
  stream({"messages": [CHAT], "mood": mood})
  with pytest.raises(errors.UserError, match=r"claim 17,000,\d+ values"):
    records(path)
  data = bytearray(path.read_bytes())
  for at in range(300, len(data), len(data) // 6):
    path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    with contextlib.suppress(errors.UserError):
      records(path)


def test_the_same_text_in_many_rows(tmp_path, monkeypatch):
  """As a dictionary in the file, or one that is also a type of Arrow's."""
  monkeypatch.setattr(untrusted, "_ALWAYS_ALLOWED_BYTES", 1_000_000)
  text = pyarrow.array(["a" * 100_000])
  indices = pyarrow.array([0] * 1000, pyarrow.int32())
  column = pyarrow.DictionaryArray.from_arrays(indices, text)
  for name, one in (("typed", column), ("plain", column.dictionary_decode())):
    path = write(tmp_path / f"{name}.parquet", {"text": one}, write_statistics=False)
    with pytest.raises(errors.UserError, match=r"decompress to .* or more"):
      records(path)


def test_a_text_of_a_dictionary_is_as_long_as_it_is():
  size = 2 * untrusted.MAX_RECORD_BYTES + 1
  long = pyarrow.array(["a" * size, "b"])
  indices = pyarrow.array([0, 1, 0], pyarrow.int32())
  batch = pyarrow.record_batch(
    {"text": pyarrow.DictionaryArray.from_arrays(indices, long)}
  )
  found = list(table_rows.parts(batch))
  assert found[0] == found[2] == table_rows.TOO_LONG
  assert found[1].to_pylist() == [{"text": "b"}]


def test_dictionaries_anywhere_become_values():
  names = pyarrow.array(["user", "assistant"]).dictionary_encode()
  turns = pyarrow.StructArray.from_arrays([names, names], ["role", "content"])
  offsets = pyarrow.array([0, 1, 2], pyarrow.int32())
  batch = pyarrow.record_batch(
    {"messages": pyarrow.ListArray.from_arrays(offsets, turns)}
  )
  found = [part.to_pylist()[0] for part in table_rows.parts(batch)]
  assert found == batch.to_pylist()


@pytest.mark.parametrize(
  ("column", "count"),
  [
    ([1, 2], 2),
    ([[1, 2], None, [3]], 6),
    ([{"a": 1, "b": [1, 2]}], 5),
    ([[[]] * 5], 6),
    (["abc"], 1),
  ],
)
def test_values_are_counted_as_python_makes_them(column, count):
  assert table_rows.values(pyarrow.array(column)) == count


def test_a_column_that_is_there_twice_is_refused(tmp_path):
  table = pyarrow.table([[CHAT], [CHAT]], names=["messages", "messages"])
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
  with pytest.raises(errors.UserError, match=r"a\.parquet.*2 columns called messages"):
    records(tmp_path / "a.parquet")


def test_a_date_that_python_does_not_have(tmp_path):
  far = pyarrow.array([2**60], pyarrow.timestamp("ms"))
  path = write(tmp_path / "a.parquet", {"messages": [CHAT], "mood": far})
  with pytest.raises(errors.UserError, match=r"a\.parquet cannot be read: .*too large"):
    records(path)


def test_nested_lists_are_refused_or_read(tmp_path):
  for depth in (10, 60, 200):
    value = 1
    for _ in range(depth):
      value = [value]
    kind = pyarrow.int32()
    for _ in range(depth):
      kind = pyarrow.list_(kind)
    path = write(
      tmp_path / f"{depth}.parquet",
      {"messages": [CHAT], "mood": pyarrow.array([value], kind)},
    )
    if depth == 10:
      assert reason(records(path)[0][1]) == "key mood is not understood"
    elif depth == 200:
      with pytest.raises(errors.UserError, match=r"200\.parquet cannot be read"):
        records(path)


def test_files_that_are_read_at_the_same_time(tmp_path):
  paths = [
    write(tmp_path / f"{name}.parquet", {"text": [name + str(i) for i in range(40)]})
    for name in "ab"
  ]
  both = zip(*map(tables.records, paths), strict=True)
  for i, ((_, a), (_, b)) in enumerate(both):
    assert (a, b) == ({"text": f"a{i}"}, {"text": f"b{i}"})
  assert len(tables._idle) == 1
  first = tables._idle[0][1].pid
  assert len(records(paths[0])) == 40 and tables._idle[0][1].pid == first
  next(tables.records(paths[0]))  # the rest is never read
  assert len(records(paths[1])) == 40


def test_a_process_that_takes_too_long_is_ended(tmp_path, monkeypatch):
  path = write(tmp_path / "a.parquet", {"text": ["a"]})
  assert records(path)
  os.kill(tables._idle[0][1].pid, signal.SIGSTOP)
  monkeypatch.setattr(table_child, "MAX_SECONDS", 0.1)
  with pytest.raises(errors.UserError, match=r"a\.parquet.*more than 0\.1 s.*jsonl"):
    records(path)
  assert not tables._idle and records(path)


def test_the_process_has_one_thread(tmp_path, monkeypatch, capfd):
  """It may start no other one, unless it is root's, and prints nothing about it."""
  path = write(tmp_path / "a.parquet", {"text": ["a"]})
  monkeypatch.setattr(tables, "_idle", [])
  records(path)
  assert len(os.listdir(f"/proc/{tables._idle[0][1].pid}/task")) == 1
  assert capfd.readouterr() == ("", "")


def test_a_process_that_was_ended(tmp_path):
  path = write(tmp_path / "a.parquet", {"text": ["a"]})
  records(path)
  os.kill(tables._idle[0][1].pid, signal.SIGKILL)
  tables._idle[0][1].wait()
  assert records(path) == [(1, {"text": "a"})]


def test_without_an_interpreter(tmp_path, monkeypatch):
  path = write(tmp_path / "a.parquet", {"text": ["a"]})
  monkeypatch.setattr(tables, "_idle", [])
  monkeypatch.setattr(sys, "executable", "/bin/false")
  with pytest.raises(errors.UserError, match=r"reads Parquet files.*status 1.*jsonl"):
    records(path)


def test_a_data_set_of_the_hub_has_the_same_limits():
  features = datasets.Features(
    {
      "messages": datasets.List(
        {"role": datasets.Value("string"), "content": datasets.Value("string")}
      ),
      "id": datasets.Value("string"),
      "mood": datasets.List(datasets.Value("int8")),
    }
  )
  rows = datasets.Dataset(
    pyarrow.table(
      {"messages": [CHAT] * 2, "id": ["1", "2"], "mood": nulls(1_100_000, 2)}
    ).cast(features.arrow_schema)
  )
  (_, first), (_, second) = tables.of_dataset(rows, "hub:a/b")
  assert reason(first) == table_rows.TOO_MANY
  assert second == {"messages": CHAT, "mood": []}

"""Small files that claim, or unpack to, far more than a machine has.

python bombs.py prints a line of JSON per bomb: the outcome, the seconds, and the memory
that it added to the process. Each runs in a process of its own.
"""

import functools
import gzip
import json
import os
import pathlib
import resource
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable

import fuzz
import gguf
import pyarrow.parquet
import tiny_files as hf_tiny

from skipalign_jax.evals import haystack
from skipalign_jax.evals.longbench import data
from skipalign_jax.hf import reference
from skipalign_jax.runtime import errors

of = functools.partial
ADDRESS_SPACE = 4 << 30
GOOD = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'  # noqa: E501


def hole(path: pathlib.Path, size: int, first: bytes = b"", last: bytes = b""):
  """A file of zeros that takes no place on the disk, but for its two ends."""
  with path.open("wb") as file:
    file.write(first)
    file.truncate(size)
    file.seek(0, os.SEEK_END)
    file.write(last)
  return path


def read_data(path: pathlib.Path, **changes: int) -> Callable[[], str]:
  """Prepares a data file; the different statuses of what it becomes."""

  def run() -> str:
    with fuzz.prepared(path, **changes) as rows:
      return ", ".join(dict.fromkeys(rows.column("status")))

  return run


def long_line(folder):
  return read_data(hole(folder / "x.jsonl", 2 << 30, GOOD, b"\n" + GOOD))


def long_text(folder):
  return read_data(hole(folder / "x.txt", 2 << 30))


def long_haystack(folder):
  return of(haystack.read, str(hole(folder / "x.txt", 2 << 30)))


def gzip_bomb(folder, content=b"\0", name="x.jsonl.gz"):
  """64 GB in 64 MB."""
  member = gzip.compress(content * (64 << 20))
  with (folder / name).open("wb") as file:
    for _ in range(1000):
      file.write(member)
  return read_data(folder / name)


def gzip_bomb_of_lines(folder):
  """Blank lines: 64 MB in 64 kB."""
  (folder / "x.jsonl.gz").write_bytes(gzip.compress(b"\n" * (65 << 20)))
  return read_data(folder / "x.jsonl.gz")


def gzip_bomb_of_text(folder):
  return gzip_bomb(folder, b"a", "x.txt.gz")


def parquet_bomb_of_one_text(folder):
  """256 MiB in a page of some kB."""
  return parquet(folder, pyarrow.array(["a" * (1 << 28)]))


def parquet_bomb_of_rows(folder):
  """A million times the same 8 MB."""
  indices = pyarrow.array([0] * 1_000_000, pyarrow.int32())
  texts = pyarrow.array(["a" * (8 << 20)])
  return parquet(folder, pyarrow.DictionaryArray.from_arrays(indices, texts))


def parquet(folder, column):
  pyarrow.parquet.write_table(
    pyarrow.table({"text": column}),
    folder / "x.parquet",
    compression="zstd",
    write_statistics=False,  # which would contain the text itself
  )
  return read_data(folder / "x.parquet")


def parquet_bomb_of_nulls(folder, count, rows=1):
  """A chat next to a list of nulls, in each row."""
  chat = json.loads(GOOD)["messages"]
  offsets = pyarrow.array([0, count], pyarrow.int32())
  column = pyarrow.ListArray.from_arrays(offsets, pyarrow.nulls(count, pyarrow.int32()))
  table = pyarrow.table({"messages": [chat], "x": column})
  path = folder / "x.parquet"
  with pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd") as writer:
    for _ in range(rows):
      writer.write_table(table)
  return read_data(path)


def parquet_bomb_of_a_deep_type(folder):
  """Lists in lists, 5,000 deep."""
  column = pyarrow.array([None], pyarrow.int8())
  for _ in range(5000):
    column = pyarrow.ListArray.from_arrays(pyarrow.array([0, 1], "int32"), column)
  return parquet(folder, column)


def zipped_text(folder, size):
  """A text that is learned, and compresses to a thousandth."""
  text = b"It was the best of times, it was the worst of times. " * (size // 50)
  path = folder / "x.txt.gz"
  path.write_bytes(gzip.compress(text[:size]))
  return read_data(path)


def huge_turn(folder, size):
  """A chat whose reply has one word and many spaces."""
  reply = {"role": "assistant", "content": "b" + " " * size + "c"}
  chat = {"messages": [{"role": "user", "content": "a"}, reply]}
  path = folder / "x.jsonl"
  path.write_text(json.dumps(chat) + "\n")
  return read_data(path, max_message_bytes=64 << 20)


def zip_bomb(folder):
  """One line of 1 GiB in LongBench's archive."""
  path = folder / "data.zip"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    with archive.open("data/qasper.jsonl", "w") as member:
      for _ in range(16):
        member.write(b" " * (64 << 20))
  return of(data.records, str(path), "qasper", 0)


def gguf_claim(folder, tensors=0, entries=0, rest=b""):
  path = folder / "m.gguf"
  start = b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)
  path.write_bytes(start + rest + bytes(4096))
  return of(reference.open_model, str(path))


def gguf_entry(kind: int, value: bytes) -> bytes:
  return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + value


def gguf_long_token(folder):
  """SentencePiece tokens of 2 MB, whose every split would be tried."""
  path = folder / "m.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_tokenizer_model("llama")
  writer.add_token_list(["<unk>", *("a" * (2 << 20) + str(i) for i in range(8))])
  writer.add_token_scores([0.0] * 9)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return of(reference.load_tokenizer, str(path))


def safetensors_claim(folder, length=2**60, size=1 << 16):
  made = hf_tiny.hf_folder(folder / "m")
  hole(made / "model.safetensors", size, struct.pack("<Q", length))
  return of(reference.open_model, str(made))


def hf_file(folder, name, size=5 << 30):
  """A JSON file of 5 GB in a model folder."""
  made = hf_tiny.hf_folder(folder / "m")
  hole(made / name, size, b"{")
  opens = reference.load_tokenizer if "tok" in name else reference.open_model
  return of(opens, str(made))


def many_layers(folder, **changes):
  made = hf_tiny.hf_folder(folder / "m")
  path = made / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  return of(reference.open_model, str(made))


def template(folder, text):
  made = hf_tiny.hf_folder(folder / "m")
  (made / "chat_template.jinja").write_text(text)
  return of(reference.load_tokenizer, str(made))


ARRAY, U8, STRING = 9, 0, 8
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
BOMBS = {
  "a line of 2 GiB": long_line,
  "a text of 2 GiB": long_text,
  "a haystack of 2 GiB": long_haystack,
  "gzip, a line of 64 GB": gzip_bomb,
  "gzip, blank lines": gzip_bomb_of_lines,
  "gzip, a text of 64 GB": gzip_bomb_of_text,
  "parquet, a text of 256 MiB": parquet_bomb_of_one_text,
  "parquet, 8 TB of rows": parquet_bomb_of_rows,
  "parquet, a list of 10^7 nulls": of(parquet_bomb_of_nulls, count=10**7),
  "parquet, a list of 10^8 nulls": of(parquet_bomb_of_nulls, count=10**8),
  "parquet, 16 lists of 10^7": of(parquet_bomb_of_nulls, count=10**7, rows=16),
  "parquet, 5,000 lists in lists": parquet_bomb_of_a_deep_type,
  "a text of 8 MiB in 8 kB": of(zipped_text, size=(8 << 20) - 100),
  "a text of 64 MiB": of(zipped_text, size=(64 << 20) - 100),
  "a turn of 60 MiB": of(huge_turn, size=60 << 20),
  "zip, a line of 1 GiB": zip_bomb,
  "gguf, 2^60 tensors": of(gguf_claim, tensors=2**60),
  "gguf, 2^60 entries": of(gguf_claim, entries=2**60),
  "gguf, an array of 2^60": of(
    gguf_claim, entries=1, rest=gguf_entry(ARRAY, struct.pack("<IQ", U8, 2**60))
  ),
  "gguf, a string of 2^60": of(
    gguf_claim, entries=1, rest=gguf_entry(STRING, struct.pack("<Q", 2**60))
  ),
  "gguf, arrays of arrays": of(
    gguf_claim,
    entries=1,
    rest=gguf_entry(ARRAY, struct.pack("<IQ", ARRAY, 1) * 100_000),
  ),
  "gguf, tokens of 2 MB": gguf_long_token,
  "safetensors, a header of 2^60": safetensors_claim,
  "safetensors, a header of 5 GB": of(safetensors_claim, length=5 << 30, size=6 << 30),
  "a config.json of 5 GB": of(hf_file, name="config.json"),
  "a tokenizer.json of 5 GB": of(hf_file, name="tokenizer.json"),
  "2^60 layers": of(many_layers, num_hidden_layers=2**60),
  "2^60 layers without rope": of(
    many_layers, num_hidden_layers=2**60, model_type="smollm3"
  ),
  "a template that loops": of(template, text=LOOP),
  "a template of 10 GB": of(template, text="{{ 'a' * 10**10 }}"),
  "a template that doubles": of(
    template,
    text="{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
  ),
  "a template, one call into C": of(
    template, text="{{ ([[0]*999]*9999)|sum(start=[])|length }}"
  ),
  "a template of 2^40 lists": of(
    template,
    text="{% set n = namespace(x=[0]) %}{% for i in range(40) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
  ),
}


READ = {  # those that are read, and what becomes of their records
  "a line of 2 GiB": "ok, record over 64 MiB",
  "a text of 8 MiB in 8 kB": "ok",
  "a text of 64 MiB": "ok",
  "a turn of 60 MiB": "truncated",
}


def explode(name: str) -> tuple[str, float, int]:
  """What becomes of a bomb, in how many seconds, and the MiB that it took."""
  with tempfile.TemporaryDirectory() as folder:
    run = BOMBS[name](pathlib.Path(folder))
    before = peak_mib()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    start = time.perf_counter()
    try:
      outcome = f"read: {run()}"
    except errors.UserError as error:
      outcome = f"UserError: {error}"
    except BaseException as error:  # also a panic of a Rust library
      traceback.print_exc()
      outcome = f"CRASH: {error!r}"
    return outcome[:300], round(time.perf_counter() - start, 2), peak_mib() - before


def peak_mib() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main(names: list[str]) -> None:
  for name in names or BOMBS:
    reading, writing = os.pipe()
    if not (child := os.fork()):
      os.write(writing, json.dumps(explode(name)).encode())
      os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    reply = os.read(reading, 1 << 16)
    os.close(reading)
    print(
      json.dumps([name, *json.loads(reply or '["CRASH: killed", 0, 0]')]), flush=True
    )


if __name__ == "__main__":
  main(sys.argv[1:])

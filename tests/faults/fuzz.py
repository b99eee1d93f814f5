"""Feeds damaged files to one reader, in a process whose memory and time are bounded.

python fuzz.py READER COUNT SEED prints a line of JSON: how many files, how many damaged
records were in them, how many files were refused, the seconds of the slowest one, the
peak memory. Any exception but UserError, and anything that takes longer than LIMIT_S,
is a failure, printed with the seed of its file.
"""

import contextlib
import gzip
import json
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from unittest import mock

ADDRESS_SPACE = 4 << 30  # bytes; importing takes about one of them
LIMIT_S = 20.0
FOLDERS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(FOLDERS), str(FOLDERS.parent)]

import mutate  # noqa: E402
import pyarrow.parquet  # noqa: E402
import tiny_files as hf_tiny  # noqa: E402
from rich import console as rich_console  # noqa: E402

from skipalign_jax import config as config_lib  # noqa: E402
from skipalign_jax.data import prepare, recall, sources  # noqa: E402
from skipalign_jax.data import tokenizer as tokenizer_lib  # noqa: E402
from skipalign_jax.hf import gguf_header, reference  # noqa: E402
from skipalign_jax.model import rope  # noqa: E402
from skipalign_jax.runtime import errors  # noqa: E402

TOKENIZER = tokenizer_lib.byte_tokenizer()
SILENT = rich_console.Console(quiet=True)
RECORDS = 20  # of a data file; every second one is damaged


def good(i: int) -> dict:
  """A record of one of the known shapes."""
  chat = recall.record(0, i)
  messages = chat["messages"]
  match i % 4:
    case 0:
      return {"text": f"Text {i}. It says {messages[0]['content']}\n\nEnd."}
    case 1:
      turns = [{"from": m["role"], "value": m["content"]} for m in messages]
      return {"conversations": turns}
    case 2:
      return {
        "instruction": f"Say {i}", "input": "now", "output": str(i),
        "history": [["a", "b"]], "system": "s",
      }  # fmt: skip
  return {"messages": [{k: m[k] for k in ("role", "content")} for m in messages]}


GOOD = [json.dumps(good(i)).encode() for i in range(RECORDS)]


@contextlib.contextmanager
def prepared(path: pathlib.Path, **changes: int):
  """The rows that a data file becomes, whatever share of it is bad."""
  config = config_lib.default().data
  config.seq_len, config.max_bad_fraction = 4096, 1.0
  config.update(changes)
  with tempfile.TemporaryDirectory() as folder:
    config.cache_dir = folder
    found = prepare.prepare(sources.Source(str(path)), config, TOKENIZER, SILENT)
    yield found.rows


def expected() -> dict[bytes, list]:
  """What each good record becomes, each prepared alone."""
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "one.jsonl"
    for line in GOOD:
      path.write_bytes(line)
      with prepared(path) as rows:
        found[line] = rows.table["tokens"].to_pylist()
  return found


def jsonl(folder: pathlib.Path) -> Callable[[random.Random], int]:
  """Every second line damaged; the others must come out as if alone."""
  alone = expected()

  def run(rng: random.Random) -> int:
    lines = []
    for i in range(RECORDS):
      damaged = mutate.of_json if rng.random() < 0.7 else mutate.of_bytes
      bad = damaged(rng, rng.choice(GOOD)).replace(b"\n", b" ")
      lines += [bad if i % 2 else rng.choice(GOOD)]
    whole = b"\n".join(lines)
    zipped = rng.random() < 0.2
    path = folder / ("x.jsonl.gz" if zipped else "x.jsonl")
    path.write_bytes(gzip.compress(whole, 1) if zipped else whole)
    with prepared(path) as rows:
      numbers = rows.column("number")
      tokens = rows.table["tokens"].to_pylist()
    for number in range(1, RECORDS, 2):
      got = [t for n, t in zip(numbers, tokens, strict=True) if n == number]
      assert got == alone[lines[number - 1]], lines
    return RECORDS // 2

  return run


def data_file(folder: pathlib.Path, name: str, whole: bytes, count: int):
  """A whole data file damaged."""
  path = folder / name

  def run(rng: random.Random) -> int:
    path.write_bytes(mutate.of_bytes(rng, whole, 512))
    with prepared(path):
      return count

  return run


def zipped(folder: pathlib.Path):
  return data_file(folder, "x.jsonl.gz", gzip.compress(b"\n".join(GOOD)), RECORDS)


def parquet(folder: pathlib.Path):
  chats = [json.loads(line) for line in GOOD[3::4]]
  path = folder / "whole.parquet"
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), path)
  return data_file(folder, "x.parquet", path.read_bytes(), len(chats))


def txt(folder: pathlib.Path):
  text = "One. Two!\r\n\r\nThree? É 日本\n".encode() * 20
  plain = data_file(folder, "x.txt", text, 1)
  packed = data_file(folder, "x.txt.gz", gzip.compress(text), 1)
  return lambda rng: rng.choice((plain, packed))(rng)


def model_file(folder: pathlib.Path, name: str, damage, tokenizer: bool = False):
  """One file of a model folder damaged: the model, or its tokenizer, is opened."""
  path = folder / name
  whole = path.read_bytes()

  def run(rng: random.Random) -> int:
    path.write_bytes(damage(rng, whole))
    try:
      if tokenizer:
        loaded = reference.load_tokenizer(str(folder))
        loaded(hf_tiny.TEXT)
      else:
        opened = reference.open_model(str(folder))
        rope.inverse_frequencies(opened.config.rope, opened.config.head_dim)
        if rng.random() < 0.1:
          reference.load_params(opened)
    finally:
      path.write_bytes(whole)
    return 1

  return run


def model_config(folder: pathlib.Path):
  made = hf_tiny.hf_folder(folder / "m")
  return model_file(made, "config.json", mutate.of_json)


def tokenizer(folder: pathlib.Path):
  made = hf_tiny.hf_folder(folder / "m")
  of = model_file
  files = [
    of(made, name, mutate.of_json, True)
    for name in ("tokenizer.json", "tokenizer.json", "tokenizer_config.json")
  ]
  return lambda rng: rng.choice(files)(rng)


def index(folder: pathlib.Path):
  made = hf_tiny.hf_folder(folder / "m", shards=3)
  return model_file(made, "model.safetensors.index.json", mutate.of_json)


def safetensors(folder: pathlib.Path):
  made = hf_tiny.hf_folder(folder / "m")
  whole = (made / "model.safetensors").read_bytes()
  length = int.from_bytes(whole[:8], "little")

  def damage(rng: random.Random, _: bytes) -> bytes:
    if rng.random() < 0.4:
      return mutate.of_bytes(rng, whole, 8 + length)
    header = mutate.of_json(rng, whole[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + whole[8 + length :]

  return model_file(made, "model.safetensors", damage)


def gguf(folder: pathlib.Path):
  path = hf_tiny.gguf_file(folder / "m.gguf")
  whole = path.read_bytes()

  def run(rng: random.Random) -> int:
    path.write_bytes(mutate.of_bytes(rng, whole, rng.choice((64, 3000, 12_000))))
    if rng.random() < 0.5:
      reference.load_tokenizer(str(path))
    else:
      opened = reference.open_model(str(path))
      if rng.random() < 0.1:
        reference.load_params(opened)
    return 1

  return run


def gguf_metadata(folder: pathlib.Path):
  """Values of the metadata replaced, of both kinds of tokenizer."""
  path = hf_tiny.gguf_file(folder / "m.gguf")
  header = gguf_header.read(path)
  plain = header.metadata
  tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"]
  sentencepiece = plain | {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.scores": [float(-i) for i in range(len(tokens))],
    "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (len(tokens) - 3),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
  }
  wholes = [json.dumps(one).encode() for one in (plain, sentencepiece)]

  def run(rng: random.Random) -> int:
    try:
      metadata = json.loads(mutate.of_json(rng, rng.choice(wholes)))
    except (ValueError, RecursionError):  # bytes were damaged, not values
      return 0
    if not isinstance(metadata, dict):
      return 0
    found = gguf_header.Header(metadata, header.tensors)
    with mock.patch.object(gguf_header, "read", lambda _: found):
      if rng.random() < 0.7:
        reference.load_tokenizer(str(path))
      else:
        reference.open_model(str(path))
    return 1

  return run


READERS = {
  reader.__name__: reader
  for reader in (
    jsonl,
    zipped,
    parquet,
    txt,
    model_config,
    tokenizer,
    index,
    safetensors,
    gguf,
    gguf_metadata,
  )
}


def main(reader: str, count: int, seed: int) -> None:
  resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))

  def too_long(*_):
    raise TimeoutError(f"longer than {LIMIT_S} s")

  signal.signal(signal.SIGALRM, too_long)
  records = refused = 0
  slowest = 0.0
  failed = {}
  with tempfile.TemporaryDirectory() as folder:
    run = READERS[reader](pathlib.Path(folder))
    for i in range(seed, seed + count):
      signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
      start = time.perf_counter()
      try:
        records += run(random.Random(i))
      except errors.UserError:
        refused += 1
        records += 1
      except BaseException as error:  # a panic of a Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
          raise
        failed.setdefault(f"{type(error).__name__}: {error}"[:300], i)
      slowest = max(slowest, time.perf_counter() - start)
    signal.setitimer(signal.ITIMER_REAL, 0)
  summary = {
    "files": count,
    "records": records,
    "refused": refused,
    "slowest_s": round(slowest, 2),
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    "failed": failed,
  }
  print(json.dumps(summary))


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""The input pipeline against datasets.map and TRL's SFTTrainer, in tokens/s.

python benchmarks/input_pipeline.py [--data=chats.jsonl.gz] [--chats=2000]
  [--seq_len=1024] [--batch=8] [--packing=1] [--rounds=3]
  [--needed=TOKENS_PER_SECOND] [--out=FILE]

Raw chats (a file, or the built-in recall dialogues) become batches with a loss on
replies only, under the same template (ChatML) and tokenizer on both sides.

prepare   raw file → tokenized and planned rows: `pipeline.build` with an empty
          cache; TRL: load_dataset("json") and what SFTTrainer does to it with
          assistant_only_loss (map: tokenize with masks, map: labels, truncation or
          packing), in --num_proc processes
batches   one pass over the prepared rows: `train_iterator`; TRL:
          `get_train_dataloader`, i.e. its collator in a DataLoader
tokens    of samples, padding not counted

Before timing, both must produce the same tokens and targets for the same chats.
--needed is the rate of training (from the plan of a run, or tokens/s of
train_step.py): the table shows the rate of each side as a multiple of it.
"""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
import time

import harness
import numpy as np
from rich import console as rich_console

from skipalign_jax import config
from skipalign_jax.data import chat, dialogues, pipeline, schemas, sources
from skipalign_jax.data import tokenizer as tokenizer_lib

# tokenizer_lib.CHATML with TRL's markers around the targets.
MARKED_CHATML = (
  "{% for message in messages %}"
  "{% if message['role'] == 'assistant' %}"
  "{{ '<|im_start|>assistant\n' }}"
  "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
  "{{ '\n' }}"
  "{% else %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
  "{{ '<|im_end|>\n' }}"
  "{% endif %}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Ours:
  def __init__(self, model: str, data: str, seq_len: int, batch: int, packing: bool):
    self._tokenizer = harness.open_tokenizer(model)
    self._tokenizer.chat_template = tokenizer_lib.CHATML
    c = config.default()
    c.data.train, c.data.eval = data, ""
    c.data.seq_len, c.data.packing = seq_len, packing
    c.batch_size, c.epochs = batch, 1
    self._config = c
    self._folder = tempfile.mkdtemp(prefix="input_pipeline_")

  def prepare(self) -> float:
    """Seconds from the raw file to planned rows, nothing cached."""
    shutil.rmtree(self._folder)
    self._config.data.cache_dir = self._folder
    begin = time.perf_counter()
    self._build()
    return time.perf_counter() - begin

  def batches(self) -> tuple[float, int, int]:
    """(seconds, tokens, targets) of one pass."""
    data = self._build()
    begin = time.perf_counter()
    tokens = targets = 0
    for batch in data.train_iterator():
      tokens += int(np.count_nonzero(batch["segment_ids"]))
      targets += int(np.count_nonzero(batch["loss_weight"]))
    return time.perf_counter() - begin, tokens, targets

  def samples(self) -> list[list[int]]:
    """Per sample: tokens, targets, and checksums of both; sorted."""
    (prepared,) = self._build().train_rows._prepared
    return sorted(
      checksum(row["tokens"], spans_to_mask(row["target_spans"], len(row["tokens"])))
      for row in map(prepared.rows.lists, range(len(prepared.rows)))
      if len(row["tokens"])
    )

  def close(self) -> None:
    shutil.rmtree(self._folder, ignore_errors=True)

  def _build(self) -> pipeline.Data:
    quiet = rich_console.Console(quiet=True)
    return pipeline.build(self._config, self._tokenizer, 0, 1, quiet)


class Trl:
  def __init__(
    self,
    model: str,
    data: str,
    seq_len: int,
    batch: int,
    packing: bool,
    num_proc: int,
  ):
    self._folder = tempfile.mkdtemp(prefix="input_pipeline_trl_")
    os.environ["HF_DATASETS_CACHE"] = self._folder  # read when datasets is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import transformers
    import trl

    datasets.disable_progress_bars()
    self._tokenizer = harness.open_tokenizer(model)
    self._tokenizer.chat_template = MARKED_CHATML
    self._model = transformers.LlamaForCausalLM(  # never run
      transformers.LlamaConfig(
        vocab_size=len(self._tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
      )
    )
    self._data, self._packing = data, packing
    self._settings = dict(
      output_dir=self._folder,
      max_length=seq_len,
      packing=packing,
      assistant_only_loss=True,
      per_device_train_batch_size=batch,
      dataset_num_proc=num_proc if num_proc > 1 else None,
      dataloader_drop_last=True,
      report_to=[],
      use_cpu=True,
      bf16=False,
      fp16=False,
      gradient_checkpointing=False,
      disable_tqdm=True,
    )

    class Trainer(trl.SFTTrainer):
      """Takes the time of TRL's preparation alone, not of the constructor."""

      def _prepare_dataset(self, *args, **kwargs):
        begin = time.perf_counter()
        prepared = super()._prepare_dataset(*args, **kwargs)
        self.prepare_seconds = time.perf_counter() - begin
        return prepared

    self._trainer_class, self._trl, self._datasets = Trainer, trl, datasets

  def prepare(self) -> float:
    """Seconds from the raw file to prepared rows, nothing cached."""
    self._trainer = self._make(self._packing)
    return self._load_seconds + self._trainer.prepare_seconds

  def batches(self) -> tuple[float, int, int]:
    """(seconds, tokens, targets) of one pass."""
    loader = self._trainer.get_train_dataloader()
    begin = time.perf_counter()
    tokens = targets = 0
    for batch in loader:
      mask = batch.get("attention_mask")
      tokens += int(batch["input_ids"].numel() if mask is None else mask.sum())
      targets += int((batch["labels"] != -100).sum())
    return time.perf_counter() - begin, tokens, targets

  def samples(self) -> list[list[int]]:
    """Like Ours.samples, before packing."""
    rows = self._make(packing=False).train_dataset
    return sorted(
      checksum(np.array(row["input_ids"]), np.array(row["labels"]) != -100)
      for row in rows
    )

  def close(self) -> None:
    shutil.rmtree(self._folder, ignore_errors=True)

  def _make(self, packing: bool):
    # A new cache folder each time, or datasets would reuse its earlier work.
    cache = tempfile.mkdtemp(dir=self._folder)
    begin = time.perf_counter()
    rows = self._datasets.load_dataset(
      "json", data_files=self._data, split="train", cache_dir=cache
    )
    self._load_seconds = time.perf_counter() - begin
    return self._trainer_class(
      model=self._model,
      args=self._trl.SFTConfig(**self._settings | {"packing": packing}),
      train_dataset=rows,
      processing_class=self._tokenizer,
    )


def spans_to_mask(spans: np.ndarray, length: int) -> np.ndarray:
  """Begin, end, begin, end … as a bool array."""
  mask = np.zeros(length, bool)
  for begin, end in spans.reshape(-1, 2):
    mask[begin:end] = True
  return mask


def checksum(tokens: np.ndarray, learned: np.ndarray) -> list[int]:
  """Counts and order-dependent sums of a sample's tokens and targets."""
  at = np.arange(1, len(tokens) + 1, dtype=np.int64)
  return [
    len(tokens),
    int(learned.sum()),
    int((at * tokens).sum()),
    int((at * learned).sum()),
  ]


def write_chats(args, folder: str) -> tuple[str, int]:
  """A .jsonl of --chats usable dialogues, role and content only; its tokens."""
  source = sources.parse(args.data or f"builtin:recall:{args.chats}")[0]
  tokenizer = harness.open_tokenizer(args.model)
  tokenizer.chat_template = tokenizer_lib.CHATML
  encode = chat.Encoder(tokenizer, args.seq_len)
  path = pathlib.Path(folder) / "chats.jsonl"
  count = tokens = 0
  seen: set[int] = set()
  with path.open("w") as file:
    for _, record in source.records():
      with contextlib.suppress(dialogues.BadSample):
        if isinstance(record, bytes):
          record = schemas.parse_line(record)
        dialogue = schemas.dialogue_of(record, max_message_bytes=1_000_000)
        (sample,) = encode([dialogue])
        if isinstance(sample, dialogues.BadSample) or sample.sample_id in seen:
          continue
        seen.add(sample.sample_id)
        turns = [
          {"role": one.role, "content": one.content} for one in dialogue.messages
        ]
        file.write(json.dumps({"messages": turns}) + "\n")
        count, tokens = count + 1, tokens + len(sample.tokens)
      if count == args.chats:
        break
  print(f"{count:,} chats, {tokens:,} tokens", flush=True)
  return str(path), tokens


def measure(args, data: str) -> tuple[dict, dict, dict]:
  """Times both sides on the chats in `data`.

  Returns:
    name → seconds of each preparation; name → (seconds, tokens, targets) of each pass;
    name → error of those that failed.
  """
  common = dict(
    model=args.model,
    data=data,
    seq_len=args.seq_len,
    batch=args.batch,
    packing=bool(args.packing),
  )
  workers = harness.start(
    {
      "ours": lambda: harness.Worker(Ours, **common),
      "trl": lambda: harness.Worker(Trl, **common, num_proc=args.num_proc),
    }
  )
  running = {n: w for n, w in workers.items() if isinstance(w, harness.Worker)}
  errors = {n: w for n, w in workers.items() if isinstance(w, str)}
  call = lambda method: {
    name: lambda worker=worker: worker(method) for name, worker in running.items()
  }
  try:
    check_samples({name: worker("samples") for name, worker in running.items()})
    prepared, failed = harness.rounds(call("prepare"), args.rounds)
    passes, failed_later = harness.rounds(call("batches"), args.rounds)
  finally:
    for worker in running.values():
      with contextlib.suppress(harness.Failed):
        worker("close")
      worker.close()
  return prepared, passes, errors | failed | failed_later


def check_samples(samples: dict[str, list[list[int]]]) -> None:
  """Stops if the two sides made different samples of the same chats."""
  if len(samples) == 2 and samples["ours"] != samples["trl"]:
    pairs = itertools.zip_longest(samples["ours"], samples["trl"])
    ours, theirs = next((a, b) for a, b in pairs if a != b)
    raise SystemExit(f"the two sides differ: {ours} and {theirs}; no comparison")


def compare(prepared: dict, passes: dict) -> dict:
  """Ratios of the two sides' times; {} if one of them failed."""
  if not len(prepared) == len(passes) == 2:
    return {}
  each = {name: [s / n for s, n, _ in runs] for name, runs in passes.items()}
  return {
    "prepare": harness.compare("ours", prepared["ours"], "trl", prepared["trl"]),
    "batches": harness.compare("ours", each["ours"], "trl", each["trl"]),
  }


def show(args, rates: dict, ratios: dict, left_out: dict) -> None:
  """Prints the table and the ratios."""
  rows = []
  for name, values in rates.items():
    numbers = harness.spread(values)
    fed = f"{numbers['median'] / args.needed:.1f}x" if args.needed else ""
    rows.append([name, harness.show(numbers, ",.0f"), fed])
  packed = "packed" if args.packing else "one sample per row"
  print(f"\nbatches of {args.batch} x {args.seq_len}, {packed}")
  print(harness.table(["what", "tokens/s", f"of {args.needed:,.0f} needed"], rows))
  if ratios:
    print("\n".join(f"  {name}: {ratio['text']}" for name, ratio in ratios.items()))
    print("  tokens and targets of all chats are equal on both sides")
  for name, error in left_out.items():
    print(f"  {name} left out: {error}")


def main() -> None:
  parser = harness.arguments(__doc__)
  parser.add_argument("--data", default="", help="chats; without, built-in recall")
  parser.add_argument("--chats", type=int, default=2000)
  parser.add_argument("--seq_len", type=int, default=1024)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--packing", type=int, default=1, choices=(0, 1))
  parser.add_argument("--num_proc", type=int, default=1, help="of TRL's map")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--needed", type=float, default=0, help="tokens/s")
  args = parser.parse_args()
  before = harness.environment()
  with tempfile.TemporaryDirectory() as folder:
    data, tokens = write_chats(args, folder)
    prepared, passes, left_out = measure(args, data)
  rates = {}
  for name in prepared:
    rates[f"prepare, {name}"] = [tokens / seconds for seconds in prepared[name]]
  for name in passes:
    rates[f"batches, {name}"] = [count / seconds for seconds, count, _ in passes[name]]
  ratios = compare(prepared, passes)
  show(args, rates, ratios, left_out)
  harness.report(
    args,
    before,
    {
      "tokens": tokens,
      "tokens_per_second": {name: harness.spread(x) for name, x in rates.items()},
      "passes": passes,
      "ratios": ratios,
      "left_out": left_out,
    },
  )


if __name__ == "__main__":
  main()

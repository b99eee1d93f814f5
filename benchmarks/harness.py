"""What the benchmarks share: workers, rounds, medians, tables, JSON, one recipe.

Contenders that are compared alternate. Each has its own process (a `Worker`), which is
idle until it is called and then runs alone: thread pools of XLA and PyTorch do not
disturb each other, and slow drift of the machine (up to a quarter between runs) affects
all contenders equally. Every ratio is a median of ratios within a round.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import chat, dialogues, recall, schemas, tokenizer
from skipalign_jax.hf import reference, weights
from skipalign_jax.method import positions
from skipalign_jax.model import decoder, model_config, sharding
from skipalign_jax.planning import executed_flops
from skipalign_jax.training import optimizer, resolve
from skipalign_jax.training import recipe as recipe_lib
from skipalign_jax.training import state as state_lib
from skipalign_jax.training import step as step_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMOLLM2 = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# Processor features that decide the speed of products.
FLAGS = (
  "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile",
  "amx_bf16", "amx_int8", "asimd", "bf16", "sve",
)  # fmt: skip
PACKAGES = (
  "jax", "jaxlib", "flax", "optax", "grain", "numpy", "datasets", "tokenizers",
  "transformers", "torch", "accelerate", "trl", "google-tunix",
)  # fmt: skip


# Workers.


class Failed(Exception):  # noqa: N818 (a result of a contender, not an error)
  """A contender raised or died; the text has the reason."""


class Worker:
  """A contender in its own process.

  `Worker(Ours, length=1024)` builds `Ours(length=1024)` there, and
  `worker("step", x=1)` returns what its `step(x=1)` returns. Arguments and
  results travel as JSON, so contenders make their own arrays. `variables` are those
  of its environment that differ from ours.

  Raises (here and in calls):
    Failed: the contender raised, or its process died (of memory, say).
  """

  def __init__(
    self, contender: type, variables: Mapping[str, str] | None = None, **settings: Any
  ):
    script = inspect.getfile(contender)
    search = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    self._process = subprocess.Popen(
      [sys.executable, __file__, script, contender.__name__],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ
      | {
        "PYTHONPATH": os.pathsep.join(filter(None, search)),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several may share a GPU
      }
      | (variables or {}),
    )
    self._name = contender.__name__
    try:
      self("__init__", **settings)
    except Failed:
      self.close()
      raise

  def __call__(self, method: str, **arguments: Any) -> Any:
    try:
      self._process.stdin.write(json.dumps([method, arguments]) + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      status = self._process.wait()
      raise Failed(f"{self._name} died with status {status} (-9: out of memory?)")
    reply = json.loads(line)
    if "error" in reply:
      raise Failed(reply["error"])
    return reply["result"]

  def close(self) -> None:
    """Ends the process, which frees all its memory."""
    self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()


def serve(script: str, name: str) -> None:
  """In the worker's process: creates the contender, then answers calls until EOF."""
  # If memory runs out, the system should kill a contender and no other process.
  if os.access("/proc/self/oom_score_adj", os.W_OK):
    pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
  replies = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # output of libraries must not get into the replies
  spec = importlib.util.spec_from_file_location(pathlib.Path(script).stem, script)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  contender = None
  for line in sys.stdin:
    method, arguments = json.loads(line)
    try:
      if method == "__init__":
        contender, result = getattr(module, name)(**arguments), None
      else:
        result = getattr(contender, method)(**arguments)
      reply = {"result": result}
    except Exception as error:
      traceback.print_exc()
      reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def start(contenders: Mapping[str, Callable[[], Worker]]) -> dict[str, Worker | str]:
  """Starts each contender; instead of one that fails, its error text is returned."""
  started: dict[str, Worker | str] = {}
  for name, make in contenders.items():
    try:
      started[name] = make()
    except Failed as error:
      print(f"{name}: {error}", flush=True)
      started[name] = str(error)
  return started


def rounds(
  turns: Mapping[str, Callable[[], Any]], count: int
) -> tuple[dict[str, list[Any]], dict[str, str]]:
  """Calls every turn once per round, `count` rounds.

  The order rotates from round to round, so no turn always follows the same other one.

  Returns:
    Name → results in order; and name → error of those that failed, which
    have no results.
  """
  results: dict[str, list[Any]] = {name: [] for name in turns}
  failed: dict[str, str] = {}
  names = list(turns)
  for i in range(count):
    at = i % len(names)
    for name in names[at:] + names[:at]:
      if name in failed:
        continue
      try:
        results[name].append(turns[name]())
      except Failed as error:
        print(f"{name}: {error}", flush=True)
        failed[name] = str(error)
        del results[name]
  return results, failed


# Numbers.


def spread(samples: Sequence[float]) -> dict[str, Any]:
  """Median, extremes and the samples themselves."""
  return {
    "median": statistics.median(samples),
    "min": min(samples),
    "max": max(samples),
    "samples": list(samples),
  }


def compare(
  name: str, seconds: Sequence[float], other: str, other_seconds: Sequence[float]
) -> dict[str, Any]:
  """Which of two is faster, by times of the same rounds."""
  ratios = [b / a for a, b in zip(seconds, other_seconds, strict=True)]
  median = statistics.median(ratios)
  if median >= 1:
    text = f"{name} is {median:.2f}x as fast as {other}"
    low, high = min(ratios), max(ratios)
  else:
    text = f"{other} is {1 / median:.2f}x as fast as {name}"
    low, high = 1 / max(ratios), 1 / min(ratios)
  text += f" ({low:.2f}-{high:.2f} over {len(ratios)} rounds)"
  return {"text": text, "ratio": spread(ratios)}


def share(part: Sequence[float], whole: Sequence[float]) -> dict[str, Any]:
  """Each `part` as percent of `whole` in the same round."""
  return spread([100 * a / b for a, b in zip(part, whole, strict=True)])


def show(numbers: Mapping[str, Any], form: str = ".3f") -> str:
  """A spread as "median (min-max)"."""
  low, high = numbers["min"], numbers["max"]
  return f"{numbers['median']:{form}} ({low:{form}} to {high:{form}})"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A Markdown table, padded so that it is also readable as text."""
  cells = [list(map(str, row)) for row in (head, *rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
    for row in cells
  ]
  lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
  return "\n".join(lines)


# The machine and the versions of a measurement.


def environment() -> dict[str, Any]:
  """Hardware, versions, commit and present load."""
  cpu = _proc("/proc/cpuinfo")
  features = set((cpu.get("flags") or cpu.get("Features") or "").split())
  memory_kb = int(_proc("/proc/meminfo").get("MemTotal", "0 kB").split()[0])
  versions = {"python": platform.python_version()}
  for package in PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = None
  git = lambda *args: subprocess.run(
    ["git", "-C", str(ROOT), *args], capture_output=True, text=True
  ).stdout.strip()
  return {
    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
    "commit": git("rev-parse", "--short", "HEAD"),
    "uncommitted_changes": bool(git("status", "--porcelain", "--", "skipalign_jax")),
    "cpu": cpu.get("model name", platform.processor() or platform.machine()),
    "cpu_model": f"family {cpu.get('cpu family')} model {cpu.get('model')}",
    "cpu_flags": [flag for flag in FLAGS if flag in features],
    "cores": len(os.sched_getaffinity(0)),
    "memory_gib": round(memory_kb / 2**20, 1),
    "load_average": os.getloadavg()[0],
    "nice": os.nice(0),
    "jax_platforms": os.environ.get("JAX_PLATFORMS", ""),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "versions": versions,
  }


def _proc(path: str) -> dict[str, str]:
  """`name: value` lines of a /proc file; of several processors, the first."""
  fields: dict[str, str] = {}
  if pathlib.Path(path).exists():
    for line in pathlib.Path(path).read_text().splitlines():
      name, _, value = line.partition(":")
      fields.setdefault(name.strip(), value.strip())
  return fields


def resident_bytes(field: str) -> int:
  """Resident bytes of this process: VmRSS now, VmHWM the maximum so far."""
  return 1024 * int(_proc("/proc/self/status")[field].split()[0])


def arguments(docstring: str) -> argparse.ArgumentParser:
  """A parser with the flags that all benchmarks have."""
  parser = argparse.ArgumentParser(
    description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", default="", help="JSON file to write")
  parser.add_argument(
    "--model", default=SMOLLM2, help="model reference, or tiny: random and small"
  )
  return parser


def numbers(text: str) -> list[int]:
  """The numbers in a flag such as 1024,2048."""
  return [int(part) for part in text.split(",") if part]


def report(args: argparse.Namespace, before: dict[str, Any], results: Any) -> None:
  """Prints the environment, and writes everything to `--out`.

  Args:
    args: the script's flags.
    before: `environment()` from before the measurements.
    results: for the JSON file.
  """
  print(
    f"\n{before['cpu']} ({before['cpu_model']}; {' '.join(before['cpu_flags'])}), "
    f"{before['cores']} cores, {before['memory_gib']} GiB; commit {before['commit']}"
    f"{' with changes' if before['uncommitted_changes'] else ''}; load before: "
    f"{before['load_average']:.2f}\n"
    + ", ".join(f"{k} {v}" for k, v in before["versions"].items() if v)
  )
  if before["load_average"] > 0.5 or before["nice"]:
    print("NOTE: the machine was not idle, or this ran niced; do not quote timings.")
  if args.out:
    path = pathlib.Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"environment": before, "settings": vars(args), "results": results}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"written: {path}")


# The model, the batch and the step under test.


def open_model(name: str) -> reference.Model:
  """A model by reference; "tiny" is the random byte-level one of the configs."""
  if name != "tiny":
    return reference.open_model(name)
  settings = config_lib.tiny(config_lib.default())
  vocabulary = len(tokenizer.byte_tokenizer())
  config = resolve.model_from(settings, None, vocabulary)
  arrays = jax.tree_util.tree_leaves_with_path(decoder.init(config, seed=0))
  parameters = {}
  for path, array in arrays:
    name, values = sharding.path_of(path), np.asarray(array)
    read = lambda index, dtype, values=values: values[index].astype(dtype)
    parameters[name] = weights.Parameter(name, values.shape, values.dtype, read)
  return reference.Model("tiny", None, config, {}, None, parameters)


def open_tokenizer(name: str):
  """The tokenizer of the same model."""
  if name == "tiny":
    return tokenizer.byte_tokenizer()
  return reference.load_tokenizer(name)


def dialogue(name: str, length: int, seed: int = 0) -> dict[str, np.ndarray]:
  """A batch of one row that one long dialogue fills: no padding, one segment.

  Built-in recall dialogues one after the other, in the model's own chat template and
  tokenizer, cut at `length` tokens.
  """
  encode = chat.Encoder(open_tokenizer(name), seq_len=length)
  messages: list[dialogues.Message] = []
  while True:
    for _ in range(1 + length // 256):
      record = recall.record(seed, len(messages))
      one = schemas.dialogue_of(record, max_message_bytes=1_000_000)
      messages += one.messages
    (sample,) = encode([dialogues.Dialogue(tuple(messages))])
    assert isinstance(sample, chat.Sample), sample
    if sample.truncated:
      break
  row = {
    "tokens": sample.tokens,
    "segment_ids": np.ones(length, np.int32),
    "block_ids": sample.block_ids,
    "is_response": sample.is_response,
    "loss_weight": sample.targets.astype(np.float32),
    "sample_ids": np.full(length, sample.sample_id, np.uint32),
    "epochs": np.zeros(length, np.int32),
  }
  return {name: values[None] for name, values in row.items()}


def dialogue_rows(name: str, length: int, rows: int) -> dict[str, np.ndarray]:
  """A batch of different rows of `dialogue`."""
  each = [dialogue(name, length, seed) for seed in range(rows)]
  return {key: np.concatenate([row[key] for row in each]) for key in each[0]}


def cut_into_samples(batch: dict[str, np.ndarray], turns: int) -> dict[str, np.ndarray]:
  """The same row as packed samples of `turns` exchanges each."""
  sample_BL = batch["block_ids"] // (2 * turns)
  return batch | {
    "segment_ids": sample_BL.astype(np.int32) + 1,
    "block_ids": batch["block_ids"] % (2 * turns),
    "sample_ids": (batch["sample_ids"] + sample_BL).astype(np.uint32),
  }


def make_recipe(
  config: model_config.ModelConfig, changes: Mapping[str, Any], dtype: str, remat: str
) -> recipe_lib.Recipe:
  """The step's recipe: the defaults of config.py with these changes."""
  c = config_lib.default()
  c.update_from_flattened_dict(changes)
  c.model.compute_dtype, c.model.remat = dtype, remat
  position_recipe = positions.PositionConfig(**c.positions)
  return recipe_lib.from_config(c, config, position_recipe, "cpu")


class Steps:
  """Our training step, compiled per variant, with one state for all variants.

  A variant is a strategy, or a name with changes to the default config.
  """

  def __init__(
    self,
    name: str,
    dtype: str,
    remat: str,
    strategies: Sequence[str] = (),
    **variants: Mapping[str, Any],
  ):
    c = config_lib.default()
    opened = open_model(name)
    # One row cannot be split over devices.
    c.mesh.fsdp, c.mesh.data = 1, 1
    self.mesh = sharding.make_mesh(dict(c.mesh), jax.local_devices()[:1])
    self._update = optimizer.make(c.optim, 1000)
    schedule = optimizer.schedule(c.optim, 1000)
    variants |= {s: {"positions.strategy": s} for s in strategies}
    self.recipes = {
      variant: make_recipe(opened.config, changes, dtype, remat)
      for variant, changes in variants.items()
    }
    self._compiled: dict[Any, Any] = {}
    self._steps = {
      s: step_lib.compile_steps(recipe, self._update, schedule, self.mesh)[0]
      for s, recipe in self.recipes.items()
    }
    _, at = state_lib.shardings(self.mesh, self._update, opened.config)
    with jax.set_mesh(self.mesh):
      self.state = state_lib.create(
        reference.load_params(opened, "float32"), self._update, at
      )

  def compile(self, variant: str, batch: dict[str, np.ndarray]) -> Any:
    """The compiled step for batches of this shape; its first call takes longer."""
    key = (variant, batch["tokens"].shape)
    if key not in self._compiled:
      with jax.set_mesh(self.mesh):
        lowered = self._steps[variant].lower(self.state, batch)
        self._compiled[key] = lowered.compile()
    return self._compiled[key]

  def executed(self, variant: str, batch: dict[str, np.ndarray]) -> int:
    """FLOPs of the products that the step runs, recomputation included."""
    with jax.set_mesh(self.mesh):
      traced = self._steps[variant].trace(self.state, batch)
    return executed_flops.executed(traced.jaxpr)

  def step(
    self, variant: str, batch: dict[str, np.ndarray]
  ) -> tuple[float, dict[str, float]]:
    """One update: (seconds, metrics)."""
    run = self.compile(variant, batch)
    begin = time.perf_counter()
    with jax.set_mesh(self.mesh):
      batch = jax.device_put(batch, sharding.batch_sharding(self.mesh))
      self.state, metrics = run(self.state, batch)
      jax.block_until_ready((self.state, metrics))
    seconds = time.perf_counter() - begin
    return seconds, {name: float(value) for name, value in metrics.items()}


def flops(config: model_config.ModelConfig, length: int) -> dict[str, float]:
  """Floating-point operations of one update on one full row of `length` tokens.

  products: 6·N·tokens, 2 forward and 4 backward for each weight that multiplies;
    the embedding counts once, as the output matrix, because a lookup has none.
  attention: 6·layers·L²·heads·head_dim: two products of 2·L²·heads·head_dim
    forward and four backward, half of which causality needs.
  Recomputation by remat or blocks, softmax, norms and Adam do not count.
  """
  embedding = config.vocab_size * config.embed_dim
  multiplying = config.num_params() - (0 if config.tie_embeddings else embedding)
  attention = 6 * config.num_layers * length**2 * config.num_heads * config.head_dim
  return {"products": 6.0 * multiplying * length, "attention": float(attention)}


if __name__ == "__main__":
  serve(*sys.argv[1:])

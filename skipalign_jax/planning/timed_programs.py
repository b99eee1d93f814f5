"""Training, prefill and decoding with random weights, run and timed on real devices."""

import dataclasses
import statistics
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import packing
from skipalign_jax.model import decoder, inference, known_models, model_config, sharding
from skipalign_jax.planning import estimate, executed_flops, programs
from skipalign_jax.runtime import hardware
from skipalign_jax.training import initial_weights, optimizer, resolve, throughput
from skipalign_jax.training import recipe as recipe_lib
from skipalign_jax.training import state as state_lib

GIB = hardware.GIB
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
  """A model's shape and the sizes that it runs with.

  Attributes:
    name: of the shape.
    shape: of the model.
    rows: of a step, per device.
    length: tokens of a row, and of a prompt.
    repeats: steps, prompts and tokens that are timed.
  """

  name: str
  shape: model_config.ModelConfig
  rows: int
  length: int
  repeats: int


_7B = known_models.KNOWN["meta-llama/Llama-2-7b-hf"]


def _smaller(
  layers: int, dim: int, ffn_dim: int, heads: int, kv_heads: int, **others: int
) -> model_config.ModelConfig:
  """Another shape of the same family."""
  return dataclasses.replace(
    _7B,
    num_layers=layers,
    embed_dim=dim,
    ffn_dim=ffn_dim,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=dim // heads,
    **others,
  )


SMALL = (Run("small", _smaller(2, 128, 256, 4, 2, vocab_size=512), 2, 256, 3),)
# In the order of their memory: a device reports only the peak of all so far.
FULL = (
  Run("1B", _smaller(16, 2048, 8192, 32, 8), 4, 4096, 10),
  Run("7B", _7B, 1, 4096, 10),
)


def job(run: Run, kind: str, mesh: jax.sharding.Mesh, platform: str) -> estimate.Job:
  """What `plan` would plan for this run: the paper's recipe, AdamW, remat full."""
  config = config_lib.default()
  config.data.seq_len, config.steps = run.length, run.repeats
  positions = resolve.check(config)
  rows = run.rows * sharding.row_shards(mesh)
  if kind != "train":
    rows = sharding.row_shards(mesh)
  return estimate.Job(
    kind=kind,
    recipe=recipe_lib.from_config(config, run.shape, positions, platform),
    optim=tuple(config.optim.items()),
    mesh=tuple(mesh.shape.items()),
    rows=rows,
    length=run.length,
    steps=run.repeats,
  )


def fits(planned: estimate.Job, device: jax.Device) -> bool:
  """Whether the estimate is below the device's memory; True where it does not say."""
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return limit is None or needed_bytes(planned) <= limit


def needed_bytes(planned: estimate.Job) -> int:
  """Bytes of a device by arithmetic, as `plan` reports without a compiler."""
  return estimate.state_bytes(planned) + estimate.activation_bytes(planned)


def batch(vocab_size: int, rows: int, length: int, seed: int = 0) -> packing.Row:
  """Rows of one dialogue of two turns with random tokens; replies are learned."""
  rng = np.random.default_rng(seed)
  starts = np.arange(4) * (length // 4)
  ends = [*starts[1:], length]
  assembled = [
    packing.assemble_row(
      [
        {
          "tokens": rng.integers(1, vocab_size, length).astype(np.int32),
          "block_starts": starts,
          "target_spans": np.array([[starts[1], ends[1]], [starts[3], ends[3]]]),
          "sample_id": np.uint32(row),
          "is_text": False,
        }
      ],
      length,
      0,
    )
    for row in range(rows)
  ]
  return {name: np.stack([one[name] for one in assembled]) for name in assembled[0]}


def train(planned: estimate.Job, mesh: jax.sharding.Mesh, steps: int) -> Record:
  """Compiles the step, runs it once and then `steps` times: time, memory, losses."""
  recipe = planned.recipe
  config = ml_collections.ConfigDict(dict(planned.optim))
  update = optimizer.make(config, planned.steps)
  _, at = state_lib.shardings(mesh, update, recipe.model)
  rows = batch(recipe.model.vocab_size, planned.rows, planned.length)
  with jax.set_mesh(mesh):
    begin = time.monotonic()
    traced = programs.trace(planned, mesh)
    compiled = traced.lower().compile()
    compile_seconds = time.monotonic() - begin
    params = initial_weights.full(None, recipe.model, 0, at.params)
    state = state_lib.create(params, update, at)
    placed = jax.device_put(rows, sharding.batch_sharding(mesh))
    losses, seconds = [], []
    for _ in range(steps + 1):
      begin = time.monotonic()
      state, numbers = compiled(state, placed)
      losses.append(float(numbers["loss"]))
      seconds.append(time.monotonic() - begin)
  median = statistics.median(seconds[1:])
  rates = throughput.Throughput(recipe).of(
    int(numbers["tokens"]), planned.length, median
  )
  memory = compiled.memory_analysis()
  return {
    "compile_seconds": compile_seconds,
    "seconds": {"median": median, "min": min(seconds[1:]), "max": max(seconds[1:])},
    "losses": losses,
    **rates,
    "executed_flops": executed_flops.executed(traced.jaxpr),
    "compiled_gib": memory.peak_memory_in_bytes / GIB,
    "peak_memory_gib": throughput.peak_memory(),
  }


def generate(run: Run, mesh: jax.sharding.Mesh, dtype: str) -> Record:
  """Seconds to read a prompt of each row, and per token after it."""
  at = sharding.params_shardings(mesh, decoder.definition(run.shape)[1])
  params = initial_weights.full(None, run.shape, 0, at)
  engine = inference.Engine(params, run.shape, dtype, mesh)
  del params
  rng = np.random.default_rng(0)
  prompts = rng.integers(1, run.shape.vocab_size, (engine.row_shards, run.length))
  prompts = [row.tolist() for row in prompts]

  def first_and_others() -> tuple[float, float]:
    begin = time.monotonic()
    steps = engine.generate(prompts, run.repeats + 1, stop_ids=())
    next(steps)
    first = time.monotonic()
    others = sum(1 for _ in steps)
    return first - begin, (time.monotonic() - first) / others

  first_and_others()  # compiles
  prefill, decode = first_and_others()
  tokens = len(prompts) * run.length
  return {
    "prefill_seconds": prefill,
    "prefill_tokens_per_second": tokens / prefill,
    "decode_seconds_per_token": decode,
    "decode_tokens_per_second": len(prompts) / decode,
  }


def losses_by_devices(run: Run, device_counts: list[int]) -> dict[int, list[float]]:
  """Number of devices → losses of three steps of the same rows, split over them."""
  found = {}
  most = max(device_counts)
  for count in device_counts:
    devices = jax.devices()[:count]
    sizes = dict(data=1, fsdp=count, tensor=1, context=1)
    mesh = sharding.make_mesh(sizes, devices)
    planned = job(run, "train", mesh, devices[0].platform)
    planned = dataclasses.replace(planned, rows=run.rows * most)
    found[count] = train(planned, mesh, steps=2)["losses"]
  return found


def ratios(measured: Record, planned: estimate.Job) -> Record:
  """Measured by planned memory and time, where the device reports it or is known.

  Args:
    measured: what `train` returned.
    planned: its job.
  """
  kind = hardware.of_device(jax.devices()[0].device_kind)
  peak = measured["peak_memory_gib"]
  found = {}
  if jax.devices()[0].memory_stats():  # not a CPU, where the peak is the process'
    found["memory_by_compiled"] = peak / measured["compiled_gib"]
    found["memory_by_arithmetic"] = peak * GIB / needed_bytes(planned)
  if kind is None:
    return found
  per_host = jax.local_device_count()
  sent = estimate.min_traffic(planned, per_host)
  bounds = estimate.bounds(planned, kind, measured["executed_flops"], sent)
  shortest, longest = estimate.seconds(bounds)
  median = measured["seconds"]["median"]
  return found | {
    "estimated_seconds": [shortest, longest],
    "time_by_shortest": median / shortest,
    "time_by_longest": median / longest,
  }

"""What a step needs at least, and how long it may take: arithmetic, no compiler.

Shapes: B rows per microbatch and device, L tokens per row, D model, V vocab.
"""

import dataclasses
import math

import jax.numpy as jnp
import ml_collections

from skipalign_jax.model import decoder, flops, lora_state, quantized, sharding
from skipalign_jax.runtime import hardware
from skipalign_jax.training import optimizer, throughput
from skipalign_jax.training import recipe as recipe_lib
from skipalign_jax.training import state as state_lib

# Share of a chip's peak that large products reach, lower and upper end. An
# assumption; the estimate cannot be better than it.
PRODUCT_EFFICIENCY = (0.5, 0.75)


@dataclasses.dataclass(frozen=True)
class Job:
  """One program to plan: hashable, and cheap to send to another process.

  Attributes:
    kind: "train", "prefill" or "decode".
    recipe: of the step; generation uses only its model and dtype.
    optim: (key, value) pairs of config.optim.
    mesh: (axis, size) pairs of all axes, without -1.
    rows: of one step (or prompts), over all devices.
    length: tokens of a row, or places of the KV cache.
    steps: of the run; used only for the learning rate.
    part: places of a prompt that a prefill reads at a time, after all others; 0
      reads it whole.
  """

  kind: str
  recipe: recipe_lib.Recipe
  optim: tuple[tuple[str, float | str], ...]
  mesh: tuple[tuple[str, int], ...]
  rows: int
  length: int
  steps: int
  part: int = 0

  @property
  def new(self) -> int:
    """Places of a row that one run of the program computes."""
    return {"train": self.length, "prefill": self.part or self.length, "decode": 1}[
      self.kind
    ]

  @property
  def axes(self) -> dict[str, int]:
    """Axis → size."""
    return dict(self.mesh)

  @property
  def devices(self) -> int:
    """Devices of the mesh."""
    return math.prod(self.axes.values())

  @property
  def row_shards(self) -> int:
    """Devices that hold different rows."""
    return self.axes["data"] * self.axes["fsdp"]

  @property
  def micro_rows(self) -> int:
    """Rows of a microbatch on one device."""
    accum = self.recipe.grad_accum if self.kind == "train" else 1
    return self.rows // accum // self.row_shards

  def with_recipe(self, **changes) -> "Job":
    """The same job with other fields of its recipe."""
    return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, **changes))


def model_flops(job: Job) -> int:
  """FLOPs that the model needs for one run of the program, over all devices."""
  shape, rows, length = job.recipe.model, job.rows, job.length
  if job.kind == "train":
    return throughput.model_flops(job.recipe, rows, length)
  return flops.generation(shape, rows, length, job.new)


def trained_params(job: Job) -> int:
  """Parameters that have a gradient: of the model, or of adapters."""
  if job.recipe.adapters is None:
    return job.recipe.model.num_params()
  return _adapter_sizes(job)[0]


def base_bytes(job: Job) -> int:
  """Bytes, over all devices, of the base under adapters; 0 without adapters.

  Generation reads merged weights.
  """
  if job.recipe.adapters is None or job.kind != "train":
    return 0
  return _adapter_sizes(job)[1]


def _adapter_sizes(job: Job) -> tuple[int, int]:
  return lora_state.sizes(job.recipe.adapters, decoder.definition(job.recipe.model)[1])


def parameter_shards(job: Job) -> int:
  """Devices over which parameters are spread."""
  return job.axes["fsdp"] * job.axes["context"] * job.axes["tensor"]


def train_state(job: Job) -> tuple[state_lib.TrainState, state_lib.TrainState]:
  """The abstract state of the training, and its shardings."""
  update = optimizer.make(ml_collections.ConfigDict(dict(job.optim)), job.steps)
  mesh = sharding.abstract_mesh(job.axes)
  return state_lib.shardings(mesh, update, job.recipe.model, job.recipe.adapters)


def least_bytes(job: Job) -> int:
  """Bytes, over all devices, of the state of a training and of its gradients."""
  state, _ = train_state(job)
  return quantized.num_bytes(state) + quantized.num_bytes(state.params)


def state_bytes(job: Job) -> int:
  """Bytes per device that stay allocated between runs of the program.

  Training: the state, as it is sharded. Generation: parameters and the KV cache in the
  compute dtype.
  """
  if job.kind == "train":
    return state_lib.device_bytes(*train_state(job))
  weights = _width(job) * job.recipe.model.num_params() / parameter_shards(job)
  return round(weights) + cache_bytes(job)


def cache_bytes(job: Job) -> int:
  """Bytes per device of the KV cache."""
  shape = job.recipe.model
  values = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
  heads = job.axes["tensor"] if shape.num_kv_heads % job.axes["tensor"] == 0 else 1
  places = job.rows // job.row_shards * job.length // job.axes["context"]
  return round(_width(job) * values * places / heads)


def activation_bytes(job: Job) -> int:
  """Bytes per device of what a step holds in addition to its state: a rough estimate.

  Training: fp32 gradients; what the backward pass keeps of each layer (its
  input; its products too with remat "dots"; about twice those with "none"), for each
  read of the batch that has one; one layer being recomputed; one chunk of fp32 logits
  and of its gradient.
  """
  shape, recipe = job.recipe.model, job.recipe
  width, split = _width(job), job.axes["tensor"]
  tokens = job.micro_rows * job.new // job.axes["context"]
  query, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
  products = (query + 2 * kv + 2 * shape.ffn_dim) / split + 2 * shape.embed_dim
  layer = 2 * width * tokens * (products + shape.ffn_dim / split)
  if job.kind == "decode":
    return round(width * job.micro_rows * 4 * shape.vocab_size)
  if job.kind == "prefill":
    return round(layer)
  kept = {
    "full": shape.embed_dim,
    "dots": shape.embed_dim + products,
    "none": shape.embed_dim + 2 * (products + shape.ffn_dim / split),
  }[recipe.remat]
  residuals = width * tokens * shape.num_layers * kept * recipe.reads[1]
  chunk = job.micro_rows * min(recipe.loss_chunk, job.length)
  logits = 2 * 4 * chunk * shape.vocab_size
  gradients = 4 * trained_params(job) / parameter_shards(job)
  return round(gradients + residuals + layer + logits)


def min_memory_traffic(job: Job) -> int:
  """Bytes that a device must move to or from its memory in one run, at least.

  Training: weights and optimizer state read and written, gradients written and read
  (8 bytes per trained parameter that it holds); in each microbatch the weights of its
  layers in compute dtype (a base under adapters as it is stored) once forward, once
  backward and, with remat, once more; the inputs of all layers written and read. The
  microbatch is read as often as `Recipe.reads` says.
  Decoding: weights and cache read once. Attention, norms and the loss move more: this
  is a lower bound.
  """
  shape, width = job.recipe.model, _width(job)
  matrices = base_bytes(job) or width * flops.matrix_params(shape)
  weights = matrices / job.axes["tensor"]
  tokens = job.micro_rows * job.new // job.axes["context"]
  inputs = width * tokens * shape.num_layers * shape.embed_dim
  if job.kind == "decode":
    return state_bytes(job)
  if job.kind == "prefill":
    return round(weights + 2 * inputs + cache_bytes(job))
  reads, trained = job.recipe.reads
  passes = reads + trained * (1 + (job.recipe.remat != "none"))
  shards = parameter_shards(job)
  changed = state_bytes(job) - base_bytes(job) / shards
  once = 2 * changed + 8 * trained_params(job) / shards
  return round(once + job.recipe.grad_accum * (passes * weights + 2 * trained * inputs))


def _on_one_host(job: Job, per_host: int, over: tuple[str, ...]) -> int:
  """Devices of one host that differ only in their places on these axes."""
  found, left = 1, per_host
  for axis, size in reversed(job.mesh):  # the last axes are inside a host
    here = math.gcd(size, left)
    left //= here
    found *= here if axis in over else 1
  return found


def min_traffic(job: Job, per_host: int) -> dict[bool, float]:
  """Bytes that a device sends at least in one run: to other hosts or not → bytes.

  Parameters split over fsdp × context are gathered in compute dtype (a base under
  adapters as it is stored) forward and backward, and fp32 gradients scattered, in
  each microbatch; replicated ones reduce their gradient. Tensor parallelism reduces
  two activations per layer, each way; context parallelism exchanges q, k, v and the
  output of attention.
  Used where nothing is compiled; otherwise the compiled program's own are used.
  """
  shape, width, axes = job.recipe.model, _width(job), job.axes
  tokens = job.micro_rows * -(-job.new // axes["context"])
  total = {False: 0.0, True: 0.0}

  def add(array: float, over: tuple[str, ...], to_all: bool = False) -> None:
    size = math.prod(axes[axis] for axis in over)
    if size > 1:
      sent = array * (size - 1) / size
      out = sent * hardware.share_between_hosts(
        size, _on_one_host(job, per_host, over), to_all
      )
      total[True] += out
      total[False] += sent - out

  training = job.kind == "train"
  reads, backward = job.recipe.reads if training else (1, 0)
  accum = job.recipe.grad_accum if training else 1
  values = shape.num_params() / axes["tensor"]
  gathered = width * values
  if training and job.recipe.adapters:
    values = trained_params(job) / axes["tensor"]
    gathered = base_bytes(job) / axes["tensor"]
  add(accum * (reads + backward) * gathered, sharding.SHARDS)
  if training:
    add(accum * 4 * values, sharding.SHARDS)
    add(2 * 4 * values / (axes["fsdp"] * axes["context"]), ("data",))
  sums = 2 * (reads + backward)
  activations = 2 * width * tokens * shape.embed_dim
  add(accum * shape.num_layers * sums * activations, ("tensor",))
  heads = 2 * shape.num_heads + 2 * shape.num_kv_heads
  exchanged = width * tokens * heads * shape.head_dim / axes["tensor"]
  if job.kind != "decode":
    exchanged *= accum * shape.num_layers * (reads + 2 * backward)
    add(exchanged, ("context",), to_all=True)
  return total


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Seconds that each part of one run takes at least."""

  arithmetic: float
  memory: float
  interconnect: float


def bounds(
  job: Job, kind: hardware.Hardware, executed: int, sent: dict[bool, float]
) -> Bounds:
  """Lower bounds from the data sheet.

  Args:
    job: the program.
    kind: the accelerator.
    executed: FLOPs over all devices.
    sent: to other hosts or not → bytes that a device sends.
  """
  return Bounds(
    arithmetic=executed / job.devices / kind.peak(job.recipe.compute_dtype),
    memory=min_memory_traffic(job) / kind.memory_bandwidth,
    interconnect=sent[False] / kind.link + sent[True] / kind.network,
  )


def seconds(bounds: Bounds) -> tuple[float, float]:
  """The shortest and the longest estimated time of one run.

  Shortest: products at the upper efficiency, and everything else overlaps with them.
  Longest: products at the lower one, and nothing overlaps.
  """
  low, high = PRODUCT_EFFICIENCY
  return (
    max(bounds.arithmetic / high, bounds.memory, bounds.interconnect),
    bounds.arithmetic / low + bounds.memory + bounds.interconnect,
  )


def _width(job: Job) -> int:
  """Bytes of a value in the compute dtype."""
  return jnp.dtype(job.recipe.compute_dtype).itemsize

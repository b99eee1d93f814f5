"""Tries other settings by compiling them: what else fits, or what would fit."""

import dataclasses
from collections.abc import Callable, Iterator

from skipalign_jax.planning import compiler, estimate
from skipalign_jax.runtime import errors, hardware
from skipalign_jax.training import resolve

MAX_COMPILES = 12  # per topology, after which `remedy` compiles nothing more
MAX_SIZES = 5  # of a microbatch that fits and is doubled, its own included
MIN_LOSS_CHUNK = 128  # tokens; with fewer, products of the vocabulary head are slow


@dataclasses.dataclass(frozen=True)
class Fit:
  """Whether a program fits one device; bytes.

  Attributes:
    needed: peak and reserve; 0 if the compiler refused without a number.
    available: of the device.
    fits: whether it compiled and needs no more than there is.
  """

  needed: int
  available: int
  fits: bool


def fit(kind: hardware.Hardware, peak: int, refused: str = "") -> Fit:
  """Compares a program with the memory of a device.

  Args:
    kind: of the device.
    peak: bytes that the program needs; 0 if unknown.
    refused: why it did not compile; "" if it did.
  """
  needed = peak + sum(kind.reserve.values()) if peak else 0
  return Fit(needed, kind.memory, not refused and needed <= kind.memory)


class Arithmetic:
  """Stands in for a compiler that is not installed: the memory of a job, estimated."""

  def __init__(self, topology: hardware.Topology):
    self.topology = topology
    self.compiled: dict[estimate.Job, compiler.Measured] = {}  # stays empty

  def measure(self, job: estimate.Job) -> compiler.Measured:
    """What `plan` reports of a job without compiling it."""
    peak = estimate.state_bytes(job) + estimate.activation_bytes(job)
    return compiler.Measured(0, 0, peak, "", 0, None, 0.0)


@dataclasses.dataclass(frozen=True)
class Tried:
  """One alternative.

  Attributes:
    settings: config key → value, where it differs from the config.
    micro_rows: rows of a microbatch on one device.
    needed: bytes per device, reserve included; 0 if unknown.
    fits: whether it fits.
  """

  settings: dict[str, int | str]
  micro_rows: int
  needed: int
  fits: bool


def with_micro_rows(job: estimate.Job, rows: int) -> estimate.Job:
  """The job with this many rows per microbatch and device.

  Keeps the rows of a step where they divide; otherwise the step is one microbatch.
  """
  per_step = rows * job.row_shards
  if job.rows % per_step == 0:
    return job.with_recipe(grad_accum=job.rows // per_step)
  return dataclasses.replace(job, rows=per_step).with_recipe(grad_accum=1)


def largest_microbatch(
  build: compiler.Compiler | Arithmetic, job: estimate.Job, show: Callable[[str], None]
) -> tuple[int, list[Tried]]:
  """The largest power-of-two multiple (or part) of the microbatch that fits.

  Args:
    build: the compiler.
    job: has been compiled already.
    show: is called with a message before each compile.

  Returns:
    Rows per microbatch and device (0 if even one does not fit), and what was tried.
  """
  rows, tried = job.micro_rows, []

  def fits(rows: int) -> bool:
    found = _try(build, with_micro_rows(job, rows), job, show)
    tried.append(found)
    return found.fits

  if fits(rows):
    while len(tried) < MAX_SIZES and fits(2 * rows):
      rows *= 2
    return rows, tried
  while rows > 1:
    rows //= 2
    if fits(rows):
      return rows, tried
  return 0, tried


def remedy(
  build: compiler.Compiler | Arithmetic, job: estimate.Job, show: Callable[[str], None]
) -> tuple[Tried | None, list[Tried]]:
  """The first change of settings with which the job fits, and all that was tried."""
  tried: list[Tried] = []
  for other in alternatives(job):
    if other not in build.compiled and len(build.compiled) >= MAX_COMPILES:
      break
    tried.append(_try(build, other, job, show))
    if tried[-1].fits:
      return tried[-1], tried
  return None, tried


def alternatives(job: estimate.Job) -> Iterator[estimate.Job]:
  """Jobs that do the same work in less memory, the cheapest change first.

  More microbatches; then remat "full"; a smaller loss chunk; then tensor and
  context axes taken from fsdp. Each keeps the changes before it.
  """
  if job.kind == "train":
    while (rows := job.micro_rows) > 1:
      parts = next(n for n in range(2, rows + 1) if rows % n == 0)
      job = job.with_recipe(grad_accum=parts * job.recipe.grad_accum)
      yield job
    if job.recipe.remat != "full":
      job = job.with_recipe(remat="full")
      yield job
    if min(job.recipe.loss_chunk, job.length) > MIN_LOSS_CHUNK:
      job = job.with_recipe(loss_chunk=MIN_LOSS_CHUNK)
      yield job
  for axis in ("tensor", "context"):
    for size in (2, 4, 8):
      other = _with_axis(job, axis, size)
      if other is not None:
        yield other


def _with_axis(job: estimate.Job, axis: str, size: int) -> estimate.Job | None:
  axes, shape = job.axes, job.recipe.model
  if axes[axis] >= size or axes["fsdp"] * axes[axis] % size:
    return None
  divided = (
    (shape.num_heads, shape.num_kv_heads, shape.ffn_dim)
    if axis == "tensor"
    else (job.length,)
  )
  if any(value % size for value in divided):
    return None
  axes["fsdp"] = axes["fsdp"] * axes[axis] // size
  axes[axis] = size
  try:
    resolve.check_heads(shape, axes)
  except errors.UserError:
    return None
  changed = dataclasses.replace(job, mesh=tuple(axes.items()))
  if job.kind != "train":
    return dataclasses.replace(changed, rows=changed.row_shards)
  return with_micro_rows(changed, 1)


def differences(job: estimate.Job, original: estimate.Job) -> dict[str, int | str]:
  """Config keys whose values differ from the original job's → the job's values."""
  values = lambda job: {
    **({"batch_size": job.rows} if job.kind == "train" else {}),
    "grad_accum": job.recipe.grad_accum,
    "model.remat": job.recipe.remat,
    "loss.chunk": job.recipe.loss_chunk,
    **{f"mesh.{axis}": size for axis, size in job.mesh},
  }
  old = values(original)
  return {key: value for key, value in values(job).items() if value != old[key]}


def _try(build, job, original, show) -> Tried:
  changed = differences(job, original)
  if isinstance(build, compiler.Compiler) and job not in build.compiled:
    settings = " ".join(f"{key}={value}" for key, value in changed.items())
    show(f"compiling {build.topology.name} with {settings or 'the config as it is'}")
  measured = build.measure(job)
  found = fit(build.topology.hardware, measured.peak, measured.refused)
  return Tried(changed, job.micro_rows, found.needed, found.fits)

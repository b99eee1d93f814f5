"""What the devices achieve in a step: time, tokens, model FLOPs and memory."""

import contextlib
import resource
import time
from collections.abc import Iterator

import jax

from skipalign_jax.model import decoder, flops, lora_state
from skipalign_jax.runtime import hardware
from skipalign_jax.training import recipe as recipe_lib

GIB = 2**30


def model_flops(recipe: recipe_lib.Recipe, rows: int, length: int) -> int:
  """FLOPs that the model needs for one step of `rows` rows, over all devices.

  A regulariser or distillation reads each row twice; a second read that is a constant
  has no backward pass.
  """
  adapters = 0
  if recipe.adapters:
    shapes = decoder.definition(recipe.model)[1]
    adapters = lora_state.sizes(recipe.adapters, shapes)[0]
  reads, trained = recipe.reads
  forward = flops.forward(recipe.model, rows, length) + 2 * rows * length * adapters
  return (
    trained * flops.training(recipe.model, rows, length, adapters)
    + (reads - trained) * forward
  )


class Clock:
  """The time of each step, and how much of it waited for data or for the devices."""

  def __init__(self):
    self.restart()

  def restart(self) -> None:
    """What was before belongs to no step."""
    self._start = time.monotonic()
    self._waited = {"data": 0.0, "device": 0.0}

  @contextlib.contextmanager
  def waiting(self, what: str) -> Iterator[None]:
    """Counts the time inside as waiting for `what`: data or device."""
    start = time.monotonic()
    yield
    self._waited[what] += time.monotonic() - start

  def lap(self) -> dict[str, float]:
    """Seconds since the last lap: all, for data, and of the host (all the others)."""
    whole = time.monotonic() - self._start
    data, device = self._waited["data"], self._waited["device"]
    self.restart()
    return {
      "step_seconds": whole,
      "data_seconds": data,
      "host_seconds": max(0.0, whole - data - device),
    }


class Throughput:
  """Rates of a step, from its tokens and its time."""

  def __init__(self, recipe: recipe_lib.Recipe):
    self._recipe = recipe
    self._devices = jax.device_count()
    kind = hardware.of_device(jax.devices()[0].device_kind)
    self._peak = kind.peak(recipe.compute_dtype) if kind else None

  def of(self, tokens: int, length: int, seconds: float) -> dict[str, float]:
    """tokens_per_second, the same per device, and mfu where the peak is known.

    mfu is model FLOPs over peak FLOPs of all devices in that time, both of products in
    the compute dtype. Only tokens that are not padding count; each has the attention of
    a full causal row.

    Args:
      tokens: of the step that are not padding.
      length: tokens of a row.
      seconds: of the step.
    """
    rate = tokens / seconds
    found = {
      "tokens_per_second": rate,
      "tokens_per_second_per_device": rate / self._devices,
    }
    if self._peak:
      per_token = model_flops(self._recipe, 1, length) / length
      found["mfu"] = rate * per_token / (self._devices * self._peak)
    return found


def peak_memory() -> float:
  """GiB that the fullest device of this process has held so far.

  A CPU has no counter of its own: the process' peak resident memory.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  if peaks:
    return max(peaks) / GIB
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB

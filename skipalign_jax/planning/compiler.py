"""Compiles programs for hardware that is not there, in a separate process.

XLA reads its environment once, and a fatal error in it ends the process. So each
topology gets its own process, and the end of that process is a result like others.
"""

import concurrent.futures
import dataclasses
import importlib.util
import multiprocessing
import os
import pathlib
import re
import tempfile
import time
from concurrent.futures import process
from typing import Any

import jax
from jax.experimental import topologies

from skipalign_jax.model import sharding
from skipalign_jax.planning import estimate, executed_flops, hlo, programs
from skipalign_jax.runtime import extras, hardware

INSTALL = extras.command("plan")


@dataclasses.dataclass(frozen=True)
class Measured:
  """What the compiler reports about a program; bytes are those of one device.

  Attributes:
    arguments, temporaries, peak: XLA's memory analysis. If it refused the
      program, `peak` is what its message says it needs (0 without a number).
    refused: why it did not compile; "" if it did.
    executed: FLOPs of all devices; 0 if refused.
    traffic: its collectives; None if refused.
    seconds: to trace, lower and compile.
  """

  arguments: int
  temporaries: int
  peak: int
  refused: str
  executed: int
  traffic: hlo.Traffic | None
  seconds: float


def available(kind: hardware.Hardware) -> bool:
  """Whether the compiler of this hardware is installed."""
  if kind.platform == "tpu":
    return importlib.util.find_spec("libtpu") is not None
  if importlib.util.find_spec("jax_plugins") is None:
    return False
  return importlib.util.find_spec("jax_plugins.xla_cuda12") is not None


class Compiler:
  """Compiles jobs for one topology, each only once."""

  def __init__(self, topology: hardware.Topology):
    self.topology = topology
    self.compiled: dict[estimate.Job, Measured] = {}
    self._folder = tempfile.TemporaryDirectory(prefix="plan_")
    self._log = pathlib.Path(self._folder.name) / "stderr.log"
    self._pool: concurrent.futures.ProcessPoolExecutor | None = None

  def __enter__(self) -> "Compiler":
    return self

  def __exit__(self, *raised) -> None:
    if raised[0]:  # not even Ctrl-C ends a compiler that is at work
      for child in multiprocessing.active_children():
        child.kill()
    self._stop()
    self._folder.cleanup()

  def measure(self, job: estimate.Job) -> Measured:
    """The result of compiling a job; the second time from memory."""
    if job not in self.compiled:
      if self._pool is None:
        self._pool = concurrent.futures.ProcessPoolExecutor(
          max_workers=1,
          mp_context=multiprocessing.get_context("spawn"),
          initializer=prepare,
          initargs=(self.topology.hardware.platform, str(self._log)),
        )
      try:
        found = self._pool.submit(measure, self.topology, job).result()
      except process.BrokenProcessPool:
        self._stop()
        why = f"the compiler's process died: {_last_message(self._log)}"
        found = Measured(0, 0, 0, why, 0, None, 0)
      self.compiled[job] = found
    return self.compiled[job]

  def _stop(self) -> None:
    if self._pool is not None:
      self._pool.shutdown(wait=True, cancel_futures=True)
      self._pool = None


def _last_message(log: pathlib.Path) -> str:
  """A fatal message of XLA if there is one, otherwise the last line."""
  text = log.read_text(errors="replace") if log.is_file() else ""
  lines = [line for line in text.splitlines() if line.strip(" *")]
  fatal = [line for line in lines if re.match(r"F\d{4} ", line)]
  return (fatal or lines or ["it left no message"])[-1][-300:]


def prepare(platform: str, log: str) -> None:
  """Prepares a new process for compiling, before JAX starts a backend.

  Args:
    platform: "cuda" or "tpu".
    log: file that takes the process' stderr.
  """
  stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
  os.dup2(stream, 2)  # XLA's warnings, of which a plan causes many
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"
  if platform == "cuda":
    # No kernel can be timed without the device.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()
  else:
    # Without these libtpu looks for a TPU host's metadata server, and refuses to load
    # while another process compiles.
    os.environ |= {
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
      "TPU_SKIP_MDS_QUERY": "1",
      "TPU_WORKER_HOSTNAMES": "localhost",
      "TPU_WORKER_ID": "0",
      "TPU_ACCELERATOR_TYPE": "v5p-8",
    }
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)


def devices(topology: hardware.Topology) -> list[jax.Device]:
  """Stand-ins for the devices of a topology, in a process prepared by `prepare`."""
  kind = topology.hardware
  if kind.platform == "cuda":
    per_host = topology.devices_per_host
    found = topologies.get_topology_desc(
      platform="cuda",
      topology_name=kind.kind,
      topology=f"1x{topology.devices // per_host}x{per_host}",
      target_config=hardware.gpu_target(kind),
    )
    return found.devices
  name = f"{kind.name}:{'x'.join(map(str, topology.shape))}"
  # A v4 chip has two cores; as on a real machine, they are one device.
  options = {"chip_config_name": "megacore"} if kind.name == "v4" else {}
  found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
  return found.devices


def measure(topology: hardware.Topology, job: estimate.Job) -> Measured:
  """Compiles one job in this process, which `prepare` has prepared."""
  begin, executed = time.monotonic(), 0
  try:
    mesh = sharding.make_mesh(job.axes, devices(topology))
    traced = programs.trace(job, mesh)
    executed = executed_flops.executed(traced.jaxpr)
    with programs.set_mesh(mesh):
      compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:  # out of memory, mostly
    message = str(error).strip().splitlines()[0]
    took = time.monotonic() - begin
    return Measured(0, 0, refused_bytes(message), message, executed, None, took)
  return read(topology, compiled, executed, time.monotonic() - begin)


def read(
  topology: hardware.Topology, compiled: Any, executed: int, seconds: float
) -> Measured:
  """The measurements of a compiled program.

  Args:
    topology: it was compiled for.
    compiled: jax.stages.Compiled.
    executed: FLOPs over all devices, from the traced program.
    seconds: it took to compile.
  """
  memory = compiled.memory_analysis()
  return Measured(
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    peak=memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes,
    refused="",
    executed=executed,
    traffic=hlo.traffic(
      compiled.as_text(), topology.devices_per_host, topology.hardware
    ),
    seconds=seconds,
  )


def refused_bytes(message: str) -> int:
  """The bytes that a TPU program needs, from the refusal; 0 if it names none."""
  found = re.search(r"(?:Used |\()([\d.]+)([KMGT])\)? (?:of|exceeds)", message)
  if not found:
    return 0
  return round(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])))

"""Accelerators that a run can be planned for, and how their topologies are written.

Bandwidths are bytes per second and chip, one way: what a chip can send while it
receives as much.
"""

import dataclasses
import math
import re

from skipalign_jax.runtime import errors

GIB = 2**30
GPUS_PER_HOST = 8


@dataclasses.dataclass(frozen=True)
class Hardware:
  """One kind of accelerator.

  Attributes:
    name: as in a topology.
    platform: "cuda" or "tpu".
    kind: the manufacturer's name.
    flops: dense bf16 FLOP/s with fp32 accumulation.
    memory: bytes that a program can be given, before `reserve`.
    memory_bandwidth: bytes/s.
    link: bytes/s to chips of the same NVLink domain or slice.
    network: bytes/s to other hosts; equal to `link` on a TPU slice.
    reserve: what a run needs in addition to the program: name → bytes.
    target: fields of XLA's GPU description that differ by GPU; {} on TPUs.
    dimensions: of a slice, as 2 in 4x8; 0 for GPUs.
    devices_per_chip: JAX devices; every other number is that of one device.
  """

  name: str
  platform: str
  kind: str
  flops: float
  memory: int
  memory_bandwidth: float
  link: float
  network: float
  reserve: dict[str, int]
  target: dict[str, float]
  dimensions: int
  devices_per_chip: int = 1

  def peak(self, dtype: str) -> float:
    """FLOP/s of matrix products of "bfloat16" or "float32" operands.

    In float32 they are whole (jax.lax.Precision.HIGHEST, see `model.products`): a GPU
    does not use TF32, so that they run outside of its tensor cores; a TPU makes each
    of six products in bf16. These peaks of GPUs are cores x clock, two operations
    each: the numbers in the data sheets of A10, L4, L40S, A100 and H100.
    """
    if dtype != "float32":
      return self.flops
    if self.platform == "tpu":
      return self.flops / 6
    cores = self.target["core_count"] * self.target["fpus_per_core"]
    return 2e9 * cores * self.target["clock_rate_ghz"]


def share_between_hosts(size: int, on_host: float, to_all: bool = False) -> float:
  """The share of what a device sends in a collective that leaves its host, at least.

  Of an array that `size` devices gather or reduce, each sends (size − 1) / size. With
  `on_host` = k of them on each host, every adapter carries its own part: (size − k) /
  (size k) of the array goes to other hosts, and (k − 1) / k stays inside.

  Args:
    size: devices of the group, at least 2.
    on_host: of these, on one host.
    to_all: each device has something else for each other one; then no bytes are the
      same for two devices of a host.
  """
  return (size - on_host) / (size - 1) / (1 if to_all else on_host)


# An assumption, not a measurement: XLA's memory analysis includes none of it.
GPU_RESERVE = {
  "CUDA context and libraries": round(0.75 * GIB),
  "NCCL buffers": round(1.0 * GIB),
  "allocator fragmentation": round(0.5 * GIB),
}
# The TPU memory below is what the compiler itself allows; the runtime's share is
# already subtracted (15.75 of 16 GiB on v5e).
TPU_RESERVE = {"infeed and fragmentation": round(0.25 * GIB)}

_A100 = dict(
  core_count=108,
  fpus_per_core=64,
  shared_memory_per_core=167_936,
  shared_memory_per_block_optin=166_912,
  l2_cache_size=41_943_040,
  clock_rate_ghz=1.41,
  threads_per_core_limit=2048,
  major=8,
  minor=0,
)
_A10 = dict(
  core_count=72,
  fpus_per_core=128,
  shared_memory_per_core=102_400,
  shared_memory_per_block_optin=101_376,
  l2_cache_size=6_291_456,
  clock_rate_ghz=1.695,
  threads_per_core_limit=1536,
  major=8,
  minor=6,
)
_H100 = dict(
  core_count=132,
  fpus_per_core=128,
  shared_memory_per_core=233_472,
  shared_memory_per_block_optin=232_448,
  l2_cache_size=52_428_800,
  clock_rate_ghz=1.98,
  threads_per_core_limit=2048,
  major=9,
  minor=0,
)
_B200 = dict(
  core_count=148,
  fpus_per_core=128,
  shared_memory_per_core=233_472,
  shared_memory_per_block_optin=232_448,
  l2_cache_size=132_644_864,
  clock_rate_ghz=1.965,
  threads_per_core_limit=2048,
  major=10,
  minor=0,
)
_L4 = dict(
  core_count=58,
  fpus_per_core=128,
  shared_memory_per_core=102_400,
  shared_memory_per_block_optin=101_376,
  l2_cache_size=50_331_648,
  clock_rate_ghz=2.04,
  threads_per_core_limit=1536,
  major=8,
  minor=9,
)
_L40S = _L4 | dict(core_count=142, l2_cache_size=100_663_296, clock_rate_ghz=2.52)


def _gpu(name, kind, flops, memory, bandwidth, link, network, target):
  return Hardware(
    name=name,
    platform="cuda",
    kind=kind,
    flops=flops,
    memory=memory,
    memory_bandwidth=bandwidth,
    link=link,
    network=network,
    reserve=GPU_RESERVE,
    target=target,
    dimensions=0,
  )


def _tpu(name, kind, flops, memory_gib, bandwidth, link, dimensions, per_chip=1):
  return Hardware(
    name=name,
    platform="tpu",
    kind=kind,
    flops=flops,
    memory=round(memory_gib * GIB),
    memory_bandwidth=bandwidth,
    link=link,
    network=link,
    reserve=TPU_RESERVE,
    target={},
    dimensions=dimensions,
    devices_per_chip=per_chip,
  )


# GPU peaks and memory bandwidth: NVIDIA's data sheets of A10, L4, L40S, A100, H100 and
# H200 (SXM) and DGX B200, without sparsity (half of what is printed with it).
# NVLink: 600 (A100), 900 (H100, H200) and 1800 GB/s (B200) per GPU both ways, so half
# of that one way; A10, L4 and L40S have PCIe 4.0 only, 64 GB/s both ways.
# Network: one adapter per GPU as in DGX A100 (200 Gbit/s) and DGX H100, H200 and B200
# (400 Gbit/s); 25 Gbit/s for A10 and L4, 100 Gbit/s for L40S, as clouds offer them.
# Memory: the device's total as the driver reports it (H200, B200: in XLA's files of GPU
# descriptions; L4, L40S: in CUDA's deviceQuery); of an A10's 23028 MiB, what NVML calls
# free on an idle card.
# TPUs: Google Cloud's system architecture pages; "link" is their interchip bandwidth
# of a chip (v4 2400, v5e 1600, v5p 4800, v6e 3584, tpu7x 4800 Gbit/s), all links
# together. A tpu7x chip (2307 TFLOP/s, 7380 GB/s) is two devices for JAX.
# Memory: the available memory in messages of libtpu 0.0.42's TPU compiler.
HARDWARE = {
  hardware.name: hardware
  for hardware in (
    _gpu("a10", "NVIDIA A10", 125e12, 23_604_690_944, 0.6e12, 32e9, 3.125e9, _A10),
    _gpu("l4", "NVIDIA L4", 121e12, 23_612_293_120, 0.3e12, 32e9, 3.125e9, _L4),
    _gpu("l40s", "NVIDIA L40S", 362e12, 47_576_711_168, 0.864e12, 32e9, 12.5e9, _L40S),
    _gpu("a100-40gb", "NVIDIA A100-SXM4-40GB", 312e12, 42_298_834_944, 1.555e12,
         300e9, 25e9, _A100),
    _gpu("a100-80gb", "NVIDIA A100-SXM4-80GB", 312e12, 84_987_740_160, 2.039e12,
         300e9, 25e9, _A100),
    _gpu("h100", "NVIDIA H100 80GB HBM3", 989e12, 84_942_979_072, 3.352e12,
         450e9, 50e9, _H100),
    _gpu("h200", "NVIDIA H200", 989e12, 151_397_597_184, 4.8e12, 450e9, 50e9, _H100),
    _gpu("b200", "NVIDIA B200", 2250e12, 191_514_411_008, 7.672e12, 900e9, 50e9,
         _B200),
    _tpu("v4", "TPU v4", 275e12, 30.75, 1.228e12, 300e9, 3),
    _tpu("v5e", "TPU v5e", 197e12, 15.75, 0.819e12, 200e9, 2),
    _tpu("v5p", "TPU v5p", 459e12, 95.74, 2.765e12, 600e9, 3),
    _tpu("v6e", "TPU v6e", 918e12, 31.25, 1.640e12, 448e9, 2),
    _tpu("tpu7x", "TPU7x", 1153.5e12, 94.75, 3.690e12, 300e9, 3, per_chip=2),
  )
}  # fmt: skip
# JAX's names of devices that are not the manufacturer's.
_JAX_NAMES = {
  "TPU v5 lite": "v5e",
  "TPU v5": "v5p",
  "TPU v6 lite": "v6e",
  "NVIDIA H200 141GB HBM3e": "h200",
}


def of_device(device_kind: str) -> Hardware | None:
  """The accelerator that JAX calls so; None for one that is not in HARDWARE."""
  by_kind = {hardware.kind: hardware for hardware in HARDWARE.values()}
  return by_kind.get(device_kind) or HARDWARE.get(_JAX_NAMES.get(device_kind, ""))


SPELLINGS = (
  "a topology is a GPU and how many of it (a10:1, l4:1, l40s:8, a100-40gb:8, "
  "a100-80gb:64, h100:8, h200:8, b200:8) or a TPU slice by its chips along each axis "
  "(v4:2x2x2, v5e:2x4, v5e:4x8, v5p:2x2x2, v6e:2x4, tpu7x:2x2x1); several are "
  "separated by commas"
)


@dataclasses.dataclass(frozen=True)
class Topology:
  """A number of chips of one kind.

  Attributes:
    name: as the user wrote it.
    hardware: the kind.
    shape: chips along each axis of a slice; (count,) for GPUs.
  """

  name: str
  hardware: Hardware
  shape: tuple[int, ...]

  @property
  def devices(self) -> int:
    """JAX devices."""
    return math.prod(self.shape) * self.hardware.devices_per_chip

  @property
  def devices_per_host(self) -> int:
    """Devices that `link` connects: a GPU host, or a whole TPU slice."""
    if self.hardware.platform == "tpu":
      return self.devices
    return min(self.devices, GPUS_PER_HOST)


def parse(text: str) -> list[Topology]:
  """Reads "a100-80gb:8,v5e:2x4".

  Raises:
    UserError: empty, an unknown kind, or a shape that the kind does not have.
  """
  names = [name.strip().lower() for name in text.split(",") if name.strip()]
  if not names:
    raise errors.UserError(f"--topology=T[,T…] is missing; {SPELLINGS}")
  return [_parse_one(name) for name in dict.fromkeys(names)]


def _parse_one(name: str) -> Topology:
  kind, _, size = name.partition(":")
  if kind not in HARDWARE:
    raise errors.UserError(f"unknown topology {name!r}; {SPELLINGS}")
  hardware = HARDWARE[kind]
  if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", size):
    raise errors.UserError(f"topology {name!r} has no number of chips; {SPELLINGS}")
  shape = tuple(int(part) for part in size.split("x"))
  if hardware.platform == "tpu":
    _check_slice(name, hardware, shape)
  elif len(shape) > 1:
    raise errors.UserError(f"topology {name!r}: GPUs take one number; {SPELLINGS}")
  elif shape[0] > GPUS_PER_HOST and shape[0] % GPUS_PER_HOST:
    raise errors.UserError(
      f"topology {name!r}: more than {GPUS_PER_HOST} GPUs come in hosts of "
      f"{GPUS_PER_HOST}; choose a multiple"
    )
  return Topology(name, hardware, shape)


def _check_slice(name: str, hardware: Hardware, shape: tuple[int, ...]) -> None:
  if len(shape) != hardware.dimensions:
    raise errors.UserError(
      f"topology {name!r}: {hardware.name} slices have {hardware.dimensions} axes, "
      f"as in {hardware.name}:{'x'.join(['2'] * hardware.dimensions)}; {SPELLINGS}"
    )
  if shape[0] % 2 or shape[1] % 2:  # hosts hold 2x2 chips
    raise errors.UserError(
      f"topology {name!r}: a host holds 2x2 chips, so the first two axes must be even"
    )


def gpu_target(hardware: Hardware) -> str:
  """XLA's description of a GPU as a text proto (GpuTargetConfigProto).

  Without it XLA queries the driver, and ends the process if there is none.
  """
  per_gpu = dict(hardware.target)
  major, minor = per_gpu.pop("major"), per_gpu.pop("minor")
  fields = per_gpu | dict(
    threads_per_block_limit=1024,
    threads_per_warp=32,
    shared_memory_per_block=49_152,
    registers_per_core_limit=65_536,
    registers_per_block_limit=65_536,
    block_dim_limit_x=2**31 - 1,
    block_dim_limit_y=65_535,
    block_dim_limit_z=65_535,
    memory_bandwidth=int(hardware.memory_bandwidth),
    device_memory_size=hardware.memory,
  )
  lines = [f"  {name}: {value}" for name, value in fields.items()]
  return "\n".join(
    [
      "gpu_device_info {",
      *lines,
      f"  cuda_compute_capability {{ major: {major} minor: {minor} }}",
      "}",
      'platform_name: "CUDA"',
      "dnn_version_info { major: 9 minor: 10 }",
      "runtime_version { major: 12 minor: 9 }",
      f'device_description_str: "{hardware.kind}"',
    ]
  )

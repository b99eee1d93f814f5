"""How much of a program's communication is hidden by its products.

The text of a compiled program is its schedule. A collective that starts in one place
and ends in another leaves the devices free to compute what is between; one that does
not makes them wait. Here the products between hide as many bytes as the links
send while they run at HIGHEST of the peak; each product hides for one collective at a
time. What other kernels hide (attention above all) is not counted, nor what loops do.
So the result is on the low side, if products are not faster than that.
"""

import collections
import dataclasses
import math
import re

from skipalign_jax.planning import hlo_text, replica_groups
from skipalign_jax.runtime import hardware

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
  "ragged-all-to-all",
)
TO_ALL = ("all-to-all", "ragged-all-to-all")  # other bytes for each device
# What runs another computation as a part of itself, or starts it and continues.
PARTS = ("fusion", "async-start", "call-start")
HIGHEST = 0.75  # share of the peak; as in estimate.PRODUCT_EFFICIENCY


@dataclasses.dataclass(frozen=True)
class Part:
  """What one collective moves of one array, in one run of it.

  Attributes: as those of `hlo.Collective`.
  """

  kind: str
  dtype: str
  crosses_hosts: bool
  payload_bytes: float
  sent_bytes: float
  network_bytes: float


def channel(instruction: hlo_text.Instruction) -> str | None:
  """The number that all pieces of one collective share."""
  return hlo_text.search(r"channel_id=(\d+)", instruction.text)


def parts(
  instruction: hlo_text.Instruction,
  inside: str,
  computations: hlo_text.Computations,
  devices_per_host: int,
) -> list[Part]:
  """What a collective moves; [] if its groups have one device.

  Args:
    instruction: the collective, or its start.
    inside: name of the computation that has it.
    computations: of the program.
    devices_per_host: devices i and j share a host if i // n == j // n.

  Raises:
    ValueError: its groups cannot be read.
  """
  kind = instruction.opcode.removesuffix("-start")
  if kind == "all-reduce" and inside.startswith("all-reduce-scatter"):
    kind = "reduce-scatter"
  groups = replica_groups.parse(instruction.text)
  hosts = [len({device // devices_per_host for device in group}) for group in groups]
  crosses = any(count > 1 for count in hosts)
  size = len(groups[0]) if groups else 1
  if kind == "collective-permute":
    size = 2
  if size == 1:
    return []  # a group of one moves nothing
  share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(
    kind, (size - 1) / size
  )
  on_host = min((len(g) / n for g, n in zip(groups, hosts, strict=True)), default=size)
  between = hardware.share_between_hosts(size, on_host, kind in TO_ALL) * crosses
  found = []
  for dtype, shape in _whole_arrays(instruction, kind, computations[inside]):
    payload = math.prod(shape) * hlo_text.bits(dtype) / 8
    sent = payload * share
    found.append(Part(kind, dtype, crosses, payload, sent, sent * between))
  return found


def _whole_arrays(
  instruction: hlo_text.Instruction, kind: str, neighbours: list[hlo_text.Instruction]
) -> list[hlo_text.Array]:
  """The whole arrays that a collective gathers or reduces."""
  shapes = {i.name: i.result for i in neighbours}
  sources = [
    a for name in instruction.operands for a in hlo_text.arrays(shapes.get(name, ""))
  ]
  results = hlo_text.arrays(instruction.result)
  if instruction.opcode.endswith("-start") and kind != "all-reduce":
    # The result also carries the operands, and for permutes two counters.
    results = results[len(sources) : 2 * len(sources)]
  # As large as the whole: the result of a gather, otherwise the operand.
  return results if kind == "all-gather" or not sources else sources


def shares(
  computations: hlo_text.Computations,
  devices_per_host: int,
  kind: hardware.Hardware | None,
) -> dict[str, float]:
  """Channel → share of its bytes that is hidden, of each asynchronous collective.

  Args:
    computations: of a scheduled program.
    devices_per_host: devices i and j share a host if i // n == j // n.
    kind: of the devices; None: nothing is hidden.
  """
  found: dict[str, float] = {}
  for name in computations.keys() - _fused(computations):
    found |= _Schedule(computations, name, devices_per_host, kind).shares()
  return found


def _fused(computations: hlo_text.Computations) -> set[str]:
  """Computations that are a part of one instruction of another."""
  names: set[str] = set()
  for instructions in computations.values():
    for instruction in instructions:
      if instruction.opcode not in ("while", "call", "conditional"):
        names.update(hlo_text.called(instruction))
  return names


@dataclasses.dataclass
class _Flight:
  """A collective on its way: seconds that its bytes need, and those still open."""

  seconds: float
  open: float


class _Schedule:
  """The instructions of one computation, in the order in which they run."""

  def __init__(
    self,
    computations: hlo_text.Computations,
    name: str,
    devices_per_host: int,
    kind: hardware.Hardware | None,
  ):
    self._computations = computations
    self._instructions = computations[name]
    self._name = name
    self._devices_per_host = devices_per_host
    self._kind = kind
    self._seconds: dict[str, float] = {}
    self._products: list[float] = []  # seconds of each instruction's
    self._first: dict[str, int] = {}
    self._last: dict[str, int] = {}
    by_name: dict[str, set[str]] = {}
    for place, instruction in enumerate(self._instructions):
      channels, seconds = self._inside(instruction, name)
      if instruction.opcode.endswith("-done"):
        channels |= by_name.get(next(iter(instruction.operands), ""), set())
      by_name[instruction.name] = channels
      self._products.append(seconds)
      for one in channels:
        self._first.setdefault(one, place)
        self._last[one] = place

  def _inside(
    self, instruction: hlo_text.Instruction, name: str
  ) -> tuple[set[str], float]:
    """Channels, and seconds of products, of an instruction and of what is fused."""
    if instruction.opcode.removesuffix("-start") in KINDS:
      number = channel(instruction)
      if number is None or not self._set_seconds(number, instruction, name):
        return set(), 0
      return {number}, 0
    if instruction.opcode in ("dot", "convolution"):
      return set(), self._product_seconds(instruction, name)
    if instruction.opcode not in PARTS:
      return set(), 0
    found: set[str] = set()
    total = 0.0
    for called in hlo_text.called(instruction):
      for one in self._computations[called]:
        channels, products = self._inside(one, called)
        found |= channels
        total += products
    return found, total

  def _product_seconds(self, product: hlo_text.Instruction, name: str) -> float:
    """How long a product takes at HIGHEST of the peak; 0 for unknown devices."""
    if self._kind is None:
      return 0.0
    # As products in float32 are computed, see `model.products`.
    whole = "operand_precision={highest" in product.text
    peak = self._kind.peak("float32" if whole else "bfloat16")
    return flops(product, self._computations[name]) / (HIGHEST * peak)

  def _set_seconds(
    self, number: str, instruction: hlo_text.Instruction, name: str
  ) -> bool:
    """Notes how long a collective takes; returns whether it moves anything."""
    moved = parts(instruction, name, self._computations, self._devices_per_host)
    if self._kind is not None:
      self._seconds[number] = sum(
        (p.sent_bytes - p.network_bytes) / self._kind.link
        + p.network_bytes / self._kind.network
        for p in moved
      )
    return bool(moved)

  def shares(self) -> dict[str, float]:
    """Channel → hidden share, of each collective that ends after it starts."""
    starts, ends = collections.defaultdict(list), collections.defaultdict(list)
    for number, place in self._first.items():
      if self._last[number] > place:
        starts[place].append(number)
        ends[self._last[number]].append(number)
    flights: dict[str, _Flight] = {}
    found: dict[str, float] = {}
    for place, left in enumerate(self._products):
      for number in starts[place]:
        seconds = self._seconds.get(number, 0.0)
        flights[number] = _Flight(seconds, seconds)
      for flight in flights.values():
        used = min(left, flight.open)
        flight.open -= used
        left -= used
      for number in ends[place]:
        flight = flights.pop(number)
        found[number] = 1 - flight.open / flight.seconds if flight.seconds else 0.0
    return found


def flops(product: hlo_text.Instruction, neighbours: list[hlo_text.Instruction]) -> int:
  """FLOPs of a dot or of a convolution, as XLA writes products for TPUs.

  Args:
    product: the instruction.
    neighbours: all instructions of its computation.
  """
  shapes = {i.name: i.result for i in neighbours}
  left, right = (
    next(iter(hlo_text.arrays(shapes.get(name, ""))), ("", ()))[1]
    for name in product.operands[:2]
  )
  ((_, out),) = hlo_text.arrays(product.result)
  if product.opcode == "dot":
    contracted = hlo_text.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.text)
    sizes = [left[int(axis)] for axis in (contracted or "").split(",") if axis]
    return 2 * math.prod(out) * math.prod(sizes)
  return _convolution(product.text, left, right, out)


def _convolution(
  text: str, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]
) -> int:
  """FLOPs of a convolution, without those on padding."""
  names = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
  of = lambda shape, labels: dict(zip(labels, shape, strict=True))
  x, kernel, y = (
    of(s, n) for s, n in zip((left, right, out), names.groups(), strict=True)
  )
  window = re.search(r"window=\{([^}]*)\}", text)
  field = dict(one.split("=") for one in window[1].split()) if window else {}
  axes = sorted(label for label in y if label.isdigit())

  def values(name: str, default: str) -> list[str]:
    return field.get(name, "x".join([default] * len(axes))).split("x")

  total = 2 * y["b"] * y["f"] * kernel["i"]
  for i, axis in enumerate(axes):
    low = int(values("pad", "0_0")[i].split("_")[0])
    stride, stretch = int(values("stride", "1")[i]), int(values("rhs_dilate", "1")[i])
    spread = int(values("lhs_dilate", "1")[i])
    reach = (x[axis] - 1) * spread
    places = (
      o * stride + w * stretch - low
      for o in range(y[axis])
      for w in range(kernel[axis])
    )
    total *= sum(0 <= place <= reach and place % spread == 0 for place in places)
  return total

"""Collectives of a compiled program, from the text of its optimized HLO.

XLA's own cost analysis counts the body of a loop once. Here a loop counts as
often as it runs: by the trip count that XLA notes, otherwise by the constant that its
condition compares with.
"""

import collections
import dataclasses

from skipalign_jax.planning import hlo_text, overlap
from skipalign_jax.runtime import hardware


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind, dtype and reach in one run of the program.

  Attributes:
    kind: "all-gather", …
    dtype: of the data on the wire, as XLA names it: "bf16", "f32".
    crosses_hosts: a group spans several hosts.
    count: how often one runs.
    payload_bytes: the whole arrays gathered, reduced or sent, on each device.
    sent_bytes: the bytes that a device sends with ring algorithms.
    network_bytes: of those, sent to other hosts.
    asynchronous_bytes: of those, sent by collectives that start and end in two
      places of the schedule.
    hidden_bytes: of those, what can be sent while products between the two places
      run; see `overlap`.
  """

  kind: str
  dtype: str
  crosses_hosts: bool
  count: int
  payload_bytes: float
  sent_bytes: float
  network_bytes: float
  asynchronous_bytes: float
  hidden_bytes: float


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Collectives of a program.

  Attributes:
    collectives: largest first.
    unknown_loops: loops with collectives whose trip count depends on data; each
      counts once.
  """

  collectives: tuple[Collective, ...]
  unknown_loops: int


def traffic(
  text: str, devices_per_host: int, kind: hardware.Hardware | None = None
) -> Traffic:
  """Collective bytes per device and run, from `compiled.as_text()`.

  Args:
    text: optimized HLO of an SPMD program.
    devices_per_host: devices i and j share a host if i // n == j // n.
    kind: of the devices, whose speed decides what products hide; None: nothing.

  Raises:
    ValueError: not an HLO module, or a group that cannot be read.
  """
  computations, entry = hlo_text.parse(text)
  if entry is None:
    raise ValueError("no ENTRY computation: not the text of an HLO module")
  hidden = overlap.shares(computations, devices_per_host, kind)
  sums = _Sums(computations, devices_per_host, hidden)
  sums.visit(entry, times=1, fused=False)
  found = [
    Collective(*key, int(count), *values)
    for key, (count, *values) in sums.by_kind.items()
  ]
  found.sort(key=lambda c: (-c.sent_bytes, c.kind, c.dtype))
  return Traffic(tuple(found), sums.unknown_loops)


class _Sums:
  """Adds up the collectives of a program, from its entry on.

  Attributes:
    by_kind: (kind, dtype, crosses_hosts) → [count, payload bytes, sent bytes,
      network bytes, asynchronous bytes, hidden bytes].
    unknown_loops: see `Traffic`.
  """

  def __init__(
    self,
    computations: hlo_text.Computations,
    devices_per_host: int,
    hidden: dict[str, float],
  ):
    self.by_kind: dict[tuple[str, str, bool], list[float]] = collections.defaultdict(
      lambda: [0, 0.0, 0.0, 0.0, 0.0, 0.0]
    )
    self.unknown_loops = 0
    self._computations = computations
    self._devices_per_host = devices_per_host
    self._hidden = hidden
    self._channels: set[str | None] = set()

  def visit(self, name: str, times: int, fused: bool) -> bool:
    """Adds the collectives of a computation; returns whether it has any.

    Args:
      name: of the computation.
      times: how often it runs.
      fused: it runs inside a fusion.
    """
    found = False
    for instruction in self._computations[name]:
      if instruction.opcode.removesuffix("-start") in overlap.KINDS:
        found = True
        self._add(instruction, name, times, fused)
      elif instruction.opcode == "while":
        found |= self._visit_loop(instruction, name, times)
      elif instruction.opcode in ("call", "conditional", *overlap.PARTS):
        inner = fused or instruction.opcode in overlap.PARTS
        for called in hlo_text.called(instruction):
          found |= self.visit(called, times, inner)
    return found

  def _visit_loop(self, loop: hlo_text.Instruction, name: str, times: int) -> bool:
    trips = hlo_text.trips(loop, self._computations, name)
    found = False
    for part in ("body", "condition"):
      called = hlo_text.search(rf"\b{part}=%?([\w.-]+)", loop.text)
      found |= self.visit(called, times * (trips or 1), fused=False)
    self.unknown_loops += found and trips is None
    return found

  def _add(
    self, instruction: hlo_text.Instruction, name: str, times: int, fused: bool
  ) -> None:
    # XLA for TPUs cuts one collective into pieces that run inside several fusions,
    # also of inner loops: they share a channel; the first one counts.
    channel = overlap.channel(instruction)
    if fused and channel in self._channels and "chain_id=" in instruction.text:
      return
    self._channels.add(channel)
    share = self._hidden.get(channel or "")
    parts = overlap.parts(instruction, name, self._computations, self._devices_per_host)
    for part in parts:
      sums = self.by_kind[part.kind, part.dtype, part.crosses_hosts]
      sums[0] += times
      sums[1] += times * part.payload_bytes
      sums[2] += times * part.sent_bytes
      sums[3] += times * part.network_bytes
      sums[4] += times * part.sent_bytes * (share is not None)
      sums[5] += times * part.sent_bytes * (share or 0.0)

"""Collectives of a compiled program, from the text of its optimized HLO.

XLA's own cost analysis counts the body of a loop once. Here a loop counts as
often as it runs: by the trip count that XLA notes, otherwise by the constant that its
condition compares with.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable

from skipalign_jax.planning import replica_groups

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
  "ragged-all-to-all",
)
BITS = {"pred": 8, "token": 0}  # the names of the others contain their bits

_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?(?P<name>[\w.-]+) = (?P<rest>.*)$")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\]")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9-]*)\(")
_CALLED = re.compile(
  r"\b(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


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
  """

  kind: str
  dtype: str
  crosses_hosts: bool
  count: int
  payload_bytes: float
  sent_bytes: float


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


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  result: str  # its shape, as text
  opcode: str
  operands: tuple[str, ...]
  text: str


def traffic(text: str, devices_per_host: int) -> Traffic:
  """Collective bytes per device and run, from `compiled.as_text()`.

  Args:
    text: optimized HLO of an SPMD program.
    devices_per_host: devices i and j share a host if i // n == j // n.

  Raises:
    ValueError: not an HLO module, or a group that cannot be read.
  """
  computations, entry = _parse(text)
  if entry is None:
    raise ValueError("no ENTRY computation: not the text of an HLO module")
  sums = _Sums(computations, devices_per_host)
  sums.visit(entry, times=1, fused=False)
  found = [
    Collective(*key, int(count), payload, sent)
    for key, (count, payload, sent) in sums.by_kind.items()
  ]
  found.sort(key=lambda c: (-c.sent_bytes, c.kind, c.dtype))
  return Traffic(tuple(found), sums.unknown_loops)


class _Sums:
  """Adds up the collectives of a program, from its entry on.

  Attributes:
    by_kind: (kind, dtype, crosses_hosts) → [count, payload bytes, sent bytes].
    unknown_loops: see `Traffic`.
  """

  def __init__(
    self, computations: dict[str, list[_Instruction]], devices_per_host: int
  ):
    self.by_kind: dict[tuple[str, str, bool], list[float]] = collections.defaultdict(
      lambda: [0, 0.0, 0.0]
    )
    self.unknown_loops = 0
    self._computations = computations
    self._devices_per_host = devices_per_host
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
      if instruction.opcode.removesuffix("-start") in KINDS:
        found = True
        self._add(instruction, name, times, fused)
      elif instruction.opcode == "while":
        found |= self._visit_loop(instruction, name, times)
      elif instruction.opcode in ("call", "fusion", "conditional", "async-start"):
        inner = fused or instruction.opcode in ("fusion", "async-start")
        for called in _called(instruction):
          found |= self.visit(called, times, inner)
    return found

  def _visit_loop(self, loop: _Instruction, name: str, times: int) -> bool:
    trips = _trips(loop, self._computations, name)
    found = False
    for part in ("body", "condition"):
      called = _search(rf"\b{part}=%?([\w.-]+)", loop.text)
      found |= self.visit(called, times * (trips or 1), fused=False)
    self.unknown_loops += found and trips is None
    return found

  def _add(self, instruction: _Instruction, name: str, times: int, fused: bool) -> None:
    # XLA for TPUs cuts one collective into pieces that run inside several fusions,
    # also of inner loops: they share a channel; the first one counts.
    channel = _search(r"channel_id=(\d+)", instruction.text)
    if fused and channel in self._channels and "chain_id=" in instruction.text:
      return
    self._channels.add(channel)
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
      kind = "reduce-scatter"
    groups = replica_groups.parse(instruction.text)
    crosses = any(
      len({device // self._devices_per_host for device in group}) > 1
      for group in groups
    )
    size = len(groups[0]) if groups else 1
    if kind == "collective-permute":
      size = 2
    if size == 1:
      return  # a group of one moves nothing
    share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(
      kind, (size - 1) / size
    )
    for dtype, count in _whole_arrays(instruction, kind, self._computations[name]):
      payload = count * bits(dtype) / 8
      sums = self.by_kind[kind, dtype, crosses]
      sums[0] += times
      sums[1] += times * payload
      sums[2] += times * payload * share


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str | None]:
  computations: dict[str, list[_Instruction]] = {}
  entry = current = None
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      current = header["name"]
      computations[current] = []
      if header["entry"]:
        entry = current
    elif current is not None and (found := _INSTRUCTION.match(line)):
      rest = re.sub(r"/\*.*?\*/", "", found["rest"])
      # Layouts contain brackets, and text that looks like calls: {1,0:T(8,128)S(1)}.
      rest = re.sub(r"\{[\d,]*(:[A-Z][^{}]*)?\}", "", rest, count=0)
      opcode = _OPCODE.search(rest)
      if opcode:
        operands = re.findall(r"%([\w.-]+)", _arguments(rest[opcode.end() - 1 :]))
        computations[current].append(
          _Instruction(
            found["name"],
            rest[: opcode.start(1)],
            opcode[1],
            tuple(operands),
            found["rest"],
          )
        )
  return computations, entry


def _arguments(text: str) -> str:
  """The parenthesis that `text` starts with."""
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return text[: i + 1]
  return text


def _called(instruction: _Instruction) -> Iterable[str]:
  yield from _CALLED.findall(instruction.text)
  branches = _search(r"branch_computations=\{([^}]*)\}", instruction.text)
  if branches:
    yield from re.findall(r"%?([\w.-]+)", branches)


def _search(pattern: str, text: str) -> str | None:
  found = re.search(pattern, text)
  return found and found[1]


def _trips(instruction, computations, inside) -> int | None:
  """How often a loop runs; None if it is not a constant."""
  noted = _TRIPS.search(instruction.text)
  if noted:
    return int(noted[1])
  condition = _search(r"\bcondition=%?([\w.-]+)", instruction.text)
  root, operands = _last(computations[condition], -1, computations)
  direction = _search(r"direction=(\w+)", root.text)
  if root.opcode != "compare" or direction not in ("LT", "LE", "NE"):
    return None
  counter, bound = operands
  if not counter or counter.opcode != "get-tuple-element" or not bound:
    return None
  index = int(_search(r"index=(\d+)", counter.text))
  end, start = _constant(bound), _start(instruction, computations[inside], index)
  body = computations[_search(r"\bbody=%?([\w.-]+)", instruction.text)]
  step = _step(body, index, computations)
  if end is None or step is None:
    return None
  return max(0, -(-(end - (start or 0) + (direction == "LE")) // step))


def _start(instruction, neighbours, index) -> int | None:
  """The first value of a loop's counter, if the caller passes a constant."""
  by_name = {i.name: i for i in neighbours}
  state = by_name.get(instruction.operands[0])
  if state is None or state.opcode != "tuple" or index >= len(state.operands):
    return None
  value = by_name.get(state.operands[index])
  while value is not None and value.opcode == "copy":
    value = by_name.get(value.operands[0])
  return value and _constant(value)


def _step(body, index, computations) -> int | None:
  """The step of a loop's counter per iteration (2 in a loop unrolled twice)."""
  if body[-1].opcode != "tuple":
    return None
  names = [i.name for i in body]
  at = names.index(body[-1].operands[index])
  while body[at].opcode == "copy":
    at = names.index(body[at].operands[0])
  value, operands = _last(body, at, computations)
  if value.opcode != "add":
    return None
  steps = [_constant(operand) for operand in operands if operand is not None]
  return next((step for step in steps if step), None)


def _last(instructions, at, computations):
  """Instruction `at` and its operands, looked up inside a fusion of just that."""
  outside = {i.name: i for i in instructions}
  found = instructions[at]
  if found.opcode not in ("fusion", "call"):
    return found, [outside.get(name) for name in found.operands]
  inside = computations[next(iter(_called(found)))]
  known = {i.name: i for i in inside}
  operands = []
  for name in inside[-1].operands:
    operand = known.get(name)
    if operand is not None and operand.opcode == "parameter":
      number = int(_search(r"parameter\((\d+)\)", operand.text))
      operand = outside.get(found.operands[number])
    operands.append(operand)
  return inside[-1], operands


def _constant(instruction: _Instruction) -> int | None:
  if instruction.opcode != "constant":
    return None
  value = _search(r"constant\((-?\d+)\)", instruction.text)
  return None if value is None else int(value)


def _whole_arrays(
  instruction: _Instruction, kind: str, neighbours: list[_Instruction]
) -> list[tuple[str, int]]:
  """(dtype, elements) of the whole arrays that a collective gathers or reduces."""
  shapes = {i.name: i.result for i in neighbours}
  sources = [a for name in instruction.operands for a in _arrays(shapes.get(name, ""))]
  results = _arrays(instruction.result)
  if instruction.opcode.endswith("-start") and kind != "all-reduce":
    # The result also carries the operands, and for permutes two counters.
    results = results[len(sources) : 2 * len(sources)]
  # As large as the whole: the result of a gather, otherwise the operand.
  return results if kind == "all-gather" or not sources else sources


def bits(dtype: str) -> int:
  """Bits of one element of an XLA dtype, as "bf16" or "f8e4m3fn"."""
  if dtype in BITS:
    return BITS[dtype]
  return int(re.search(r"\d+", dtype)[0])


def _arrays(shape: str) -> list[tuple[str, int]]:
  """(dtype, elements) of each array in the text of a shape."""
  found = []
  for dtype, dims in _ARRAY.findall(shape):
    found.append((dtype, math.prod(int(d) for d in dims.split(",") if d)))
  return found

"""The text of an optimized HLO module: its computations, shapes and loops."""

import dataclasses
import re
from collections.abc import Iterable

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
class Instruction:
  """One line of a computation.

  Attributes:
    name: is unique in the computation.
    result: its shape, as text.
    opcode: "dot", "all-gather-start", …
    operands: names of other instructions.
    text: all of it after the name.
  """

  name: str
  result: str
  opcode: str
  operands: tuple[str, ...]
  text: str


Computations = dict[str, list[Instruction]]  # by name
Array = tuple[str, tuple[int, ...]]  # dtype as XLA names it, and shape


def parse(text: str) -> tuple[Computations, str | None]:
  """The computations of a module, and the name of its entry; None without one."""
  computations: Computations = {}
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
          Instruction(
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


def called(instruction: Instruction) -> Iterable[str]:
  """Names of the computations that an instruction runs."""
  yield from _CALLED.findall(instruction.text)
  branches = search(r"branch_computations=\{([^}]*)\}", instruction.text)
  if branches:
    yield from re.findall(r"%?([\w.-]+)", branches)


def search(pattern: str, text: str) -> str | None:
  """The first group of the first match; None without a match."""
  found = re.search(pattern, text)
  return found and found[1]


def trips(
  instruction: Instruction, computations: Computations, inside: str
) -> int | None:
  """How often a loop runs; None if it is not a constant.

  Args:
    instruction: the loop.
    computations: of the module.
    inside: name of the computation that has it.
  """
  noted = _TRIPS.search(instruction.text)
  if noted:
    return int(noted[1])
  condition = search(r"\bcondition=%?([\w.-]+)", instruction.text)
  root, operands = _last(computations[condition], -1, computations)
  direction = search(r"direction=(\w+)", root.text)
  if root.opcode != "compare" or direction not in ("LT", "LE", "NE"):
    return None
  counter, bound = operands
  if not counter or counter.opcode != "get-tuple-element" or not bound:
    return None
  index = int(search(r"index=(\d+)", counter.text))
  end, start = _constant(bound), _start(instruction, computations[inside], index)
  body = computations[search(r"\bbody=%?([\w.-]+)", instruction.text)]
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
  inside = computations[next(iter(called(found)))]
  known = {i.name: i for i in inside}
  operands = []
  for name in inside[-1].operands:
    operand = known.get(name)
    if operand is not None and operand.opcode == "parameter":
      number = int(search(r"parameter\((\d+)\)", operand.text))
      operand = outside.get(found.operands[number])
    operands.append(operand)
  return inside[-1], operands


def _constant(instruction: Instruction) -> int | None:
  if instruction.opcode != "constant":
    return None
  value = search(r"constant\((-?\d+)\)", instruction.text)
  return None if value is None else int(value)


def bits(dtype: str) -> int:
  """Bits of one element of an XLA dtype, as "bf16" or "f8e4m3fn"."""
  if dtype in BITS:
    return BITS[dtype]
  return int(re.search(r"\d+", dtype)[0])


def arrays(shape: str) -> list[Array]:
  """Each array in the text of a shape."""
  return [
    (dtype, tuple(int(d) for d in dims.split(",") if d))
    for dtype, dims in _ARRAY.findall(shape)
  ]

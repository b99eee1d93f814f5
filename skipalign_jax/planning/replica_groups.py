"""Which devices take part in a collective, from the text of HLO."""

import math
import re


def parse(text: str) -> list[list[int]]:
  """The devices of each group, or the (from, to) pairs of a permutation.

  Args:
    text: one collective, as XLA prints it.

  Raises:
    ValueError: not one of the known notations.
  """
  pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", text)
  if pairs:
    return _lists(pairs[1])
  explicit = re.search(r"replica_groups=\{(\{.*?\})\}", text)
  if explicit:
    return _lists(explicit[1])
  iota = re.search(rf"replica_groups=\[(\d+),(\d+)\]<={_IOTA}", text)
  if iota:
    return _cut(_iota(iota[3], iota[4]), int(iota[2]))
  named = re.search(
    rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{([^}}]*)\}}",
    text,
  )
  if named:
    axes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    names = list(axes)
    used = re.findall(r"'(\w+)'", named[4])
    dims = [int(size) for size in axes.values()]
    rest = [i for i, name in enumerate(names) if name not in used]
    flat = _transposed(dims, rest + [names.index(name) for name in used])
    if named[2]:
      devices = _iota(named[2], named[3])
      flat = [devices[place] for place in flat]
    return _cut(flat, math.prod(int(axes[name]) for name in used))
  raise ValueError(f"no group of devices in: {text[:300]}")


# "[4,2]T(1,0)": arange(8).reshape(4, 2).transpose(1, 0), flat.
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


def _iota(dims: str, order: str | None) -> list[int]:
  sizes = [int(d) for d in dims.split(",")]
  axes = [int(d) for d in order.split(",")] if order else list(range(len(sizes)))
  return _transposed(sizes, axes)


def _lists(text: str) -> list[list[int]]:
  return [
    [int(i) for i in group.split(",") if i.strip()]
    for group in re.findall(r"\{([^{}]*)\}", text)
  ]


def _transposed(dims: list[int], order: list[int]) -> list[int]:
  """arange(∏ dims).reshape(dims).transpose(order), flat."""
  strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
  flat = [0]
  for axis in order:
    flat = [base + i * strides[axis] for base in flat for i in range(dims[axis])]
  return flat


def _cut(flat: list[int], size: int) -> list[list[int]]:
  return [flat[i : i + size] for i in range(0, len(flat), size)]

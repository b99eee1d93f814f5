"""Floating-point operations that a program executes: those of its products.

What the model needs is in `model.flops`. A multiply-add is two operations.

Shapes: B batch, L length, S key length, N heads, K kv heads, H head dim.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from jax.extend import core

from skipalign_jax.model import flops


class UnknownPrimitiveError(RuntimeError):
  """A primitive that may contain products, and that has no rule for counting them."""


def executed(jaxpr: core.ClosedJaxpr) -> int:
  """FLOPs of products that a traced program runs, over all devices.

  Loops count as often as they run (a while loop of unknown trips once), a cond as
  its most expensive branch, code inside shard_map once for each device of its axes.
  Work that the partitioner repeats on several devices is not included.

  Raises:
    UnknownPrimitiveError: a kernel or custom call without an entry in KERNELS.
  """
  return _count(jaxpr.jaxpr)


def _count(jaxpr: Any) -> int:
  return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name in KERNELS:
    return KERNELS[name](equation)
  if name == "pallas_call":
    return _pallas(equation)
  if name == "cond":
    branches = [_count(branch.jaxpr) for branch in params["branches"]]
    platforms = params.get("branches_platforms")
    # lax.platform_dependent: a plan is for accelerators, cpu.py for CPUs.
    return branches[platforms.index(None)] if platforms else max(branches)
  times = 1
  if name == "scan":
    times = params["length"]
  elif name == "shard_map":
    mesh = params["mesh"]
    times = math.prod(mesh.shape[axis] for axis in params["newly_manual_axes"])
  inner = list(_inner(params))
  if not inner and _OPAQUE.search(name):
    raise UnknownPrimitiveError(
      f"cannot count the FLOPs of {name}: add it to KERNELS in "
      "planning/executed_flops.py"
    )
  return times * sum(map(_count, inner))


# A primitive with such a name, without a program inside and without an entry in
# KERNELS, may contain products: better to stop than to count nothing.
_OPAQUE = re.compile(
  r"call|custom|ffi|callback|attention|conv_general|dot|einsum|fft|cholesky|"
  r"triangular|eig|svd|qr$|lu$"
)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The programs among an equation's parameters."""
  for value in params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part


def _dot_general(equation: Any) -> int:
  """2 · (elements of the result) · (elements contracted)."""
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  return (
    2
    * math.prod(equation.outvars[0].aval.shape)
    * math.prod(left[axis] for axis in contracted)
  )


def _cudnn(products: int) -> Callable[[Any], int]:
  """cuDNN attention: `products` of (pairs × H) for each head.

  Its kernels skip the keys after a query if they know the mask.
  """

  def count(equation: Any) -> int:
    layout = equation.params["layout"]
    places, heads = (1, 2) if getattr(layout, "value", layout) == 0 else (2, 1)
    query, key = (variable.aval.shape for variable in equation.invars[:2])
    B, L, N, H = query[0], query[places], query[heads], query[3]
    S = key[places]
    causal = "CAUSAL" in str(equation.params["mask_type"]).upper()
    pairs = flops.causal_pairs(L) if causal and L == S else L * S
    return products * 2 * B * N * pairs * H

  return count


# Scores and weighted values; backward: scores again and four gradients.
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5

KERNELS: dict[str, Callable[[Any], int]] = {
  "dot_general": _dot_general,
  "dot_product_attention_fwd_wrapper": _cudnn(FORWARD_PRODUCTS),
  "dot_product_attention_bwd_wrapper": _cudnn(BACKWARD_PRODUCTS),
}

# Names of Pallas kernels → products of (causal pairs × H) per head. Splash computes dk
# and dv in one kernel (scores, dv, dp, dk), and dq in the same or in another one
# (scores, dp, dq).
PALLAS = (
  (r"splash_\w*fwd", lambda outputs: FORWARD_PRODUCTS),
  (r"splash_\w*dkv", lambda outputs: 4 if outputs == 2 else BACKWARD_PRODUCTS),
  (r"splash_\w*dq", lambda outputs: 3),
  (r"mha_forward", lambda outputs: FORWARD_PRODUCTS),
  (r"mha_preprocess_backward", lambda outputs: 0),  # no products of matrices
  (r"mha_backward", lambda outputs: 7),  # dq computes the scores and dp again
)


def _pallas(equation: Any) -> int:
  """FLOPs of a Pallas kernel, by its own estimate or by its name."""
  estimate = equation.params.get("cost_estimate")
  if estimate is not None:
    return int(estimate.flops)
  name = str(equation.params.get("name_and_src_info", equation.params.get("name", "")))
  for pattern, products in PALLAS:
    if re.search(pattern, name):
      # The query is the array with most heads: [batch…, N, L, H], or for Triton's mha
      # [B, L, N, H]. Outputs with fewer axes are scratch.
      arrays = [v.aval.shape for v in equation.invars if v.aval.dtype.kind in "fV"]
      query = max(arrays, key=lambda shape: (len(shape), math.prod(shape[:-2])))
      outputs = sum(v.aval.ndim >= len(query) for v in equation.outvars)
      *rows, L, H = query
      if name.startswith("mha"):
        rows[-1], L = L, rows[-1]
      return products(outputs) * 2 * math.prod(rows) * flops.causal_pairs(L) * H
  raise UnknownPrimitiveError(
    f"cannot count the FLOPs of the Pallas kernel {name!r}: add it to PALLAS in "
    "planning/executed_flops.py"
  )

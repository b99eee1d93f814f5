"""What only CPUs need. Delete this file when XLA's CPU backend no longer does.

Programs for other platforms contain none of it. The products choose their form when a
program is lowered. Values for the backward pass are bits (`to_bits`) or not from the
moment they are traced, since all forms of a program must agree on their dtype: by the
platform of the mesh that is set, and without a mesh by JAX's default platform. The
values are the same either way, and compiled for A100 and TPU v5e the casts would cost
nearly nothing (benchmarks/bit_casts_202611.md).
"""

import functools
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import ad_checkpoint
from jax.experimental import layout

from skipalign_jax.model import sharding

FAST_ROWS = 2  # rows from which on a bf16 product is fast
ENOUGH = 128  # FLOPs per value of the operands from which on casting them pays


@functools.cache
def has_bf16_products(cpuinfo: str = "/proc/cpuinfo") -> bool:
  """Whether this processor multiplies bf16; True where that is unknown."""
  try:
    lines = pathlib.Path(cpuinfo).read_text(encoding="utf-8").splitlines()
  except OSError:
    return True
  flags = next((line.split() for line in lines if line.startswith("flags")), None)
  return flags is None or not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def for_product(
  equation: str, left: jax.Array, right: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The operands of an einsum, in the dtype in which this processor multiplies fast.

  Without instructions for bf16, a large product of bf16 takes up to twice as long as
  one of the same values in fp32 (benchmarks/cast_products.py). Products and sums are
  in fp32 either way.
  """
  if {left.dtype, right.dtype} != {jnp.dtype(jnp.bfloat16)} or "..." in equation:
    return left, right
  if sharding.platform() != "cpu" or has_bf16_products():
    return left, right
  sizes: dict[str, int] = {}
  for axes, x in zip(equation.split("->")[0].split(","), (left, right), strict=True):
    sizes |= zip(axes, x.shape, strict=True)
  if 2 * math.prod(sizes.values()) < ENOUGH * (left.size + right.size):
    return left, right
  # XLA drops a cast to bf16 that is followed by one to fp32, but not this rounding.
  cast = lambda x: jax.lax.reduce_precision(x.astype(jnp.float32), 8, 7)
  return cast(left), cast(right)


def weight_gradient(
  d_out_TO: jax.Array, x_TI: jax.Array, product: Callable[..., jax.Array]
) -> jax.Array:
  """d_weight_OI = d_outᵀ x for T tokens, by `product(equation, left, right)`.

  XLA's fast bf16 product on CPUs needs a left operand that contracts its last,
  contiguous dimension. XLA folds a plain transpose back into the product, but not one
  with a layout (twice as fast: benchmarks/weight_gradient.py).
  """

  plain = lambda d_out_TO, x_TI: product("to,ti->oi", d_out_TO, x_TI)

  def laid_out(d_out_TO, x_TI):
    d_out_OT = layout.with_layout_constraint(d_out_TO.T, layout.Layout((0, 1)))
    return product("ot,ti->oi", d_out_OT, x_TI)

  if x_TI.dtype != jnp.bfloat16:
    return plain(d_out_TO, x_TI)
  return jax.lax.platform_dependent(d_out_TO, x_TI, cpu=laid_out, default=plain)


def with_sum(
  product: Callable[[jax.Array, jax.Array], jax.Array], weight: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """product(weight, v), and the sum of weight over its last axis.

  On CPUs the sum is one more column of v, all ones: a sum of its own would take half as
  long as the product, and its second use of the weights keeps XLA from computing them
  in the same pass as their rounding to bf16 (benchmarks/softmax_sums.py).

  Args:
    product: of weights in v's dtype and v; contracts the weights' last axis, keeps v's.
    weight: fp32, not negative.
    v: values, in the compute dtype.

  Returns:
    fp32, the second with an axis of one at the end.
  """
  if sharding.platform() != "cpu":
    # Computed once and kept in its own dtype: memory traffic dominates here.
    weight = jax.lax.optimization_barrier(weight.astype(v.dtype))
    total = jnp.sum(weight, axis=-1, keepdims=True, dtype=jnp.float32)
    return product(weight, v), total
  if v.dtype == jnp.bfloat16:
    # Ties away from zero. Within one pass, XLA's own cast takes as long as exp again.
    bits = jax.lax.bitcast_convert_type(weight, jnp.uint32) + 0x8000
    weight = from_bits((bits >> 16).astype(jnp.uint16))
  v = jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)
  out = product(weight, v)
  return out[..., :-1], out[..., -1:]


def few_rows(product: Callable[[jax.Array], jax.Array], x_TI: jax.Array) -> jax.Array:
  """product(x) for T tokens, padded to FAST_ROWS rows.

  A bf16 product of one row converts the whole matrix to fp32 first, and takes several
  times as long as one of two rows (benchmarks/one_row.py).
  """
  T = x_TI.shape[0]
  if x_TI.dtype != jnp.bfloat16 or T >= FAST_ROWS:
    return product(x_TI)
  padded = lambda x_TI: product(jnp.pad(x_TI, ((0, FAST_ROWS - T), (0, 0))))[:T]
  return jax.lax.platform_dependent(x_TI, cpu=padded, default=product)


def to_bits(x: jax.Array) -> jax.Array:
  """bf16 as uint16, anything else as it is.

  On CPUs, XLA reads or updates a part of a bf16 array by converting all of it to fp32
  (and back); of an integer array it reads or updates only the part.
  """
  if x.dtype != jnp.bfloat16:
    return x
  return jax.lax.bitcast_convert_type(x, jnp.uint16)


def bits_dtype(dtype: jnp.dtype) -> jnp.dtype:
  """The dtype of `to_bits` of an array."""
  return jnp.dtype(jnp.uint16) if dtype == jnp.bfloat16 else dtype


def from_bits(x: jax.Array) -> jax.Array:
  """Undoes `to_bits`."""
  if x.dtype != jnp.uint16:
    return x
  return jax.lax.bitcast_convert_type(x, jnp.bfloat16)


def named(x: jax.Array, name: str) -> jax.Array:
  """x itself, under a name by which remat policies keep it for the backward pass.

  A scan stacks the kept values of its layers one by one, so CPUs keep their bits (see
  `to_bits`). Bits have no gradient: for use in gradient rules.
  """
  if sharding.platform() != "cpu":
    return ad_checkpoint.checkpoint_name(x, name)
  return from_bits(ad_checkpoint.checkpoint_name(to_bits(x), name))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def named_with_gradient(x: jax.Array, name: str) -> jax.Array:
  """`named`, for use outside of gradient rules."""
  return named(x, name)


named_with_gradient.defvjp(
  lambda x, name: (named(x, name), None), lambda name, _, d_x: (d_x,)
)

"""What only CPUs need. Delete this file when XLA's CPU backend no longer does."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import ad_checkpoint
from jax.experimental import layout


def weight_gradient(
  d_out_TO: jax.Array, x_TI: jax.Array, product: Callable[..., jax.Array]
) -> jax.Array:
  """d_weight_OI = d_outᵀ x for T tokens, by `product(equation, left, right)`.

  XLA's fast bf16 product on CPUs wants a left operand that contracts its last,
  contiguous dimension. A plain transpose is folded back into the product; a
  transpose with a layout stays (twice as fast: benchmarks/weight_gradient.py).
  """

  plain = lambda d_out_TO, x_TI: product("to,ti->oi", d_out_TO, x_TI)

  def laid_out(d_out_TO, x_TI):
    d_out_OT = layout.with_layout_constraint(d_out_TO.T, layout.Layout((0, 1)))
    return product("ot,ti->oi", d_out_OT, x_TI)

  if x_TI.dtype != jnp.bfloat16:
    return plain(d_out_TO, x_TI)
  return jax.lax.platform_dependent(d_out_TO, x_TI, cpu=laid_out, default=plain)


def named(x: jax.Array, name: str) -> jax.Array:
  """x itself; `name` tells remat policies that it may be kept for the backward pass.

  Kept bf16 values are stacked over layers by a scan, and XLA rewrites a whole bf16
  stack to fp32 and back in every iteration on CPUs. So their bits are kept, which
  costs nothing elsewhere. Bits have no gradient: for use in gradient rules.
  """
  if x.dtype != jnp.bfloat16:
    return ad_checkpoint.checkpoint_name(x, name)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
  bits = ad_checkpoint.checkpoint_name(bits, name)
  return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def named_with_gradient(x: jax.Array, name: str) -> jax.Array:
  """`named`, for use outside of gradient rules."""
  return named(x, name)


named_with_gradient.defvjp(
  lambda x, name: (named(x, name), None), lambda name, _, d_x: (d_x,)
)

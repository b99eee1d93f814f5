"""Matrix products: operands in the compute dtype, sums in fp32."""

import jax
import jax.numpy as jnp

from skipalign_jax.model import cpu


def einsum(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
  """An einsum of two arrays with fp32 accumulation and an fp32 result.

  fp32 operands mean fp32 products, also where hardware would use fewer bits.
  """
  left, right = cpu.for_product(equation, left, right)
  return jnp.einsum(
    equation,
    left,
    right,
    preferred_element_type=jnp.float32,
    precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
  )

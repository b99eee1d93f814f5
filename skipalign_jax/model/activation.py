"""SwiGLU (Shazeer, 2002.05202): silu(gate) · up, inside in fp32.

Shapes: F width of the MLP.
"""

import jax
import jax.numpy as jnp

from skipalign_jax.model import sharding


@jax.custom_vjp
def swiglu(gate_BLF: jax.Array, up_BLF: jax.Array) -> jax.Array:
  """silu(gate) · up, in their dtype. The backward pass keeps these two alone."""
  return _forward(gate_BLF, up_BLF)[0]


def _forward(gate_BLF, up_BLF):
  gate32_BLF, up32_BLF = gate_BLF.astype(jnp.float32), up_BLF.astype(jnp.float32)
  out_BLF = jax.nn.silu(gate32_BLF) * up32_BLF
  return out_BLF.astype(gate_BLF.dtype), (gate_BLF, up_BLF)


def _backward(residuals, d_out_BLF):
  dtype = d_out_BLF.dtype
  if sharding.platform() != "gpu":
    # Without the barrier XLA for TPUs keeps fp32 values of the forward pass; with it
    # products hide less of the traffic on GPUs (benchmarks/overlap.py).
    residuals = jax.lax.optimization_barrier(residuals)
  gate_BLF, up_BLF, d_out_BLF = (x.astype(jnp.float32) for x in (*residuals, d_out_BLF))
  sigmoid_BLF = jax.nn.sigmoid(gate_BLF)
  silu_BLF = gate_BLF * sigmoid_BLF
  d_silu_BLF = sigmoid_BLF + silu_BLF * (1 - sigmoid_BLF)  # silu's derivative
  d_gate_BLF = d_out_BLF * up_BLF * d_silu_BLF
  return d_gate_BLF.astype(dtype), (d_out_BLF * silu_BLF).astype(dtype)


swiglu.defvjp(_forward, _backward)

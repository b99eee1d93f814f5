"""How weights that are not trained are stored: bf16, or quantised in tiles.

Quantised matrices are qwix's `QArray`s, whose integers XLA stores packed; 64 inputs
of an output share one fp32 scale, so nf4 and int4 take 4.5 bits per weight, int8 8.5.
qwix is imported only when a matrix is quantised: it is an extra.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from skipalign_jax import config as config_lib
from skipalign_jax.runtime import extras

Stored = Any  # a jax.Array, or a qwix.QArray of arrays

TILE = 64  # QLoRA's
# qwix scales the largest value of a tile to 127.5 or 7.5, halfway between two integers,
# where rounding differs between machines; with this factor it is 127 or 7.
HEADROOM = {"int8": 127.5 / 127, "int4": 7.5 / 7, "nf4": 1.0}


def check(storage: str) -> None:
  """Checks that weights can be stored in this form.

  Raises:
    UserError: an unknown storage, or its library is not installed.
  """
  config_lib.check_section("lora", {"base": storage})
  if storage != "bfloat16":
    extras.need("qwix", f"lora.base={storage}", "use lora.base=bfloat16")


def store(weight: jax.Array, storage: str) -> Stored:
  """A matrix [..., O, I] in its stored form.

  Quantised symmetrically, by the largest value of each tile of I. If TILE does not
  divide I, tiles have the greatest common divisor of both.
  """
  if storage == "bfloat16":
    return weight.astype(jnp.bfloat16)
  import qwix

  *channels, last = range(weight.ndim)
  return qwix.quantize(
    weight.astype(jnp.float32),
    storage,
    channelwise_axes=channels,
    tiled_axes={last: math.gcd(TILE, weight.shape[-1])},
    calibration_method=f"absmax,{HEADROOM[storage]}",
  )


def dense(stored: Stored, dtype: jnp.dtype | str) -> jax.Array:
  """The matrix in `dtype`; dequantised in fp32, rounded once."""
  if not hasattr(stored, "qvalue"):
    return stored.astype(dtype)
  import qwix

  return qwix.dequantize(stored).astype(dtype)


def num_bytes(tree: Any) -> int:
  """Bytes of all arrays (or abstract ones) of a tree, 4-bit integers packed."""
  return sum(math.prod(x.shape) * bits(x.dtype) for x in jax.tree.leaves(tree)) // 8


def bits(dtype: jnp.dtype) -> int:
  """Bits in which XLA stores a value; `itemsize` would give 8 for 4-bit integers."""
  if jnp.issubdtype(dtype, jnp.integer):
    return jnp.iinfo(dtype).bits
  return 8 * jnp.dtype(dtype).itemsize

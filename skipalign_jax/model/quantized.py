"""How weights that are not trained sit in memory: bf16, or quantised in tiles.

Quantised matrices are qwix's `QArray`s, whose integers XLA stores packed; 64 inputs
of an output share one fp32 scale, so nf4 and int4 take 4.5 bits a weight, int8 8.5.
qwix is imported only where a matrix is quantised: it is an extra.
"""

import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp

from skipalign_jax import config as config_lib
from skipalign_jax.runtime import errors

Stored = Any  # a jax.Array, or a qwix.QArray of arrays

TILE = 64  # QLoRA's
# qwix lays the largest integers of a tile halfway between two (127.5, 7.5), where
# rounding differs between machines; so much more room makes them 127 and 7.
HEADROOM = {"int8": 127.5 / 127, "int4": 7.5 / 7, "nf4": 1.0}


def check(storage: str) -> None:
  """Checks that weights can be stored so here.

  Raises:
    UserError: an unknown storage, or one whose library is not installed.
  """
  config_lib.check_section("lora", {"base": storage})
  if storage != "bfloat16" and importlib.util.find_spec("qwix") is None:
    raise errors.UserError(
      f"lora.base={storage} needs qwix: pip install -e '.[lora]'; or take "
      "lora.base=bfloat16, which needs nothing"
    )


def store(weight: jax.Array, storage: str) -> Stored:
  """A matrix [..., O, I] as it is kept.

  Quantised symmetrically, by the largest value of each tile of I; where TILE does not
  divide I, the largest common divisor does.
  """
  if storage == "bfloat16":
    return weight.astype(jnp.bfloat16)
  import qwix  # an extra; and only here is it needed

  *channels, last = range(weight.ndim)
  return qwix.quantize(
    weight.astype(jnp.float32),
    storage,
    channelwise_axes=channels,
    tiled_axes={last: math.gcd(TILE, weight.shape[-1])},
    calibration_method=f"absmax,{HEADROOM[storage]}",
  )


def dense(stored: Stored, dtype: jnp.dtype | str) -> jax.Array:
  """The matrix again; multiplied out in fp32, rounded once."""
  if not hasattr(stored, "qvalue"):
    return stored.astype(dtype)
  import qwix

  return qwix.dequantize(stored).astype(dtype)


def num_bytes(tree: Any) -> int:
  """Bytes of all arrays (or abstract ones) of a tree, 4-bit integers packed."""
  return sum(math.prod(x.shape) * bits(x.dtype) for x in jax.tree.leaves(tree)) // 8


def bits(dtype: jnp.dtype) -> int:
  """Bits that XLA stores a value in; `itemsize` says 8 for integers of 4."""
  if jnp.issubdtype(dtype, jnp.integer):
    return jnp.iinfo(dtype).bits
  return 8 * jnp.dtype(dtype).itemsize

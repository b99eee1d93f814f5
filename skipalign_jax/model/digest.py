"""Identifies weights on their devices, so that others of the same name are noticed.

`hf.adapters.digest` identifies those of a stored model, on the host, by reading all of
its files. This one takes weights as they are used, on any mesh, and moves none.
"""

import hashlib

import jax
import jax.numpy as jnp

from skipalign_jax.model import decoder


def of(params: decoder.Params) -> str:
  """A digest of the bits of each weight, in its dtype.

  Other weights have the same digest with a chance of about one in 2^32.
  """
  sums = jax.device_get(jax.tree.map(_sum_of_bits, params))
  found = hashlib.sha256()
  for path, value in jax.tree_util.tree_leaves_with_path(sums):
    found.update(f"{jax.tree_util.keystr(path)} {int(value)}\n".encode())
  return found.hexdigest()[:16]


@jax.jit
def _sum_of_bits(x: jax.Array) -> jax.Array:
  """uint32 sum of a hash of each value's bits, times an odd hash of its place.

  Whole numbers, modulo 2^32: no order of summation changes it.
  """
  bits = x.view(f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place * jnp.uint32(size) + along
  return jnp.sum(_mixed(bits) * (_mixed(place) | 1), dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
  """A hash of each number; 0 stays 0."""
  x = (x ^ x >> 16) * jnp.uint32(0x7FEB352D)
  x = (x ^ x >> 15) * jnp.uint32(0x846CA68B)
  return x ^ x >> 16

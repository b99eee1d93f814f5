"""Causal attention within segments.

Shapes: B batch, L query length, S key length, N heads, K kv heads, G = N/K
query heads a kv head, H head dim.

Who may attend is decided by array order and segment ids alone. Positions act
through the rotated queries and keys only, so skipped positions leave the mask
bit-identical.
"""

import functools

import jax
import jax.numpy as jnp

QUERY_BLOCK = 512


def mask(
  query_index_L: jax.Array,
  query_segments_BL: jax.Array,
  key_segments_BS: jax.Array,
) -> jax.Array:
  """may_attend_BLS: the key's array index is no later, and same segment."""
  key_index_S = jnp.arange(key_segments_BS.shape[1])
  causal_LS = query_index_L[:, None] >= key_index_S[None, :]
  same_BLS = query_segments_BL[:, :, None] == key_segments_BS[:, None, :]
  return causal_LS[None] & same_BLS


def plain(
  q_BLNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BLS: jax.Array
) -> jax.Array:
  """Softmax attention with all L×S scores at once; softmax in fp32.

  Returns:
    out_BLNH in q's dtype. Rows that may attend to nothing must not be used.
  """
  B, L, N, H = q_BLNH.shape
  K = k_BSKH.shape[2]
  q_BLKGH = q_BLNH.reshape(B, L, K, N // K, H)
  product = functools.partial(
    jnp.einsum, preferred_element_type=jnp.float32, precision=precision(q_BLNH.dtype)
  )
  score_BKGLS = product("blkgh,bskh->bkgls", q_BLKGH, k_BSKH) * H**-0.5
  score_BKGLS = jnp.where(mask_BLS[:, None, None], score_BKGLS, -1e30)
  weight_BKGLS = jax.nn.softmax(score_BKGLS, axis=-1).astype(v_BSKH.dtype)
  out_BLKGH = product("bkgls,bskh->blkgh", weight_BKGLS, v_BSKH)
  return out_BLKGH.reshape(B, L, N, H).astype(q_BLNH.dtype)


def blockwise(
  q_BLNH: jax.Array,
  k_BLKH: jax.Array,
  v_BLKH: jax.Array,
  segment_ids_BL: jax.Array,
) -> jax.Array:
  """Self-attention over blocks of queries.

  Keys ahead of a block are never computed, and the backward pass recomputes a
  block's scores, so at most one block of them (512 × L) is alive.
  """
  L = q_BLNH.shape[1]

  @jax.checkpoint
  def block(q, k, v, query_index, query_segments, key_segments):
    return plain(q, k, v, mask(query_index, query_segments, key_segments))

  outs = []
  for start in range(0, L, QUERY_BLOCK):
    end = min(start + QUERY_BLOCK, L)
    outs.append(
      block(
        q_BLNH[:, start:end],
        k_BLKH[:, :end],
        v_BLKH[:, :end],
        jnp.arange(start, end),
        segment_ids_BL[:, start:end],
        segment_ids_BL[:, :end],
      )
    )
  return jnp.concatenate(outs, axis=1)


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
  """fp32 compute means fp32 products, also where hardware would use fewer bits."""
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None

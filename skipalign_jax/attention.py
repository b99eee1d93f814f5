"""Causal attention within segments.

Shapes: B batch, L query length, S key length, N heads, K kv heads, G = N/K
query heads a kv head, H head dim, C queries of a block, T = G·C.

Who may attend is decided by array order and segment ids alone. Positions act
through the rotated queries and keys only, so skipped positions leave the mask
bit-identical.
"""

import jax
import jax.numpy as jnp

MIN_BLOCK, MAX_BLOCKS = 256, 32  # queries of a block, blocks of a row
MASKED = -1e30


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
  score_BKGLS = _product("blkgh,bskh->bkgls", q_BLKGH, k_BSKH) * H**-0.5
  score_BKGLS = jnp.where(mask_BLS[:, None, None], score_BKGLS, MASKED)
  weight_BKGLS = jax.nn.softmax(score_BKGLS, axis=-1).astype(v_BSKH.dtype)
  out_BLKGH = _product("bkgls,bskh->blkgh", weight_BKGLS, v_BSKH)
  return out_BLKGH.reshape(B, L, N, H).astype(q_BLNH.dtype)


def blockwise(
  q_BLNH: jax.Array,
  k_BLKH: jax.Array,
  v_BLKH: jax.Array,
  segment_ids_BL: jax.Array,
) -> jax.Array:
  """Self-attention that holds the scores of one block of queries at a time.

  Equal to `plain` under the causal segment mask. Keys ahead of a block are
  never computed. The backward pass keeps only the log-sum-exp of each query and
  makes the scores again, as FlashAttention (2205.14135) does.
  """
  B, L, N, H = q_BLNH.shape
  K = k_BLKH.shape[2]
  q_BKGLH = q_BLNH.reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
  k_BKLH, v_BKLH = k_BLKH.swapaxes(1, 2), v_BLKH.swapaxes(1, 2)
  out_BKGLH = _blockwise(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL)
  return out_BKGLH.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


@jax.custom_vjp
def _blockwise(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL):
  return _forward(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL)[0]


def _forward(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL):
  B, K, G, L, H = q_BKGLH.shape
  outs, log_sums = [], []
  for start, end in _blocks(L):
    C = end - start
    q_BKTH = q_BKGLH[:, :, :, start:end].reshape(B, K, G * C, H)
    score_BKTS = _product("bkth,bksh->bkts", q_BKTH, k_BKLH[:, :, :end]) * H**-0.5
    may_attend_BCS = _block_mask(segment_ids_BL, start, end)
    score_BKGCS = jnp.where(
      may_attend_BCS[:, None, None], score_BKTS.reshape(B, K, G, C, end), MASKED
    )
    top_BKGC1 = jnp.max(score_BKGCS, axis=-1, keepdims=True)
    weight_BKGCS = jnp.exp(score_BKGCS - top_BKGC1)
    sum_BKGC1 = jnp.sum(weight_BKGCS, axis=-1, keepdims=True)
    weight_BKTS = weight_BKGCS.astype(v_BKLH.dtype).reshape(B, K, G * C, end)
    out_BKTH = _product("bkts,bksh->bkth", weight_BKTS, v_BKLH[:, :, :end])
    outs.append((out_BKTH.reshape(B, K, G, C, H) / sum_BKGC1).astype(q_BKGLH.dtype))
    log_sums.append((top_BKGC1 + jnp.log(sum_BKGC1))[..., 0])
  out_BKGLH, log_sum_BKGL = (jnp.concatenate(x, axis=3) for x in (outs, log_sums))
  return out_BKGLH, (q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL, out_BKGLH, log_sum_BKGL)


def _backward(residuals, d_out_BKGLH):
  """Works on transposed scores (keys × queries).

  So the left operand of each product contracts its last axis, which is the
  layout that is fast everywhere.
  """
  q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL, out_BKGLH, log_sum_BKGL = residuals
  B, K, G, L, H = q_BKGLH.shape
  dtype = q_BKGLH.dtype
  dot_BKGL = jnp.sum(out_BKGLH.astype(jnp.float32) * d_out_BKGLH, axis=-1)
  d_q, d_k_BKLH, d_v_BKLH = [], *jnp.zeros((2, *k_BKLH.shape), jnp.float32)
  for start, end in _blocks(L):
    C = end - start
    k_BKSH, v_BKSH = k_BKLH[:, :, :end], v_BKLH[:, :, :end]
    q_BKTH = q_BKGLH[:, :, :, start:end].reshape(B, K, G * C, H)
    d_out_BKTH = d_out_BKGLH[:, :, :, start:end].reshape(B, K, G * C, H)
    of_query = lambda x_BKGL: x_BKGL[:, :, None, :, start:end]  # noqa: B023
    split = lambda x_BKST: x_BKST.reshape(B, K, end, G, C)  # noqa: B023
    merge = lambda x_BKSGC: x_BKSGC.astype(dtype).reshape(B, K, end, G * C)  # noqa: B023

    score_BKSGC = split(_product("bksh,bkth->bkst", k_BKSH, q_BKTH)) * H**-0.5
    may_attend_BSC = _block_mask(segment_ids_BL, start, end).swapaxes(1, 2)
    weight_BKSGC = jnp.where(
      may_attend_BSC[:, None, :, None], jnp.exp(score_BKSGC - of_query(log_sum_BKGL)), 0
    )
    d_weight_BKSGC = split(_product("bksh,bkth->bkst", v_BKSH, d_out_BKTH))
    d_score_BKST = merge(weight_BKSGC * (d_weight_BKSGC - of_query(dot_BKGL)) * H**-0.5)
    d_v_BKSH = _product("bkst,bkth->bksh", merge(weight_BKSGC), d_out_BKTH)
    d_k_BKSH = _product("bkst,bkth->bksh", d_score_BKST, q_BKTH)
    d_q_BKHT = _product("bkhs,bkst->bkht", k_BKSH.swapaxes(2, 3), d_score_BKST)
    d_v_BKLH = d_v_BKLH.at[:, :, :end].add(d_v_BKSH)
    d_k_BKLH = d_k_BKLH.at[:, :, :end].add(d_k_BKSH)
    d_q.append(d_q_BKHT.swapaxes(2, 3).reshape(B, K, G, C, H))
  d_q_BKGLH = jnp.concatenate(d_q, axis=3)
  return *(x.astype(dtype) for x in (d_q_BKGLH, d_k_BKLH, d_v_BKLH)), None


_blockwise.defvjp(_forward, _backward)


def _blocks(L: int) -> list[tuple[int, int]]:
  size = max(MIN_BLOCK, -(-L // MAX_BLOCKS))
  return [(start, min(start + size, L)) for start in range(0, L, size)]


def _block_mask(segment_ids_BL: jax.Array, start: int, end: int) -> jax.Array:
  return mask(
    jnp.arange(start, end), segment_ids_BL[:, start:end], segment_ids_BL[:, :end]
  )


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
  """fp32 compute means fp32 products, also where hardware would use fewer bits."""
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.einsum(
    equation,
    left,
    right,
    preferred_element_type=jnp.float32,
    precision=precision(left.dtype),
  )

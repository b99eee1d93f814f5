"""Causal attention within segments.

Shapes: A layers, B batch, L query length, S key length, N heads, K kv heads, G = N/K
query heads a kv head, H head dim, C queries of a block, T = G·C.

Who may attend is decided by array order and segment ids alone. Positions act
through the rotated queries and keys only, so skipped positions leave the mask
bit-identical.
"""

import jax
import jax.numpy as jnp

from skipalign_jax import cpu

BLOCK, SPANS = 128, 32  # queries of a block, spans of blocks in a row
MASKED = -1e30
KEPT = "attention"  # name of what the backward pass needs, for remat policies


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


def cached(
  q_BLNH: jax.Array,
  k_ABKSH: jax.Array,
  v_ABKSH: jax.Array,
  query_segments_BL: jax.Array,
  key_segments_BS: jax.Array,
  start: jax.Array,
  layer: jax.Array,
  block: int,
) -> jax.Array:
  """Attention of L new places to a cache that holds them and all before them.

  Equal to `plain` under the causal segment mask. Goes through the cache `block`
  keys at a time with a running softmax (FlashAttention, 2205.14135), and never
  reads what lies behind the new places: one program for every part of a prompt.
  No gradient.

  Args:
    q_BLNH: rotated queries.
    k_ABKSH, v_ABKSH: [layers, B, K, S, H], maybe as bits; `block` divides S.
    query_segments_BL, key_segments_BS: int32.
    start: place of the first query.
    layer: which of the cache's layers.
    block: keys whose scores exist at one time.
  """
  B, L, N, H = q_BLNH.shape
  K = k_ABKSH.shape[2]
  q_BKTH = q_BLNH.reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
  q_BKTH = q_BKTH.reshape(B, K, N // K * L, H)
  places_L = start + jnp.arange(L)

  def add_block(i, carry):
    top_BKT1, sum_BKT1, out_BKTH = carry
    at = (layer, 0, 0, i * block, 0)
    take = lambda x: cpu.from_bits(jax.lax.dynamic_slice(x, at, (1, B, K, block, H))[0])
    segments_BS = jax.lax.dynamic_slice(key_segments_BS, (0, i * block), (B, block))
    score_BKTS = _product("bkth,bksh->bkts", q_BKTH, take(k_ABKSH)) * H**-0.5
    may_attend_BLS = mask(places_L - i * block, query_segments_BL, segments_BS)
    score_BKGLS = score_BKTS.reshape(B, K, N // K, L, block)
    score_BKGLS = jnp.where(may_attend_BLS[:, None, None], score_BKGLS, MASKED)
    score_BKTS = score_BKGLS.reshape(B, K, N // K * L, block)
    new_top_BKT1 = jnp.maximum(top_BKT1, jnp.max(score_BKTS, axis=-1, keepdims=True))
    weight_BKTS = _once(jnp.exp(score_BKTS - new_top_BKT1).astype(q_BLNH.dtype))
    shrink_BKT1 = jnp.exp(top_BKT1 - new_top_BKT1)
    block_sum_BKT1 = jnp.sum(weight_BKTS, axis=-1, keepdims=True, dtype=jnp.float32)
    return (
      new_top_BKT1,
      sum_BKT1 * shrink_BKT1 + block_sum_BKT1,
      out_BKTH * shrink_BKT1 + _product("bkts,bksh->bkth", weight_BKTS, take(v_ABKSH)),
    )

  empty = (
    jnp.full((B, K, N // K * L, 1), MASKED, jnp.float32),
    jnp.zeros((B, K, N // K * L, 1), jnp.float32),
    jnp.zeros((B, K, N // K * L, H), jnp.float32),
  )
  blocks = (start + L + block - 1) // block
  _, sum_BKT1, out_BKTH = jax.lax.fori_loop(0, blocks, add_block, empty)
  out_BKGLH = (out_BKTH / sum_BKT1).reshape(B, K, N // K, L, H)
  return out_BKGLH.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H).astype(q_BLNH.dtype)


@jax.custom_vjp
def _blockwise(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL):
  return _forward(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL)[0]


def _forward(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL):
  B, K, G, L, H = q_BKGLH.shape

  def attend(start, q_BKGCH, segment_ids_BC, end):
    """One block of queries, from place `start` on, to the keys before `end`."""
    C = q_BKGCH.shape[3]
    q_BKTH = q_BKGCH.reshape(B, K, G * C, H)
    score_BKTS = _product("bkth,bksh->bkts", q_BKTH, k_BKLH[:, :, :end]) * H**-0.5
    may_attend_BCS = mask(
      start + jnp.arange(C), segment_ids_BC, segment_ids_BL[:, :end]
    )
    score_BKGCS = jnp.where(
      may_attend_BCS[:, None, None], score_BKTS.reshape(B, K, G, C, end), MASKED
    )
    top_BKGC1 = jnp.max(score_BKGCS, axis=-1, keepdims=True)
    weight_BKGCS = _once(jnp.exp(score_BKGCS - top_BKGC1).astype(v_BKLH.dtype))
    sum_BKGC1 = jnp.sum(weight_BKGCS, axis=-1, keepdims=True, dtype=jnp.float32)
    weight_BKTS = weight_BKGCS.reshape(B, K, G * C, end)
    out_BKTH = _product("bkts,bksh->bkth", weight_BKTS, v_BKLH[:, :, :end])
    out_BKGCH = (out_BKTH.reshape(B, K, G, C, H) / sum_BKGC1).astype(q_BKGLH.dtype)
    return out_BKGCH, (top_BKGC1 + jnp.log(sum_BKGC1))[..., 0]

  parts = []
  for start, end, size in _spans(L):
    blocks = (
      start + jnp.arange(0, end - start, size),
      _split(q_BKGLH[:, :, :, start:end], 3, size),
      _split(segment_ids_BL[:, start:end], 1, size),
    )
    attend_span = lambda block: attend(*block, end)  # noqa: B023
    outs, log_sums = _map(attend_span, blocks)
    parts.append((_join(outs, 3), _join(log_sums, 3)))
  out_BKGLH, log_sum_BKGL = (
    cpu.named(jnp.concatenate(part, axis=3), KEPT) for part in zip(*parts, strict=True)
  )
  return out_BKGLH, (q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL, out_BKGLH, log_sum_BKGL)


def _backward(residuals, d_out_BKGLH):
  """Works on transposed scores (keys × queries).

  So the left operand of each product contracts its last axis, which is the
  layout that is fast everywhere.
  """
  q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL, out_BKGLH, log_sum_BKGL = residuals
  B, K, G, L, H = q_BKGLH.shape
  dtype = q_BKGLH.dtype
  dot_BKGL = _product("bkglh,bkglh->bkgl", out_BKGLH, d_out_BKGLH)
  key_index_L = jnp.arange(L)

  def gradients(start, q_BKGCH, d_out_BKGCH, log_sum_BKGC, dot_BKGC, segment_BC, end):
    C = q_BKGCH.shape[3]
    k_BKSH, v_BKSH = k_BKLH[:, :, :end], v_BKLH[:, :, :end]
    q_BKTH = q_BKGCH.reshape(B, K, G * C, H)
    d_out_BKTH = d_out_BKGCH.reshape(B, K, G * C, H)
    of_query = lambda x_BKGC: x_BKGC[:, :, None]
    split = lambda x_BKST: x_BKST.reshape(B, K, end, G, C)
    merge = lambda x_BKSGC: x_BKSGC.reshape(B, K, end, G * C)

    score_BKSGC = split(_product("bksh,bkth->bkst", k_BKSH, q_BKTH)) * H**-0.5
    # `mask`, but made in the layout in which it is used.
    causal_SC = key_index_L[:end, None] <= start + jnp.arange(C)
    same_BSC = segment_ids_BL[:, :end, None] == segment_BC[:, None, :]
    may_attend_BKSGC = (causal_SC & same_BSC)[:, None, :, None]
    score_BKSGC = jnp.where(may_attend_BKSGC, score_BKSGC, MASKED)
    weight_BKSGC = _once(jnp.exp(score_BKSGC - of_query(log_sum_BKGC)).astype(dtype))
    d_weight_BKSGC = split(_product("bksh,bkth->bkst", v_BKSH, d_out_BKTH))
    d_score_BKSGC = weight_BKSGC * (d_weight_BKSGC - of_query(dot_BKGC)) * H**-0.5
    d_score_BKST = merge(d_score_BKSGC.astype(dtype))
    d_v_BKSH = _product("bkst,bkth->bksh", merge(weight_BKSGC), d_out_BKTH)
    d_k_BKSH = _product("bkst,bkth->bksh", d_score_BKST, q_BKTH)
    d_q_BKHT = _product("bkhs,bkst->bkht", k_BKSH.swapaxes(2, 3), d_score_BKST)
    return d_k_BKSH, d_v_BKSH, d_q_BKHT.swapaxes(2, 3).reshape(B, K, G, C, H)

  d_k_BKLH, d_v_BKLH = jnp.zeros((2, *k_BKLH.shape), jnp.float32)
  d_q = []
  for start, end, size in _spans(L):
    blocks = (
      start + jnp.arange(0, end - start, size),
      *(
        _split(x[:, :, :, start:end], 3, size)
        for x in (q_BKGLH, d_out_BKGLH, log_sum_BKGL, dot_BKGL)
      ),
      _split(segment_ids_BL[:, start:end], 1, size),
    )

    def add(totals, block):
      d_k_BKSH, d_v_BKSH, d_q_BKGCH = gradients(*block, end)  # noqa: B023
      return (totals[0] + d_k_BKSH, totals[1] + d_v_BKSH), d_q_BKGCH

    totals = d_k_BKLH[:, :, :end], d_v_BKLH[:, :, :end]
    (d_k_BKSH, d_v_BKSH), d_q_blocks = _scan(add, totals, blocks)
    d_k_BKLH = d_k_BKLH.at[:, :, :end].set(d_k_BKSH)
    d_v_BKLH = d_v_BKLH.at[:, :, :end].set(d_v_BKSH)
    d_q.append(_join(d_q_blocks, 3))
  d_q_BKGLH = jnp.concatenate(d_q, axis=3)
  return *(x.astype(dtype) for x in (d_q_BKGLH, d_k_BKLH, d_v_BKLH)), None


_blockwise.defvjp(_forward, _backward)


def _once(x: jax.Array) -> jax.Array:
  """Computed once and kept in its own dtype: memory traffic is what costs here."""
  return jax.lax.optimization_barrier(x)


def _spans(L: int) -> list[tuple[int, int, int]]:
  """(start, end, block) of each span of queries.

  The queries of a span see the keys up to its end, a block of them at a time. So
  the program has at most SPANS copies of the block however long the row is, and
  a block of scores grows with L, not with L².
  """
  blocks_a_span = -(-L // (BLOCK * SPANS))
  spans = []
  for start in range(0, L, BLOCK * blocks_a_span):
    end = min(start + BLOCK * blocks_a_span, L)
    whole = end - (end - start) % BLOCK
    if whole > start:
      spans.append((start, whole, BLOCK))
    if end > whole:
      spans.append((whole, end, end - whole))
  return spans


def _split(x: jax.Array, axis: int, size: int) -> jax.Array:
  """[…, n·size, …] → [n, …, size, …]."""
  shape = (*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
  return jnp.moveaxis(x.reshape(shape), axis, 0)


def _join(x: jax.Array, axis: int) -> jax.Array:
  """Undoes `_split`."""
  x = jnp.moveaxis(x, 0, axis)
  return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _scan(function, carry, blocks):
  """lax.scan, without a loop where there is one block."""
  if blocks[0].shape[0] > 1:
    return jax.lax.scan(function, carry, blocks)
  carry, out = function(carry, jax.tree.map(lambda x: x[0], blocks))
  return carry, jax.tree.map(lambda x: x[None], out)


def _map(function, blocks):
  return _scan(lambda carry, block: (carry, function(block)), None, blocks)[1]


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

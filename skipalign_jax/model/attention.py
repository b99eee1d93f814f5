"""Causal attention within segments.

Shapes: A layers, B batch, L query length, S key length, N heads, K kv heads, G = N/K
query heads per kv head, H head dim, C queries of a block, T = G·C.

Who may attend is decided by array order and segment ids alone. Positions act
through the rotated queries and keys only, so skipped positions leave the mask
bit-identical.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from skipalign_jax.model import cpu, products

# Rows of up to LONG places are computed in blocks of queries (each block a part of the
# program, with all keys before its end at once), longer ones in tiles of TILE queries ×
# TILE keys.
BLOCK, LONG, TILE = 128, 1024, 512
MASKED = -1e30
SHARED = 1  # segment of a cache's places that all segments of the row follow
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


def mask_of_cache(
  query_index_L: jax.Array,
  query_segments_BL: jax.Array,
  key_segments_BS: jax.Array,
) -> jax.Array:
  """may_attend_BLS: as `mask`, but keys of segment `SHARED` are for all segments.

  So several continuations of one text, each a segment, share its places.
  """
  causal_LS = query_index_L[:, None] >= jnp.arange(key_segments_BS.shape[1])
  key_B1S = key_segments_BS[:, None, :]
  visible_BLS = (query_segments_BL[:, :, None] == key_B1S) | (key_B1S == SHARED)
  return causal_LS[None] & visible_BLS


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
  score_BKGLS = products.einsum("blkgh,bskh->bkgls", q_BLKGH, k_BSKH) * H**-0.5
  score_BKGLS = jnp.where(mask_BLS[:, None, None], score_BKGLS, MASKED)
  weight_BKGLS = jax.nn.softmax(score_BKGLS, axis=-1).astype(v_BSKH.dtype)
  out_BLKGH = products.einsum("bkgls,bskh->blkgh", weight_BKGLS, v_BSKH)
  return out_BLKGH.reshape(B, L, N, H).astype(q_BLNH.dtype)


def blockwise(
  q_BLNH: jax.Array,
  k_BLKH: jax.Array,
  v_BLKH: jax.Array,
  segment_ids_BL: jax.Array,
) -> jax.Array:
  """Self-attention that holds the scores of one block or tile at a time.

  Equal to `plain` under the causal segment mask. Blocks and tiles whose keys all come
  after their queries are never computed. The backward pass keeps only the
  log-sum-exp of each query and computes the scores again, as FlashAttention
  (2205.14135) does.
  """
  B, L, N, H = q_BLNH.shape
  K = k_BLKH.shape[2]
  q_BKGLH = q_BLNH.reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
  k_BKLH, v_BKLH = k_BLKH.swapaxes(1, 2), v_BLKH.swapaxes(1, 2)
  out_BKGLH = _blockwise(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL)
  return out_BKGLH.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


def cached(
  q_BLNH: jax.Array,
  k_ABSKH: jax.Array,
  v_ABSKH: jax.Array,
  query_segments_BL: jax.Array,
  key_segments_BS: jax.Array,
  start: jax.Array,
  layer: jax.Array,
  block: int,
) -> jax.Array:
  """Attention of L new places to a cache that holds them and all before them.

  Equal to `plain` under `mask_of_cache`, for queries that are no padding.
  Reads the cache in blocks of keys with a running softmax (FlashAttention, 2205.14135),
  and nothing after the new places: one program serves every part of a prompt. Blocks
  that all queries see whole are not masked. No gradient.

  Args:
    q_BLNH: rotated queries.
    k_ABSKH, v_ABSKH: the cache, which may hold bits (`cpu.to_bits`); `block` divides S.
    query_segments_BL, key_segments_BS: int32; 0 is padding.
    start: place of the first query.
    layer: which of the cache's layers.
    block: keys whose scores exist at one time.
  """
  B, L, N, H = q_BLNH.shape
  K = k_ABSKH.shape[3]
  G, T = N // K, N // K * L
  q_BKTH = q_BLNH.reshape(B, L, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, T, H)
  places_L = start + jnp.arange(L)
  weigh = functools.partial(products.einsum, "bkts,bskh->bkth")

  def mask_block(i, score_BKTS):
    segments_BS = jax.lax.dynamic_slice(key_segments_BS, (0, i * block), (B, block))
    may_attend_BLS = mask_of_cache(places_L - i * block, query_segments_BL, segments_BS)
    score_BKGLS = score_BKTS.reshape(B, K, G, L, block)
    score_BKGLS = jnp.where(may_attend_BLS[:, None, None], score_BKGLS, MASKED)
    return score_BKGLS.reshape(B, K, T, block)

  def add_block(masked, i, carry):
    top_BKT1, sum_BKT1, out_BKTH = carry
    at = (layer, 0, i * block, 0, 0)
    take = lambda x: cpu.from_bits(jax.lax.dynamic_slice(x, at, (1, B, block, K, H))[0])
    score_BKTS = products.einsum("bkth,bskh->bkts", q_BKTH, take(k_ABSKH))
    if masked:
      score_BKTS = mask_block(i, score_BKTS)
    new_top_BKT1 = jnp.maximum(top_BKT1, jnp.max(score_BKTS, axis=-1, keepdims=True))
    # Scaled here and not before: the largest score needs no pass of its own so.
    exp = lambda x: jnp.exp((x - new_top_BKT1) * H**-0.5)
    add_BKTH, add_BKT1 = cpu.with_sum(weigh, exp(score_BKTS), take(v_ABSKH))
    shrink_BKT1 = exp(top_BKT1)
    return (
      new_top_BKT1,
      sum_BKT1 * shrink_BKT1 + add_BKT1,
      out_BKTH * shrink_BKT1 + add_BKTH,
    )

  zeros_BKT1, zeros_BKTH = (jnp.zeros((B, K, T, n), jnp.float32) for n in (1, H))
  carry = jnp.full_like(zeros_BKT1, MASKED), zeros_BKT1, zeros_BKTH
  first, last = _seen_whole(query_segments_BL, key_segments_BS, start, block)
  blocks = (start + L + block - 1) // block
  for begin, end, masked in (
    (0, first, True),
    (first, last, False),
    (last, blocks, True),
  ):
    carry = jax.lax.fori_loop(begin, end, functools.partial(add_block, masked), carry)
  _, sum_BKT1, out_BKTH = carry
  out_BKGLH = (out_BKTH / sum_BKT1).reshape(B, K, G, L, H)
  return out_BKGLH.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H).astype(q_BLNH.dtype)


def _seen_whole(
  query_segments_BL: jax.Array, key_segments_BS: jax.Array, start: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
  """The longest run of whole blocks up to `start` that all queries see all of.

  Queries of segment 0 are padding, whose result is not used.

  Returns:
    Its first block and the one after its last; equal if there is none.
  """
  segment_B1 = jnp.max(query_segments_BL, axis=1, keepdims=True)
  alike_B1 = jnp.all(
    (query_segments_BL == segment_B1) | (query_segments_BL == 0), axis=1, keepdims=True
  )
  own_BS = (key_segments_BS == segment_B1) & alike_B1
  seen_S = jnp.all(own_BS | (key_segments_BS == SHARED), axis=0)
  places_S = jnp.arange(len(seen_S))
  hidden = jnp.max(jnp.where(seen_S | (places_S >= start), -1, places_S))  # the last
  last = start // block
  return jnp.minimum((hidden + block) // block, last), last


@jax.custom_vjp
def _blockwise(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL):
  return _forward(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL)[0]


def _forward(*inputs):
  q_BKGLH = inputs[0]
  attend = _attend_tiles if q_BKGLH.shape[3] > LONG else _attend_blocks
  out_BKGLH, log_sum_BKGL = (cpu.named(x, KEPT) for x in attend(*inputs))
  return out_BKGLH, (*inputs, out_BKGLH, log_sum_BKGL)


def _backward(residuals, d_out_BKGLH):
  *inputs, out_BKGLH, log_sum_BKGL = residuals
  q_BKGLH = inputs[0]
  dot_BKGL = products.einsum("bkglh,bkglh->bkgl", out_BKGLH, d_out_BKGLH)
  gradients = _gradients_tiles if q_BKGLH.shape[3] > LONG else _gradients_blocks
  found = gradients(*inputs, d_out_BKGLH, log_sum_BKGL, dot_BKGL)
  return *(x.astype(q_BKGLH.dtype) for x in found), None


def _attend(q_BKGCH, k_BKSH, v_BKSH, may_attend_BCS):
  """A block of queries and some keys.

  Returns:
    Sum over the keys of exp(score - top) · value; top, the largest score; sum of
    exp(score - top). In fp32; the last two with an axis of one at the end.
  """
  B, K, G, C, H = q_BKGCH.shape
  S = k_BKSH.shape[2]
  q_BKTH = q_BKGCH.reshape(B, K, G * C, H)
  score_BKTS = products.einsum("bkth,bksh->bkts", q_BKTH, k_BKSH) * H**-0.5
  score_BKGCS = jnp.where(
    may_attend_BCS[:, None, None], score_BKTS.reshape(B, K, G, C, S), MASKED
  )
  top_BKGC1 = jnp.max(score_BKGCS, axis=-1, keepdims=True)
  weight_BKTS = jnp.exp(score_BKGCS - top_BKGC1).reshape(B, K, G * C, S)
  weigh = functools.partial(products.einsum, "bkts,bksh->bkth")
  out_BKTH, sum_BKT1 = cpu.with_sum(weigh, weight_BKTS, v_BKSH)
  in_groups = lambda x: x.reshape(B, K, G, C, -1)
  return in_groups(out_BKTH), top_BKGC1, in_groups(sum_BKT1)


def _gradients(
  q_BKGCH, k_BKSH, k_BKHS, v_BKSH, d_out_BKGCH, log_sum_BKGC, dot_BKGC, may_attend_BSC
):
  """d_q, d_k and d_v in fp32 of a block of queries and some keys.

  The scores are transposed (keys × queries): so the left operand of each product
  contracts its last axis, which is the layout that is fast everywhere.
  """
  B, K, G, C, H = q_BKGCH.shape
  S, dtype = k_BKSH.shape[2], q_BKGCH.dtype
  q_BKTH = q_BKGCH.reshape(B, K, G * C, H)
  d_out_BKTH = d_out_BKGCH.reshape(B, K, G * C, H)
  of_query = lambda x_BKGC: x_BKGC[:, :, None]
  split = lambda x_BKST: x_BKST.reshape(B, K, S, G, C)
  merge = lambda x_BKSGC: x_BKSGC.reshape(B, K, S, G * C)

  score_BKSGC = split(products.einsum("bksh,bkth->bkst", k_BKSH, q_BKTH)) * H**-0.5
  score_BKSGC = jnp.where(may_attend_BSC[:, None, :, None], score_BKSGC, MASKED)
  weight_BKSGC = _once(jnp.exp(score_BKSGC - of_query(log_sum_BKGC)).astype(dtype))
  d_weight_BKSGC = split(products.einsum("bksh,bkth->bkst", v_BKSH, d_out_BKTH))
  d_score_BKSGC = weight_BKSGC * (d_weight_BKSGC - of_query(dot_BKGC)) * H**-0.5
  d_score_BKST = merge(d_score_BKSGC.astype(dtype))
  d_v_BKSH = products.einsum("bkst,bkth->bksh", merge(weight_BKSGC), d_out_BKTH)
  d_k_BKSH = products.einsum("bkst,bkth->bksh", d_score_BKST, q_BKTH)
  # With a barrier: XLA for CPUs cannot run a bf16 product with a transposed result.
  d_q_BKHT = _once(products.einsum("bkhs,bkst->bkht", k_BKHS, d_score_BKST))
  return d_q_BKHT.swapaxes(2, 3).reshape(B, K, G, C, H), d_k_BKSH, d_v_BKSH


def _mask_of_keys(first, query_segments_BC, key_segments_BS) -> jax.Array:
  """may_attend_BSC: `mask`, but made in the layout in which gradients use it.

  `first` is the place of the first query, counted from the first key.
  """
  places_C = first + jnp.arange(query_segments_BC.shape[1])
  causal_SC = jnp.arange(key_segments_BS.shape[1])[:, None] <= places_C
  return causal_SC & (key_segments_BS[:, :, None] == query_segments_BC[:, None, :])


def _attend_blocks(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL):
  """Output and log-sum-exp, one block of queries after the other."""
  outs, log_sums = [], []
  for start, end in _blocks(q_BKGLH.shape[3]):
    may_attend_BCS = mask(
      jnp.arange(start, end), segment_ids_BL[:, start:end], segment_ids_BL[:, :end]
    )
    out_BKGCH, top_BKGC1, sum_BKGC1 = _attend(
      q_BKGLH[:, :, :, start:end],
      k_BKLH[:, :, :end],
      v_BKLH[:, :, :end],
      may_attend_BCS,
    )
    outs.append((out_BKGCH / sum_BKGC1).astype(q_BKGLH.dtype))
    log_sums.append((top_BKGC1 + jnp.log(sum_BKGC1))[..., 0])
  return jnp.concatenate(outs, axis=3), jnp.concatenate(log_sums, axis=3)


def _gradients_blocks(
  q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL, d_out_BKGLH, log_sum_BKGL, dot_BKGL
):
  d_k_BKLH, d_v_BKLH = jnp.zeros((2, *k_BKLH.shape), jnp.float32)
  d_q = []
  for start, end in _blocks(q_BKGLH.shape[3]):
    may_attend_BSC = _mask_of_keys(
      start, segment_ids_BL[:, start:end], segment_ids_BL[:, :end]
    )
    k_BKSH = k_BKLH[:, :, :end]
    q_BKGCH, *of_queries = (
      x[:, :, :, start:end] for x in (q_BKGLH, d_out_BKGLH, log_sum_BKGL, dot_BKGL)
    )
    d_q_BKGCH, d_k_BKSH, d_v_BKSH = _gradients(
      q_BKGCH,
      k_BKSH,
      k_BKSH.swapaxes(2, 3),
      v_BKLH[:, :, :end],
      *of_queries,
      may_attend_BSC,
    )
    d_k_BKLH = d_k_BKLH.at[:, :, :end].set(d_k_BKLH[:, :, :end] + d_k_BKSH)
    d_v_BKLH = d_v_BKLH.at[:, :, :end].set(d_v_BKLH[:, :, :end] + d_v_BKSH)
    d_q.append(d_q_BKGCH)
  return jnp.concatenate(d_q, axis=3), d_k_BKLH, d_v_BKLH


def _attend_tiles(q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL):
  """Output and log-sum-exp, tile by tile with a running softmax."""
  B, K, G, L, H = q_BKGLH.shape
  q_BKGPH, k_BKPH, v_BKPH = _whole(q_BKGLH, 3), _whole(k_BKLH, 2), _whole(v_BKLH, 2)
  segment_ids_BP = _whole(segment_ids_BL, 1)
  P = k_BKPH.shape[2]

  def add(totals, tile):
    i, j = tile * TILE
    may_attend_BCS = mask(
      i - j + jnp.arange(TILE), _take(segment_ids_BP, 1, i), _take(segment_ids_BP, 1, j)
    )
    out, top, total = _attend(
      _take(q_BKGPH, 3, i), _take(k_BKPH, 2, j), _take(v_BKPH, 2, j), may_attend_BCS
    )
    old_out, old_top, old_total = (_take(x, 3, i) for x in totals)
    new_top = jnp.maximum(old_top, top)
    shrink, old_shrink = jnp.exp(top - new_top), jnp.exp(old_top - new_top)
    new = (
      old_out * old_shrink + out * shrink,
      new_top,
      old_total * old_shrink + total * shrink,
    )
    return [_put(x, 3, i, part) for x, part in zip(totals, new, strict=True)], None

  totals = [
    jnp.zeros((B, K, G, P, H), jnp.float32),
    jnp.full((B, K, G, P, 1), MASKED, jnp.float32),
    jnp.zeros((B, K, G, P, 1), jnp.float32),
  ]
  # All tiles of one block of queries, then those of the next.
  tiles = np.stack(np.tril_indices(P // TILE), axis=1)
  totals, _ = jax.lax.scan(add, totals, tiles)
  out_BKGLH, top_BKGL1, sum_BKGL1 = (x[:, :, :, :L] for x in totals)
  log_sum_BKGL = (top_BKGL1 + jnp.log(sum_BKGL1))[..., 0]
  return (out_BKGLH / sum_BKGL1).astype(q_BKGLH.dtype), log_sum_BKGL


def _gradients_tiles(
  q_BKGLH, k_BKLH, v_BKLH, segment_ids_BL, d_out_BKGLH, log_sum_BKGL, dot_BKGL
):
  L = q_BKGLH.shape[3]
  k_BKPH, v_BKPH = _whole(k_BKLH, 2), _whole(v_BKLH, 2)
  # Transposed once: if each tile were transposed, XLA for CPUs would multiply in fp32.
  k_BKHP = _once(k_BKPH.swapaxes(2, 3))
  segment_ids_BP = _whole(segment_ids_BL, 1)
  q_BKGPH, *of_queries = (
    _whole(x, 3) for x in (q_BKGLH, d_out_BKGLH, log_sum_BKGL, dot_BKGL)
  )

  def add(totals, tile):
    j, i = tile * TILE
    may_attend_BSC = _mask_of_keys(
      i - j, _take(segment_ids_BP, 1, i), _take(segment_ids_BP, 1, j)
    )
    found = _gradients(
      _take(q_BKGPH, 3, i),
      _take(k_BKPH, 2, j),
      _take(k_BKHP, 3, j),
      _take(v_BKPH, 2, j),
      *(_take(x, 3, i) for x in of_queries),
      may_attend_BSC,
    )
    return [
      _put(x, axis, at, _take(x, axis, at) + part)
      for x, axis, at, part in zip(totals, (3, 2, 2), (i, j, j), found, strict=True)
    ], None

  totals = [jnp.zeros(x.shape, jnp.float32) for x in (q_BKGPH, k_BKPH, v_BKPH)]
  # All tiles of one block of keys, then those of the next.
  tiles = np.stack(np.triu_indices(k_BKPH.shape[2] // TILE), axis=1)
  (d_q_BKGPH, d_k_BKPH, d_v_BKPH), _ = jax.lax.scan(add, totals, tiles)
  return d_q_BKGPH[:, :, :, :L], d_k_BKPH[:, :, :L], d_v_BKPH[:, :, :L]


_blockwise.defvjp(_forward, _backward)


def _once(x: jax.Array) -> jax.Array:
  """Computed once and kept in its own dtype: memory traffic dominates here."""
  return jax.lax.optimization_barrier(x)


def _blocks(L: int) -> list[tuple[int, int]]:
  """(start, end) of each block of queries; a block reads the keys up to its end."""
  return [(start, min(start + BLOCK, L)) for start in range(0, L, BLOCK)]


def _whole(x: jax.Array, axis: int) -> jax.Array:
  """Pads to whole tiles with zeros, to which nothing attends."""
  pads = [(0, 0)] * x.ndim
  pads[axis] = (0, -x.shape[axis] % TILE)
  return jnp.pad(x, pads)


def _take(x: jax.Array, axis: int, start: jax.Array) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, start, TILE, axis)


def _put(x: jax.Array, axis: int, start: jax.Array, part: jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(x, part, start, axis)

"""Attention: blocks change nothing, and nothing leaks."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipalign_jax.model import attention
from skipalign_jax.planning import executed_flops

# Unsorted on purpose in row 1: sharing a segment is all that counts.
SEGMENTS = np.array(
  [[1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0], [2, 2, 1, 1, 1, 1, 2, 2, 1, 1, 1]]
)


def inputs(L, heads, kv_heads, head_dim=4, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.standard_normal((2, L, n, head_dim)).astype(np.float32)
  segments_BL = np.tile(SEGMENTS, 9)[:, :L]
  return (draw(heads), draw(kv_heads), draw(kv_heads)), segments_BL, draw(heads)


def plain(q_BLNH, k_BLKH, v_BLKH, segments_BL):
  """`attention.plain` as self-attention."""
  mask_BLL = attention.mask(jnp.arange(q_BLNH.shape[1]), segments_BL, segments_BL)
  return attention.plain(q_BLNH, k_BLKH, v_BLKH, mask_BLL)


def with_gradients(attend, qkv, segments_BL, d_out_BLNH):
  """Output, and the gradients with respect to q, k and v."""

  def run(qkv):
    out_BLNH, pull = jax.vjp(lambda *qkv: attend(*qkv, segments_BL), *qkv)
    return out_BLNH, pull(d_out_BLNH.astype(out_BLNH.dtype))

  return jax.tree.leaves(jax.jit(run)(qkv))


def test_plain_equals_loops():
  (q_BLNH, k_BLKH, v_BLKH), segments_BL, _ = inputs(7, 4, 2)
  out_BLNH = plain(q_BLNH, k_BLKH, v_BLKH, segments_BL)
  for b, t, n in np.ndindex(2, 7, 4):
    seen = [s for s in range(t + 1) if segments_BL[b, s] == segments_BL[b, t]]
    score = k_BLKH[b, seen, n // 2] @ q_BLNH[b, t, n] / 2
    weight = np.exp(score) / np.exp(score).sum()
    expected = weight @ v_BLKH[b, seen, n // 2]
    np.testing.assert_allclose(out_BLNH[b, t, n], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("longest", [99, 0], ids=["blocks", "tiles"])
@pytest.mark.parametrize(
  ("L", "heads", "kv_heads"),
  [
    (3, 2, 2),  # less than one
    (8, 4, 2),  # whole ones, grouped heads
    (11, 4, 4),  # a short last one
    (30, 4, 1),  # many
  ],
)
def test_blockwise_equals_plain(monkeypatch, longest, L, heads, kv_heads):
  monkeypatch.setattr(attention, "LONG", longest)
  monkeypatch.setattr(attention, "BLOCK", 4)
  monkeypatch.setattr(attention, "TILE", 4)
  expected = with_gradients(plain, *inputs(L, heads, kv_heads))
  got = with_gradients(attention.blockwise, *inputs(L, heads, kv_heads))
  for one, other in zip(got, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)


def test_long_rows_skip_masked_tiles_and_hold_one_at_a_time(monkeypatch):
  """FLOPs of n(n+1)/2 tiles; nothing as large as a block of all keys' scores."""
  monkeypatch.setattr(attention, "LONG", 16)
  monkeypatch.setattr(attention, "TILE", 16)
  n, H, heads = 6, 4, 4
  qkv, _, d_out_BLNH = inputs(16 * n, heads, 2, H)
  segments_BL = np.ones((2, 16 * n), np.int32)
  traced = jax.jit(
    lambda qkv, d: jax.vjp(lambda *x: attention.blockwise(*x, segments_BL), *qkv)[1](d)
  ).trace(qkv, d_out_BLNH)
  product = 2 * 2 * heads * 16 * 16 * H  # multiply-adds of both rows
  weight_sums = product // H  # on CPUs one more column of the values
  row_sums = 2 * 2 * heads * 16 * n * H
  tiles = n * (n + 1) // 2
  assert executed_flops.executed(traced.jaxpr) == (
    tiles * (7 * product + weight_sums) + row_sums
  )
  largest = max(
    math.prod(shape)
    for shape in re.findall(r"tensor<([\dx]+)xf32>", traced.lower().as_text())
    for shape in [map(int, shape.split("x"))]
  )
  assert largest == max(2 * heads * 16 * 16, 2 * heads * 16 * n * H)


def test_mask_is_array_order_and_segments():
  keys_BS = SEGMENTS[:, :9]
  index_L, queries_BL = np.array([2, 7, 8]), SEGMENTS[:, [2, 7, 8]]
  mask_BLS = attention.mask(index_L, queries_BL, keys_BS)
  for b, i, s in np.ndindex(2, 3, 9):
    allowed = s <= index_L[i] and keys_BS[b, s] == queries_BL[b, i]
    assert mask_BLS[b, i, s] == allowed


@pytest.mark.parametrize(
  ("attend", "longest"),
  [(plain, 99), (attention.blockwise, 99), (attention.blockwise, 0)],
  ids=["plain", "blocks", "tiles"],
)
def test_nothing_leaks(monkeypatch, attend, longest):
  """Gradients of place t are exactly zero for later and for foreign places s."""
  monkeypatch.setattr(attention, "BLOCK", 4)
  monkeypatch.setattr(attention, "LONG", longest)
  monkeypatch.setattr(attention, "TILE", 4)
  L = 11
  qkv, segments_BL, d_out_BLNH = inputs(L, 4, 2)

  def place(kv):
    out_BLNH = attend(qkv[0], *kv, segments_BL)
    return jnp.sum(out_BLNH * d_out_BLNH, (0, 2, 3))  # of both rows

  d_k, d_v = jax.jit(jax.jacrev(place))(qkv[1:])  # [L, B, L, K, H]
  same_BLL = segments_BL[:, :, None] == segments_BL[:, None, :]
  allowed_LBL = (same_BLL & np.tri(L, dtype=bool)).swapaxes(0, 1)
  assert np.array_equal(np.any(d_v, (3, 4)), allowed_LBL)
  assert not np.any(np.any(d_k, (3, 4)) & ~allowed_LBL)


@pytest.mark.parametrize("longest", [99, 0])
def test_bf16_is_close_to_fp32(monkeypatch, longest):
  monkeypatch.setattr(attention, "BLOCK", 8)
  monkeypatch.setattr(attention, "LONG", longest)
  monkeypatch.setattr(attention, "TILE", 8)
  qkv, segments_BL, d_out_BLNH = inputs(22, 4, 2)
  qkv = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
  got = with_gradients(attention.blockwise, qkv, segments_BL, d_out_BLNH)
  exact = with_gradients(
    plain, [x.astype(jnp.float32) for x in qkv], segments_BL, d_out_BLNH
  )
  for one, other in zip(got, exact, strict=True):
    assert one.dtype == jnp.bfloat16
    np.testing.assert_allclose(one.astype(np.float32), other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("longest", [99, 0])
def test_large_scores_do_not_overflow(monkeypatch, longest):
  monkeypatch.setattr(attention, "LONG", longest)
  monkeypatch.setattr(attention, "TILE", 4)
  (q_BLNH, k_BLKH, v_BLKH), segments_BL, d_out_BLNH = inputs(11, 2, 2)
  large = (100 * q_BLNH, 100 * k_BLKH, v_BLKH)
  got = with_gradients(attention.blockwise, large, segments_BL, d_out_BLNH)
  assert all(np.all(np.isfinite(x)) for x in got)


cached = jax.jit(attention.cached, static_argnums=7)
KEY_SEGMENTS = {  # of two rows of 24 places, blocks of 4
  "one sample": [[1] * 24, [1] * 24],
  "padding before it": [[0] * 5 + [1] * 19, [0] * 9 + [1] * 15],
  "samples one after the other": [[1] * 7 + [2] * 17, [1] * 16 + [2] * 8],
  "another sample in between": [[2] * 4 + [1] * 4 + [2] * 16, [2] * 24],
  "samples of their own": [[2] * 7 + [3] * 17, [3] * 16 + [2] * 8],
  "queries of two samples": [[2] * 18 + [3] * 6, [1] * 24],
  "continuations of one text": [
    [1] * 9 + [2] * 4 + [3] * 11,
    [1] * 12 + [2] * 8 + [3] * 4,
  ],
}


@pytest.mark.parametrize("padding", [0, 2], ids=["queries", "and padding"])
@pytest.mark.parametrize("start", [0, 3, 8, 17])
@pytest.mark.parametrize("keys", KEY_SEGMENTS)
def test_cached_equals_plain(keys, start, padding):
  L, block = 7, 4
  segments_BS = np.array(KEY_SEGMENTS[keys], np.int32)
  places_L = start + np.arange(L)
  query_segments_BL = segments_BS[:, places_L].copy()
  if padding:  # after the queries, as of short tails
    query_segments_BL[:, -padding:] = 0
  (q_BSNH, k_BSKH, v_BSKH), *_ = inputs(24, heads=4, kv_heads=2)
  q_BLNH = q_BSNH[:, places_L]
  same_BLS = query_segments_BL[:, :, None] == segments_BS[:, None]
  visible_BLS = same_BLS | (segments_BS[:, None] == attention.SHARED)
  may_attend_BLS = jnp.array(visible_BLS & (np.arange(24) <= places_L[:, None]))
  cache = (jnp.stack([jnp.full_like(x, jnp.nan), x]) for x in (k_BSKH, v_BSKH))
  out_BLNH = cached(q_BLNH, *cache, query_segments_BL, segments_BS, start, 1, block)
  used_BL = query_segments_BL > 0
  want_BLNH = attention.plain(q_BLNH, k_BSKH, v_BSKH, may_attend_BLS)
  np.testing.assert_allclose(out_BLNH[used_BL], want_BLNH[used_BL], atol=1e-5)

  first, last = attention._seen_whole(
    jnp.array(query_segments_BL), jnp.array(segments_BS), jnp.int32(start), block
  )
  seen = lambda i: may_attend_BLS[:, :, i * block : (i + 1) * block]
  whole = [bool(jnp.all(seen(i) | ~used_BL[..., None])) for i in range(start // block)]
  assert all(whole[first:last])
  assert (first == last == start // block) or first == 0 or not whole[first - 1]


def test_large_scores_of_a_cache_do_not_overflow():
  (q_BSNH, k_BSKH, v_BSKH), *_ = inputs(24, heads=4, kv_heads=2)
  q_BLNH, segments_BS = 1000 * q_BSNH[:, 17:], np.ones((2, 24), np.int32)
  rest = segments_BS[:, 17:], segments_BS, 17, 0, 4
  got_BLNH = cached(q_BLNH, k_BSKH[None], v_BSKH[None], *rest)
  may_attend_BLS = np.tri(24, dtype=bool)[None, 17:]
  want_BLNH = attention.plain(q_BLNH, k_BSKH, v_BSKH, may_attend_BLS)
  np.testing.assert_allclose(got_BLNH, want_BLNH, atol=1e-4)

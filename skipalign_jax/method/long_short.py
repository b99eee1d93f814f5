"""Long-Short Alignment as a regulariser (arXiv 2506.11769): a long and a short context
should give the same next-token distribution.

  loss = L_train + α · mean over pairs of SCE(p, q),   SCE(p, q) = H(p, q) + H(q, p)
  p: next-token distribution at place t, given the whole sample before it
  q: the same, given all but the sample's first l_extra tokens

The paper reads l_train + l_extra tokens, gives the first l_train to window A, the last
l_train to window B, and pairs A[l_extra:] with B[: l_train − l_extra]. Place by place
that is the sample with and without its first l_extra tokens; what B reads after A's
end is in no pair. So window B is here the same row in which the first l_extra tokens of
every sample belong to a segment of their own. Places, positions and targets do not
change: packed rows need nothing more, no window starts in a neighbour, and skipped
positions can be used too (B's are A's; RoPE sees only their differences).

l_extra ~ U{1 … ⌊m/2⌋} is drawn for every sample and step; a sample of m tokens is its
own l_train.

Shapes: W = 2 windows, long and short; B rows, L tokens per row, X chunks of C places, D
model, V vocab.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from skipalign_jax import config as config_lib
from skipalign_jax.method import positions
from skipalign_jax.model import losses, products

HARMFUL_ALPHA = 0.5  # from this α on the paper reports worse long-context scores
STREAM = 2  # sets the random numbers apart from those of positions


@dataclasses.dataclass(frozen=True)
class LongShortConfig:
  """How the regulariser counts.

  Attributes:
    alpha: its weight; 0.1 to 0.3 helps, from 0.5 on it harms (paper, table on α).
    stop_gradient: the side that is a constant: "long" makes p a fixed teacher, "short"
      q; "none" trains both, as the paper does.
    min_context: pairs whose short context has fewer tokens do not count.
  """

  alpha: float
  stop_gradient: str
  min_context: int

  def __post_init__(self):
    config_lib.check_section("long_short", vars(self))


def windows(
  config: LongShortConfig,
  seed: int,
  step: jax.Array,
  batch: Mapping[str, jax.Array],
  weight_BL: jax.Array,
) -> dict[str, jax.Array]:
  """The short window of each sample, and which places make a pair.

  Args:
    config: min_context is read.
    seed: of the run.
    step: its number; each step draws its own windows.
    batch: `segment_ids` and `sample_ids`, [B, L].
    weight_BL: of each place's target in the loss; 0 where there is no target.

  Returns:
    short_segment_ids_BL int32: 0 on padding, 2s − 1 on the l_extra hidden tokens of
    segment s, 2s on the rest. pair_weight_BL fp32: weight_BL where the short window
    has a context, 0 elsewhere.
  """
  segment_BL = batch["segment_ids"]
  place_BL = positions.contiguous(segment_BL)
  size_BL = jax.vmap(positions.segment_sizes)(segment_BL)
  base = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAM), step)

  def draw(sample_id, size):
    key = jax.random.fold_in(base, sample_id)
    return jax.random.randint(key, (), 1, jnp.maximum(size // 2, 1) + 1)

  extra_BL = jax.vmap(jax.vmap(draw))(batch["sample_ids"], size_BL)
  context_BL = place_BL - extra_BL + 1  # tokens that the short window has read
  used_BL = (segment_BL > 0) & (context_BL >= max(config.min_context, 1))
  return {
    "short_segment_ids": jnp.where(
      segment_BL > 0, 2 * segment_BL - (context_BL < 1), 0
    ),
    "pair_weight": jnp.where(used_BL, weight_BL, 0.0),
  }


def regularised(
  long_BLD: jax.Array,
  short_BLD: jax.Array,
  head_VD: jax.Array,
  targets_BL: jax.Array,
  weight_BL: jax.Array,
  pair_weight_BL: jax.Array,
  chunk: int,
  stop_gradient: str,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
  """Σ weight · −log p(target) + Σ pair weight · SCE(p, q), and its parts.

  p comes from the long window's states, q from the short one's. As in
  `losses.cross_entropy`, the logits of a chunk are computed once, and their gradients
  with them: with H(p, q) = −Σ p log q, the gradient of SCE is
  p (−log q − H(p, q)) + p − q for p's logits, and the same with p and q exchanged.

  Args:
    long_BLD, short_BLD: final hidden states, compute dtype.
    head_VD: output matrix, fp32 master.
    targets_BL: int32 in [0, V).
    weight_BL: fp32, of the cross entropy; already divided by its denominator.
    pair_weight_BL: fp32, of SCE; already times α and divided by its denominator.
    chunk: of cross entropy; here the logits of a quarter as many places per row exist
      at one time, for both windows.
    stop_gradient: the side that is a constant, "long", "short" or "none".

  Returns:
    The sum, to be differentiated; and, without a gradient, the cross entropy's part,
    the SCE's part and Σ pair weight · (KL(p‖q) + KL(q‖p)). fp32.
  """
  L = long_BLD.shape[1]
  # Two windows, twice as many arrays each: no more memory than cross entropy takes.
  chunk = min(max(chunk // 4, 1), L)
  pad = lambda x: jnp.pad(x, [(0, 0), (0, -L % chunk)] + [(0, 0)] * (x.ndim - 2))
  hidden_WBLD = jnp.stack([pad(long_BLD), pad(short_BLD)])
  per_place = jax.tree.map(pad, (targets_BL, weight_BL, pair_weight_BL))
  return _regularised(hidden_WBLD, head_VD, per_place, chunk, stop_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _regularised(hidden_WBLD, head_VD, per_place, chunk, stop_gradient):
  head_VD = head_VD.astype(hidden_WBLD.dtype)

  def add_chunk(sums, chunk_arrays):
    return jax.tree.map(jnp.add, sums, _chunk_terms(head_VD, *chunk_arrays)[0]), None

  chunks = _chunks(hidden_WBLD, per_place, chunk)
  sums, _ = jax.lax.scan(add_chunk, (jnp.float32(0),) * 3, chunks)
  return sums[0] + sums[1], sums


def _regularised_forward(hidden_WBLD, head_VD, per_place, chunk, stop_gradient):
  head_is_trained = head_VD.perturbed  # otherwise its gradient is not computed
  hidden_WBLD, head_VD, per_place = losses.values_of((hidden_WBLD, head_VD, per_place))
  dtype = hidden_WBLD.dtype
  head_cast_VD = head_VD.astype(dtype)
  trained = 1 if stop_gradient == "short" else 2  # windows that get a gradient

  def add_chunk(carry, chunk_arrays):
    sums, d_head_VD = carry
    hidden_WBCD, (targets_BC, weight_BC, pair_BC) = chunk_arrays
    parts, log_p_BCV, log_q_BCV, h_pq_BC, h_qp_BC = _chunk_terms(
      head_cast_VD, *chunk_arrays
    )
    one_hot_BCV = jax.nn.one_hot(targets_BC, head_VD.shape[0], dtype=jnp.float32)
    d_p_BCV = weight_BC[..., None] * (jnp.exp(log_p_BCV) - one_hot_BCV)
    if stop_gradient != "long":
      d_p_BCV += pair_BC[..., None] * _sce_gradient(log_p_BCV, log_q_BCV, h_pq_BC)
    d_q_BCV = pair_BC[..., None] * _sce_gradient(log_q_BCV, log_p_BCV, h_qp_BC)
    d_logits_WBCV = jnp.stack([d.astype(dtype) for d in (d_p_BCV, d_q_BCV)[:trained]])
    d_hidden_WBCD = products.einsum("wbcv,vd->wbcd", d_logits_WBCV, head_cast_VD)
    if head_is_trained:
      d_head_VD += products.einsum(
        "wbcv,wbcd->vd", d_logits_WBCV, hidden_WBCD[:trained]
      )
    sums = jax.tree.map(jnp.add, sums, parts)
    return (sums, d_head_VD), d_hidden_WBCD.astype(dtype)

  shape = head_VD.shape if head_is_trained else ()
  start = (jnp.float32(0),) * 3, jnp.zeros(shape, jnp.float32)
  chunks = _chunks(hidden_WBLD, per_place, chunk)
  (sums, d_head_VD), d_hidden_XWBCD = jax.lax.scan(add_chunk, start, chunks)
  d_hidden_WBLD = jnp.moveaxis(d_hidden_XWBCD, 0, 3)
  d_hidden_WBLD = d_hidden_WBLD.reshape(trained, *hidden_WBLD.shape[1:])
  d_hidden_WBLD = jnp.pad(d_hidden_WBLD, [(0, 2 - trained)] + [(0, 0)] * 3)
  gradients = d_hidden_WBLD, d_head_VD.astype(head_VD.dtype)
  return (sums[0] + sums[1], sums), gradients


def _regularised_backward(chunk, stop_gradient, gradients, d_results):
  d_total, _ = d_results
  d_hidden_WBLD, d_head_VD = ((d_total * x).astype(x.dtype) for x in gradients)
  return d_hidden_WBLD, d_head_VD if d_head_VD.ndim else None, None


_regularised.defvjp(_regularised_forward, _regularised_backward, symbolic_zeros=True)


def _chunks(hidden_WBLD, per_place, chunk):
  """`losses.chunks_of` for both windows: hidden_XWBCD, and per_place as [X, B, C]."""
  windows = [losses.chunks_of(hidden_BLD, chunk) for hidden_BLD in hidden_WBLD]
  return jnp.stack(windows, axis=1), losses.chunks_of(per_place, chunk)


def _chunk_terms(head_VD, hidden_WBCD, per_place):
  """A chunk's three sums, log p and log q, H(p, q) and H(q, p); fp32."""
  targets_BC, weight_BC, pair_BC = per_place
  logits_WBCV = products.einsum("wbcd,vd->wbcv", hidden_WBCD, head_VD)
  log_p_BCV, log_q_BCV = jax.nn.log_softmax(logits_WBCV)
  target_BC1 = jnp.take_along_axis(log_p_BCV, targets_BC[..., None], axis=-1)
  h_pq_BC, h_qp_BC, symmetric_kl_BC = losses.two_sided(log_p_BCV, log_q_BCV)
  sums = (
    -jnp.sum(weight_BC * target_BC1[..., 0]),
    jnp.sum(pair_BC * (h_pq_BC + h_qp_BC)),
    jnp.sum(pair_BC * symmetric_kl_BC),
  )
  return sums, log_p_BCV, log_q_BCV, h_pq_BC, h_qp_BC


def _sce_gradient(log_p_BCV, log_q_BCV, h_pq_BC):
  """Gradient of H(p, q) + H(q, p) with respect to p's logits, given H(p, q)."""
  scale_BCV = 1 - log_q_BCV - h_pq_BC[..., None]
  return jnp.exp(log_p_BCV) * scale_BCV - jnp.exp(log_q_BCV)

"""Cross entropy of one read of a batch, and how far a second read is from it.

The second read has the same tokens and weights, but other segments (`long_short`) or
other positions (`distillation`). With p from the first read and q from the second:

  Σ weight · −log p(target) + Σ pair weight · D(p, q)

Shapes: W = 2 reads; B rows, L tokens per row, X chunks of C places, D model, V vocab.
"""

import functools

import jax
import jax.numpy as jnp

from skipalign_jax.model import losses, products


def symmetric_cross_entropy(
  log_p_BCV: jax.Array, log_q_BCV: jax.Array
) -> tuple[jax.Array, ...]:
  """SCE(p, q) = H(p, q) + H(q, p), as in Long-Short Alignment.

  Returns:
    SCE and KL(p‖q) + KL(q‖p) at each place, [B, C]; the gradients of SCE with respect
    to the logits of p and of q, [B, C, V]: with H(p, q) = −Σ p log q, the one of p is
    p (−log q − H(p, q)) + p − q.
  """
  h_pq_BC, h_qp_BC, symmetric_kl_BC = losses.two_sided(log_p_BCV, log_q_BCV)
  p_BCV, q_BCV = jnp.exp(log_p_BCV), jnp.exp(log_q_BCV)
  d_p_BCV = p_BCV * (1 - log_q_BCV - h_pq_BC[..., None]) - q_BCV
  d_q_BCV = q_BCV * (1 - log_p_BCV - h_qp_BC[..., None]) - p_BCV
  return h_pq_BC + h_qp_BC, symmetric_kl_BC, d_p_BCV, d_q_BCV


def kl_of_student(log_p_BCV: jax.Array, log_q_BCV: jax.Array) -> tuple[jax.Array, ...]:
  """KL(q‖p) for a teacher p that is constant, as in self-distillation.

  Returns:
    KL and whether both have the same likeliest token, at each place, [B, C]; the
    gradients of KL with respect to the logits, [B, C, V]: 0 for the teacher's, and
    q (log q − log p − KL) for the student's.
  """
  q_BCV, ratio_BCV = jnp.exp(log_q_BCV), log_q_BCV - log_p_BCV
  kl_BC = products.einsum("bcv,bcv->bc", q_BCV, ratio_BCV)
  same_BC = jnp.argmax(log_p_BCV, -1) == jnp.argmax(log_q_BCV, -1)
  d_q_BCV = q_BCV * (ratio_BCV - kl_BC[..., None])
  return kl_BC, same_BC.astype(jnp.float32), jnp.zeros_like(d_q_BCV), d_q_BCV


DIVERGENCES = {"sce": symmetric_cross_entropy, "kl": kl_of_student}


def regularised(
  first_BLD: jax.Array,
  second_BLD: jax.Array,
  head_VD: jax.Array,
  targets_BL: jax.Array,
  weight_BL: jax.Array,
  pair_weight_BL: jax.Array,
  chunk: int,
  divergence: str,
  constant: str,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
  """Σ weight · −log p(target) + Σ pair weight · D(p, q), and its parts.

  As in `losses.cross_entropy`, the logits of a chunk are computed once, and their
  gradients with them.

  Args:
    first_BLD, second_BLD: final hidden states of both reads, compute dtype.
    head_VD: output matrix, fp32 master.
    targets_BL: int32 in [0, V).
    weight_BL: fp32, of the cross entropy; already divided by its denominator.
    pair_weight_BL: fp32, of D; already times its weight and divided by its
      denominator.
    chunk: of cross entropy; here the logits of a quarter as many places per row exist
      at one time, for both reads.
    divergence: a key of `DIVERGENCES`.
    constant: the read that is a constant in D, "first", "second" or "none".

  Returns:
    The sum, to be differentiated; and, without a gradient, the cross entropy's part,
    the part of D, and Σ pair weight · the second result of the divergence. fp32.
  """
  L = first_BLD.shape[1]
  # Two reads, twice as many arrays each: no more memory than cross entropy takes.
  chunk = min(max(chunk // 4, 1), L)
  pad = lambda x: jnp.pad(x, [(0, 0), (0, -L % chunk)] + [(0, 0)] * (x.ndim - 2))
  hidden_WBLD = jnp.stack([pad(first_BLD), pad(second_BLD)])
  per_place = jax.tree.map(pad, (targets_BL, weight_BL, pair_weight_BL))
  return _regularised(hidden_WBLD, head_VD, per_place, chunk, divergence, constant)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _regularised(hidden_WBLD, head_VD, per_place, chunk, divergence, constant):
  head_VD = head_VD.astype(hidden_WBLD.dtype)

  def add_chunk(sums, chunk_arrays):
    parts, *_ = _chunk_terms(divergence, head_VD, *chunk_arrays)
    return jax.tree.map(jnp.add, sums, parts), None

  chunks = _chunks(hidden_WBLD, per_place, chunk)
  sums, _ = jax.lax.scan(add_chunk, (jnp.float32(0),) * 3, chunks)
  return sums[0] + sums[1], sums


def _regularised_forward(hidden_WBLD, head_VD, per_place, chunk, divergence, constant):
  head_is_trained = head_VD.perturbed  # otherwise its gradient is not computed
  hidden_WBLD, head_VD, per_place = losses.values_of((hidden_WBLD, head_VD, per_place))
  dtype = hidden_WBLD.dtype
  head_cast_VD = head_VD.astype(dtype)
  trained = 1 if constant == "second" else 2  # reads that get a gradient

  def add_chunk(carry, chunk_arrays):
    sums, d_head_VD = carry
    hidden_WBCD, (targets_BC, weight_BC, pair_BC) = chunk_arrays
    parts, log_p_BCV, d_first_BCV, d_second_BCV = _chunk_terms(
      divergence, head_cast_VD, *chunk_arrays
    )
    one_hot_BCV = jax.nn.one_hot(targets_BC, head_VD.shape[0], dtype=jnp.float32)
    d_p_BCV = weight_BC[..., None] * (jnp.exp(log_p_BCV) - one_hot_BCV)
    if constant != "first":
      d_p_BCV += pair_BC[..., None] * d_first_BCV
    d_q_BCV = pair_BC[..., None] * d_second_BCV
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


def _regularised_backward(chunk, divergence, constant, gradients, d_results):
  d_total, _ = d_results
  d_hidden_WBLD, d_head_VD = ((d_total * x).astype(x.dtype) for x in gradients)
  return d_hidden_WBLD, d_head_VD if d_head_VD.ndim else None, None


_regularised.defvjp(_regularised_forward, _regularised_backward, symbolic_zeros=True)


def _chunks(hidden_WBLD, per_place, chunk):
  """`losses.chunks_of` for both reads: hidden_XWBCD, and per_place as [X, B, C]."""
  reads = [losses.chunks_of(hidden_BLD, chunk) for hidden_BLD in hidden_WBLD]
  return jnp.stack(reads, axis=1), losses.chunks_of(per_place, chunk)


def _chunk_terms(divergence, head_VD, hidden_WBCD, per_place):
  """A chunk's three sums, log p, and D's gradients for the logits of p and q; fp32."""
  targets_BC, weight_BC, pair_BC = per_place
  logits_WBCV = products.einsum("wbcd,vd->wbcv", hidden_WBCD, head_VD)
  log_p_BCV, log_q_BCV = jax.nn.log_softmax(logits_WBCV)
  target_BC1 = jnp.take_along_axis(log_p_BCV, targets_BC[..., None], axis=-1)
  d_BC, also_BC, *gradients = DIVERGENCES[divergence](log_p_BCV, log_q_BCV)
  sums = (
    -jnp.sum(weight_BC * target_BC1[..., 0]),
    jnp.sum(pair_BC * d_BC),
    jnp.sum(pair_BC * also_BC),
  )
  return sums, log_p_BCV, *gradients

"""Losses as weighted sums over places: the caller divides, by a global sum of weights.

Shapes: B batch, L length, C chunk, D model, V vocab.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import custom_derivatives

from skipalign_jax.model import products

# A gradient rule with symbolic zeros gets each input with a flag, `perturbed`: whether
# it is differentiated. This takes the values.
values_of = custom_derivatives.custom_vjp_primal_tree_values


def next_token_targets(
  tokens_BL: jax.Array, segment_ids_BL: jax.Array, loss_weight_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What each place predicts, and the weight of that prediction.

  `loss_weight_BL` belongs to the token that is predicted. A place never
  predicts a token of another segment.

  Returns:
    targets_BL int32, weight_BL fp32 (0 at the last place of a row).
  """
  targets_BL = jnp.roll(tokens_BL, -1, axis=1)
  inside_BL = jnp.roll(segment_ids_BL, -1, axis=1) == segment_ids_BL
  inside_BL = inside_BL.at[:, -1].set(False)
  weight_BL = jnp.roll(loss_weight_BL, -1, axis=1) * inside_BL
  return targets_BL, weight_BL.astype(jnp.float32)


def cross_entropy(
  hidden_BLD: jax.Array,
  head_VD: jax.Array,
  targets_BL: jax.Array,
  weight_BL: jax.Array,
  chunk: int,
) -> jax.Array:
  """Σ weight · −log p(target), with the logits of `chunk` places per row at a time.

  Full [B, L, V] logits never exist. When differentiated, the forward pass of a
  chunk also computes its gradients (softmax − one-hot, both known there), so
  no logits are computed twice; the backward pass only scales them. The gradient of
  the head is computed only if the head is differentiated.

  Args:
    hidden_BLD: final hidden states, compute dtype.
    head_VD: output matrix, fp32 master.
    targets_BL: int32 in [0, V).
    weight_BL: fp32 ≥ 0.
    chunk: places per row whose logits exist at one time.

  Returns:
    fp32 scalar sum; divide by the global Σ weight.
  """
  L = hidden_BLD.shape[1]
  padding = -L % min(chunk, L)
  pad = lambda x: jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
  return _cross_entropy(
    pad(hidden_BLD), head_VD, pad(targets_BL), pad(weight_BL), min(chunk, L)
  )


def target_log_probs(
  hidden_BLD: jax.Array, head_VD: jax.Array, targets_BL: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """log p of each target, and whether it is the likeliest token.

  Args:
    hidden_BLD: final hidden states, compute dtype.
    head_VD: output matrix.
    targets_BL: int32 in [0, V).
    chunk: places per row whose logits exist at one time.

  Returns:
    log_p_BL fp32, NaN where a logit is NaN or infinite, and likeliest_BL bool.
  """
  B, L = targets_BL.shape
  chunk = min(chunk, L)
  head_VD = head_VD.astype(hidden_BLD.dtype)
  pad = lambda x: jnp.pad(x, [(0, 0), (0, -L % chunk)] + [(0, 0)] * (x.ndim - 2))

  def score(arrays):
    hidden_BCD, targets_BC = arrays
    logits_BCV = products.einsum("bcd,vd->bcv", hidden_BCD, head_VD)
    target_BC1 = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)
    log_p_BC = target_BC1[..., 0] - jax.nn.logsumexp(logits_BCV, axis=-1)
    # One logit of −∞ would leave a plausible log p.
    finite_BC = jnp.isfinite(logits_BCV).all(axis=-1)
    log_p_BC = jnp.where(finite_BC, log_p_BC, jnp.nan)
    return log_p_BC, jnp.argmax(logits_BCV, axis=-1) == targets_BC

  parts = jax.lax.map(score, chunks_of((pad(hidden_BLD), pad(targets_BL)), chunk))
  return tuple(jnp.moveaxis(x, 0, 2).reshape(B, -1)[:, :L] for x in parts)


def long_short_terms(
  one_BLD: jax.Array, other_BLD: jax.Array, head_VD: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """How far apart two next-token distributions p and q are, place by place.

  Full logits never exist; when differentiated, those of a chunk are computed again.

  Args:
    one_BLD: final hidden states, compute dtype, that give p.
    other_BLD: those that give q; same shape.
    head_VD: output matrix.
    chunk: places per row whose logits exist at one time.

  Returns:
    sce_BL = H(p, q) + H(q, p) and symmetric_kl_BL, as in `two_sided`; fp32, nats.
  """
  B, L = one_BLD.shape[:2]
  chunk = min(chunk, L)
  head_VD = head_VD.astype(one_BLD.dtype)
  pad = lambda x: jnp.pad(x, [(0, 0), (0, -L % chunk), (0, 0)])

  @jax.checkpoint
  def compare(hidden):
    log_p_BCV, log_q_BCV = (
      jax.nn.log_softmax(products.einsum("bcd,vd->bcv", x_BCD, head_VD))
      for x_BCD in hidden
    )
    h_pq_BC, h_qp_BC, symmetric_kl_BC = two_sided(log_p_BCV, log_q_BCV)
    return h_pq_BC + h_qp_BC, symmetric_kl_BC

  parts = jax.lax.map(compare, chunks_of((pad(one_BLD), pad(other_BLD)), chunk))
  return tuple(jnp.moveaxis(x, 0, 2).reshape(B, -1)[:, :L] for x in parts)


def two_sided(
  log_p_BCV: jax.Array, log_q_BCV: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """How far apart two distributions are, from both sides (2506.11769).

  Args:
    log_p_BCV, log_q_BCV: log-softmax of two sets of logits, fp32.

  Returns:
    H(p, q), H(q, p) and KL(p‖q) + KL(q‖p) at each place, [B, C] fp32, nats. The
    symmetric cross entropy H(p, q) + H(q, p) is the last plus H(p) + H(q): only the
    last is 0 where p = q.
  """
  p_BCV, q_BCV = jnp.exp(log_p_BCV), jnp.exp(log_q_BCV)
  # As products: sums along V of these are several times slower on CPUs.
  along_V = functools.partial(products.einsum, "bcv,bcv->bc")
  symmetric_kl_BC = along_V(p_BCV - q_BCV, log_p_BCV - log_q_BCV)
  return -along_V(p_BCV, log_q_BCV), -along_V(q_BCV, log_p_BCV), symmetric_kl_BC


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(hidden_BLD, head_VD, targets_BL, weight_BL, chunk):
  head_VD = head_VD.astype(hidden_BLD.dtype)

  def add_chunk(total, chunk_arrays):
    hidden_BCD, targets_BC, weight_BC = chunk_arrays
    loss_BC, _ = _chunk_loss(hidden_BCD, head_VD, targets_BC)
    return total + jnp.sum(weight_BC * loss_BC), None

  chunks = chunks_of((hidden_BLD, targets_BL, weight_BL), chunk)
  return jax.lax.scan(add_chunk, jnp.float32(0), chunks)[0]


def _forward(hidden_BLD, head_VD, targets_BL, weight_BL, chunk):
  head_is_trained = head_VD.perturbed
  hidden_BLD, head_VD, targets_BL, weight_BL = values_of(
    (hidden_BLD, head_VD, targets_BL, weight_BL)
  )
  dtype = hidden_BLD.dtype
  head_cast_VD = head_VD.astype(dtype)
  V = head_VD.shape[0]

  def add_chunk(carry, chunk_arrays):
    total, d_head_VD = carry
    hidden_BCD, targets_BC, weight_BC = chunk_arrays
    loss_BC, probability_BCV = _chunk_loss(hidden_BCD, head_cast_VD, targets_BC)
    one_hot_BCV = jax.nn.one_hot(targets_BC, V, dtype=jnp.float32)
    d_logits_BCV = weight_BC[..., None] * (probability_BCV - one_hot_BCV)
    d_logits_BCV = d_logits_BCV.astype(dtype)
    d_hidden_BCD = products.einsum("bcv,vd->bcd", d_logits_BCV, head_cast_VD)
    if head_is_trained:
      d_head_VD += products.einsum("bcv,bcd->vd", d_logits_BCV, hidden_BCD)
    total += jnp.sum(weight_BC * loss_BC)
    return (total, d_head_VD), (d_hidden_BCD.astype(dtype), loss_BC)

  chunks = chunks_of((hidden_BLD, targets_BL, weight_BL), chunk)
  shape = head_VD.shape if head_is_trained else ()
  start = (jnp.float32(0), jnp.zeros(shape, jnp.float32))
  (total, d_head_VD), per_chunk = jax.lax.scan(add_chunk, start, chunks)
  d_hidden_BLD, d_weight_BL = (
    jnp.moveaxis(x, 0, 2).reshape(*weight_BL.shape, *x.shape[3:]) for x in per_chunk
  )
  return total, (d_hidden_BLD, d_head_VD.astype(head_VD.dtype), d_weight_BL)


def _backward(chunk, gradients, d_total):
  d_hidden_BLD, d_head_VD, d_weight_BL = (
    (d_total * x).astype(x.dtype) for x in gradients
  )
  return d_hidden_BLD, d_head_VD if d_head_VD.ndim else None, None, d_weight_BL


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _chunk_loss(hidden_BCD, head_VD, targets_BC):
  """−log p(target) and p over the vocabulary, fp32."""
  logits_BCV = products.einsum("bcd,vd->bcv", hidden_BCD, head_VD)
  log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
  target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
  return log_z_BC - target_BC, jnp.exp(logits_BCV - log_z_BC[..., None])


def chunks_of(arrays: Any, chunk: int) -> Any:
  """[B, L, …] → [L / chunk, B, chunk, …], to scan over.

  Chunk i takes every (L / chunk)-th place from i on: if devices share a row,
  each has its part of every chunk.
  """
  split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], chunk, -1, *x.shape[2:]), 2, 0)
  return jax.tree.map(split, arrays)

"""Losses in chunks equal those with all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import sizes

from skipalign_jax.model import losses

B, L, D, V = 3, 12, 5, 17


def arrays(seed=0):
  """hidden, head, targets, weight."""
  rng = np.random.default_rng(seed)
  return (
    rng.standard_normal((B, L, D)).astype(np.float32),
    rng.standard_normal((V, D)).astype(np.float32),
    rng.integers(0, V, (B, L)),
    (rng.uniform(size=(B, L)) * rng.integers(0, 2, (B, L))).astype(np.float32),
  )


def naive(hidden_BLD, head_VD, targets_BL, weight_BL):
  log_p_BLV = jax.nn.log_softmax(hidden_BLD @ head_VD.T)
  one_hot_BLV = targets_BL[..., None] == jnp.arange(head_VD.shape[0])
  return -jnp.sum(weight_BL[..., None] * one_hot_BLV * log_p_BLV)


def gradients(loss, *arrays):
  """Value and gradients of 3·loss: what comes from above must scale them."""
  scaled = lambda *arrays: 3 * loss(*arrays)
  return jax.jit(jax.value_and_grad(scaled, (0, 1, 3)))(*arrays)


def test_targets_by_hand():
  targets_BL, weight_BL = losses.next_token_targets(
    jnp.array([[5, 6, 7, 8, 9, 0], [1, 2, 3, 4, 5, 6]]),
    jnp.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]]),
    jnp.array([[1.0, 0, 1, 1, 1, 0], [1, 1, 0, 0.5, 1, 1]]),
  )
  assert targets_BL[:, :-1].tolist() == [[6, 7, 8, 9, 0], [2, 3, 4, 5, 6]]
  assert weight_BL.tolist() == [[0, 1, 0, 1, 0, 0], [1, 0, 0.5, 1, 1, 0]]
  assert weight_BL.dtype == jnp.float32


def test_targets_never_cross_segments():
  rng = np.random.default_rng(0)
  segments_BL = np.sort(rng.integers(1, 6, (20, 30)), axis=1)
  tokens_BL = 100 * segments_BL + rng.integers(0, 100, segments_BL.shape)
  ones_BL = np.ones(segments_BL.shape, np.float32)
  targets_BL, weight_BL = losses.next_token_targets(tokens_BL, segments_BL, ones_BL)
  assert np.all((np.asarray(targets_BL) // 100 == segments_BL) | (weight_BL == 0))
  # All the others count: a segment of n tokens has n - 1 targets.
  assert weight_BL.sum() == sum(30 - len(set(row)) for row in segments_BL.tolist())


@pytest.fixture(scope="module")
def full_logits():
  return gradients(naive, *arrays())


@pytest.mark.parametrize("chunk", [1, 4, 5, 12, 100])
def test_chunks_equal_full_logits(chunk, full_logits):
  ours = lambda *arrays: losses.cross_entropy(*arrays, chunk)
  value, grads = gradients(ours, *arrays())
  expected, expected_grads = full_logits
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for one, other in zip(grads, expected_grads, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  # Without differentiation, it is another program.
  np.testing.assert_allclose(3 * ours(*arrays()), expected, rtol=1e-5)


def test_places_of_weight_zero_count_for_nothing():
  hidden_BLD, head_VD, targets_BL, weight_BL = arrays()
  off_BL = weight_BL == 0
  absurd = np.where(off_BL[..., None], 1e4, hidden_BLD).astype(np.float32)
  other_targets_BL = np.where(off_BL, V - 1 - targets_BL, targets_BL)
  ours = lambda *arrays: losses.cross_entropy(*arrays, 5)
  value, (d_hidden, d_head, _) = gradients(ours, *arrays())
  other = gradients(ours, absurd, head_VD, other_targets_BL, weight_BL)
  assert value == other[0] > 0
  np.testing.assert_array_equal(d_hidden, other[1][0])
  np.testing.assert_array_equal(d_head, other[1][1])
  assert not np.any(np.asarray(d_hidden)[off_BL])
  assert np.all(np.any(np.asarray(d_hidden)[~off_BL], axis=-1))


def test_bf16_hidden_states_keep_an_fp32_sum_and_head(full_logits):
  hidden_BLD, head_VD, targets_BL, weight_BL = arrays()
  hidden_BLD = jnp.asarray(hidden_BLD, jnp.bfloat16)
  ours = lambda *arrays: losses.cross_entropy(*arrays, 5)
  value, grads = gradients(ours, hidden_BLD, head_VD, targets_BL, weight_BL)
  assert [x.dtype for x in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
  exact, exact_grads = full_logits
  np.testing.assert_allclose(value, exact, rtol=0.02)
  for one, other in zip(grads, exact_grads, strict=True):
    np.testing.assert_allclose(one.astype(np.float32), other, rtol=0.05, atol=0.1)


def naive_terms(one_BLD, other_BLD, head_VD):
  """Both terms by their definitions, from full probabilities."""
  p_BLV, q_BLV = (jax.nn.softmax(x @ head_VD.T) for x in (one_BLD, other_BLD))
  cross = lambda a, b: -jnp.sum(a * jnp.log(b), axis=-1)
  sce_BL = cross(p_BLV, q_BLV) + cross(q_BLV, p_BLV)
  return sce_BL, sce_BL - cross(p_BLV, p_BLV) - cross(q_BLV, q_BLV)


@pytest.mark.parametrize("chunk", [1, 4, 5, 12, 100])
def test_long_short_terms_equal_their_definitions(chunk):
  one_BLD, head_VD, _, weight_BL = arrays()
  other_BLD = arrays(1)[0]
  found = losses.long_short_terms(one_BLD, other_BLD, head_VD, chunk)
  for ours, expected in zip(
    found, naive_terms(one_BLD, other_BLD, head_VD), strict=True
  ):
    assert ours.shape == (B, L) and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)

  def weighted(terms):
    def loss(one_BLD, other_BLD, head_VD):
      sce_BL, symmetric_kl_BL = terms(one_BLD, other_BLD, head_VD)
      return jnp.sum(weight_BL * (sce_BL + 2 * symmetric_kl_BL))

    return jax.jit(jax.grad(loss, (0, 1, 2)))(one_BLD, other_BLD, head_VD)

  ours = weighted(lambda *arrays: losses.long_short_terms(*arrays, chunk))
  for one, expected in zip(ours, weighted(naive_terms), strict=True):
    np.testing.assert_allclose(one, expected, rtol=1e-3, atol=1e-4)


def test_long_short_terms_of_equal_states():
  one_BLD, head_VD, _, _ = arrays()
  sce_BL, symmetric_kl_BL = losses.long_short_terms(one_BLD, one_BLD, head_VD, 5)
  assert not np.any(symmetric_kl_BL)
  log_p_BLV = jax.nn.log_softmax(one_BLD @ head_VD.T)
  entropy_BL = -jnp.sum(jnp.exp(log_p_BLV) * log_p_BLV, axis=-1)
  np.testing.assert_allclose(sce_BL, 2 * entropy_BL, rtol=1e-5)


def test_long_short_terms_are_symmetric_and_finite():
  one_BLD, head_VD, _, _ = arrays()
  other_BLD = 100 * arrays(1)[0]  # probabilities that are 0 in fp32
  found = losses.long_short_terms(one_BLD, other_BLD, head_VD, 5)
  turned = losses.long_short_terms(other_BLD, one_BLD, head_VD, 5)
  for one, other in zip(found, turned, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert np.all(np.isfinite(one)) and np.all(np.asarray(one) > 0)


def test_long_short_terms_never_have_all_logits():
  rows, length, dim, vocab = 2, 64, 3, 50

  def largest(chunk):
    def loss(*arrays):
      return sum(map(jnp.sum, losses.long_short_terms(*arrays, chunk)))

    shapes = [(rows, length, dim), (rows, length, dim), (vocab, dim)]
    structs = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    return max(sizes(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*structs).jaxpr))

  assert largest(16) == rows * 16 * vocab
  assert largest(64) == rows * 64 * vocab


def test_a_logit_that_is_no_number_leaves_no_log_prob():
  """Also −∞ of another token, with which the log p of a target would look right."""
  hidden_BLD, head_VD, targets_BL, _ = arrays()
  for bad in (-np.inf, np.nan):
    broken_VD = head_VD.copy()
    broken_VD[0, 0] = bad
    score = jax.jit(losses.target_log_probs, static_argnums=3)
    log_p_BL, _ = score(np.abs(hidden_BLD), broken_VD, targets_BL, 5)
    assert np.isnan(log_p_BL).all()


def test_target_log_probs_never_have_all_logits():
  rows, length, dim, vocab = 2, 64, 3, 50

  def largest(chunk):
    score = lambda *arrays: losses.target_log_probs(*arrays, chunk)
    shapes = [(rows, length, dim), (vocab, dim), (rows, length)]
    structs = map(jax.ShapeDtypeStruct, shapes, ["float32", "float32", "int32"])
    return max(sizes(jax.make_jaxpr(score)(*structs).jaxpr))

  assert largest(16) == rows * 16 * vocab
  assert largest(64) == rows * 64 * vocab


def test_all_logits_never_exist():
  rows, length, dim, vocab = 2, 64, 3, 50

  def largest(chunk):
    loss = lambda *arrays: losses.cross_entropy(*arrays, chunk)
    shapes = [(rows, length, dim), (vocab, dim), (rows, length), (rows, length)]
    kinds = ["float32", "float32", "int32", "float32"]
    structs = map(jax.ShapeDtypeStruct, shapes, kinds)
    program = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(*structs)
    return max(sizes(program.jaxpr))

  assert largest(16) == rows * 16 * vocab
  assert largest(20) == rows * 20 * vocab
  assert largest(64) == rows * 64 * vocab  # so the walk does see logits

"""RMSNorm against its formula, and its gradients against JAX's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipalign_jax.model import norm

EPS = 1e-2


def plain(x, weight):
  return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * weight


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(norm, x, weight_D, d_y):
  y, pull = jax.vjp(norm, x, weight_D)
  return y, *pull(d_y)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5)])
def test_values_and_gradients(shape):
  draw = np.random.default_rng(0).standard_normal
  inputs = tuple(np.float32(draw(s)) for s in (shape, shape[-1:], shape))
  ours = value_and_gradients(lambda x, w: norm.rms_norm(x, w, EPS), *inputs)
  for got, want in zip(ours, value_and_gradients(plain, *inputs), strict=True):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_bfloat16_goes_in_and_out_and_fp32_in_between():
  x = jnp.full((2, 4096), 3.0, jnp.bfloat16)
  y = norm.rms_norm(x, jnp.full(4096, 1.5), 1e-6)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.float32(y), 1.5)  # a bf16 sum would stop at 256·9

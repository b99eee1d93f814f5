"""SwiGLU against the definition in fp64, and its gradient against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipalign_jax.model import activation


def inputs(dtype):
  return jax.random.normal(jax.random.key(0), (3, 2, 5, 64), dtype) * 4


def by_definition(gate, up):
  return gate / (1 + np.exp(-gate)) * up


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_value_is_rounded_once(dtype, rtol):
  gate, up, _ = inputs(dtype)
  got = activation.swiglu(gate, up)
  assert got.dtype == dtype
  expected = by_definition(np.float64(gate), np.float64(up))
  np.testing.assert_allclose(np.float64(got), expected, rtol=rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("bfloat16", 2**-8)])
def test_gradient(dtype, rtol):
  gate, up, d_out = inputs(dtype)
  got = jax.vjp(activation.swiglu, gate, up)[1](d_out)
  wide = [x.astype(jnp.float32) for x in (gate, up, d_out)]
  expected = jax.vjp(lambda g, u: jax.nn.silu(g) * u, *wide[:2])[1](wide[2])
  for one, other in zip(got, expected, strict=True):
    assert one.dtype == dtype
    np.testing.assert_allclose(
      np.float64(one), np.float64(other), rtol=rtol, atol=rtol * 1e-1
    )


def test_large_values_have_finite_gradients():
  gate = jnp.array([-200.0, 200.0])
  d_gate, d_up = jax.vjp(activation.swiglu, gate, jnp.ones(2))[1](jnp.ones(2))
  np.testing.assert_allclose(d_gate, [0, 1], atol=1e-6)
  np.testing.assert_allclose(d_up, [0, 200], atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_barrier_except_on_gpus(monkeypatch, platform):
  monkeypatch.setattr(activation.sharding, "platform", lambda: platform)
  gate, up, d_out = inputs("bfloat16")
  gradient = jax.make_jaxpr(lambda *x: jax.vjp(activation.swiglu, *x)[1](d_out))
  assert ("optimization_barrier" in str(gradient(gate, up))) == (platform != "gpu")

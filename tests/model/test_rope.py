"""Rope against transformers' frequencies, and the properties that methods rely on."""

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import pytest

from skipalign_jax.model import model_config, rope
from skipalign_jax.runtime import errors

GOLDENS = np.load(make_goldens.FOLDER / "rope.npz")
SHAPE = make_goldens.MODELS["llama2_mha"]


def rotate(x_BLNH, positions_BL, inv_freq_P, scale):
  return rope.apply(x_BLNH, *rope.rotation(positions_BL, inv_freq_P, scale))


@pytest.mark.parametrize("head_dim", make_goldens.HEAD_DIMS)
@pytest.mark.parametrize("name", make_goldens.ROPES)
def test_frequencies_equal_transformers(name, head_dim):
  hf = SHAPE | {"rope_parameters": make_goldens.ROPES[name]}
  config = model_config.from_hf(hf).rope
  inv_freq_P, scale = rope.inverse_frequencies(config, head_dim)
  expected_P = GOLDENS[f"{name}/{head_dim}/inv_freq"]
  assert inv_freq_P.dtype == np.float32
  assert np.all(np.abs(inv_freq_P - expected_P) <= np.spacing(expected_P))
  np.testing.assert_allclose(scale, GOLDENS[f"{name}/{head_dim}/scale"], rtol=1e-6)


@pytest.mark.parametrize(
  ("length", "base"),
  [(16_384, 40_889.9), (32_768, 82_684.6), (51_200, 130_113.2), (100_000, 256_842.0)],
)
def test_ntk_bases_of_llama2(length, base):
  assert rope.ntk_theta(10_000.0, length / 4096, 128) == pytest.approx(base, abs=0.1)
  # The kind "ntk" is that base, and so is what its export says.
  ntk = rope.RopeConfig("ntk", 10_000.0, factor=length / 4096, original_window=4096)
  ours_P, _ = rope.inverse_frequencies(ntk, 128)
  expected_P = GOLDENS[f"ntk_{length}/128/inv_freq"]
  assert np.all(np.abs(ours_P - expected_P) <= np.spacing(expected_P))


@pytest.mark.parametrize("factor", [2.0, 12.5, 24.4140625])
def test_ntk_keeps_the_first_pair_and_divides_the_last(factor):
  plain_P, _ = rope.inverse_frequencies(rope.RopeConfig("none", 10_000.0), 128)
  ntk = rope.RopeConfig("ntk", 10_000.0, factor=factor)
  scaled_P, _ = rope.inverse_frequencies(ntk, 128)
  assert scaled_P[0] == plain_P[0] == 1
  assert plain_P[-1] / scaled_P[-1] == pytest.approx(factor, rel=1e-6)
  assert np.all(np.diff(plain_P / scaled_P) > 0)


def test_dynamic_is_refused():
  with pytest.raises(errors.UserError, match=r"rope\.kind=ntk"):
    rope.RopeConfig("dynamic", 10_000.0, factor=2.0)
  hf = SHAPE | {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
  }
  with pytest.raises(errors.UserError, match="cannot be trained"):
    model_config.from_hf(hf)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("unheard-of", 10_000.0), "choose one of"),
    (("none", 0.5), "theta"),
    (("linear", 10_000.0, 0.5), "at least 1"),
    (("yarn", 10_000.0, 4.0), "original window"),
    (("llama3", 10_000.0, 4.0), "original window"),
    (("llama3", 1e4, 4.0, 8192, 32.0, 1.0, None, 4.0, 4.0), "must be below"),
  ],
)
def test_bad_configs_are_refused(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    rope.RopeConfig(*arguments)


KINDS = {
  "none": rope.RopeConfig("none", 10_000.0),
  "linear": rope.RopeConfig("linear", 10_000.0, 4.0),
  "ntk": rope.RopeConfig("ntk", 10_000.0, 24.4),
  "yarn": rope.RopeConfig("yarn", 10_000.0, 4.0, original_window=64),
  "llama3": rope.RopeConfig("llama3", 10_000.0, 8.0, original_window=64),
}


def scores(config, query_position, key_position):
  """q·k of one fixed random pair of heads, after rotation."""
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, 1, 1, 1, 32)).astype(np.float32)
  inv_freq_P, scale = rope.inverse_frequencies(config, 32)
  q = rotate(q, jnp.array([[query_position]]), inv_freq_P, scale)
  k = rotate(k, jnp.array([[key_position]]), inv_freq_P, scale)
  return float(jnp.sum(q * k))


@pytest.mark.parametrize("kind", KINDS)
def test_score_depends_on_the_distance_only(kind):
  near = scores(KINDS[kind], 30, 7)
  assert scores(KINDS[kind], 1030, 1007) == pytest.approx(near, abs=2e-3)
  assert abs(scores(KINDS[kind], 31, 7) - near) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_position_zero_only_scales(kind):
  x_BLNH = np.random.default_rng(0).standard_normal((1, 1, 2, 32)).astype(np.float32)
  inv_freq_P, scale = rope.inverse_frequencies(KINDS[kind], 32)
  out = rotate(jnp.asarray(x_BLNH), jnp.zeros((1, 1), jnp.int32), inv_freq_P, scale)
  np.testing.assert_allclose(out, x_BLNH * np.float32(scale), rtol=1e-6)


def test_position_100_000_is_exact_to_fp32():
  """Neighbours stay apart, and angles are within fp32 rounding of float64's."""
  inv_freq_P, _ = rope.inverse_frequencies(rope.RopeConfig("none", 10_000.0), 128)
  one_BLNH = jnp.concatenate([jnp.ones((1, 2, 1, 64)), jnp.zeros((1, 2, 1, 64))], -1)
  positions_BL = jnp.array([[99_999, 100_000]], jnp.int32)
  turned = np.asarray(jax.jit(rotate)(one_BLNH, positions_BL, inv_freq_P, 1.0))
  angle_LP = np.array([[99_999.0], [100_000.0]]) * inv_freq_P.astype(np.float64)
  np.testing.assert_allclose(turned[0, :, 0, :64], np.cos(angle_LP), atol=5e-3)
  np.testing.assert_allclose(turned[0, :, 0, 64:], np.sin(angle_LP), atol=5e-3)
  step = np.arctan2(turned[0, :, 0, 64], turned[0, :, 0, 0])
  assert (step[1] - step[0]) % (2 * np.pi) == pytest.approx(1.0, abs=1e-3)


def test_bf16_activations_keep_fp32_angles():
  x_BLNH = jnp.ones((1, 1, 1, 32), jnp.bfloat16)
  inv_freq_P, _ = rope.inverse_frequencies(KINDS["none"], 32)
  at = lambda p: rotate(x_BLNH, jnp.array([[p]], jnp.int32), inv_freq_P, 1.0)
  assert at(0).dtype == jnp.bfloat16
  assert not jnp.array_equal(at(256), at(257))

"""What only CPUs need is in no program for another platform."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from skipalign_jax.model import cpu, decoder, lora, lora_state, products, sharding

# XLA's name of the platform → that of a mesh's devices.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}
CONFIG = tiny.config()
QUICK = {("full", False), ("none", True)}  # remat, adapters; the other pairs are slow
ADAPTERS = lora.Config(rank=2, alpha=4.0, targets=("q", "down"), base="bfloat16")


def program(platform, function, *arguments):
  """StableHLO of a function, lowered for a platform."""
  device = jax.sharding.AbstractDevice(platform, None, PLATFORMS[platform])
  mesh = jax.sharding.AbstractMesh(
    (1,) * len(sharding.AXES), sharding.AXES, abstract_device=device
  )
  with jax.sharding.use_abstract_mesh(mesh):
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def gradient_program(platform, remat, adapters):
  """StableHLO of a gradient in bf16, lowered for a platform."""
  params = trained = jax.tree.map(jnp.asarray, tiny.params(CONFIG))
  build = lambda trained: trained
  if adapters:
    trained = lora_state.init(ADAPTERS, params, 0)
    build = lambda trained: lora.join(ADAPTERS, trained, params)

  def loss(trained, tokens_BL):
    hidden_BLD, _ = decoder.bind(CONFIG, build(trained))(
      tokens_BL, tokens_BL, jnp.ones_like(tokens_BL), "bfloat16", remat
    )
    return jnp.sum(hidden_BLD.astype(jnp.float32))

  return program(platform, jax.grad(loss), trained, np.zeros((2, 8), np.int32))


def bit_casts(program):
  """How many casts there are between bf16 and its bits."""
  casts = re.findall(r"bitcast_convert .*: \(tensor<(.*)>\) -> tensor<(.*)>", program)
  kinds = [{shape.split("x")[-1] for shape in cast} for cast in casts]
  return kinds.count({"bf16", "ui16"})


@pytest.mark.parametrize(
  ("remat", "adapters"),
  [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in itertools.product(decoder.REMAT, (False, True))
  ],
)
def test_only_programs_for_cpus_have_bit_casts_and_layouts(remat, adapters):
  for platform in PLATFORMS:
    program = gradient_program(platform, remat, adapters)
    assert (bit_casts(program) > 0) == (platform == "cpu"), platform
    assert ("LayoutConstraint" in program) == (platform == "cpu"), platform


@pytest.fixture(params=[False, True], ids=["emulated", "native"])
def native(request, monkeypatch):
  """Whether the processor counts as one that multiplies bf16."""
  monkeypatch.setattr(cpu, "has_bf16_products", lambda: request.param)
  return request.param


def operands(T):
  numbers = np.random.default_rng(0)
  return [numbers.normal(size=n).astype(np.float32) for n in ((T, 96), (256, 96))]


def product(left_TI, right_OI):
  """Of operands that a program computes in fp32 and casts to bf16."""
  left_TI, right_OI = (jnp.asarray(x, jnp.bfloat16) for x in (left_TI, right_OI))
  return products.einsum("ti,oi->to", left_TI, right_OI)


@pytest.mark.parametrize(("T", "large"), [(2, False), (512, True)])
def test_large_products_of_bf16_are_cast_where_they_are_emulated(native, T, large):
  for platform in PLATFORMS:
    text = program(platform, lambda *x: product(*x), *operands(T))  # traced anew
    (dtype,) = re.findall(r"dot_general.*: \(tensor<\w+x(\w+)>, ", text)
    cast = platform == "cpu" and large and not native
    assert dtype == ("f32" if cast else "bf16"), platform


def test_a_cast_product_is_one_of_the_rounded_values(native):
  out = jax.jit(lambda *x: product(*x))(*operands(512))  # traced anew
  left, right = (np.asarray(x, jnp.bfloat16).astype(np.float64) for x in operands(512))
  np.testing.assert_allclose(out, left @ right.T, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  ("cpuinfo", "expected"),
  [
    ("processor : 0\nflags\t\t: fpu avx2 avx512f\n", False),
    ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
    ("flags : amx_bf16 amx_tile\n", True),
    ("Features : asimd\n", True),  # another architecture: unknown
    (None, True),
  ],
)
def test_processors_that_multiply_bf16(tmp_path, cpuinfo, expected):
  if cpuinfo is not None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
  assert cpu.has_bf16_products(str(tmp_path / "cpuinfo")) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_weights_and_their_sum(monkeypatch, dtype, platform):
  """Of the weights as they are rounded, on each platform's way."""
  monkeypatch.setattr(sharding, "platform", lambda: PLATFORMS[platform])
  weight = jax.random.uniform(jax.random.key(0), (2, 6, 32)) ** 8
  v = jax.random.normal(jax.random.key(1), (2, 32, 4), dtype)
  product = lambda weight, v: products.einsum("bts,bsh->bth", weight, v)
  out, total = jax.jit(lambda *x: cpu.with_sum(product, *x))(weight, v)
  assert (out.dtype, total.dtype) == (jnp.float32, jnp.float32)
  rounded = np.float64(weight.astype(dtype))
  np.testing.assert_allclose(total[..., 0], rounded.sum(-1), rtol=1e-6)
  np.testing.assert_allclose(out, rounded @ np.float64(v), rtol=1e-5, atol=1e-6)


def test_weights_round_to_the_nearest_bf16_and_stay_what_they_are():
  weight = np.float32([0, 1, 0.1, 1e-30, 1 + 2**-8, np.nan, -np.nan, np.inf])
  product = lambda weight, v: products.einsum("ts,sh->th", weight, v)
  one = jnp.ones((1, 1), jnp.bfloat16)
  out, total = cpu.with_sum(product, jnp.asarray(weight[:, None]), one)
  expected = weight.astype(jnp.bfloat16).astype(np.float32)
  expected[4] = 1 + 2**-7  # a tie: away from zero
  np.testing.assert_array_equal(out[:, 0], expected)
  np.testing.assert_array_equal(total[:, 0], expected)

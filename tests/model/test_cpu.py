"""What only CPUs need is in no program for another platform."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from skipalign_jax.model import decoder, lora, lora_state, sharding

# XLA's name of the platform → that of a mesh's devices.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}
CONFIG = tiny.config()
QUICK = {("full", False), ("none", True)}  # remat, adapters; the other pairs are slow
ADAPTERS = lora.Config(rank=2, alpha=4.0, targets=("q", "down"), base="bfloat16")


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

  device = jax.sharding.AbstractDevice(platform, None, PLATFORMS[platform])
  mesh = jax.sharding.AbstractMesh(
    (1,) * len(sharding.AXES), sharding.AXES, abstract_device=device
  )
  with jax.sharding.use_abstract_mesh(mesh):
    traced = jax.jit(jax.grad(loss)).trace(trained, np.zeros((2, 8), np.int32))
    return traced.lower(lowering_platforms=(platform,)).as_text()


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

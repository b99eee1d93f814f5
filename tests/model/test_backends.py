"""Attention backends against the definition; the choice between them."""

import functools
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from skipalign_jax.model import backends, sharding
from skipalign_jax.runtime import errors

L, HEADS, KV_HEADS, HEAD_DIM = 256, 4, 2, 64


def inputs(dtype):
  """Two rows of packed segments with padding; the second is padded on the left."""
  rng = np.random.default_rng(0)
  draw = lambda n: jnp.asarray(rng.standard_normal((2, L, n, HEAD_DIM)), dtype)
  segments_BL = np.zeros((2, L), np.int32)
  segments_BL[0, :70], segments_BL[0, 70:71], segments_BL[0, 71:200] = 1, 2, 3
  segments_BL[1, 130:] = 1
  return (draw(HEADS), draw(KV_HEADS), draw(KV_HEADS)), segments_BL, draw(HEADS)


def with_gradients(attend, dtype):
  """Output, gradients of q, k and v; what padding gives does not count."""
  qkv, segments_BL, d_out_BLNH = inputs(dtype)
  d_out_BLNH *= (segments_BL > 0)[..., None, None]
  run = lambda *qkv: attend(*qkv, segments_BL)
  out_BLNH, pull = jax.vjp(run, *qkv)
  used_BLNH = out_BLNH * (segments_BL > 0)[..., None, None]
  return [np.asarray(x, np.float32) for x in (used_BLNH, *pull(d_out_BLNH))]


@pytest.fixture(scope="module")
def exact():
  return with_gradients(backends.reference, jnp.float32)


@pytest.mark.parametrize(
  "attend",
  [
    backends.BACKENDS["xla"],
    backends.BACKENDS["blockwise"],
    functools.partial(backends.triton, interpret=True),
    functools.partial(backends.splash, interpret=True),
  ],
  ids=["xla", "blockwise", "triton", "splash"],
)
def test_backends_agree(attend, exact):
  """In bf16, which the kernels are made for; Pallas kernels run interpreted."""
  for got, expected in zip(with_gradients(attend, jnp.bfloat16), exact, strict=True):
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < 0.02, error


def test_runs_are_the_segments_of_each_row():
  segments_BL = np.array([[1, 1, 1, 2, 0, 0], [0, 0, 5, 5, 5, 5], [3] * 6])
  offsets, lengths = backends.runs(jnp.asarray(segments_BL), 3)
  assert offsets.tolist() == [[0, 3, 4, -1], [0, 2, -1, -1], [0, -1, -1, -1]]
  assert lengths.tolist() == [[3, 1, 2], [2, 4, -1], [6, -1, -1]]


@pytest.mark.parametrize(
  ("platform", "dtype", "length", "segments", "chosen"),
  [
    ("cpu", "bfloat16", 4096, 2, "blockwise"),
    ("gpu", "bfloat16", 4096, 2, "cudnn"),
    ("cuda", "bfloat16", 4096, 129, "triton"),
    ("gpu", "float32", 4096, 2, "blockwise"),
    ("gpu", "float32", 4096, 129, "blockwise"),
    ("gpu", "bfloat16", 4100, 129, "blockwise"),
    ("tpu", "float32", 4096, 2, "blockwise"),
    ("tpu", "bfloat16", 4096, 129, "splash"),
    ("tpu", "bfloat16", 100, 2, "blockwise"),
  ],
)
def test_auto(platform, dtype, length, segments, chosen):
  backend = backends.choose("auto", platform, dtype, length, 128, segments)
  assert backend == backends.Backend(chosen, segments)


@pytest.mark.parametrize("segments", [2, 129])
@pytest.mark.parametrize(
  ("capability", "head_dim", "kernels"),
  [
    ("7.5", 64, False),  # T4: XLA refuses Triton, and cuDNN has no engine
    ("gfx942", 64, False),  # AMD
    ("8.0", 128, True),
    ("12.0", 64, True),
    ("9.0", 256, False),  # Triton's kernel needs more shared memory than any GPU has
  ],
)
def test_auto_knows_which_gpus_run_the_kernels(
  monkeypatch, capability, head_dim, kernels, segments
):
  gpu = types.SimpleNamespace(compute_capability=capability)
  monkeypatch.setattr(jax, "devices", lambda: [gpu])
  auto = lambda name: backends.choose(name, "gpu", "bfloat16", 4096, head_dim, segments)
  assert (auto("auto").name != "blockwise") == kernels
  if not kernels:
    for name in ("cudnn", "triton"):
      with pytest.raises(errors.UserError, match="Ampere or later"):
        auto(name)


def test_plans_do_not_ask_the_gpus_that_are_here(monkeypatch):
  t4 = types.SimpleNamespace(compute_capability="7.5")
  monkeypatch.setattr(jax, "devices", lambda: [t4])
  assert backends.choose("auto", "cuda", "bfloat16", 4096, 128, 2).name == "cudnn"


@pytest.mark.parametrize(
  ("name", "platform", "message"),
  [
    (
      "flash",
      "gpu",
      "one of auto, xla, blockwise, cudnn, triton, splash",
    ),
    ("cudnn", "cpu", "needs an NVIDIA GPU"),
    ("splash", "gpu", "needs a TPU"),
    ("triton", "tpu", "needs an NVIDIA GPU"),
  ],
)
def test_impossible_choices_are_refused(name, platform, message):
  with pytest.raises(errors.UserError, match=message):
    backends.choose(name, platform, "bfloat16", 4096, 128, 2)
  assert backends.choose("xla", platform, "bfloat16", 4096, 128, 2).name == "xla"


def compile_cudnn_for_hopper():
  """Compiles packed attention and its gradient (in a process of its own)."""
  from jax._src.cudnn import fused_attention_stablehlo as fused

  from skipalign_jax.planning import compiler
  from skipalign_jax.runtime import hardware

  compiler.prepare("cuda", os.devnull)
  # JAX would query a device, and there is none.
  fused.check_compute_capability = lambda capability: True
  (topology,) = hardware.parse("h100:8")
  one = dict.fromkeys(sharding.AXES, 1)
  mesh = sharding.make_mesh(one, compiler.devices(topology)[:1])
  at = NamedSharding(mesh, PartitionSpec())
  qkv, segments_BL, _ = inputs(jnp.bfloat16)
  abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
  backend = backends.Backend("cudnn", 5)
  loss = lambda qkv, segments_BL: jnp.sum(
    backends.attend(*qkv, segments_BL, backend).astype(jnp.float32)
  )
  step = jax.jit(jax.grad(loss))
  shapes = [abstract(x) for x in qkv], abstract(segments_BL)
  print(step.lower(*shapes).compile().as_text())


@pytest.mark.plan
def test_cudnn_takes_packed_segments_on_hopper():
  done = subprocess.run(
    [sys.executable, __file__],
    env=tiny.environment(devices=1),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  assert 'custom_call_target="__cudnn$fmhaSoftmax"' in done.stdout
  assert 'custom_call_target="__cudnn$fmhaSoftmaxBackward"' in done.stdout


def test_cudnn_refuses_packed_segments_elsewhere(monkeypatch):
  from jax._src.cudnn import fused_attention_stablehlo as fused

  def refuse(*arguments, **options):
    raise NotImplementedError("Packed layout requires Hopper.")

  monkeypatch.setattr(fused, "dot_product_attention", refuse)
  qkv, segments_BL, _ = inputs(jnp.bfloat16)
  with pytest.raises(errors.UserError, match=r"backend=triton, or data\.packing=False"):
    backends.attend(*qkv, segments_BL, backends.Backend("cudnn", 5))


if __name__ == "__main__":
  compile_cudnn_for_hopper()

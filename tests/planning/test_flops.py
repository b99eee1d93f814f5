"""FLOPs counted from programs, against counts by hand."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec

from skipalign_jax.method import long_short
from skipalign_jax.model import decoder, flops, known_models, sharding
from skipalign_jax.planning import estimate, executed_flops, programs
from skipalign_jax.runtime import hardware

B, L = 8, 16


def job(
  kind="train", mesh=(1, 1, 1, 1), rows=B, length=L, shape=None, optim="adamw", **recipe
):
  return estimate.Job(
    kind=kind,
    recipe=tiny.recipe(**dict(model=shape or tiny.config(), loss_chunk=8) | recipe),
    optim=tuple(tiny.optim(kind=optim).items()),
    mesh=tuple(zip(sharding.AXES, mesh, strict=True)),
    rows=rows,
    length=length,
    steps=10,
  )


def executed(job):
  return executed_flops.executed(
    programs.trace(job, sharding.abstract_mesh(job.axes)).jaxpr
  )


# The tiny model by hand: D 24, F 32, N 4, K 2, H 8, V 40, two layers. L is below
# the smallest block of attention, so one block of L x L scores is computed.
QKVO = 2 * 24 * (4 * 8 + 2 * 2 * 8 + 4 * 8)  # FLOPs a token
GATE_UP, DOWN = 2 * 24 * 2 * 32, 2 * 24 * 32
PRODUCT = 2 * B * 4 * L * L * 8  # scores, or weighted values
HEAD = 2 * 24 * 40
TOKENS = B * L
NORM = 2 * TOKENS * 24  # a sum of products along D, or along the tokens
LAYER = TOKENS * (QKVO + GATE_UP + DOWN)
FIRST = 2 * (LAYER + 2 * PRODUCT) + TOKENS * HEAD
SUMS = PRODUCT // 8  # of the weights, on CPUs: one more column of the values
ROW_SUMS = 2 * B * 4 * L * 8  # of out · d_out, in attention's gradient
BOTH = 2 * (3 * LAYER + 7 * PRODUCT + SUMS + ROW_SUMS) + TOKENS * 3 * HEAD + 15 * NORM
AGAIN = {
  "none": 0,
  "dots": 4 * NORM,
  # The output of `down` is in no gradient.
  "full": 2 * (LAYER - TOKENS * DOWN + 2 * PRODUCT + SUMS) + 4 * NORM,
}


def test_norms_of_heads_are_executed_but_not_needed():
  normed = tiny.config(family="qwen3")
  heads = 2 * 2 * TOKENS * (4 + 2) * 8  # two layers, 4 + 2 heads of 8
  assert executed(job(shape=normed)) == BOTH + 3 * heads
  assert flops.training(normed, B, L) == flops.training(tiny.config(), B, L)


@pytest.mark.parametrize("remat", AGAIN)
def test_executed_flops_of_the_step_match_a_count_by_hand(remat):
  assert executed(job(remat=remat)) == BOTH + AGAIN[remat]


def test_muon_multiplies_each_matrix_of_each_layer():
  """Five times: X X', its square, and their product with X."""
  sides = [(24, 32), (16, 24), (16, 24), (24, 32), (24, 32), (24, 32), (24, 32)]
  once = sum(2 * (2 * s * s * i + s**3) for s, i in sides)
  got = executed(job(remat="none", optim="muon"))
  assert got - BOTH == pytest.approx(2 * 5 * once, rel=0.01)  # and norms


def test_microbatches_and_meshes_do_not_change_the_count():
  assert executed(job(grad_accum=4)) == BOTH
  assert executed(job(mesh=(2, 2, 2, 1))) == BOTH


def test_loss_chunks_that_do_not_divide_compute_padding():
  padded = B * 18 - TOKENS  # 16 tokens in chunks of 6
  assert executed(job(loss_chunk=6)) == BOTH + padded * 3 * HEAD


def test_model_flops_count_the_causal_half():
  shape, pairs = tiny.config(), B * L * (L + 1) // 2
  attention = 2 * 2 * 2 * pairs * 4 * 8  # layers, products, multiply-add
  assert flops.forward(shape, B, L) == FIRST - 2 * 2 * PRODUCT + attention
  assert flops.training(shape, B, L) == 3 * flops.forward(shape, B, L)
  assert flops.causal_pairs(4) == 1 + 2 + 3 + 4


def test_prefill_and_decode():
  only_last = FIRST - (L - 1) * B * HEAD
  assert executed(job("prefill")) == only_last + 2 * SUMS + 5 * NORM
  one = B * (2 * (QKVO + GATE_UP + DOWN) + HEAD) + 2 * 2 * PRODUCT // L
  assert flops.generation(tiny.config(), B, L, 1) == one
  assert executed(job("decode")) == one + 5 * NORM // L
  assert flops.generation(tiny.config(), B, L, L) < only_last


def test_the_parts_of_a_prompt_are_the_prompt():
  whole, parts = (
    [flops.generation(tiny.config(), B, length, new) for length, new in reads]
    for reads in ([(16, 16)], [(4, 4), (8, 4), (12, 4), (16, 4)])
  )
  assert sum(parts) == whole[0] + 3 * B * HEAD  # each part asks for a next token


def test_seven_billion_is_six_n_d_and_attention():
  shape = known_models.KNOWN["meta-llama/Llama-2-7b-hf"]
  got = flops.training(shape, 128, 4096)
  six = 6 * (shape.num_params() - 32_000 * 4096) * 128 * 4096
  attention = 3 * 4 * 4096 * 32 * 128 * 4096 * 4097 // 2
  assert got == pytest.approx(six + attention, rel=1e-4)


def test_loops_branches_and_shards():
  x = jnp.ones((4, 4))
  dot = lambda x: x @ x
  once = 2 * 4**3
  loop = lambda x: jax.lax.scan(lambda c, _: (jax.jit(dot)(c), None), x, None, 7)
  assert executed_flops.executed(jax.make_jaxpr(loop)(x)) == 7 * once
  branch = lambda x: jax.lax.cond(x[0, 0] > 0, dot, lambda x: dot(dot(x)), x)
  assert executed_flops.executed(jax.make_jaxpr(branch)(x)) == 2 * once
  saved = jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(dot(x)))))
  assert (
    executed_flops.executed(jax.make_jaxpr(saved)(x)) == 4 * once
  )  # twice, two gradients
  mesh = sharding.abstract_mesh(job(mesh=(1, 4, 2, 1)).axes)
  split = jax.shard_map(
    lambda x: x @ x.T,
    mesh=mesh,
    in_specs=PartitionSpec("fsdp"),
    out_specs=PartitionSpec("fsdp"),
    axis_names={"fsdp"},
  )
  with jax.sharding.use_abstract_mesh(mesh):
    got = executed_flops.executed(jax.make_jaxpr(split)(jnp.ones((8, 3))))
  assert got == 4 * (2 * 2 * 2 * 3)  # [2, 3] x [3, 2] on each of 4


def test_an_unknown_kernel_is_an_error():
  kernel = lambda x_ref, o_ref: None
  call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((8,), jnp.float32))
  with pytest.raises(executed_flops.UnknownPrimitiveError, match="Pallas kernel"):
    executed_flops.executed(jax.make_jaxpr(call)(jnp.ones(8)))
  ffi = jax.ffi.ffi_call("strange", jax.ShapeDtypeStruct((8,), jnp.float32))
  with pytest.raises(executed_flops.UnknownPrimitiveError, match="ffi_call"):
    executed_flops.executed(jax.make_jaxpr(ffi)(jnp.ones(8)))


def test_a_pallas_kernel_counts_by_its_estimate_or_its_name():
  x = jnp.ones((4, 8, 16))
  cost = pl.CostEstimate(flops=12345, transcendentals=0, bytes_accessed=0)
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
  call = lambda **given: pl.pallas_call(lambda *refs: None, out_shape=shape, **given)
  count = lambda call: executed_flops.executed(jax.make_jaxpr(call)(x))
  assert count(call(cost_estimate=cost, name="anything")) == 12345
  assert count(call(name="splash_mha_fwd_segmented")) == 2 * 2 * 4 * 36 * 16


@pytest.mark.parametrize("fused", [False, True])
def test_splash_attention_counts_all_of_its_kernels(fused):
  q, L = jnp.ones((2, 4, 256, 128), jnp.bfloat16), 256
  sizes = {name: 128 for name in ("block_q", "block_kv", "block_kv_compute",
    "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")}  # fmt: skip
  if not fused:
    sizes |= {"block_q_dq": 128, "block_kv_dq": 128}
  attend = splash.make_splash_mha(
    masks.MultiHeadMask([masks.CausalMask((L, L))] * 4),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=splash.BlockSizes(**sizes, use_fused_bwd_kernel=fused),
  )
  loss = lambda q: jnp.sum(jax.vmap(attend)(q, q, q).astype(jnp.float32))
  one = 2 * 2 * 4 * flops.causal_pairs(L) * 128
  forward = executed_flops.executed(jax.make_jaxpr(loss)(q))
  both = executed_flops.executed(jax.make_jaxpr(jax.grad(loss))(q))
  assert forward == 2 * one
  products = 5 if fused else 7  # dq's own kernel makes scores and dp again
  assert both / one == pytest.approx(2 + products, rel=0.01)  # and Σ out · d_out


@pytest.mark.parametrize("mask", ["CAUSAL", "NO_MASK"])
def test_cudnn_attention_counts_the_pairs_of_its_mask(mask):
  aval = lambda *shape: types.SimpleNamespace(
    aval=jax.ShapeDtypeStruct(shape, "float16")
  )
  equation = types.SimpleNamespace(
    primitive=types.SimpleNamespace(name="dot_product_attention_fwd_wrapper"),
    params=dict(mask_type=f"MaskType.{mask}", layout=0),
    invars=[aval(2, 8, 4, 16), aval(2, 8, 2, 16), aval(2, 8, 2, 16)],
  )
  pairs = 36 if mask == "CAUSAL" else 64
  forward = 2 * 2 * 2 * 4 * pairs * 16
  assert executed_flops._count_equation(equation) == forward
  equation.primitive.name = "dot_product_attention_bwd_wrapper"
  assert executed_flops._count_equation(equation) == forward * 5 // 2


def test_analytic_bytes_of_the_state():
  shape = tiny.config()
  counts = 3 * 4  # of steps: the state's, Adam's and the schedule's
  assert estimate.state_bytes(job()) == 12 * shape.num_params() + counts
  norms = 5 * 24  # are not split over tensor
  split = 12 * ((shape.num_params() - norms) // 4 + norms // 2) + counts
  assert estimate.state_bytes(job(mesh=(2, 2, 2, 1))) == split
  flat = 2 * 40 * 24 + norms  # muon leaves these to Adam
  assert estimate.state_bytes(job(optim="lion")) == 8 * shape.num_params() + counts
  muon = 8 * shape.num_params() + 4 * flat + 16  # and a schedule of its own
  assert estimate.state_bytes(job(optim="muon")) == muon
  assert estimate.least_bytes(job(optim="muon")) == muon + 4 * shape.num_params()
  cache = decoder.empty_cache(shape, B, L, jnp.float32)
  generate = job("decode")
  assert estimate.cache_bytes(generate) == cache.k.nbytes + cache.v.nbytes
  assert estimate.cache_bytes(job("decode", mesh=(1, 2, 2, 2))) == (
    estimate.cache_bytes(generate) // 8
  )
  assert math.isclose(
    estimate.state_bytes(generate),
    4 * shape.num_params() + estimate.cache_bytes(generate),
  )


def test_activations_follow_rows_and_remat():
  values = [estimate.activation_bytes(job(remat=r)) for r in ("full", "dots", "none")]
  assert values == sorted(values) and len(set(values)) == 3
  assert estimate.activation_bytes(job(grad_accum=4)) < values[2]


def test_two_reads_keep_and_move_more():
  """What both reads keep, and weights and layer inputs of each; no state twice."""
  of = lambda f, side=None: f(
    job(
      remat="dots",
      compute_dtype="bfloat16",
      long_short=long_short.LongShortConfig(0.1 if side else 0.0, side or "none", 0),
    )
  )
  shape = tiny.config()
  gradients = 4 * shape.num_params()
  products = 2 * TOKENS * (32 + 2 * 16 + 2 * 32 + 2 * 24)
  kept = 2 * (products + 2 * TOKENS * 24)  # of two layers
  once = of(estimate.activation_bytes)
  assert of(estimate.activation_bytes, "short") == once > gradients + kept
  assert of(estimate.activation_bytes, "none") == once + kept
  weights, inputs = 2 * flops.matrix_params(shape), 2 * 2 * TOKENS * 24
  once = of(estimate.min_memory_traffic)
  assert of(estimate.min_memory_traffic, "short") == once + weights
  assert of(estimate.min_memory_traffic, "none") == once + 3 * weights + 2 * inputs


@pytest.mark.parametrize(
  ("mesh", "inside", "between"),
  [
    ((1, 16, 1, 1), 14 / 16, 1 / 16),  # two hosts: an eighth of a half by each adapter
    ((1, 64, 1, 1), 7 / 8, 7 / 64),
    ((2, 8, 1, 1), 7 / 8, 0),  # weights are gathered inside a host
    ((1, 8, 2, 1), 3 / 4 / 2, 1 / 8 / 2),  # tensor halves them
  ],
)
def test_weights_are_gathered_by_all_adapters_of_a_host(mesh, inside, between):
  """As sent by prefill, whose microbatch moves nothing else over fsdp."""
  one = job("prefill", mesh, rows=mesh[0] * mesh[1], compute_dtype="bfloat16")
  sent = estimate.min_traffic(one, per_host=8)
  whole = 2 * one.recipe.model.num_params()
  sums = 2 * 2 * 2 * 2 * L * 24 / 2 if mesh[2] == 2 else 0  # of tensor, in two layers
  assert sent[False] == pytest.approx(inside * whole + sums)
  assert sent[True] == pytest.approx(between * whole)


def test_replicas_on_other_hosts_reduce_their_part_of_the_gradients():
  one = job(mesh=(2, 8, 1, 1), rows=16, compute_dtype="bfloat16")
  size = one.recipe.model.num_params()
  sent = estimate.min_traffic(one, per_host=8)
  assert sent[True] == pytest.approx(2 * 4 * size / 8 / 2)
  assert sent[False] == pytest.approx((2 * 2 + 4) * size * 7 / 8)


def test_two_reads_gather_weights_twice():
  sent = {
    side: estimate.min_traffic(
      job(
        mesh=(1, 8, 1, 1),
        compute_dtype="bfloat16",
        long_short=long_short.LongShortConfig(0.1 if side else 0.0, side or "none", 0),
      ),
      per_host=8,
    )[False]
    for side in ("", "none", "short")
  }
  gather = 2 * tiny.config().num_params() * 7 / 8
  assert sent["none"] == pytest.approx(sent[""] + 2 * gather)
  assert sent["short"] == pytest.approx(sent[""] + gather)


def test_bounds_and_estimate():
  kind = hardware.HARDWARE["a100-80gb"]
  whole = job(mesh=(1, 8, 1, 1), compute_dtype="bfloat16")
  bounds = estimate.bounds(whole, kind, 8 * 312 * 10**12, {False: 3e11, True: 25e9})
  assert bounds.arithmetic == pytest.approx(1)
  assert bounds.interconnect == pytest.approx(2)
  best, worst = estimate.seconds(bounds)
  assert best == pytest.approx(2)  # hidden by the links
  assert worst == pytest.approx(2 + 2 + bounds.memory)
  assert np.isclose(bounds.memory * kind.memory_bandwidth,
                    estimate.min_memory_traffic(whole))  # fmt: skip


@pytest.mark.parametrize(
  ("name", "tera"),
  [("a10", 31.2), ("l4", 30.3), ("l40s", 91.6), ("a100-80gb", 19.5), ("h100", 66.9)],
)
def test_float32_peaks_are_those_of_the_data_sheets(name, tera):
  kind = hardware.HARDWARE[name]
  assert kind.peak("float32") / 1e12 == pytest.approx(tera, abs=0.05)
  assert kind.peak("bfloat16") == kind.flops


def test_products_in_float32_take_longer():
  whole = job(mesh=(1, 8, 1, 1))
  fp32 = whole.with_recipe(compute_dtype="float32")
  for name, slower in (("a100-80gb", 312 / 19.49), ("v5e", 6)):
    seconds = [
      estimate.bounds(one, hardware.HARDWARE[name], 10**15, {False: 0, True: 0})
      for one in (whole.with_recipe(compute_dtype="bfloat16"), fp32)
    ]
    ratio = seconds[1].arithmetic / seconds[0].arithmetic
    assert ratio == pytest.approx(slower, rel=1e-3)


def test_platform_dependent_code_counts_its_default():
  def product(x):
    twice = lambda x: jnp.concatenate([x, x]) @ x
    once = lambda x: jnp.concatenate([x @ x, x])
    return jax.lax.platform_dependent(x, cpu=twice, default=once)

  jaxpr = jax.make_jaxpr(product)(jnp.ones((8, 8)))
  assert executed_flops.executed(jaxpr) == 2 * 8**3

"""The decoder: causal, the same packed or cached, with positions only in rope."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from skipalign_jax.hf import names
from skipalign_jax.method import positions
from skipalign_jax.model import backends, decoder, sharding
from skipalign_jax.training import objective

CONFIG = tiny.config()
PARAMS = tiny.params(CONFIG)
KINDS = {
  "tied": tiny.config(tie_embeddings=True, num_kv_heads=1),
  "untied": CONFIG,
  "biases": tiny.config(attention_bias=True, mlp_bias=True),
  "qk_norm": tiny.config(family="qwen3"),
  "nope": tiny.config(
    family="smollm3", num_layers=3, nope_layers=(0, 2), attention_bias=True
  ),
}

logits = jax.jit(decoder.logits, static_argnums=(1, 5))


def skipping_batch():
  batch = tiny.batch(rows=3)
  positions_BL = np.asarray(tiny.drawn(batch))
  assert positions_BL.max() > tiny.SEQ_LEN  # something did skip
  return batch, positions_BL


@pytest.mark.parametrize("kind", KINDS)
def test_packed_samples_equal_naive_logits_of_each_alone(kind):
  config = KINDS[kind]
  params = tiny.params(config)
  batch, positions_BL = skipping_batch()
  packed_BLV = logits(
    params, config, batch["tokens"], positions_BL, batch["segment_ids"], "float32"
  )
  for row, segments_L in enumerate(batch["segment_ids"]):
    for segment in range(1, segments_L.max() + 1):
      at = row, segments_L == segment
      expected = tiny.alone_logits(
        params, config, batch["tokens"][at], positions_BL[at]
      )
      np.testing.assert_allclose(packed_BLV[at], expected, rtol=1e-3, atol=1e-3)


def test_a_sample_has_the_same_positions_and_logits_packed_and_alone():
  batch, positions_BL = skipping_batch()
  packed_BLV = logits(
    PARAMS, CONFIG, batch["tokens"], positions_BL, batch["segment_ids"], "float32"
  )
  for segment in (1, 2, 3):
    moved = {name: np.zeros_like(x) for name, x in batch.items()}
    sizes = np.sum(batch["segment_ids"] == segment, axis=1)
    for row, m in enumerate(sizes):
      at = batch["segment_ids"][row] == segment
      for name in batch:
        moved[name][row, :m] = batch[name][row, at]
      moved["segment_ids"][row, :m] = 1
    alone_BL = np.asarray(tiny.drawn(moved))
    alone_BLV = logits(
      PARAMS, CONFIG, moved["tokens"], alone_BL, moved["segment_ids"], "float32"
    )
    for row, m in enumerate(sizes):
      at = row, batch["segment_ids"][row] == segment
      np.testing.assert_array_equal(alone_BL[row, :m], positions_BL[at])
      np.testing.assert_allclose(alone_BLV[row, :m], packed_BLV[at], atol=1e-4)


@jax.jit
def influence(positions_L, segments_L):
  """[t, s]: whether the gradient of place t with respect to token s is not 0."""
  tokens_L = jnp.arange(tiny.SEQ_LEN)

  def hidden(embed_VD):
    bound = decoder.bind(CONFIG, PARAMS | {"embed": {"weight": embed_VD}})
    hidden_BLD, _ = bound(
      tokens_L[None], positions_L[None], segments_L[None], "float32"
    )
    return jnp.sum(hidden_BLD[0] * jnp.arange(1, 1 + CONFIG.embed_dim), axis=-1)

  gradient_LVD = jax.jacrev(hidden)(jnp.asarray(PARAMS["embed"]["weight"]))
  return jnp.any(gradient_LVD[:, : tiny.SEQ_LEN] != 0, axis=-1)


L_RANGE = np.arange(tiny.SEQ_LEN)
LAYOUTS = {
  "contiguous": L_RANGE,
  "skipped": L_RANGE + 500 * (L_RANGE > 5) + 300 * (L_RANGE > 8),
  "reversed": L_RANGE[::-1],
  "all_equal": 0 * L_RANGE,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_who_attends_is_array_order_and_segments_whatever_the_positions(layout):
  segments_L = np.repeat([1, 2, 3, 0], [7, 10, 3, 4])
  got = influence(LAYOUTS[layout].astype(np.int32), segments_L)
  same_LL = segments_L[:, None] == segments_L[None, :]
  np.testing.assert_array_equal(got, same_LL & np.tri(tiny.SEQ_LEN, dtype=bool))


def test_only_distances_between_positions_matter():
  batch, positions_BL = skipping_batch()
  at = lambda positions_BL: logits(
    PARAMS, CONFIG, batch["tokens"], positions_BL, batch["segment_ids"], "float32"
  )
  moved = at(positions_BL + np.array([[0], [3], [41]], np.int32))
  real = batch["segment_ids"] > 0
  np.testing.assert_allclose(moved[real], at(positions_BL)[real], atol=2e-3)
  # Other distances are another input, though tokens and segments are the same.
  contiguous = at(positions.contiguous(batch["segment_ids"]))
  assert np.max(np.abs(contiguous - at(positions_BL))[real]) > 0.1


def test_remat_changes_nothing():
  batch, positions_BL = skipping_batch()
  values, programs = {}, {}
  for remat in decoder.REMAT:
    recipe = tiny.recipe(model=CONFIG, remat=remat)
    loss = lambda params, recipe=recipe: objective.cross_entropy_sum(
      recipe, params, batch, positions_BL
    )[0]
    traced = jax.jit(jax.value_and_grad(loss)).trace(PARAMS)
    programs[remat] = str(traced.jaxpr)
    values[remat] = jax.tree.leaves(traced.lower().compile()(PARAMS))
  for remat in ("dots", "full"):
    for one, other in zip(values[remat], values["none"], strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
  # "dots" computes the sums of squares of the two norms again, "full" also q, k,
  # v, o, gate, up and the two products of attention.
  none, dots, full = (programs[remat].count("dot_general") for remat in decoder.REMAT)
  assert none == dots - 2 == full - 10


def test_dots_keeps_what_fused_kernels_return():
  """Traced only: the kernels need their hardware to run."""
  L = 128
  batch = {name: np.zeros((1, L), np.int32) for name in ("tokens", "loss_weight")}
  batch["segment_ids"] = np.ones((1, L), np.int32)
  calls = {}
  for remat in decoder.REMAT:
    backend = backends.Backend("triton", 4)
    recipe = tiny.recipe(model=CONFIG, remat=remat, attention=backend)
    loss = lambda params, recipe=recipe: objective.cross_entropy_sum(
      recipe, params, batch, np.arange(L)[None]
    )[0]
    program = str(jax.make_jaxpr(jax.grad(loss))(PARAMS))
    calls[remat] = program.count("name=mha_forward")
  assert calls["none"] == calls["dots"] == calls["full"] - 1 > 0, calls


@functools.partial(jax.jit, static_argnums=(1, 6))
def read(params, config, tokens_BL, positions_BL, segments_BL, cache, backend):
  hidden_BLD, cache = decoder.read(
    params, tokens_BL, positions_BL, segments_BL, cache, config, "float32", backend
  )
  return hidden_BLD @ decoder.bind(config, params).head().T, cache


@pytest.mark.parametrize(
  ("kind", "parts", "block"),
  [
    *itertools.product(["biases"], [None, (0, 2, 6, 9)], [0, 1, 13]),
    ("qk_norm", (0, 9), 0),
    ("nope", (0, 9), 0),
  ],
)
def test_prompt_and_decoding_equal_the_whole_sample_alone(kind, parts, block):
  """Unequal prompts, padded on the left, with positions that skip.

  Prompts are read whole by a kernel, or in parts that attend to the cache.
  """
  config = KINDS[kind]
  params = tiny.params(config)
  rng = np.random.default_rng(0)
  prompts, new, L = [5, 9, 2], 4, 9
  tokens = [rng.integers(0, 40, m + new) for m in prompts]
  places = [np.cumsum(rng.integers(1, 30, m + new)) for m in prompts]
  pad = lambda rows: np.stack(
    [np.pad(x[:m], (L - m, 0)) for x, m in zip(rows, prompts, strict=True)]
  )
  segments_BL = pad([np.ones(m + new, np.int32) for m in prompts])
  cache = decoder.empty_cache(config, 3, L + new, jnp.float32)
  from_cache = backends.FromCache(block)
  for start, end in itertools.pairwise(parts or (0, L)):
    logits_BLV, cache = read(
      params,
      config,
      *(x[:, start:end] for x in (pad(tokens), pad(places), segments_BL)),
      cache,
      from_cache if parts else decoder.BLOCKWISE,
    )
  steps_BTV = [logits_BLV[:, -1]]
  for t in range(new):
    at = lambda rows, t=t: np.stack(
      [x[m + t : m + t + 1] for x, m in zip(rows, prompts, strict=True)]
    )
    ones_B1 = np.ones((3, 1), np.int32)
    logits_BLV, cache = read(
      params, config, at(tokens), at(places), ones_B1, cache, from_cache
    )
    steps_BTV.append(logits_BLV[:, 0])
  assert int(cache.length) == L + new
  for row, m in enumerate(prompts):
    expected = tiny.alone_logits(params, config, tokens[row], places[row])[m - 1 :]
    got = np.stack(steps_BTV, axis=1)[row]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 3])
def test_logits_of_the_next_token_are_not_rounded_to_bf16(rows):
  """Rounded, the likeliest of 150,000 tokens is often one of several equal ones."""
  tokens_BL = np.random.default_rng(0).integers(0, 40, (rows, 4))
  args = tokens_BL, np.arange(4)[None].repeat(rows, 0), np.ones_like(tokens_BL)
  cache = decoder.empty_cache(CONFIG, rows, 4, jnp.bfloat16)
  rest = cache, CONFIG, "bfloat16", decoder.BLOCKWISE
  hidden_BLD, _ = decoder.read(PARAMS, *args, *rest)
  logits_BV, _ = decoder.extend(PARAMS, *args, *rest)
  wide = lambda x: np.asarray(x, "bfloat16").astype(np.float32)
  expected_BV = wide(hidden_BLD[:, -1]) @ wide(PARAMS["lm_head"]["weight"]).T
  assert logits_BV.dtype == np.float32
  np.testing.assert_allclose(logits_BV, expected_BV, rtol=1e-5, atol=1e-5)
  assert np.abs(wide(expected_BV) - expected_BV).max() > 1e-3


@pytest.mark.parametrize("kind", [*KINDS, "qwen2"])
def test_the_parameters_are_those_of_the_table_and_the_count(kind):
  config = (KINDS | {"qwen2": tiny.config(family="qwen2", attention_bias=True)})[kind]
  _, tree = decoder.definition(config)
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  shapes = {sharding.path_of(path): x.shape for path, x in leaves}
  assert shapes == names.expected_shapes(config)
  assert sum(x.size for _, x in leaves) == config.num_params()


def test_init_draws_each_matrix_separately():
  config = dataclasses.replace(CONFIG, vocab_size=24, tie_embeddings=True)
  first, again, other = (decoder.init(config, seed) for seed in (0, 0, 1))
  layers = first["layers"]
  matrices = [
    first["embed"]["weight"],
    *layers["mlp"]["gate"]["weight"],
    *layers["mlp"]["up"]["weight"],
    *layers["attn"]["q"]["weight"],
    *layers["attn"]["o"]["weight"],
  ]
  corners = [float(x[0, 0]) for x in matrices]
  assert len(set(corners)) == len(corners)
  assert all(0.015 < np.std(x) < 0.025 for x in matrices)
  assert all(np.all(x == 1) for x in (first["norm"]["weight"],
                                      layers["attn_norm"]["weight"]))  # fmt: skip
  for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(x, y)
  assert not np.array_equal(first["embed"]["weight"], other["embed"]["weight"])

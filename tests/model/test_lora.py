"""Adapters: naive gradients, a base that stays, merging, what is stored and refused.

Shapes: n layers, I/O in/out features, R rank.
"""

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax import convert
from skipalign_jax.hf import adapters, native, reference
from skipalign_jax.method import positions
from skipalign_jax.model import decoder, flops, lora, lora_state, quantized, sharding
from skipalign_jax.planning import executed_flops
from skipalign_jax.runtime import errors
from skipalign_jax.training import initial_weights, objective, resolve, run
from skipalign_jax.training import state as state_lib

CONFIG = tiny.config()
ADAPTERS = lora.Config(3, 6.0, ("q", "v", "o", "up", "down"), "bfloat16")
TOKENS_BL = np.arange(32).reshape(2, 16) % 39 + 1
POSITIONS_BL = np.arange(16) * np.array([[1], [7]])


def drawn_adapters(seed=1):
  """Adapters that both do something."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.standard_normal(x.shape).astype(np.float32) * 0.2,
    lora_state.abstract_adapters(ADAPTERS, decoder.definition(CONFIG)[1]),
  )


def rounded(params):
  """fp32 weights that bf16 holds exactly."""
  return jax.tree.map(lambda x: np.asarray(jnp.bfloat16(x)).astype(np.float32), params)


def stored(params, adapters=ADAPTERS):
  """The base, parameter by parameter; it is as `abstract_base` says."""
  keep = lambda path: lora_state.storage(adapters, sharding.path_of(path))
  kept = jax.tree_util.tree_map_with_path(
    lambda path, x: keep(path)(jnp.asarray(x)), params
  )
  abstract = lora_state.abstract_base(adapters, params)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), kept) == jax.tree.map(
    lambda x: (x.shape, x.dtype), abstract
  )
  return kept


def with_products(params, adapters):
  """W + scale · B A written out, layer by layer."""
  whole = jax.tree.map(np.array, params)
  for name in ADAPTERS.targets:
    group = "attn" if name in "qkvo" else "mlp"
    a_nRI, b_nOR = adapters["layers"][group][name].values()
    for i in range(CONFIG.num_layers):
      whole["layers"][group][name]["weight"][i] += 2.0 * b_nOR[i] @ a_nRI[i]
  return whole


@pytest.fixture(scope="module")
def logits():
  return jax.jit(decoder.logits, static_argnames=("config", "compute_dtype"))


def test_adapters_without_effect_leave_the_logits_bit_equal(logits):
  params = tiny.params(CONFIG)
  fresh = lora_state.init(ADAPTERS, params, seed=0)
  assert np.std(fresh["layers"]["attn"]["q"]["lora_a"]) == pytest.approx(24**-0.5, 0.2)
  joined = lora.join(ADAPTERS, fresh, stored(params))
  ask = lambda weights: logits(
    weights, CONFIG, TOKENS_BL, POSITIONS_BL, np.ones_like(TOKENS_BL), "bfloat16"
  )
  np.testing.assert_array_equal(ask(joined), ask(params))


def test_merged_weights_give_the_logits_of_adapters(logits):
  params, adapters = rounded(tiny.params(CONFIG)), drawn_adapters()
  joined = lora.join(ADAPTERS, adapters, stored(params))
  ask = lambda weights: logits(
    weights, CONFIG, TOKENS_BL, POSITIONS_BL, np.ones_like(TOKENS_BL), "float32"
  )
  by_hand = with_products(params, adapters)
  merged = lora.merge(joined, "float32")
  for one, other in zip(jax.tree.leaves(merged), jax.tree.leaves(by_hand), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
  with_adapters = ask(joined)
  np.testing.assert_allclose(with_adapters, ask(by_hand), rtol=1e-4, atol=1e-4)
  assert np.abs(with_adapters - ask(params)).max() > 0.1


def test_gradients_are_those_of_the_whole_matrix_projected():
  """dA = scale · Bᵀ G and dB = scale · G Aᵀ, where G is what training W would have."""
  params, adapters = rounded(tiny.params(CONFIG)), drawn_adapters()
  recipe = tiny.recipe(adapters=ADAPTERS)
  batch = tiny.batch(rows=3)
  positions_BL = positions.contiguous(batch["segment_ids"])
  naive = jax.jit(
    jax.grad(lambda params: tiny.naive_sums(params, CONFIG, batch, positions_BL)[0])
  )
  whole = naive(with_products(params, adapters))
  base = stored(params)
  ours = jax.jit(
    jax.grad(
      lambda adapters: objective.cross_entropy_sum(
        recipe, lora.join(ADAPTERS, adapters, base), batch, positions_BL
      )[0]
    )
  )(adapters)
  for name in ADAPTERS.targets:
    group = "attn" if name in "qkvo" else "mlp"
    g_nOI = np.asarray(whole["layers"][group][name]["weight"])
    a_nRI, b_nOR = adapters["layers"][group][name].values()
    found = ours["layers"][group][name]
    d_a_nRI = 2.0 * np.swapaxes(b_nOR, 1, 2) @ g_nOI
    d_b_nOR = 2.0 * g_nOI @ np.swapaxes(a_nRI, 1, 2)
    for one, other in ((found["lora_a"], d_a_nRI), (found["lora_b"], d_b_nOR)):
      np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4 * np.abs(other).max())


def test_a_step_trains_adapters_only():
  quantised = dataclasses.replace(ADAPTERS, base="nf4")
  run = tiny.Run(adapters=quantised, remat="full")
  copy = lambda tree: jax.tree.map(np.array, tree)
  base, before = copy(run.state.base), copy(run.state.params)
  batch = tiny.batch()
  losses = [run.step(batch)["loss"] for _ in range(4)]
  assert losses[-1] < losses[0] - 0.3
  jax.tree.map(np.testing.assert_array_equal, copy(run.state.base), base)
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), copy(run.state.params), before)
  assert min(jax.tree.leaves(moved)) > 0.001
  kept = sum(x.size for x in jax.tree.leaves(run.state.opt))
  trained = sum(x.size for x in jax.tree.leaves(before))
  assert trained == lora_state.sizes(quantised, decoder.definition(CONFIG)[1])[0]
  assert kept == 2 * trained + 2  # both moments; Adam's count and the schedule's


def test_no_product_makes_a_gradient_of_frozen_weights():
  """Products of a step, counted: two passes of three, but for the adapters."""
  batch = {name: np.asarray(x) for name, x in tiny.batch().items()}
  tokens = batch["tokens"].size

  def products(adapters):
    recipe = tiny.recipe(adapters=adapters, loss_chunk=8)
    params = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), decoder.definition(CONFIG)[1]
    )
    if adapters is None:
      loss = lambda params: objective.cross_entropy_sum(
        recipe, params, batch, batch["tokens"]
      )[0]
      return executed_flops.executed(jax.make_jaxpr(jax.grad(loss))(params))
    loss = lambda trained, base: objective.cross_entropy_sum(
      recipe, lora.join(adapters, trained, base), batch, batch["tokens"]
    )[0]
    pair = (
      lora_state.abstract_adapters(adapters, params),
      lora_state.abstract_base(adapters, params),
    )
    return executed_flops.executed(jax.make_jaxpr(jax.grad(loss))(*pair))

  size, _ = lora_state.sizes(ADAPTERS, decoder.definition(CONFIG)[1])
  # What norms multiply, on both sides, is no matrix.
  norms = 2 * tokens * CONFIG.embed_dim * (2 * CONFIG.num_layers + 1)
  saved = products(None) - products(ADAPTERS)
  expected = 2 * tokens * (flops.matrix_params(CONFIG) - 3 * size)
  assert abs(saved - expected) <= norms
  training = lambda adapters: flops.training(CONFIG, 8, tiny.SEQ_LEN, adapters)
  assert training(0) - training(size) == expected


WEIGHT = np.random.default_rng(3).standard_normal((2, 8, 192)).astype(np.float32)
TILES = np.abs(WEIGHT.reshape(2, 8, 3, 64)).max(-1, keepdims=True)


@pytest.mark.parametrize(
  ("storage", "bits", "bound"),  # half of the widest gap between neighbouring levels
  [("int8", 8.5, 0.5 / 127), ("int4", 4.5, 0.5 / 7), ("nf4", 4.5, (1 - 0.6961) / 2)],
)
def test_quantised_weights_are_near_and_small(storage, bits, bound):
  kept = quantized.store(jnp.asarray(WEIGHT), storage)
  error = np.abs(np.asarray(quantized.dense(kept, "float32")) - WEIGHT)
  error = error.reshape(2, 8, 3, 64) / TILES
  assert 0.4 * bound < error.max() <= bound * 1.001
  program = jax.jit(lambda kept: quantized.dense(kept, "float32")).lower(kept).compile()
  taken = program.memory_analysis().argument_size_in_bytes
  assert taken == quantized.num_bytes(kept) == WEIGHT.size * bits / 8


def test_tiles_follow_the_width():
  kept = quantized.store(jnp.ones((4, 24)), "int8")
  assert kept.scale.shape == (4, 3)  # 8 divides 24


def test_adapters_are_split_and_tiles_lie_as_their_matrix():
  mesh = AbstractMesh((2, 2, 2, 1), sharding.AXES)
  shape = tiny.config(embed_dim=256, ffn_dim=512)
  at = lora_state.shardings(
    lora.Config(4, 4.0, tuple(lora.MATRICES), "nf4"), mesh, decoder.definition(shape)[1]
  )
  adapters, base = jax.tree.map(lambda x: tuple(x.spec), at)
  for layer in [*adapters["layers"]["attn"].values(), adapters["layers"]["mlp"]["up"]]:
    assert layer["lora_a"] == (None, None, ("tensor", "fsdp", "context"))
    assert layer["lora_b"] == (None, ("tensor", "fsdp", "context"), None)
  down = base["layers"]["mlp"]["down"]["weight"]
  assert down.qvalue == down.scale == (None, ("fsdp", "context"), "tensor")
  assert base["embed"]["weight"] == ("tensor", ("fsdp", "context"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rank": -1}, "lora.rank=-1 .*at least 0"),
    ({"alpha": 0.0}, r"lora.alpha=0.0 .*above 0"),
    ({"targets": "q,lm_head"}, "lm_head.*q,k,v,o,gate,up"),
    ({"targets": "q,q"}, "each once"),
    ({"targets": ""}, "at least one"),
    ({"base": "int2"}, "lora.base='int2' .*bfloat16, int8, int4, nf4"),
  ],
)
def test_what_cannot_be_is_refused(changes, message):
  c = config_lib.default().lora
  c.rank = 8
  c.update(changes)
  with pytest.raises(errors.UserError, match=message):
    lora.from_config(c)


def test_without_qwix_the_error_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "qwix", None)
  c = config_lib.default().lora
  c.rank = 8
  assert lora.from_config(c).base == "bfloat16"  # needs none
  c.base = "nf4"
  with pytest.raises(errors.UserError, match=r"pip install -e '.\[lora\]'"):
    lora.from_config(c)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_dir):
  """(config, folder) of a run over a base in int8 that was read from a folder."""
  root = tmp_path_factory.mktemp("lora")
  c = config_lib.tiny(config_lib.default())
  shape = resolve.model_from(c, None, 260)
  (root / "base").mkdir()
  native.write_config(root / "base", native.Description(shape))
  native.write_params(root / "base", 0, adapters.random_base(shape, 5).values())
  c.model = config_lib.default().model
  c.model.init_from, c.model.compute_dtype = str(root / "base"), "float32"
  c.rope = config_lib.default().rope
  c.data.cache_dir, c.data.eval, c.data.seq_len = cache_dir, "", 64
  c.batch_size, c.steps, c.checkpoint.every, c.checkpoint.keep = 2, 4, 2, 4
  c.lora.rank, c.lora.alpha, c.lora.base = 4, 8.0, "int8"
  c.optim.learning_rate = 0.02
  assert run.run(c, root / "run", rich_console.Console(quiet=True)) == 0
  return c, root / "run"


def saved_adapters(folder):
  """Path → array of the last checkpoint; it holds nothing else."""
  shape = native.read_config(folder).model_config
  config = lora.Config(4, 8.0, tuple(lora.MATRICES), "int8")
  like = lora_state.abstract_adapters(config, decoder.definition(shape)[1])
  shapes = {
    sharding.path_of(path): x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(like)
  }
  opened = native.open_arrays(folder, 4, shapes)
  return like, {path: x.read() for path, x in opened.items()}


def load(path):
  return reference.load_params(reference.open_model(str(path)))


def test_a_run_goes_on_bit_for_bit(finished, tmp_path):
  c, folder = finished
  assert len(tiny.records(folder)) == 4
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  shutil.rmtree(copy / "checkpoints" / "4")
  assert run.run(c, copy, rich_console.Console(quiet=True)) == 0
  assert tiny.records(copy) == tiny.records(folder)
  jax.tree.map(np.testing.assert_array_equal, load(copy), load(folder))


def test_a_run_is_its_base_and_its_adapters(finished):
  """As it is read: tiles dequantised by hand, plus scale · B A."""
  _, folder = finished
  _, pairs = saved_adapters(folder)
  opened = reference.open_model(str(folder))
  base = reference.open_model(str(folder.parent / "base")).weights
  for path in ("layers/mlp/down/weight", "layers/attn/k/weight"):
    w_nOI = base[path].read()
    tiles = w_nOI.reshape(*w_nOI.shape[:2], -1, 64)
    scale = np.abs(tiles).max(-1, keepdims=True) / 127
    w_nOI = (np.round(tiles / scale) * scale).reshape(w_nOI.shape)
    a_nRI, b_nOR = (pairs[path.replace("weight", f"lora_{x}")] for x in "ab")
    expected = w_nOI + 2.0 * b_nOR @ a_nRI
    np.testing.assert_allclose(opened.weights[path].read(), expected, atol=1e-6)
    block = (slice(1, 2), slice(3, 9), slice(5, 50))
    found = opened.weights[path].read(block, np.float32)
    np.testing.assert_allclose(found, expected[block], atol=1e-6)
    assert np.abs(expected - w_nOI).max() > 1e-3


def test_an_export_is_merged(finished, tmp_path):
  _, folder = finished
  out = tmp_path / "hf"
  argv = ["export", f"--model={folder}", f"--out={out}", "--dtype=float32"]
  assert convert.main(argv) == 0
  jax.tree.map(np.testing.assert_array_equal, load(out), load(folder))
  assert "rank 4, alpha 8 on q" in (out / "README.md").read_text()


def test_evaluations_during_training_ask_the_merged_model(finished):
  c, folder = finished
  config, shape = lora.from_config(c.lora), native.read_config(folder).model_config
  mesh = sharding.make_mesh(dict(data=1, fsdp=1, tensor=1, context=1))
  recipe = tiny.recipe(model=shape, adapters=config)
  _, at = lora_state.shardings(config, mesh, decoder.definition(shape)[1])
  like, pairs = saved_adapters(folder)
  trained = jax.tree_util.tree_map_with_path(
    lambda path, _: pairs[sharding.path_of(path)], like
  )
  base = initial_weights.frozen_base(
    recipe, reference.open_model(c.model.init_from), at
  )
  found = state_lib.merged_params(
    recipe, state_lib.TrainState(4, trained, None, base), mesh
  )
  near = lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6)
  jax.tree.map(near, found, load(folder))


def test_a_missing_circular_or_changed_base_is_refused(finished, tmp_path):
  _, folder = finished
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  described = json.loads((copy / "config.json").read_text())

  def move_base(to):
    (copy / "config.json").write_text(json.dumps(described | {"base": str(to)}))

  move_base(copy)
  with pytest.raises(errors.UserError, match=r"own folder: (\S+) -> \1\. ") as caught:
    reference.open_model(str(copy))
  assert str(caught.value).count("has adapters") == 1
  shutil.copytree(copy, tmp_path / "second")
  move_base(f"{tmp_path / 'second'}@4")
  with pytest.raises(errors.UserError, match=r"copy -> \S*second -> \S*copy\. "):
    reference.open_model(str(copy))
  move_base(tmp_path / "gone")
  with pytest.raises(errors.UserError, match=r"has adapters of .*gone"):
    reference.open_model(str(copy))
  move_base(tmp_path / "other")
  shape = native.read_config(folder).model_config
  (tmp_path / "other").mkdir()
  native.write_config(tmp_path / "other", native.Description(shape))
  other = adapters.random_base(shape, 6)
  native.write_params(tmp_path / "other", 0, other.values())
  with pytest.raises(errors.UserError, match="whose weights are not those"):
    reference.open_model(str(copy))

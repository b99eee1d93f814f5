import dataclasses

import pytest

from skipalign_jax import config as config_lib
from skipalign_jax import errors, model_config, resolve, rope

LLAMA = model_config.ModelConfig(
  vocab_size=32_000,
  num_layers=32,
  embed_dim=4096,
  ffn_dim=11_008,
  num_heads=32,
  num_kv_heads=32,
  head_dim=128,
  norm_eps=1e-5,
  tie_embeddings=False,
  attention_bias=False,
  mlp_bias=False,
  window=4096,
  rope=rope.RopeConfig("none", 10_000.0, original_window=4096),
)


@pytest.fixture
def config():
  c = config_lib.default()
  c.model.init_from = "some/llama"
  c.epochs = 2
  return c


def test_ntk_reaches_max_position_by_default(config):
  config.rope.kind = "ntk"
  shape = resolve.model_from(config, LLAMA, 32_000)
  assert shape.window == 100_000
  assert shape.rope.factor == 100_000 / 4096
  theta = rope.ntk_theta(shape.rope.theta, shape.rope.factor, 128)
  assert theta == pytest.approx(256_842.0, abs=0.1)


def test_target_length_wins_over_max_position(config):
  config.rope.kind, config.rope.target_length = "ntk", 32_768
  assert resolve.model_from(config, LLAMA, 32_000).rope.factor == 8


def test_model_kind_changes_nothing(config):
  assert resolve.model_from(config, LLAMA, 32_000) == LLAMA


def test_scratch_takes_fields_from_config_and_vocabulary_from_tokenizer(config):
  c = config_lib.tiny(config)
  shape = resolve.model_from(c, None, 260)
  assert (shape.vocab_size, shape.num_layers, shape.rope.theta) == (260, 2, 10_000)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rope.target_length": 8192}, "rope.target_length needs rope.kind"),
    ({"rope.kind": "ntk", "rope.target_length": 1024}, "below the model's window"),
    ({"rope.kind": "dynamic"}, "cannot be trained"),
    ({"rope.kind": "ntkk"}, "rope.kind='ntkk' is unknown"),
    ({"model.num_layers": 12}, "model.num_layers=12 but some/llama has 32"),
    ({"rope.theta": 5e5}, "rope.theta=500000.0 but some/llama has 10000.0"),
    ({"model.init_from": ""}, "needs model.num_layers"),
  ],
)
def test_contradictions_with_the_model(config, changes, message):
  config.update_from_flattened_dict(changes)
  base = LLAMA if config.model.init_from else None
  with pytest.raises(errors.UserError, match=message):
    resolve.model_from(config, base, 32_000)


def test_rope_that_fights_the_models_own(config):
  config.rope.kind = "ntk"
  scaled = dataclasses.replace(LLAMA.rope, kind="yarn", factor=4.0)
  with pytest.raises(errors.UserError, match=r"fights the model's own config.*yarn"):
    resolve.model_from(config, dataclasses.replace(LLAMA, rope=scaled), 32_000)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"positions.max_position": 2048}, "smaller than data.seq_len=4096"),
    ({"positions.strategy": "skip_otter"}, "skip_all, skip_inner, skip_outer"),
    ({"steps": 5}, "one of steps and epochs"),
    ({"epochs": None}, "one of steps and epochs"),
    ({"batch_size": 6, "grad_accum": 4}, "grad_accum=4 must divide batch_size=6"),
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"model.compute_dtype": "fp8"}, "model.compute_dtype='fp8'"),
    ({"model.remat": "some"}, "model.remat='some'"),
  ],
)
def test_contradictions_in_the_config(config, changes, message):
  config.update_from_flattened_dict(changes)
  with pytest.raises(errors.UserError, match=message):
    resolve.check(config)


def test_contiguous_positions_need_no_room(config):
  config.positions.max_position = 10
  config.positions.strategy = "contiguous"
  resolve.check(config)


def test_microbatch_must_spread_over_devices(config):
  config.batch_size, config.grad_accum = 16, 4
  resolve.check_rows(config, 4)
  with pytest.raises(errors.UserError, match=r"microbatch of 4 rows .* 8 devices"):
    resolve.check_rows(config, 8)

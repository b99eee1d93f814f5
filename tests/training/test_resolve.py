import dataclasses

import pytest

from skipalign_jax import config as config_lib
from skipalign_jax.model import known_models, model_config, rope
from skipalign_jax.runtime import errors
from skipalign_jax.training import resolve

LLAMA = dataclasses.replace(
  known_models.KNOWN["meta-llama/Llama-2-7b-hf"],
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


def test_scratch_takes_a_family_and_its_layers_without_rope(config):
  c = config_lib.tiny(config)
  c.model.family, c.model.nope_layers = "smollm3", (1,)
  shape = resolve.model_from(c, None, 260)
  assert (shape.family, shape.nope_layers) == ("smollm3", (1,))
  c.model.family, c.model.nope_layers = None, None  # both have defaults
  assert resolve.model_from(c, None, 260).family == "llama"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model.family": "qwen3"}, "model.family=qwen3, but some/llama has llama"),
    ({"rope.target_length": 8192}, "rope.target_length=8192 needs rope.kind"),
    ({"rope.kind": "ntk", "rope.target_length": 1024}, "below the model's window"),
    ({"rope.kind": "dynamic"}, "cannot be trained"),
    ({"rope.kind": "ntkk"}, "rope.kind='ntkk' is unknown"),
    ({"model.num_layers": 12}, "model.num_layers=12, but some/llama has 32"),
    ({"rope.theta": 5e5}, "rope.theta=500000.0, but some/llama has 10000.0"),
    ({"model.init_from": ""}, "needs values for model.num_layers"),
  ],
)
def test_contradictions_with_the_model(config, changes, message):
  config.update_from_flattened_dict(changes)
  base = LLAMA if config.model.init_from else None
  with pytest.raises(errors.UserError, match=message):
    resolve.model_from(config, base, 32_000)


def test_rope_that_conflicts_with_the_models_own(config):
  config.rope.kind = "ntk"
  scaled = dataclasses.replace(LLAMA.rope, kind="yarn", factor=4.0)
  with pytest.raises(errors.UserError, match=r"ntk conflicts .*yarn.*rope.kind=model"):
    resolve.model_from(config, dataclasses.replace(LLAMA, rope=scaled), 32_000)


@pytest.mark.parametrize("factor", [8.0, 32.0])  # Llama 3.1, Llama 3.2
def test_llama3_is_scaled_from_the_models_own_factor(config, factor):
  own = rope.RopeConfig("llama3", 500_000.0, factor, original_window=8192)
  llama = dataclasses.replace(LLAMA, window=131_072, rope=own)
  config.rope.kind = "llama3"  # to 131,072: max_position is less
  assert resolve.model_from(config, llama, 32_000) == llama
  config.rope.target_length = 262_144
  found = resolve.model_from(config, llama, 32_000).rope
  assert found == dataclasses.replace(own, factor=2 * factor)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "ntk"])
def test_a_trained_model_goes_on_as_it_was_scaled(config, kind):
  config.rope.kind, config.rope.target_length = kind, 32_768
  trained = resolve.model_from(config, LLAMA, 32_000)
  assert trained.rope.factor == 8
  assert resolve.model_from(config, trained, 32_000) == trained
  config.rope.target_length = 65_536
  assert resolve.model_from(config, trained, 32_000).rope.factor == 16


def test_a_linear_rope_whose_first_window_is_unknown(config):
  config.rope.kind, config.rope.target_length = "linear", 32_768
  trained = resolve.model_from(config, LLAMA, 32_000)
  exported = model_config.to_hf(trained)  # transformers knows no such key for linear
  with pytest.raises(errors.UserError, match=r"by 8 already.*rope.kind=model"):
    resolve.model_from(config, model_config.from_hf(exported), 32_000)
  for spelling in ("rope_scaling", "rope_parameters"):
    exported[spelling]["original_max_position_embeddings"] = 4096
  config.rope.target_length = 65_536
  found = resolve.model_from(config, model_config.from_hf(exported), 32_000)
  assert (found.rope.factor, found.rope.original_window) == (16, 4096)


POSE = {"positions.strategy": "pose"}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"positions.max_position": 2048}, "smaller than data.seq_len=4096"),
    ({"steps": 5}, "one of steps and epochs"),
    ({"epochs": None}, "one of steps and epochs"),
    ({"batch_size": 6, "grad_accum": 4}, "grad_accum=4 must divide batch_size=6"),
    ({"data.packing_mask": False}, "set data.packing=True"),
    ({"data.batching": "sorted", "data.packing": True}, "use only one of them"),
    ({"data.text_window": 4096} | POSE, "greater than data.seq_len=4096"),
    (
      {"data.text_window": 8192, "data.packing": True} | POSE,
      "set data.packing=False",
    ),
    ({"data.text_window": 8192, "data.batching": "sorted"} | POSE, "batching=shuffled"),
    (
      {"data.text_window": 8192, "loss.reduction": "sequence"} | POSE,
      "use loss.reduction=token",
    ),
    ({"data.text_window": 8192}, "positions.strategy=pose or cream"),
    ({"mesh.data": -1}, "mesh.data=-1 and mesh.fsdp=-1: only one"),
    ({"lora.rank": 8, "lora.targets": "q,z"}, "lora.targets='q,z': z unknown"),
    ({"lora.base": "nf4"}, "lora.base=nf4 has no effect with lora.rank=0"),
    ({"lora.alpha": 64.0}, "lora.alpha=64.0 has no effect with lora.rank=0"),
    ({"steps": 5}, "None unsets one, as in --config.steps=None"),
    (
      {"steps": 2, "epochs": None, "positions.schedule": "8192,16384,100000"},
      "3 limits and the run 2 steps",
    ),
    ({"steps": 4, "epochs": None, "profile": "3:5"}, "the run has 4"),
    (
      {"long_short.alpha": 0.1, "long_short.min_context": 4096},
      "long_short.min_context=4096 must be below data.seq_len=4096",
    ),
  ],
)
def test_contradictions_in_the_config(config, changes, message):
  config.update_from_flattened_dict(changes)
  with pytest.raises(errors.UserError, match=message):
    resolve.check(config)


def test_each_step_may_have_a_limit_of_its_own(config):
  config.positions.update(schedule="4096,8192,16384", max_position=16384)
  recipe = resolve.check(config)
  resolve.check_steps(config, recipe, 3)
  with pytest.raises(errors.UserError, match="3 limits and the run 2 steps"):
    resolve.check_steps(config, recipe, 2)


def test_full_rows_may_have_no_room(config):
  """Shorter samples have some."""
  config.positions.max_position = config.data.seq_len
  resolve.check(config)


def test_contiguous_positions_need_no_room(config):
  config.positions.max_position = 10
  config.positions.strategy = "contiguous"
  resolve.check(config)


def test_rows_tokens_and_heads_must_divide_over_the_mesh(config):
  config.batch_size, config.grad_accum = 16, 4
  llama = known_models.KNOWN["meta-llama/Llama-2-70b-hf"]  # 64 query heads, 8 kv heads
  mesh = dict(data=2, fsdp=2, tensor=2, context=8)
  resolve.check_mesh(config, llama, mesh)
  for changes, message in (
    (dict(fsdp=4), r"microbatch of 4 rows .* 8 devices .* resumed .* divides 4$"),
    (dict(context=3), r"data.seq_len=4096.* mesh.context=3"),
    (dict(tensor=16), "128 devices, but the model has 64 query and 8 kv heads"),
  ):
    with pytest.raises(errors.UserError, match=message):
      resolve.check_mesh(config, llama, mesh | changes)

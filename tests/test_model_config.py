"""HF config.json in both spellings, there and back."""

import dataclasses

import numpy as np
import pytest

from skipalign_jax import errors, model_config, rope

LLAMA2_7B = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 11008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 32,
  "hidden_act": "silu",
  "max_position_embeddings": 4096,
  "rms_norm_eps": 1e-05,
  "rope_scaling": None,
  "tie_word_embeddings": False,
}
LLAMA2_13B = LLAMA2_7B | {
  "hidden_size": 5120,
  "intermediate_size": 13824,
  "num_hidden_layers": 40,
  "num_attention_heads": 40,
  "num_key_value_heads": 40,
}
YI_6B_200K = LLAMA2_7B | {
  "vocab_size": 64000,
  "num_key_value_heads": 4,
  "max_position_embeddings": 200_000,
  "rope_theta": 5_000_000.0,
  "rms_norm_eps": 1e-6,
}
LLAMA31_8B = LLAMA2_7B | {
  "vocab_size": 128_256,
  "intermediate_size": 14336,
  "num_key_value_heads": 8,
  "max_position_embeddings": 131_072,
  "rope_theta": 500_000.0,
  "rope_scaling": {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
  },
}
SMOLLM2_135M = {
  "model_type": "llama",
  "vocab_size": 49152,
  "hidden_size": 576,
  "intermediate_size": 1536,
  "num_hidden_layers": 30,
  "num_attention_heads": 9,
  "num_key_value_heads": 3,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-05,
  "rope_theta": 100_000,
  "tie_word_embeddings": True,
}
MODELS = {
  "llama2_7b": (LLAMA2_7B, 6_738_415_616),
  "llama2_13b": (LLAMA2_13B, 13_015_864_320),
  "yi_6b_200k": (YI_6B_200K, 6_061_035_520),
  "llama31_8b": (LLAMA31_8B, 8_030_261_248),
  "smollm2_135m": (SMOLLM2_135M, 134_515_008),
}


@pytest.mark.parametrize("name", MODELS)
def test_number_of_parameters(name):
  hf, expected = MODELS[name]
  assert model_config.from_hf(hf).num_params() == expected


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name):
  config = model_config.from_hf(MODELS[name][0])
  written = model_config.to_hf(config)
  assert model_config.from_hf(written) == config
  assert model_config.to_hf(model_config.from_hf(written)) == written


@pytest.mark.parametrize("name", MODELS)
def test_both_spellings_are_written_and_each_suffices(name):
  config = model_config.from_hf(MODELS[name][0])
  written = model_config.to_hf(config)
  assert written["rope_parameters"]["rope_theta"] == written["rope_theta"]
  assert written["max_position_embeddings"] == config.window
  v4 = {key: value for key, value in written.items() if key != "rope_parameters"}
  v5 = {
    key: value
    for key, value in written.items()
    if key not in ("rope_theta", "rope_scaling")
  }
  assert model_config.from_hf(v4) == model_config.from_hf(v5) == config


def test_missing_theta_is_ten_thousand():
  assert model_config.from_hf(LLAMA2_7B).rope.theta == 10_000.0
  v5 = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
  both = LLAMA2_7B | {
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "rope_parameters": v5,
  }
  assert model_config.from_hf(both).rope.kind == "linear"


@pytest.mark.parametrize(
  "v5",
  [
    {"rope_type": "default", "rope_theta": 10_000.0},
    {"rope_type": "linear", "rope_theta": 5_000_000.0, "factor": 2.0},
  ],
)
def test_spellings_that_disagree_are_refused(v5):
  with pytest.raises(errors.UserError, match="make the two spellings agree"):
    model_config.from_hf(YI_6B_200K | {"rope_parameters": v5})


@pytest.mark.parametrize("length", [16_384, 100_000])
def test_ntk_is_exported_as_its_base(length):
  config = model_config.from_hf(LLAMA2_7B)
  ntk = rope.RopeConfig("ntk", 10_000.0, length / 4096, original_window=4096)
  scaled = dataclasses.replace(config, rope=ntk, window=length)
  written = model_config.to_hf(scaled)
  assert written["rope_scaling"] is None
  assert written["rope_parameters"]["rope_type"] == "default"
  back = model_config.from_hf(written)
  assert back.window == length
  ours_P, _ = rope.inverse_frequencies(ntk, 128)
  theirs_P, _ = rope.inverse_frequencies(back.rope, 128)
  np.testing.assert_array_equal(ours_P, theirs_P)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "mistral"}, "model_type 'mistral' is not supported"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"hidden_size": "wide"}, "wrong type"),
    ({"hidden_size": None}, "wrong type"),
    ({"num_key_value_heads": 5}, "must divide"),
    ({"num_hidden_layers": 0}, "at least 1"),
    ({"rope_scaling": {"type": "linear"}}, "needs a factor"),
    ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "unknown"),
    (
      {"rope_scaling": {"type": "llama3", "factor": 4.0}},
      "needs original_max_position_embeddings",
    ),
    (
      {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7}},
      "mscale, which are not supported",
    ),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
  ],
)
def test_configs_that_cannot_be_honoured_are_refused(change, message):
  with pytest.raises(errors.UserError, match=message):
    model_config.from_hf(LLAMA2_7B | change, "some/config.json")


def test_missing_key_is_named_with_its_file():
  hf = {key: value for key, value in LLAMA2_7B.items() if key != "hidden_size"}
  with pytest.raises(errors.UserError, match=r"some/config.json: key 'hidden_size'"):
    model_config.from_hf(hf, "some/config.json")

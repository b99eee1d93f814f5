"""HF config.json in both spellings, there and back."""

import dataclasses

import numpy as np
import pytest
import transformers

from skipalign_jax.model import families, known_models, model_config, rope
from skipalign_jax.runtime import errors, files

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
MISTRAL_7B_V03 = LLAMA31_8B | {
  "model_type": "mistral",
  "architectures": ["MistralForCausalLM"],
  "vocab_size": 32_768,
  "max_position_embeddings": 32_768,
  "rope_theta": 1_000_000.0,
  "rope_scaling": None,
  "sliding_window": None,
}
QWEN25_7B = {
  "model_type": "qwen2",
  "vocab_size": 152_064,
  "hidden_size": 3584,
  "intermediate_size": 18_944,
  "num_hidden_layers": 28,
  "num_attention_heads": 28,
  "num_key_value_heads": 4,
  "max_position_embeddings": 131_072,
  "max_window_layers": 28,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1_000_000.0,
  "sliding_window": 131_072,
  "use_sliding_window": False,
  "tie_word_embeddings": False,
}
QWEN3_8B = QWEN25_7B | {
  "model_type": "qwen3",
  "vocab_size": 151_936,
  "hidden_size": 4096,
  "intermediate_size": 12_288,
  "num_hidden_layers": 36,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "head_dim": 128,
  "attention_bias": False,
  "max_position_embeddings": 40_960,
  "max_window_layers": 36,
  "sliding_window": None,
}
SMOLLM3_3B = {  # tied by default
  "model_type": "smollm3",
  "vocab_size": 128_256,
  "hidden_size": 2048,
  "intermediate_size": 11_008,
  "num_hidden_layers": 36,
  "num_attention_heads": 16,
  "num_key_value_heads": 4,
  "max_position_embeddings": 65_536,
  "rms_norm_eps": 1e-06,
  "rope_theta": 5_000_000.0,
  "no_rope_layer_interval": 4,
  "no_rope_layers": [1, 1, 1, 0] * 9,
  "layer_types": ["full_attention"] * 36,
}
YARN = {"rope_type": "yarn", "factor": 4.0}
MODELS = {
  "llama2_7b": (LLAMA2_7B, 6_738_415_616),
  "llama2_13b": (LLAMA2_13B, 13_015_864_320),
  "yi_6b_200k": (YI_6B_200K, 6_061_035_520),
  "llama31_8b": (LLAMA31_8B, 8_030_261_248),
  "smollm2_135m": (SMOLLM2_135M, 134_515_008),
  "mistral_7b_v03": (MISTRAL_7B_V03, 7_248_023_552),
  "qwen25_7b": (QWEN25_7B, 7_615_616_512),
  "qwen3_8b": (QWEN3_8B, 8_190_735_360),
  "smollm3_3b": (SMOLLM3_3B, 3_075_098_624),
}
KNOWN = {
  "meta-llama/Llama-2-7b-hf": LLAMA2_7B,
  "meta-llama/Llama-2-13b-hf": LLAMA2_13B,
  "meta-llama/Llama-3.1-8B": LLAMA31_8B,
  "mistralai/Mistral-7B-v0.3": MISTRAL_7B_V03,
  "Qwen/Qwen2.5-7B": QWEN25_7B,
  "Qwen/Qwen3-8B": QWEN3_8B,
  "HuggingFaceTB/SmolLM3-3B": SMOLLM3_3B,
}


@pytest.mark.parametrize("name", MODELS)
def test_number_of_parameters(name):
  hf, expected = MODELS[name]
  assert model_config.from_hf(hf).num_params() == expected


@pytest.mark.parametrize("name", KNOWN)
def test_shapes_known_by_name_are_those_of_config_json(name):
  config = model_config.from_hf(KNOWN[name])
  plain = config.rope.kind == "none"  # the original window is not used
  where = dataclasses.replace(config.rope, original_window=0) if plain else config.rope
  assert known_models.KNOWN[name] == dataclasses.replace(config, rope=where)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name):
  config = model_config.from_hf(MODELS[name][0])
  written = model_config.to_hf(config)
  assert written["model_type"] == MODELS[name][0]["model_type"]
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


def test_the_original_window_of_llama3_is_where_its_readers_look():
  """transformers 4 and vLLM read it in the rope, llama.cpp's converter outside."""
  scaled = rope.RopeConfig("llama3", 1e4, 4.0, original_window=2048)
  base = model_config.from_hf(LLAMA2_7B)
  written = model_config.to_hf(dataclasses.replace(base, rope=scaled))
  for one in (written, written["rope_scaling"], written["rope_parameters"]):
    assert one["original_max_position_embeddings"] == 2048
  assert model_config.from_hf(written).rope == scaled


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
    ({"model_type": "gemma"}, r"'gemma'.*llama .*smollm3"),
    ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported"),
    ({"model_type": None}, "model_type None is not supported"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported.* 'silu'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    ({"logits_scaling": 8.0}, "logits_scaling 8.0 is not supported"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
    ({"num_local_experts": 8}, "num_local_experts 8"),
    ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
    ({"no_rope_layers": [1, 0]}, "is this a smollm3 model"),
    (
      {"model_type": "mistral", "max_position_embeddings": 32_768},
      r"window \(4096 of 32768 positions.*set sliding_window to null",
    ),
    ({"model_type": "mistral", "sliding_window": 1024}, r"window \(1024 of 4096"),
    (
      {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 512},
      r"window \(512 of 4096",
    ),
    (
      {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 512,
        "max_window_layers": 31,
      },
      r"window \(512 of 4096",
    ),
    (
      {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "max_window_layers": "28",
      },
      "max_window_layers is '28', not a number",
    ),
    ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "2 entries for 32 layers"),
    ({"hidden_size": "wide"}, "wrong type"),
    ({"hidden_size": None}, "wrong type"),
    ({"vocab_size": "32000"}, "wrong type .vocab_size is '32000', not a number"),
    ({"vocab_size": 32000.5}, "vocab_size is 32000.5, not a whole number"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True, not a number"),
    ({"num_key_value_heads": "8"}, "wrong type"),
    ({"num_key_value_heads": 0}, "num_kv_heads=0 is not allowed"),
    ({"head_dim": 0}, "head_dim=0 is not allowed"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5', not a number"),
    ({"tie_word_embeddings": "false"}, "is 'false', not true or false"),
    ({"attention_bias": "no"}, "attention_bias is 'no', not true or false"),
    ({"mlp_bias": 1}, "mlp_bias is 1, not true or false"),
    ({"model_type": "qwen2", "use_sliding_window": "false"}, "not true or false"),
    ({"model_type": "smollm3", "no_rope_layers": ["0"] * 32}, "wrong type"),
    ({"model_type": "smollm3", "no_rope_layer_interval": "4"}, "wrong type"),
    ({"rope_theta": "10000"}, "rope_theta is '10000', not a number"),
    ({"rope_scaling": YARN | {"factor": "4"}}, "factor is '4', not a number"),
    ({"rope_scaling": YARN | {"beta_fast": "32"}}, "wrong type"),
    ({"rope_scaling": YARN | {"attention_factor": "1"}}, "wrong type"),
    ({"original_max_position_embeddings": "8"}, "wrong type"),
    ({"num_key_value_heads": 5}, "must divide"),
    ({"num_hidden_layers": 0}, "num_hidden_layers=0 .* from 1 to 10,000"),
    ({"rope_scaling": {"type": "linear"}}, "needs a factor"),
    (
      {"rope_scaling": {"type": "longrope", "factor": 4.0}},
      "some/config.json: rope_type longrope is not supported; supported: default,",
    ),
    (
      {"rope_scaling": {"type": "ntk", "factor": 4.0}},  # no type of transformers
      "rope_type ntk is not supported",
    ),
    (
      {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
      "some/config.json: rope_type dynamic cannot be .* remove it in a copy",
    ),
    (
      {"rope_scaling": {"type": "linear", "factor": 0.5}},
      "some/config.json: rope factor 0.5 must be at least 1",
    ),
    (
      {"rope_scaling": {"type": "llama3", "factor": 4.0}},
      "needs original_max_position_embeddings",
    ),
    (
      {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7}},
      "mscale, which are not supported.* remove them in a copy",
    ),
    ({"rope_scaling": YARN | {"attention_factor": 0}}, "attention_factor=0.0 must be"),
    (
      {"rope_scaling": YARN | {"original_max_position_embeddings": 0}},
      "needs the original window",
    ),
    (
      {
        "rope_scaling": YARN
        | {"rope_type": "llama3", "low_freq_factor": 0}
        | {"original_max_position_embeddings": 8192}
      },
      "low_freq_factor=0.0 must be above 0",
    ),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"use_qk_norm": True}, "use_qk_norm True is not supported"),
    ({"clip_qkv": 8.0}, "clip_qkv 8.0"),
    ({"attention_scale": 0.1}, r"the key attention_scale \(0.1\) is unknown"),
    ({"num_kv_heads": 4}, "the key num_kv_heads .* remove it in a copy"),
    ({"rope_base": 5e5}, "the key rope_base"),
    ({"post_norm": False}, "the key post_norm"),
    ({"emb_cap": 1}, "the key emb_cap"),
    (
      {
        "original_max_position_embeddings": 1024,
        "rope_scaling": YARN | {"original_max_position_embeddings": 2048},
      },
      "is 1024, but 2048 within the rope",
    ),
  ],
)
def test_unsupported_configs_are_refused(change, message):
  with pytest.raises(errors.UserError, match=message):
    model_config.from_hf(LLAMA2_7B | change, "some/config.json")


@pytest.mark.parametrize(
  "change",
  [
    {"rope_scaling": YARN | {"original_max_position_embeddings": 1024}},
    {"rope_scaling": YARN, "original_max_position_embeddings": 1024},
    {"rope_scaling": YARN | {"factor": None}, "original_max_position_embeddings": 1024},
    {
      "rope_scaling": YARN
      | {"finetuned": True, "original_max_position_embeddings": 1024}
    },
  ],
)
def test_yarn_by_other_spellings(change):
  """A null factor is the ratio of the windows, and "finetuned" changes nothing."""
  config = model_config.from_hf(LLAMA2_7B | change)
  assert config.rope == rope.RopeConfig("yarn", 1e4, 4.0, original_window=1024)


def test_a_theta_outside_of_rope_parameters_is_its_base():
  without = {k: v for k, v in LLAMA2_7B.items() if k != "rope_scaling"}
  change = {"rope_theta": 5e5, "rope_parameters": YARN}
  found = model_config.from_hf(without | change).rope
  assert (found.kind, found.theta) == ("yarn", 5e5)
  assert model_config.from_hf(
    LLAMA2_7B | {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}
  ).rope == rope.RopeConfig("none", 5e5, original_window=4096)


def test_an_original_window_without_scaling_changes_nothing():
  change = {"original_max_position_embeddings": 1024}
  plain = model_config.from_hf(LLAMA2_7B)
  assert model_config.from_hf(LLAMA2_7B | change) == plain


# As releases on the hub have them, next to the keys that are read.
ORDINARY = {
  "_name_or_path": "org/model",
  "_attn_implementation_autoset": True,
  "_flash_attn_2_enabled": True,
  "architectures": ["LlamaForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "eos_token_id": [2, 3],
  "pad_token_id": -1,
  "image_token_id": 7,
  "initializer_range": 0.02,
  "is_llama_config": True,
  "rope_interleaved": False,
  "max_length": 4096,
  "max_sequence_length": 2048,
  "pretraining_tp": 1,
  "resid_pdrop": 0.1,
  "temperature": 0.9,
  "top_k": 20,
  "repetition_penalty": 1.1,
  "tokenizer_class": "LlamaTokenizer",
  "torch_dtype": "float16",
  "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
  "transformers_version": "4.31.0",
  "unsloth_fixed": True,
  "use_cache": True,
  "use_mrope": False,
  "auto_map": {"AutoConfig": "configuration.Config"},
  "pruned_heads": {},
  "rope_ratio": None,
}


@pytest.mark.parametrize("name", MODELS)
def test_ordinary_keys_pass(name):
  hf = MODELS[name][0]
  ordinary = {key: value for key, value in ORDINARY.items() if key not in hf}
  assert model_config.from_hf(hf | ordinary) == model_config.from_hf(hf)


@pytest.mark.parametrize("model_type", families.TABLE)
def test_what_transformers_saves_is_read(model_type, tmp_path):
  changes = {"sliding_window": None} if model_type == "mistral" else {}
  theirs = transformers.AutoConfig.for_model(model_type, **changes)
  theirs.save_pretrained(tmp_path)
  short = model_config.from_hf(files.read_json(tmp_path / "config.json"))
  # All attributes, as version 4 wrote them for other classes.
  assert model_config.from_hf(theirs.to_dict()) == short


def test_missing_key_is_named_with_its_file():
  hf = {key: value for key, value in LLAMA2_7B.items() if key != "hidden_size"}
  with pytest.raises(errors.UserError, match=r"some/config.json: key 'hidden_size'"):
    model_config.from_hf(hf, "some/config.json")


def test_dropout_and_windows_as_long_as_the_model_are_harmless():
  for hf in (
    LLAMA2_7B | {"attention_dropout": 0.1, "pretraining_tp": 2},
    LLAMA2_7B | {"model_type": "mistral"},  # its default of 4096 is the whole window
    QWEN25_7B | {"use_sliding_window": True},
    # All layers come before the first with a window, by number or by name.
    QWEN25_7B | {"use_sliding_window": True, "sliding_window": 4096},
    QWEN3_8B
    | {
      "use_sliding_window": True,
      "sliding_window": 4096,
      "max_window_layers": 0,
      "layer_types": ["full_attention"] * 36,
    },
  ):
    written = model_config.to_hf(model_config.from_hf(hf))
    # A longer window must not turn on the sliding one.
    assert written.get("sliding_window") is None
    assert not written.get("use_sliding_window")


@pytest.mark.parametrize("model_type", families.TABLE)
def test_defaults_of_missing_keys_are_those_of_transformers(model_type):
  size = {  # 64 is not 4096 / 32, the sizes of the classes
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 8,
    "intermediate_size": 100,
    "vocab_size": 100,
  }
  theirs = transformers.AutoConfig.for_model(model_type, **size)
  no_window = {"sliding_window": None} if model_type == "mistral" else {}
  ours = model_config.from_hf({"model_type": model_type, **size, **no_window})
  assert ours.num_kv_heads == theirs.num_key_value_heads
  assert ours.head_dim == (getattr(theirs, "head_dim", None) or 64)
  assert ours.window == theirs.max_position_embeddings
  assert ours.norm_eps == theirs.rms_norm_eps
  assert ours.tie_embeddings == theirs.tie_word_embeddings
  assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
  rotated = getattr(theirs, "no_rope_layers", [1] * 8)
  assert ours.nope_layers == tuple(i for i in range(8) if not rotated[i])
  if model_type == "mistral":
    assert families.TABLE["mistral"].defaults["sliding_window"] == theirs.sliding_window


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"family": "gemma"}, "model.family='gemma' .*one of llama"),
    ({"family": "qwen2"}, "model.family=qwen2.* it is True"),
    ({"family": "mistral", "mlp_bias": True}, "model.family=mistral.* it is False"),
    ({"nope_layers": (1,)}, "model.family=llama has no layers without rope"),
    ({"family": "smollm3", "nope_layers": (32,)}, r"nope_layers=.* 0 … 31"),
  ],
)
def test_values_that_a_family_does_not_have_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    dataclasses.replace(model_config.from_hf(LLAMA2_7B), **changes)

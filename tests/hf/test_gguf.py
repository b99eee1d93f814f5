"""GGUF files: config, weights in HF order, tokenizer, and damage."""

import dataclasses
import os
import pathlib

import jax.numpy as jnp
import make_goldens
import numpy as np
import pytest
import tiny_files as tiny
from gguf import quants

from skipalign_jax.hf import gguf, gguf_tokenizer, reference
from skipalign_jax.model import decoder, model_config, rope
from skipalign_jax.runtime import errors

SMOLLM2 = pathlib.Path(
  os.environ.get("SKIPALIGN_SMOLLM2", "")
  or pathlib.Path(__file__).parents[2]
  / ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
)


@pytest.mark.parametrize(
  "name", ["llama2_gqa", "llama2_mha", "smollm2_tied", "biases", "qwen2", "qwen3"]
)
def test_weights_come_back_in_hf_order(name, tmp_path):
  opened = reference.open_model(str(tiny.gguf_file(tmp_path / "m.gguf", name)))
  assert opened.kind == "gguf"
  assert opened.config == tiny.config(name)
  expected = tiny.tensors(name, np.float32)
  q = opened.weights["layers/attn/q/weight"]
  for layer in range(opened.config.num_layers):
    theirs = expected[f"model.layers.{layer}.self_attn.q_proj.weight"]
    # Q8_0 keeps 8 bits of the largest of 32 neighbours.
    np.testing.assert_allclose(q.layer(layer), theirs, atol=0.5 / 127)
    np.testing.assert_array_equal(
      q.read((slice(layer, layer + 1), slice(3, 9)))[0], q.layer(layer)[3:9]
    )
  norm = opened.weights["layers/mlp_norm/weight"].layer(1)
  np.testing.assert_array_equal(
    norm, expected["model.layers.1.post_attention_layernorm.weight"]
  )
  if name == "qwen3":
    k = opened.weights["layers/attn/k_norm/weight"].layer(1)
    np.testing.assert_array_equal(k, expected["model.layers.1.self_attn.k_norm.weight"])
  if name in ("biases", "qwen2"):
    k = opened.weights["layers/attn/k/bias"].layer(0)
    np.testing.assert_array_equal(k, expected["model.layers.0.self_attn.k_proj.bias"])
  if name == "biases":
    up = opened.weights["layers/mlp/up/bias"].layer(1)
    np.testing.assert_array_equal(up, expected["model.layers.1.mlp.up_proj.bias"])


def test_tokenizer_equals_the_one_it_was_written_from(tmp_path):
  path = str(tiny.gguf_file(tmp_path / "m.gguf"))
  ours, theirs = reference.load_tokenizer(path), tiny.tokenizer()
  for text in (
    tiny.TEXT,
    "x  42 ½ ²3",
    "<|im_start|>user\nhi<|im_end|>\n",
    "naïve 你🙂",
  ):
    assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
    assert ours.decode(ours(text)["input_ids"]) == text
  assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token)
  assert ours.chat_template == theirs.chat_template


def test_smollm_splits_digits_one_by_one_and_gpt2_does_not(tmp_path):
  smollm = reference.load_tokenizer(str(tiny.gguf_file(tmp_path / "a.gguf")))
  gpt2 = reference.load_tokenizer(str(tiny.gguf_file(tmp_path / "b.gguf", pre="gpt-2")))
  pieces = lambda tok: [
    text for text, _ in tok.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a 2024")
  ]
  assert pieces(smollm) == ["a", "Ġ", "2", "0", "2", "4"]
  assert pieces(gpt2) == ["a", "Ġ2024"]


def test_llama3_splits_three_digits_and_starts_with_bos(tmp_path):
  path = tiny.gguf_file(tmp_path / "m.gguf", pre="llama-bpe")
  tok = reference.load_tokenizer(str(path))
  split = tok.backend_tokenizer.pre_tokenizer.pre_tokenize_str("It's 20245\n\n x")
  assert [text for text, _ in split] == ["It", "'s", "Ġ", "202", "45", "ĊĊ", "Ġx"]
  assert tok("a")["input_ids"][0] == tok.bos_token_id
  assert tok("a", add_special_tokens=False)["input_ids"][0] != tok.bos_token_id


def test_qwen2_splits_digits_one_by_one_and_composes_letters(tmp_path):
  path = tiny.gguf_file(tmp_path / "m.gguf", "qwen2", pre="qwen2")
  tok = reference.load_tokenizer(str(path))
  split = tok.backend_tokenizer.pre_tokenizer.pre_tokenize_str("It's 2024")
  assert [text for text, _ in split] == ["It", "'s", "Ġ", "2", "0", "2", "4"]
  assert tok("e\u0301")["input_ids"] == tok("é")["input_ids"]
  # DeepSeek's distillations of Qwen: the same rules, and bos.
  begins = {"tokenizer.ggml.add_bos_token": True}
  path = tiny.gguf_file(tmp_path / "r1.gguf", "qwen2", None, begins, "deepseek-r1-qwen")
  distilled = reference.load_tokenizer(str(path))
  ids = distilled("In 2024, cafe\u0301")["input_ids"]
  assert ids == [tok.bos_token_id, *tok("In 2024, café")["input_ids"]]
  assert tok.model_max_length == tiny.config("qwen2").window


def test_sentencepiece_joins_the_best_scored_pair_first():
  pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
  types = [2, 3, 3, *[6] * 256]
  # Real files give plain characters the lowest scores.
  scored = {"▁": -9, "a": -9, "b": -9, "c": -9, "bc": 0, "ab": -1, "▁ab": -2, "abc": -3}
  metadata = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [*pieces, *scored],
    "tokenizer.ggml.scores": [0.0] * len(pieces) + [float(s) for s in scored.values()],
    "tokenizer.ggml.token_type": [*types, *[1] * len(scored)],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
  }
  tok = gguf_tokenizer.build(metadata, "memory")
  # "ab" would fit first from the left, but "bc" scores higher and a+bc is a piece.
  assert tok.tokenize("abc") == ["▁", "abc"]
  assert tok.tokenize("ab") == ["▁ab"]
  assert tok.tokenize("aé") == ["▁", "a", "<0xC3>", "<0xA9>"]
  assert tok("ab")["input_ids"][0] == 1
  assert tok.decode(tok("ab c aé")["input_ids"], skip_special_tokens=True) == "ab c aé"
  # As llama.cpp's converter writes them where there is no tokenizer.model.
  equal = [-1000.0] * len(metadata["tokenizer.ggml.scores"])
  with pytest.raises(errors.UserError, match=r"are all -1000.* the model's HF folder"):
    gguf_tokenizer.build(metadata | {"tokenizer.ggml.scores": equal}, "memory")


def test_rope_scaling_in_metadata(tmp_path):
  scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
  path = tiny.gguf_file(tmp_path / "m.gguf", metadata=scaling)
  config = gguf.GGUFFile(path).config
  assert (config.rope.kind, config.rope.factor) == ("linear", 4.0)
  unknown = {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}
  path = tiny.gguf_file(tmp_path / "n.gguf", metadata=unknown)
  with pytest.raises(errors.UserError, match="longrope"):
    gguf.GGUFFile(path)


@pytest.mark.parametrize(
  ("metadata", "kind", "factor"),
  [
    ({"llama.rope.scaling.factor": 4.0}, "linear", 4),  # as llama.cpp, without a type
    ({"llama.rope.scale_linear": 2.0}, "linear", 2),
    ({"llama.rope.scale_linear": 2.0, "llama.rope.scaling.factor": 4.0}, "linear", 4),
    ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, "none", 1),
    ({"llama.rope.scaling.yarn_attn_factor": 1.0}, "none", 1),
    ({"llama.attention.causal": True}, "none", 1),
    ({"llama.attention.scale": 8.0**-0.5}, "none", 1),
    ({"llama.rope.scaling.finetuned": True}, "none", 1),
    ({"llama.pooling_type": 3, "llama.logit_scale": 1.0}, "none", 1),
  ],
)
def test_scaling_and_neutral_keys(metadata, kind, factor, tmp_path):
  config = gguf.GGUFFile(tiny.gguf_file(tmp_path / "m.gguf", metadata=metadata)).config
  assert (config.rope.kind, config.rope.factor) == (kind, factor)


YARN = {
  "llama.rope.scaling.type": "yarn",
  "llama.rope.scaling.factor": 4.0,
  "llama.rope.scaling.original_context_length": 64,
}


def test_the_band_of_yarn_is_read(tmp_path):
  band = {
    "llama.rope.scaling.yarn_beta_fast": 16.0,
    "llama.rope.scaling.yarn_beta_slow": 0.1,
    "llama.rope.scaling.yarn_ext_factor": 1.0,
  }
  path = tiny.gguf_file(tmp_path / "m.gguf", metadata=YARN | band)
  expected = rope.RopeConfig("yarn", 1e4, 4.0, 64, beta_fast=16.0, beta_slow=0.1)
  assert gguf.GGUFFile(path).config.rope == expected


@pytest.mark.parametrize("attention_factor", [None, 1.0, 0.9, 1.2772588722239782])
def test_an_export_with_yarn_survives_the_way_through_gguf(attention_factor, tmp_path):
  """With the keys that llama.cpp's converter writes for an export's config.json."""
  shape, params = tiny.config(), tiny.tensors(dtype=np.float32)
  yarn = rope.RopeConfig(
    "yarn", 1e4, 16.0, 4, beta_fast=8.0, attention_factor=attention_factor
  )
  shape = dataclasses.replace(shape, rope=yarn, window=64)
  exported = model_config.to_hf(shape)
  assert model_config.from_hf(exported, "config.json") == shape
  exported = exported["rope_parameters"]
  metadata = {f"llama.rope.scaling.{key}": exported[name] for key, name in {
    "type": "rope_type", "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
  }.items() if name in exported}  # fmt: skip
  path = tiny.gguf_file(tmp_path / "m.gguf", metadata=metadata)
  opened = reference.open_model(str(path))
  found = opened.config.rope
  tokens_BL = make_goldens.tokens(shape.vocab_size)
  logits = lambda of: decoder.logits(
    params, of, jnp.asarray(tokens_BL, jnp.int32),
    jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None] * 3,
    jnp.ones(tokens_BL.shape, jnp.int32), "float32",
  )  # fmt: skip
  params = reference.load_params(opened)
  scales = [np.float32(rope.inverse_frequencies(r, 8)[1]) for r in (found, yarn)]
  assert scales[0] == scales[1]
  np.testing.assert_array_equal(
    logits(dataclasses.replace(shape, rope=found)), logits(shape)
  )
  plain = dataclasses.replace(yarn, attention_factor=None)
  same = np.array_equal(logits(dataclasses.replace(shape, rope=plain)), logits(shape))
  assert same == (attention_factor in (None, 1.2772588722239782))


@pytest.mark.parametrize(
  ("metadata", "key"),
  [
    # It may be config.json's attention_factor or its attn_factor.
    (YARN | {"llama.rope.scaling.yarn_attn_factor": 1.0}, "yarn_attn_factor"),
    (
      YARN
      | {
        "llama.rope.scaling.yarn_attn_factor": 1.2,
        "llama.rope.scaling.yarn_ext_factor": 1.0,
      },
      "yarn_attn_factor",
    ),
    ({"llama.rope.scaling.yarn_attn_factor": 1.2}, "yarn_attn_factor"),
    (YARN | {"llama.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
    (YARN | {"llama.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
    ({"llama.rope.scaling.attn_factor": 1.2}, "rope.scaling.attn_factor"),
    ({"llama.rope.scaling.yarn_ext_factor": 1.0}, "yarn_ext_factor"),
    ({"llama.attention.scale": 0.5}, "attention.scale"),
    ({"llama.attention.causal": False}, "attention.causal"),
    ({"llama.attention.value_length": 16}, "attention.value_length"),
    ({"llama.logit_scale": 0.5}, "logit_scale"),
    ({"llama.embedding_scale": 12.0}, "embedding_scale"),
    ({"llama.residual_scale": 0.2}, "residual_scale"),
    ({"llama.never_seen": 1}, "never_seen"),
    ({"split.count": 3, "split.no": 1}, "part 2 .* split into 3.*--merge"),
    ({"general.type": "adapter"}, "not a whole model"),
  ],
)
def test_keys_that_cannot_be_honoured_are_refused(metadata, key, tmp_path):
  path = tiny.gguf_file(tmp_path / "m.gguf", metadata=metadata)
  with pytest.raises(errors.UserError, match=key):
    reference.open_model(str(path))


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_file_that_does_not_name_its_splitting_rule_is_refused(pre, tmp_path):
  path = tiny.gguf_file(tmp_path / "m.gguf", pre=pre)
  with pytest.raises(errors.UserError, match=r"gguf-new-metadata --pre-tokenizer"):
    reference.load_tokenizer(str(path))


def test_llama3_divisors_are_recognised_or_refused(tmp_path):
  llama3 = tiny.config("llama3").rope
  plain = rope.RopeConfig("none", llama3.theta)
  divisors_P = (
    rope.inverse_frequencies(plain, 8)[0] / rope.inverse_frequencies(llama3, 8)[0]
  )
  path = tiny.gguf_file(tmp_path / "m.gguf", "llama3", rope_freqs=divisors_P)
  assert gguf.GGUFFile(path).config == tiny.config("llama3")
  path = tiny.gguf_file(tmp_path / "n.gguf", rope_freqs=[1.0, 1.5, 2.0, 3.0])
  with pytest.raises(errors.UserError, match="rope_freqs"):
    gguf.GGUFFile(path)


def test_every_truncation_is_a_user_error(tmp_path):
  whole = tiny.gguf_file(tmp_path / "m.gguf").read_bytes()
  cut = tmp_path / "cut.gguf"
  sizes = [0, 3, 4, 10, 24, 40, 100, 1000, len(whole) // 2, len(whole) - 100]
  for size in sizes:
    cut.write_bytes(whole[:size])
    with pytest.raises(errors.UserError, match=r"cut.gguf"):
      reference.open_model(str(cut))


def test_damaged_headers_never_crash(tmp_path):
  whole = bytearray(tiny.gguf_file(tmp_path / "m.gguf").read_bytes())
  rng = np.random.default_rng(0)
  broken = tmp_path / "broken.gguf"
  refused = 0
  for _ in range(40):
    damaged = bytearray(whole)
    for at in rng.integers(4, 2000, 4):
      damaged[at] = rng.integers(256)
    broken.write_bytes(damaged)
    try:
      reference.open_model(str(broken))
    except errors.UserError:
      refused += 1
  assert refused > 20


def test_a_quantisation_that_the_library_cannot_read_is_an_error(tmp_path, monkeypatch):
  path = tmp_path / "m.gguf"
  tiny.gguf_file(path)
  opened = reference.open_model(str(path))

  def refuse(data, kind):
    raise NotImplementedError(kind)

  monkeypatch.setattr(quants, "dequantize", refuse)
  with pytest.raises(errors.UserError, match=r"is stored as .*, which cannot be read"):
    reference.load_params(opened)


def test_several_chat_templates(tmp_path):
  more = {"tokenizer.chat_template.tool_use": "tools"}
  path = tiny.gguf_file(tmp_path / "m.gguf", metadata=more)
  found = reference.load_tokenizer(str(path)).chat_template
  assert found == {"default": tiny.TEMPLATE, "tool_use": "tools"}
  more = {"tokenizer.chat_template.../x": "tools"}
  path = tiny.gguf_file(tmp_path / "x.gguf", metadata=more)
  with pytest.raises(errors.UserError, match="a chat template has the name"):
    reference.load_tokenizer(str(path))


def test_other_architectures_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match="supported: llama, qwen2, qwen3"):
    gguf.hf_config({"general.architecture": "gemma3"}, set(), "x.gguf")
  for name, architecture in (("llama2_gqa", "llama"), ("qwen2", "qwen2")):
    window = {f"{architecture}.attention.sliding_window": 64.0}
    path = tiny.gguf_file(tmp_path / f"{name}.gguf", name, metadata=window)
    with pytest.raises(errors.UserError, match="sliding window"):
      gguf.GGUFFile(path)
  path = tiny.gguf_file(tmp_path / "m.gguf", pre="unheard-of")
  with pytest.raises(errors.UserError, match="unheard-of"):
    reference.load_tokenizer(str(path))
  with pytest.raises(errors.UserError, match="has no tokenizer"):
    gguf_tokenizer.build({}, "x.gguf")


@pytest.mark.weights
@pytest.mark.skipif(not SMOLLM2.is_file(), reason="SKIPALIGN_SMOLLM2 names no file")
def test_smollm2_answers():
  opened = reference.open_model(str(SMOLLM2))
  assert opened.config.num_params() == 134_515_008
  params = reference.load_params(opened)
  tok = reference.load_tokenizer(str(SMOLLM2))
  reference.check_vocabulary(tok, opened.config)
  ids = tok(
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\n"
  )["input_ids"]
  start = len(ids)
  for _ in range(7):
    tokens_BL = jnp.asarray([ids], jnp.int32)
    positions_BL = jnp.arange(len(ids), dtype=jnp.int32)[None]
    logits_BLV = decoder.logits(
      params,
      opened.config,
      tokens_BL,
      positions_BL,
      jnp.ones_like(tokens_BL),
      "float32",
    )
    ids.append(int(logits_BLV[0, -1].argmax()))
  assert tok.decode(ids[start:]) == "The capital of France is Paris."


@pytest.mark.torch
@pytest.mark.parametrize("name", ["llama2_gqa", "qwen2", "qwen3"])
def test_weights_equal_those_of_transformers_own_reader(name, tmp_path):
  torch = pytest.importorskip("torch")
  import transformers

  from skipalign_jax.hf import weights

  opened = reference.open_model(str(tiny.gguf_file(tmp_path / "m.gguf", name)))
  missed = {"head_dim": 16} if name == "qwen3" else {}  # key_length, by transformers
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file="m.gguf", dtype=torch.float32, **missed
  )
  assert theirs.config.model_type == opened.config.family
  state = theirs.state_dict()
  for key, tensor in weights.hf_tensors(opened.weights):
    np.testing.assert_array_equal(tensor, state.pop(key).numpy(), err_msg=key)
  assert set(state) <= {"lm_head.weight"}


@pytest.mark.weights
@pytest.mark.torch
@pytest.mark.skipif(not SMOLLM2.is_file(), reason="SKIPALIGN_SMOLLM2 names no file")
def test_smollm2_equals_transformers_own_reader():
  torch = pytest.importorskip("torch")
  import transformers

  from skipalign_jax.hf import weights

  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    SMOLLM2.parent, gguf_file=SMOLLM2.name, dtype=torch.float32
  )
  opened = reference.open_model(str(SMOLLM2))
  state = theirs.state_dict()
  for name, tensor in weights.hf_tensors(opened.weights):
    np.testing.assert_array_equal(tensor, state[name].numpy(), err_msg=name)
  params = reference.load_params(opened)
  tokens_BL = make_goldens.tokens(opened.config.vocab_size)
  for kind in ("contiguous", "skipped"):
    positions_L = make_goldens.positions(kind, opened.config.window)
    with torch.no_grad():
      expected = theirs(
        input_ids=torch.tensor(tokens_BL),
        position_ids=torch.tensor(positions_L)[None],
        attention_mask=torch.ones(1, len(positions_L), dtype=torch.long),
      ).logits.numpy()
    ours = decoder.logits(
      params, opened.config, jnp.asarray(tokens_BL, jnp.int32),
      jnp.asarray(positions_L, jnp.int32)[None],
      jnp.ones(tokens_BL.shape, jnp.int32), "float32",
    )  # fmt: skip
    np.testing.assert_allclose(ours, expected, atol=1e-3)

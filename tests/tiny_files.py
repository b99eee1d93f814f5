"""Tiny models in every format, for the tests of conversion (and a check of them)."""

import json
import pathlib

import gguf
import make_goldens
import ml_dtypes
import numpy as np
import safetensors.numpy
import tokenizers
import transformers
from tokenizers import decoders, pre_tokenizers, trainers

from skipalign_jax.hf import names
from skipalign_jax.model import model_config

TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "The quick brown fox of 2024 jumps over 13 lazy dogs.\n\n  Twice! "


def config(name="llama2_gqa"):
  """ModelConfig of a golden model with room for the tiny tokenizer."""
  return model_config.from_hf(make_goldens.MODELS[name] | {"vocab_size": 320})


def tensors(name="llama2_gqa", dtype=ml_dtypes.bfloat16, seed=0):
  """HF name -> tensor."""
  drawn = make_goldens.weights(names.hf_shapes(config(name)), seed)
  return {key: value.astype(dtype) for key, value in drawn.items()}


def tokenizer():
  """A byte-level BPE of 300 tokens with a ChatML template."""
  core = tokenizers.Tokenizer(tokenizers.models.BPE())
  core.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  core.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  core.train_from_iterator([TEXT * 3], trainer)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=core,
    bos_token="<|im_start|>",
    eos_token="<|endoftext|>",
    pad_token="<|endoftext|>",
    chat_template=TEMPLATE,
    clean_up_tokenization_spaces=False,
  )


def hf_folder(
  folder: pathlib.Path, name="llama2_gqa", dtype=ml_dtypes.bfloat16, shards=1, seed=0
):
  """Writes an HF folder, without the code under test."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(model_config.to_hf(config(name))))
  (folder / "generation_config.json").write_text('{"temperature": 0.5}')
  tokenizer().save_pretrained(folder)
  items = list(tensors(name, dtype, seed).items())
  if shards == 1:
    safetensors.numpy.save_file(dict(items), folder / "model.safetensors")
    return folder
  weight_map = {}
  for i in range(shards):
    file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
    part = dict(items[i::shards])
    safetensors.numpy.save_file(part, folder / file)
    weight_map |= dict.fromkeys(part, file)
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"metadata": {}, "weight_map": weight_map})
  )
  return folder


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
  """q/k weights as llama.cpp stores them: HF's pair (h, h + H/2) in adjacent rows."""
  halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
  return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


_ADD = {
  str: gguf.GGUFWriter.add_string,
  float: gguf.GGUFWriter.add_float32,
  bool: gguf.GGUFWriter.add_bool,
  int: gguf.GGUFWriter.add_uint32,
}


def gguf_file(
  path: pathlib.Path, name="llama2_gqa", rope_freqs=None, metadata=None, pre="smollm"
):
  """Writes a GGUF file: matrices of 32 columns as Q8_0, all others as fp32."""
  c = config(name)
  writer = gguf.GGUFWriter(path, c.family)
  writer.add_block_count(c.num_layers)
  writer.add_context_length(c.window)
  writer.add_embedding_length(c.embed_dim)
  writer.add_feed_forward_length(c.ffn_dim)
  writer.add_head_count(c.num_heads)
  writer.add_head_count_kv(c.num_kv_heads)
  writer.add_key_length(c.head_dim)
  writer.add_rope_dimension_count(c.head_dim)
  writer.add_rope_freq_base(c.rope.theta)
  writer.add_layer_norm_rms_eps(c.norm_eps)
  writer.add_vocab_size(c.vocab_size)
  for key, value in (metadata or {}).items():
    _ADD[type(value)](writer, key, value)
  tok = tokenizer()
  state = json.loads(tok.backend_tokenizer.to_str())
  special = set(tok.all_special_tokens) | {"<|im_end|>"}
  spelled = sorted(tok.get_vocab(), key=tok.get_vocab().get)
  writer.add_tokenizer_model("gpt2")
  if pre is not None:
    writer.add_tokenizer_pre(pre)
  writer.add_token_list(spelled)
  writer.add_token_types([3 if token in special else 1 for token in spelled])
  writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
  writer.add_bos_token_id(tok.bos_token_id)
  writer.add_eos_token_id(tok.eos_token_id)
  writer.add_chat_template(TEMPLATE)
  if rope_freqs is not None:
    writer.add_tensor("rope_freqs.weight", np.asarray(rope_freqs, np.float32))
  gguf_name = names.gguf_names(c)
  for hf, tensor in tensors(name, np.float32).items():
    for part, heads in ((".q_proj.", c.num_heads), (".k_proj.", c.num_kv_heads)):
      if part in hf and c.family == "llama":
        tensor = interleaved(tensor, heads)
    if tensor.ndim == 2 and tensor.shape[1] == 32:
      kind = gguf.GGMLQuantizationType.Q8_0
      packed = gguf.quants.quantize(tensor, kind)
      writer.add_tensor(gguf_name[hf], packed, raw_dtype=kind)
    else:
      writer.add_tensor(gguf_name[hf], tensor)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path

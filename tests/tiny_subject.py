"""A tiny random model that reads bytes, as a subject of evaluations and as a folder."""

import dataclasses
import pathlib

import jax
import safetensors.numpy
import tiny
from tokenizers import processors

from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.evals import subject
from skipalign_jax.hf import export, weights
from skipalign_jax.model import inference, model_config, sharding
from skipalign_jax.runtime import files

CONFIG = tiny.config(vocab_size=260)
PARAMS = tiny.params(CONFIG)


def make(begin="", batch_tokens=4096, window=64):
  """The subject; `begin` is a special token before every text."""
  tokenizer = tokenizer_lib.byte_tokenizer()
  if begin:
    backend = tokenizer.backend_tokenizer
    template = {"single": f"{begin} $A", "special_tokens": [(begin, 1)]}
    backend.post_processor = processors.TemplateProcessing(**template)
  config = dataclasses.replace(CONFIG, window=window)
  return subject.Subject(
    inference.Engine(PARAMS, config, "float32"),
    tokenizer,
    subject.identity("tiny", config, tokenizer, "float32"),
    batch_tokens,
    eos_ids=(),
  )


def folder(path: pathlib.Path, window=256) -> pathlib.Path:
  """A Hugging Face folder of that model."""
  path.mkdir()
  parameters = {}
  for key_path, value in jax.tree_util.tree_leaves_with_path(PARAMS):
    name = sharding.path_of(key_path)
    read = lambda index, dtype, value=value: value[index].astype(dtype)
    parameters[name] = weights.Parameter(name, value.shape, value.dtype, read)
  tensors = dict(weights.hf_tensors(parameters, "float32"))
  safetensors.numpy.save_file(tensors, path / "model.safetensors")
  config = dataclasses.replace(CONFIG, window=window)
  files.write_json(path / "config.json", model_config.to_hf(config))
  export.save_tokenizer(tokenizer_lib.byte_tokenizer(), path)
  return path

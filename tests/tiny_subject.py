"""A random byte-level model under test, and the same one as a folder."""

import pathlib

import jax
import safetensors.numpy
import tiny

from skipalign_jax import inference, model_config, sharding
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.hf import export, safetensors_io, weights

TOKENIZER = tokenizer_lib.byte_tokenizer()
CONFIG = tiny.config(vocab_size=len(TOKENIZER), window=256, tie_embeddings=True)
PARAMS = tiny.params(CONFIG)


def subject(batch_tokens: int = 1024) -> subject_lib.Subject:
  engine = inference.Engine(PARAMS, CONFIG, "float32")
  named = subject_lib.identity("tiny", CONFIG, TOKENIZER, "float32")
  return subject_lib.Subject(engine, TOKENIZER, named, batch_tokens)


def folder(path: pathlib.Path) -> pathlib.Path:
  """A Hugging Face folder of that model."""
  path.mkdir()
  parameters = {}
  for key_path, value in jax.tree_util.tree_leaves_with_path(PARAMS):
    name = sharding.path_of(key_path)
    read = lambda index, dtype, value=value: value[index].astype(dtype)
    parameters[name] = weights.Parameter(name, value.shape, value.dtype, read)
  tensors = dict(weights.hf_tensors(parameters, "float32"))
  safetensors.numpy.save_file(tensors, path / "model.safetensors")
  safetensors_io.write_json(path / "config.json", model_config.to_hf(CONFIG))
  export.save_tokenizer(TOKENIZER, path)
  return path

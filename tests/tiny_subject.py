"""A tiny random model that reads bytes, as a subject of evaluations."""

import tiny
from tokenizers import processors

from skipalign_jax import inference
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.evals import subject as subject_lib

CONFIG = tiny.config(vocab_size=260)
PARAMS = tiny.params(CONFIG)


def make(begin="", batch_tokens=4096, window=64):
  """The subject; `begin`, a special token, stands in front of every text."""
  tokenizer = tokenizer_lib.byte_tokenizer()
  if begin:
    backend = tokenizer.backend_tokenizer
    template = {"single": f"{begin} $A", "special_tokens": [(begin, 1)]}
    backend.post_processor = processors.TemplateProcessing(**template)
  config = tiny.config(vocab_size=260, window=window)
  return subject_lib.Subject(
    inference.Engine(PARAMS, config, "float32"),
    tokenizer,
    subject_lib.identity("tiny", config, tokenizer, "float32"),
    batch_tokens,
  )

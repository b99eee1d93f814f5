"""The tokenizer of a run, a byte-level one that needs no download, and stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ml_collections
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from skipalign_jax.data import template_text, templates
from skipalign_jax.hf import chat_template, template_dates
from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import transformers

# Id 0 is padding: all arrays of a row are zero there.
SPECIAL = ("<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHATML = (
  "{% for message in messages %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
  "{{ '<|im_end|>\n' }}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
  """One token per byte: 4 special tokens, then the 256 bytes in order.

  `decode(encode(text)) == text` for every text.
  """
  import transformers

  vocab = {token: i for i, token in enumerate(SPECIAL)}
  vocab |= {character: len(SPECIAL) + b for b, character in enumerate(_spelling())}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  backend.decoder = decoders.ByteLevel()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    pad_token="<|pad|>",
    eos_token="<|endoftext|>",
    additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    clean_up_tokenization_spaces=False,
  )
  tokenizer.chat_template = chat_template.trust(CHATML)
  return tokenizer


def _spelling() -> list[str]:
  """ByteLevel's character for byte 0 … 255: printable bytes are themselves."""
  alphabet = set(pre_tokenizers.ByteLevel.alphabet())
  others = (chr(code) for code in range(256, 512))
  return [chr(b) if chr(b) in alphabet else next(others) for b in range(256)]


def resolve(config: ml_collections.ConfigDict) -> transformers.PreTrainedTokenizerFast:
  """The tokenizer that `config` names, with its chat template set.

  Raises:
    UserError: no tokenizer is named, its reference cannot be read, or the template
      or its date does not fit (`templates.set_template`, `template_dates.set_date`).
  """
  ref = config.data.tokenizer or config.model.init_from
  if ref == "bytes":
    tokenizer = byte_tokenizer()
  else:
    tokenizer = _load(ref)
  templates.set_template(tokenizer, config.data.template, config.data.template_kwargs)
  template_dates.set_date(tokenizer, config.data.date)
  return tokenizer


def _load(ref: str) -> transformers.PreTrainedTokenizerFast:
  if not ref:
    raise errors.UserError(
      "data.tokenizer is empty, and training from scratch has no other tokenizer; set "
      "it to a reference, or to bytes"
    )
  # Imported here because it loads jax, and Grain's workers load this module.
  from skipalign_jax.hf import reference

  return reference.load_tokenizer(ref)


def stop_token_ids(
  tokenizer: transformers.PreTrainedTokenizerFast, eos_ids: Sequence[int]
) -> tuple[int, ...]:
  """Ids that end a reply; generation, evaluations and exports take them from here.

  Args:
    tokenizer: its eos token is one, and the last token of a reply in its template.
    eos_ids: those that the model's files name (`reference.Model.eos_ids`).
  """
  stops = [*eos_ids]
  if tokenizer.eos_token_id is not None:
    stops.append(tokenizer.eos_token_id)
  if tokenizer.chat_template:
    stop = template_text.stop_token(tokenizer)
    if stop is not None:
      stops.append(tokenizer.convert_tokens_to_ids(stop))
  return tuple(dict.fromkeys(stops))

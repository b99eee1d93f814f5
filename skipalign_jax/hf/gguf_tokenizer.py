"""Builds the HF tokenizer of a GGUF file from its metadata.

llama.cpp stores the vocabulary, merges or scores, and only the *name* of the splitting
rule (`tokenizer.ggml.pre`); the rules themselves are defined here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import (
  AddedToken,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import transformers

# tokenizer.ggml.token_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

# Llama 3's split: contractions, words, up to three digits, punctuation, spaces.
_LLAMA3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace("{1,3}", "")  # digits one by one
_GPT2 = ("gpt-2", "gpt2")
_SMOLLM = ("smollm",)
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = ("qwen2", "deepseek-r1-qwen")  # the second begins with bos
_KNOWN = ", ".join((*_GPT2, *_SMOLLM, *_LLAMA3, *_QWEN2))
_TEMPLATE = "tokenizer.chat_template"
_MAX_PIECE = 1024  # characters of a SentencePiece token; Llama's longest has 16


def build(metadata: dict[str, Any], where: str) -> transformers.PreTrainedTokenizerFast:
  """The tokenizer of a GGUF header, with its special tokens and chat template.

  Raises:
    UserError: no tokenizer in the file, or a kind whose rules are not known.
  """
  import transformers  # takes a second to load

  tokens = metadata.get("tokenizer.ggml.tokens")
  if not tokens:
    raise errors.UserError(
      f"{where}: the file has no tokenizer; name one with --tokenizer or "
      "data.tokenizer (a HF folder)"
    )
  kind = metadata.get("tokenizer.ggml.model")
  if kind == "gpt2":
    core = _byte_level(metadata, where)
  elif kind == "llama":
    core = _sentencepiece(metadata, where)
  else:
    raise errors.UserError(
      f"{where}: tokenizer.ggml.model {kind!r} is not supported (gpt2 and llama "
      "are); take the tokenizer from the model's HF folder"
    )
  core.add_tokens(_added_tokens(metadata))
  special = _special_tokens(metadata, where)
  # llama.cpp's own defaults where the key is absent: SentencePiece and Llama 3
  # vocabularies start with BOS, GPT-2 ones do not.
  starts = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _LLAMA3
  first = metadata.get("tokenizer.ggml.add_bos_token", starts)
  last = metadata.get("tokenizer.ggml.add_eos_token", False)
  _set_template(core, special, first and "bos_token", last and "eos_token")
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=core,
    clean_up_tokenization_spaces=False,
    chat_template=_templates(metadata),
    model_max_length=_window(metadata),
    **special,
  )


def _templates(metadata: dict[str, Any]) -> str | dict[str, str] | None:
  """The chat template, or several by their names, such as one for tools."""
  default = metadata.get(_TEMPLATE)
  others = {
    key.removeprefix(f"{_TEMPLATE}."): value
    for key, value in metadata.items()
    if key.startswith(f"{_TEMPLATE}.")
  }
  if default is None or not others:
    return others or default
  return {"default": default, **others}


def _window(metadata: dict[str, Any]) -> int:
  architecture = metadata.get("general.architecture")
  return int(metadata.get(f"{architecture}.context_length", 10**9))


def _byte_level(metadata: dict[str, Any], where: str) -> tokenizers.Tokenizer:
  pre = metadata.get("tokenizer.ggml.pre", "default")
  if pre == "default":
    raise errors.UserError(
      f"{where}: tokenizer.ggml.pre does not name the rule that splits words (files "
      "from before May 2024 lack it), and a wrong rule gives other tokens. Write it "
      "into a copy with gguf-new-metadata --pre-tokenizer=NAME, where NAME is one of "
      f"{_KNOWN}; or take the tokenizer of the model's HF folder (--tokenizer, "
      "data.tokenizer)"
    )
  if pre in _GPT2:
    split = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
  elif pre in _SMOLLM:
    split = [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
  elif pre in (*_LLAMA3, *_QWEN2):
    pattern = _QWEN2_SPLIT if pre in _QWEN2 else _LLAMA3_SPLIT
    split = [
      pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  else:
    raise errors.UserError(
      f"{where}: tokenizer.ggml.pre {pre!r} is not supported; known: {_KNOWN}. Take "
      "the tokenizer from the model's HF folder"
    )
  merges = metadata.get("tokenizer.ggml.merges")
  if not merges:
    raise errors.UserError(f"{where}: tokenizer.ggml.merges is missing")
  core = tokenizers.Tokenizer(
    models.BPE(
      vocab=_vocabulary(metadata),
      merges=[tuple(merge.split(" ", 1)) for merge in merges],
      # Llama 3 takes a word that is in the vocabulary whole, merges or not.
      ignore_merges=pre in _LLAMA3,
    )
  )
  if pre in _QWEN2:
    core.normalizer = normalizers.NFC()
  core.pre_tokenizer = pre_tokenizers.Sequence(split)
  core.decoder = decoders.ByteLevel()
  return core


def _sentencepiece(metadata: dict[str, Any], where: str) -> tokenizers.Tokenizer:
  scores = metadata.get("tokenizer.ggml.scores")
  if not scores:
    raise errors.UserError(f"{where}: tokenizer.ggml.scores is missing")
  _check_scores(metadata, where)
  vocab = _vocabulary(metadata)
  core = tokenizers.Tokenizer(
    models.BPE(
      vocab=vocab,
      merges=_merges_from_scores(vocab, scores),
      unk_token=metadata["tokenizer.ggml.tokens"][_unknown_id(metadata)],
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
  steps = [normalizers.Prepend("▁")] if prefix else []
  core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
  strip = [decoders.Strip(content=" ", left=1)] if prefix else []
  core.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )
  return core


def _check_scores(metadata: dict[str, Any], where: str) -> None:
  """Raises UserError if all pieces have one score, which says no order."""
  tokens = metadata["tokenizer.ggml.tokens"]
  types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
  found = [
    score
    for token, score, kind in zip(
      tokens, metadata["tokenizer.ggml.scores"], types, strict=False
    )
    if kind == _NORMAL and len(token) > 1
  ]
  if len(found) > 1 and len(set(found)) == 1:
    raise errors.UserError(
      f"{where}: tokenizer.ggml.scores are all {found[0]:g}, as in files that were "
      "converted without the model's tokenizer.model, so the order in which pieces are "
      "joined is not in it. Take the tokenizer of the model's HF folder (--tokenizer, "
      "data.tokenizer)"
    )


def _merges_from_scores(
  vocab: dict[str, int], scores: list[float]
) -> list[tuple[str, str]]:
  """The merge list that joins pairs in SentencePiece's order.

  SentencePiece joins, again and again, the adjacent pair whose union scores
  best; a BPE merge list says the same when every split of every piece into two
  pieces is listed, best union first.
  """
  if max(map(len, vocab)) > _MAX_PIECE:  # the time to split it is quadratic
    raise ValueError(f"a token of more than {_MAX_PIECE} characters")
  merges = []
  for piece, index in vocab.items():
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in vocab and right in vocab:
        merges.append((-scores[index], vocab[left], vocab[right], left, right))
  return [(left, right) for *_, left, right in sorted(merges)]


def _vocabulary(metadata: dict[str, Any]) -> dict[str, int]:
  return {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}


def _unknown_id(metadata: dict[str, Any]) -> int:
  return int(metadata.get("tokenizer.ggml.unknown_token_id", 0))


def _added_tokens(metadata: dict[str, Any]) -> list[AddedToken]:
  """Tokens found in the text before any splitting, in id order."""
  tokens = metadata["tokenizer.ggml.tokens"]
  types = metadata.get("tokenizer.ggml.token_type", [])
  return [
    AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
    for token, kind in zip(tokens, types, strict=False)
    if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
  ]


def _special_tokens(metadata: dict[str, Any], where: str) -> dict[str, str]:
  tokens = metadata["tokenizer.ggml.tokens"]
  special = {}
  for name, key in (
    ("bos_token", "bos"),
    ("eos_token", "eos"),
    ("unk_token", "unknown"),
    ("pad_token", "padding"),
  ):
    index = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if index is None:
      continue
    if not 0 <= index < len(tokens):
      raise errors.UserError(
        f"{where}: tokenizer.ggml.{key}_token_id={index} is outside the "
        f"vocabulary of {len(tokens)}"
      )
    special[name] = tokens[index]
  return special


def _set_template(
  core: tokenizers.Tokenizer, special: dict[str, str], first: str, last: str
) -> None:
  """Adds BOS before and EOS after every text if the file says so."""
  before = [special[first]] if first and first in special else []
  after = [special[last]] if last and last in special else []
  if before or after:
    core.post_processor = processors.TemplateProcessing(
      single=[*before, "$A", *after],
      pair=[*before, "$A", *after, *before, "$B", *after],
      special_tokens=[(t, core.token_to_id(t)) for t in {*before, *after}],
    )

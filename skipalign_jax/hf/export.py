"""Writes an HF folder that transformers v4 and v5 load without this project."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipalign_jax.hf import card, native, reference, safetensors_files, weights
from skipalign_jax.model import model_config
from skipalign_jax.runtime import errors, files

if TYPE_CHECKING:
  import transformers

DTYPES = ("bfloat16", "float32", "float16", "keep")

# Keys of the base model's config.json that do not apply any more: where it came from,
# code of its own, and what `model_config.to_hf` writes again.
_DROPPED = (
  "_name_or_path",
  "auto_map",
  "transformers_version",
  "torch_dtype",
  "dtype",
  "rope_scaling",
  "rope_theta",
  "rope_parameters",
  "original_max_position_embeddings",
  "quantization_config",
  # Other names of max_position_embeddings. vLLM takes the smallest of all, SGLang the
  # first that it finds, so one of them would cut the window of a model that has grown.
  "max_length",
  "max_seq_len",
  "max_seq_length",
  "max_sequence_length",
  "model_max_length",
  "n_ctx",
  "n_positions",
  "seq_len",
  "seq_length",
)
# Digits, white space, signs, scripts and a letter in two parts: rules differ in these.
_SAMPLE = (
  " The year 2024: it's 1,234.5 %\n\n  x = [y];\tÉté cafe\u0301 你好 🙂 don't\r\n!"
)
_V5_SPECIAL = "extra_special_tokens"  # key of tokenizer_config.json
_SENTENCEPIECE = "tokenizer.model"
_TOKEN = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def export(
  model: reference.Model,
  tokenizer: transformers.PreTrainedTokenizerFast,
  stop_ids: Sequence[int],
  out: str | os.PathLike[str],
  dtype: str = "bfloat16",
  max_shard_bytes: int = safetensors_files.DEFAULT_SHARD_BYTES,
) -> int:
  """Writes `out`, all of it or nothing.

  Args:
    model: what to write.
    tokenizer: its tokenizer, chat template included.
    stop_ids: ids that end a reply, into generation_config.json.
    out: a folder that does not exist or is empty.
    dtype: one of `DTYPES`; "keep" leaves values as they are stored. bfloat16 is
      what such models are served in, and halves the fp32 masters of training.
    max_shard_bytes: upper size of a weight file, and the memory this takes.

  Returns:
    Bytes of the weights.

  Raises:
    UserError: `out` is not empty, unknown dtype, float16 overflow, or weights that are
      NaN or infinite.
  """
  if dtype not in DTYPES:
    raise errors.UserError(f"dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
  if max_shard_bytes < 1:
    raise errors.UserError("the shard size must be positive")
  reference.check_vocabulary(tokenizer, model.config)
  stored = model.weights["embed/weight"].dtype.name
  written = stored if dtype == "keep" else dtype
  with files.new_folder(out) as folder:
    config = hf_config(model.config, model.hf_config, tokenizer, stop_ids, written)
    files.write_json(folder / "config.json", config)
    files.write_json(
      folder / "generation_config.json", generation_config(model, tokenizer, stop_ids)
    )
    save_tokenizer(tokenizer, folder, grown_window(model))
    described = None
    if model.kind == "workdir":
      described = native.read_config(model.location.path)
    text = card.write(model.config, described, model.location.step, written)
    (folder / "README.md").write_text(text, encoding="utf-8")
    tensors = weights.hf_tensors(model.weights, None if dtype == "keep" else dtype)
    tensors = (check_finite(name, tensor, written) for name, tensor in tensors)
    return safetensors_files.write_tensors(folder, tensors, max_shard_bytes)


def check_finite(name: str, tensor: np.ndarray, dtype: str) -> tuple[str, np.ndarray]:
  """A tensor and its name; UserError if it is NaN, or too large for float16."""
  if dtype == "float16" and np.isinf(tensor).any():
    raise errors.UserError(
      f"{name} has values beyond float16's 65504; export as bfloat16 or float32"
    )
  weights.check_finite(name, tensor)
  return name, tensor


def hf_config(
  config: model_config.ModelConfig,
  base: dict[str, Any] | None,
  tokenizer: transformers.PreTrainedTokenizerFast,
  stop_ids: Sequence[int],
  dtype: str,
) -> dict[str, Any]:
  """config.json: the base model's, brought up to date, in v4 and v5 spelling."""
  kept = {k: v for k, v in (base or {}).items() if k not in _DROPPED}
  ids = {
    "bos_token_id": tokenizer.bos_token_id,
    "pad_token_id": tokenizer.pad_token_id,
    "eos_token_id": _one_or_list(stop_ids),
  }
  # Unknown ids are null: without the key, SmolLM3's class has its own.
  return (
    dict.fromkeys(ids)
    | kept
    | model_config.to_hf(config)
    | {k: v for k, v in ids.items() if v is not None}
    | {
      "torch_dtype": dtype,
      "dtype": dtype,
      "use_cache": True,
    }
  )


def generation_config(
  model: reference.Model,
  tokenizer: transformers.PreTrainedTokenizerFast,
  stop_ids: Sequence[int],
) -> dict[str, Any]:
  """generation_config.json: stops at every token that ends a reply."""
  base = model.generation_config or {}
  kept = {k: v for k, v in base.items() if k != "transformers_version"}
  window = grown_window(model)
  # Where it is the window, as in Llama 2: transformers refuses longer prompts.
  if window and kept.get("max_length") == model.hf_config["max_position_embeddings"]:
    kept["max_length"] = window
  ids = {
    "bos_token_id": tokenizer.bos_token_id,
    "pad_token_id": tokenizer.pad_token_id,
    "eos_token_id": _one_or_list(stop_ids),
  }
  return kept | {k: v for k, v in ids.items() if v is not None}


def grown_window(model: reference.Model) -> int | None:
  """The window of a model that training has made longer; None if it has not."""
  before = (model.hf_config or {}).get("max_position_embeddings")
  return model.config.window if before and before < model.config.window else None


def _one_or_list(ids: Sequence[int]) -> int | list[int] | None:
  if len(ids) == 1:
    return int(ids[0])
  return [int(i) for i in ids] or None


def save_tokenizer(
  tokenizer: transformers.PreTrainedTokenizerFast,
  folder: pathlib.Path,
  window: int | None = None,
) -> None:
  """Saves tokenizer files that transformers v4 and llama.cpp's converter read, too.

  v5 writes a class name that v4 does not know, special tokens as a list where v4 fails
  without an object, and the chat template in a file of its own, which early v4 releases
  ignore. v5 reads v4's spellings, so these are written; of templates, both are.

  Args:
    tokenizer: to save.
    folder: of the files.
    window: of the model, if it is longer now than what the tokenizer may say.
  """
  tokenizer.save_pretrained(folder)
  path = folder / "tokenizer_config.json"
  config = files.read_json(path)
  for key in ("is_local", "local_files_only"):  # how it was loaded here
    config.pop(key, None)
  config["tokenizer_class"] = "PreTrainedTokenizerFast"
  if _is_sentencepiece(tokenizer):
    config |= _sentencepiece(tokenizer, folder)
  if window:  # with truncation=True, transformers cuts texts there
    config["model_max_length"] = max(window, config["model_max_length"])
  if isinstance(config.get(_V5_SPECIAL), list):
    config["additional_special_tokens"] = config.pop(_V5_SPECIAL)
  if found := tokenizer.chat_template:
    if isinstance(found, dict):
      found = [{"name": name, "template": text} for name, text in found.items()]
    config["chat_template"] = found
  files.write_json(path, config)


def _sentencepiece(
  tokenizer: transformers.PreTrainedTokenizerFast, folder: pathlib.Path
) -> dict[str, Any]:
  """What llama.cpp's converter needs of a tokenizer made from SentencePiece's.

  Without tokenizer.model, which v5 does not write, it gives all pieces one score, so
  that llama.cpp joins others. With it, it takes the other tokens from
  tokenizer_config.json. A missing `add_bos_token` is true to it.

  Args:
    tokenizer: its tokenizer.model, if it has one, is next to its tokenizer.json.
    folder: the file is copied into.

  Returns:
    Keys of tokenizer_config.json.
  """
  source = pathlib.Path(tokenizer.name_or_path or os.devnull) / _SENTENCEPIECE
  if source.is_file():
    shutil.copyfile(source, folder / _SENTENCEPIECE)
  ids = tokenizer("a")["input_ids"]
  return {
    "add_bos_token": ids[:1] == [tokenizer.bos_token_id],
    "add_eos_token": ids[-1:] == [tokenizer.eos_token_id],
    "added_tokens_decoder": {
      index: {key: getattr(token, key) for key in _TOKEN}
      for index, token in tokenizer.added_tokens_decoder.items()
    },
  }


def _is_sentencepiece(tokenizer: transformers.PreTrainedTokenizerFast) -> bool:
  return getattr(tokenizer.backend_tokenizer.model, "byte_fallback", False)


def notes_on_llama_cpp(
  model: reference.Model,
  tokenizer: transformers.PreTrainedTokenizerFast,
  folder: str | os.PathLike[str],
) -> Iterator[str]:
  """What llama.cpp's converter would read in another way, without a message.

  Args:
    model: that was exported.
    tokenizer: that was exported.
    folder: of the export.
  """
  there = (pathlib.Path(folder) / _SENTENCEPIECE).is_file()
  if _is_sentencepiece(tokenizer) and not there:
    yield (
      "llama.cpp's converter needs the tokenizer.model of the base, which is not next "
      "to its tokenizer.json: without it, llama.cpp splits texts in another way. Copy "
      f"it into {folder} before you convert"
    )
  if model.config.rope.kind == "llama3" and model.config.family in ("qwen2", "qwen3"):
    yield (
      "llama.cpp's converter leaves the llama3 scaling of the rope out of models of "
      f"the type {model.config.family}; train with another rope.kind to use it there"
    )


def is_read_alike(
  tokenizer: transformers.PreTrainedTokenizerFast, folder: str | os.PathLike[str]
) -> bool:
  """Whether AutoTokenizer of the installed transformers reads an exported tokenizer.

  For some model types (qwen2) version 5 makes a tokenizer from the vocabulary and rules
  of its own, whatever class tokenizer_config.json names and tokenizer.json says.

  Args:
    tokenizer: that was exported.
    folder: of the export.
  """
  import transformers

  try:
    theirs = transformers.AutoTokenizer.from_pretrained(
      str(folder), local_files_only=True, trust_remote_code=False
    )
    read, written = (
      one(_SAMPLE, add_special_tokens=False)["input_ids"] for one in (theirs, tokenizer)
    )
  except (ValueError, KeyError, OSError, AttributeError, TypeError):
    return False
  return read == written

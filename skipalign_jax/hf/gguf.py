"""Reads a llama, qwen2 or qwen3 model from one .gguf file.

For llama, llama.cpp rotates neighbouring pairs (0,1), (2,3) … of a head, HF rotates
(h, h + H/2); its converter therefore stores the q and k rows of every head
interleaved. Reading restores the order of HF. Quantised blocks become fp32.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from skipalign_jax.hf import gguf_header, gguf_keys, gguf_rope, names
from skipalign_jax.model import families, model_config
from skipalign_jax.runtime import errors, escape, extras

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # as the families of these names
_ENDS = ("eos", "eot", "eom")  # tokenizer.ggml.*_token_id at which llama.cpp stops


class GGUFFile:
  """An open file: metadata, HF config, and tensors under their HF names.

  Attributes:
    where: path, for messages.
    metadata: key -> value of the header.
    hf_config: the config.json that HF would have for this model.
    config: the same as a ModelConfig.
    shapes: HF name -> shape of every tensor in the file.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens `path`, reading the header only.

    Raises:
      UserError: not a GGUF file, truncated, or not of `ARCHITECTURES`.
    """
    self.where = str(path)
    header = _read(pathlib.Path(path))
    self.metadata, self._tensors = header.metadata, header.tensors
    try:
      self.hf_config = hf_config(self.metadata, set(self._tensors), self.where)
      if "rope_freqs.weight" in self._tensors:
        stored = self._dequantize("rope_freqs.weight")
        gguf_rope.read_factors(self.hf_config, stored, self.where)
    except errors.UserError:
      raise
    except (TypeError, ValueError, ArithmeticError) as error:
      raise errors.UserError(
        f"{self.where}: metadata with values of the wrong type ({escape.line(error)})"
      ) from error
    self.config = model_config.from_hf(self.hf_config, self.where)
    self._gguf_name = names.gguf_names(self.config)
    known = {gguf_name: hf for hf, gguf_name in self._gguf_name.items()}
    self.shapes = {
      known.get(name, name): tensor.shape
      for name, tensor in self._tensors.items()
      if name != "rope_freqs.weight"
    }

  def dtype(self, name: str) -> np.dtype:
    """fp32: every storage type is dequantised to it."""
    return np.dtype(np.float32)

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    """Rows of an HF tensor, in HF row order, fp32."""
    for part, heads in (
      (".q_proj.", self.config.num_heads),
      (".k_proj.", self.config.num_kv_heads),
    ):
      if part in name and self.config.family == "llama":
        order = _hf_row_order(self.shapes[name][0], heads)
        return self._dequantize(self._gguf_name[name], order[rows])
    return self._dequantize(self._gguf_name[name], rows)

  def _dequantize(
    self, gguf_name: str, rows: slice | np.ndarray = slice(None)
  ) -> np.ndarray:
    import gguf  # takes 0.2 s to load

    tensor = self._tensors[gguf_name]
    try:
      if len(tensor.shape) == 1:
        return gguf.quants.dequantize(tensor.data, tensor.kind)[rows]
      return gguf.quants.dequantize(tensor.data[rows], tensor.kind)
    except NotImplementedError as error:
      raise errors.UserError(
        f"{self.where}: {gguf_name} is stored as {tensor.kind.name}, which "
        "cannot be read; convert the model to F16, Q8_0 or a K-quant"
      ) from error


def _hf_row_order(rows: int, heads: int) -> np.ndarray:
  """Rows of the file in HF order: evens of each head, then its odds."""
  return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def _read(path: pathlib.Path) -> gguf_header.Header:
  try:
    with path.open("rb") as file:
      if file.read(4) != b"GGUF":
        raise errors.UserError(f"{path}: not a GGUF file (its first bytes differ)")
    extras.need("gguf", str(path), "use the model's Hugging Face folder")
    return gguf_header.read(path)
  except OSError as error:
    raise errors.UserError(f"{path}: {error.strerror or error}") from error
  except errors.UserError:
    raise
  except (ValueError, LookupError) as error:
    raise errors.UserError(
      f"{path}: truncated or damaged GGUF file ({escape.line(error)}); download it "
      "again"
    ) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Key -> value of the header of a .gguf file; UserError when it is damaged."""
  return _read(pathlib.Path(path)).metadata


class _Keys:
  """The metadata of one architecture, without its name in the keys."""

  def __init__(self, metadata: dict[str, Any], architecture: str, where: str):
    self._metadata = metadata
    self._architecture = architecture
    self._where = where

  def get(self, key: str, default: Any = None) -> Any:
    return self._metadata.get(f"{self._architecture}.{key}", default)

  def all(self) -> dict[str, Any]:
    prefix = f"{self._architecture}."
    return {
      key.removeprefix(prefix): value
      for key, value in self._metadata.items()
      if key.startswith(prefix)
    }

  def require(self, key: str) -> Any:
    if (value := self.get(key)) is None:
      raise errors.UserError(
        f"{self._where}: metadata {self._architecture}.{key} is missing"
      )
    return value


def hf_config(
  metadata: dict[str, Any], tensor_names: set[str], where: str
) -> dict[str, Any]:
  """The config.json of a GGUF header.

  Raises:
    UserError: another architecture, a missing key, or something that a config.json of
      its family cannot express.
  """
  _check_whole_model(metadata, where)
  architecture = metadata.get("general.architecture")
  if architecture not in ARCHITECTURES:
    raise errors.UserError(
      f"{where}: general.architecture is {architecture!r}; supported: "
      f"{', '.join(ARCHITECTURES)}. Take other models from their HF folder"
    )
  keys = _Keys(metadata, architecture, where)
  if keys.get("expert_count", 0):
    raise errors.UserError(f"{where}: mixture-of-experts models are not supported")
  heads = keys.require("attention.head_count")
  width = keys.require("embedding_length")
  head_dim = _head_dim(keys, width // heads, where)
  scaling = gguf_rope.scaling(keys, where)
  kind = scaling["rope_type"] if scaling else "none"
  gguf_keys.check(keys.all(), head_dim, kind, where)
  config = {
    "architectures": [families.TABLE[architecture].architecture],
    "model_type": architecture,
    "vocab_size": _vocab_size(metadata, keys),
    "num_hidden_layers": keys.require("block_count"),
    "hidden_size": width,
    "intermediate_size": keys.require("feed_forward_length"),
    "num_attention_heads": heads,
    "num_key_value_heads": keys.get("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "hidden_act": "silu",
    # Stored as fp32; the shortest decimal of it is what config.json had.
    "rms_norm_eps": gguf_rope.decimal(keys.require("attention.layer_norm_rms_epsilon")),
    "tie_word_embeddings": "output.weight" not in tensor_names,
    "max_position_embeddings": keys.require("context_length"),
    "rope_theta": gguf_rope.decimal(keys.get("rope.freq_base", 10_000.0)),
    "rope_scaling": scaling,
  }
  for key, name in (("attention_bias", "attn_q"), ("mlp_bias", "ffn_up")):
    if key not in families.TABLE[architecture].fixed:
      config[key] = f"blk.0.{name}.bias" in tensor_names
  if window := keys.get("attention.sliding_window"):
    slides = {"use_sliding_window": True, "max_window_layers": 0}  # in all layers
    config |= {**slides, "sliding_window": window}
  first = metadata.get("tokenizer.ggml.bos_token_id")
  if first is not None:
    config["bos_token_id"] = first
  ends = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in _ENDS]
  if ends := list(dict.fromkeys(end for end in ends if end is not None)):
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
  return config


def _check_whole_model(metadata: dict[str, Any], where: str) -> None:
  """Raises UserError for one part of a split file, and for other kinds of files."""
  if (parts := metadata.get("split.count", 0)) > 1:
    raise errors.UserError(
      f"{where}: is part {metadata.get('split.no', 0) + 1} of a GGUF file that was "
      f"split into {parts}; join them with llama.cpp: llama-gguf-split --merge FIRST "
      "OUT, where FIRST is the first part"
    )
  kind = metadata.get("general.type", "model")
  if kind != "model":
    raise errors.UserError(
      f"{where}: general.type is {kind!r}, which is not a whole model; an adapter is "
      "merged into its base first (llama.cpp: llama-export-lora)"
    )


def _head_dim(keys: _Keys, default: int, where: str) -> int:
  head_dim = keys.get("attention.key_length", default)
  rotated = keys.get("rope.dimension_count", head_dim)
  if rotated != head_dim:
    raise errors.UserError(
      f"{where}: rotates {escape.line(rotated)} of {escape.line(head_dim)} head "
      "dimensions; partial rotary embeddings are not supported"
    )
  return head_dim


def _vocab_size(metadata: dict[str, Any], keys: _Keys) -> int:
  if tokens := metadata.get("tokenizer.ggml.tokens"):
    return keys.get("vocab_size", len(tokens))
  return keys.require("vocab_size")

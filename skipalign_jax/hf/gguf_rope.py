"""The rope of a GGUF header, as a config.json has it."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from skipalign_jax.model import model_config, rope
from skipalign_jax.runtime import errors


class Keys(Protocol):
  """Keys of the architecture, without its name."""

  get: Callable[..., Any]


def decimal(value: float) -> float:
  """The shortest decimal of an fp32 number: what config.json had."""
  return float(str(np.float32(value)))


def scaling(keys: Keys, where: str) -> dict[str, Any] | None:
  """The rope_scaling of config.json; None without scaling.

  As in llama.cpp, a factor without a type is linear, and the spelling before October
  2023 counts where there is no factor.
  """
  kind = keys.get("rope.scaling.type", "linear")
  factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0.0))
  if kind == "none" or factor in (0.0, 1.0):
    return None
  if kind not in ("linear", "yarn"):
    raise errors.UserError(f"{where}: rope scaling {kind!r} is not supported")
  found = {"rope_type": kind, "factor": decimal(factor)}
  if kind == "yarn":
    window = keys.get("rope.scaling.original_context_length")
    if not window:
      raise errors.UserError(
        f"{where}: yarn needs rope.scaling.original_context_length"
      )
    found["original_max_position_embeddings"] = window
    for key in ("beta_fast", "beta_slow"):
      if (value := keys.get(f"rope.scaling.yarn_{key}")) is not None:
        found[key] = decimal(value)
    if (value := keys.get("rope.scaling.yarn_attn_factor")) is not None:
      found["attention_factor"] = _attention_factor(keys, decimal(value), where)
  return found


def _attention_factor(keys: Keys, value: float, where: str) -> float:
  """The attention_factor of config.json, from the key yarn_attn_factor.

  llama.cpp's converter copies config.json's attention_factor into it: all that
  multiplies cos and sin. Without one it copies attn_factor, as vLLM and YaRN's first
  code call a factor that multiplies 0.1 ln(factor) + 1; it is 1 by default, and
  extrapolation_factor is written next to it. So our exports have another number for an
  attention_factor of 1, see `hf_rope`. llama.cpp itself reads the key for none of our
  architectures. Source: conversion/base.py and src/llama-context.cpp of llama.cpp.

  Raises:
    UserError: it may be either.
  """
  if value != 1 and keys.get("rope.scaling.yarn_ext_factor") is None:
    return value
  raise errors.UserError(
    f"{where}: rope.scaling.yarn_attn_factor {value} may be the attention_factor of "
    "config.json, or its attn_factor, which multiplies 0.1 ln(factor) + 1; take the "
    "model from its HF folder"
  )


def read_factors(config: dict[str, Any], factors_P: np.ndarray, where: str) -> None:
  """Adds to `config` the llama3 scaling that a rope_freqs tensor was computed from.

  The file has only the divisor of every frequency. All released Llama 3.x models share
  one band (1, 4, 8192) and differ in the factor. So the band is assumed, and has to
  reproduce every divisor.
  """
  band = {
    "rope_type": "llama3",
    "factor": decimal(factors_P.max()),
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  if config["rope_scaling"] is None:
    guess = {**config, "rope_scaling": band}
    plain = model_config.from_hf(config, where).rope
    scaled = model_config.from_hf(guess, where).rope
    head_dim = config["head_dim"]
    plain_P, _ = rope.inverse_frequencies(plain, head_dim)
    scaled_P, _ = rope.inverse_frequencies(scaled, head_dim)
    if np.allclose(plain_P / scaled_P, factors_P, rtol=1e-4):
      config["rope_scaling"] = band
      return
  raise errors.UserError(
    f"{where}: its rope_freqs tensor is not the scaling of a Llama 3.x release; "
    "convert from the model's HF folder instead"
  )

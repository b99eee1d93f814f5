"""What the supported `model_type`s of transformers mean, and what is refused.

They are one decoder that differs in biases, norms of q and k, and layers without
rope. They also differ in the defaults of the keys that a config.json leaves out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from skipalign_jax import config as config_lib
from skipalign_jax.model import hf_keys
from skipalign_jax.runtime import errors, escape


@dataclasses.dataclass(frozen=True)
class Family:
  """A model_type.

  Attributes:
    architecture: its class in transformers.
    fixed: fields of ModelConfig that config.json cannot change.
    o_bias: whether attention_bias applies to o too, or to q, k and v only.
    qk_norm: RMSNorm over each head of q and k, before rope.
    nope: whether config.json can name layers without rope.
    theta: base of the rope when config.json names none.
    defaults: keys that config.json may leave out, and what that means.
    no_sliding: what config.json needs for attention without a sliding window.
  """

  architecture: str
  fixed: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  o_bias: bool = True
  qk_norm: bool = False
  nope: bool = False
  theta: float = 10_000.0
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  no_sliding: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_NO_SLIDING = {"use_sliding_window": False, "sliding_window": None}

TABLE = {
  "llama": Family(  # Llama 1-3, Yi, SmolLM2, TinyLlama
    "LlamaForCausalLM", defaults={"max_position_embeddings": 2048}
  ),
  "mistral": Family(
    "MistralForCausalLM",
    fixed={"attention_bias": False, "mlp_bias": False},
    defaults={
      "num_key_value_heads": 8,
      "max_position_embeddings": 131_072,
      "sliding_window": 4096,
    },
    no_sliding={"sliding_window": None},
  ),
  "qwen2": Family(  # and Qwen2.5
    "Qwen2ForCausalLM",
    fixed={"attention_bias": True, "mlp_bias": False},
    o_bias=False,
    defaults={
      "num_key_value_heads": 32,
      "max_position_embeddings": 32_768,
      "max_window_layers": 28,
    },
    no_sliding=_NO_SLIDING,
  ),
  "qwen3": Family(
    "Qwen3ForCausalLM",
    fixed={"mlp_bias": False},
    qk_norm=True,
    defaults={
      "num_key_value_heads": 32,
      "head_dim": 128,
      "max_position_embeddings": 32_768,
      "max_window_layers": 28,
    },
    no_sliding=_NO_SLIDING,
  ),
  "smollm3": Family(
    "SmolLM3ForCausalLM",
    nope=True,
    theta=2_000_000.0,
    defaults={
      "num_key_value_heads": 4,
      "max_position_embeddings": 32_768,
      "tie_word_embeddings": True,
    },
    no_sliding=_NO_SLIDING,
  ),
}
_DEFAULTS = {
  "num_key_value_heads": None,  # as many as query heads
  "head_dim": None,  # hidden_size / query heads
  "hidden_act": "silu",
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "attention_bias": False,
  "mlp_bias": False,
}
SUPPORTED = (
  "llama (Llama 1-3, Yi, SmolLM2, TinyLlama), mistral, qwen2 (and Qwen2.5), qwen3, "
  "smollm3"
)

MAX_LAYERS = config_lib.KEYS["model.num_layers"].at_most


def complete(hf: Mapping[str, Any], where: str) -> tuple[Family, dict[str, Any]]:
  """The family of a config.json, and its keys with the defaults of missing ones.

  Raises:
    UserError: another model_type, or a key with a value that this decoder does not
      support.
  """
  model_type = hf.get("model_type")
  if model_type not in TABLE:
    raise errors.UserError(
      f"{where}: model_type {model_type!r} is not supported; supported: {SUPPORTED}"
    )
  family = TABLE[model_type]
  hf = _DEFAULTS | dict(family.defaults) | dict(hf) | dict(family.fixed)
  hf_keys.check(hf, where)
  if not 1 <= hf_keys.whole(hf, "num_hidden_layers") <= MAX_LAYERS:
    raise errors.UserError(
      f"{where}: num_hidden_layers={hf['num_hidden_layers']} must be from 1 to "
      f"{MAX_LAYERS:,}"
    )
  _refuse_windows(family, hf, where)
  if not family.nope and not all(hf.get("no_rope_layers") or ()):
    raise errors.UserError(
      f"{where}: no_rope_layers has layers without rope, which {model_type} does not "
      "have; is this a smollm3 model?"
    )
  return family, hf


def _refuse_windows(family: Family, hf: Mapping[str, Any], where: str) -> None:
  window, length = hf.get("sliding_window"), hf["max_position_embeddings"]
  if _slides(family, hf) and window is not None and window < length:
    raise errors.UserError(
      f"{where}: attention with a sliding window ({window} of {length} positions) is "
      f"not supported. It does not matter for rows of at most {window} tokens: for "
      f"those, set sliding_window to null and max_position_embeddings to {window} in a "
      "copy of the model's folder"
    )
  others = sorted(set(hf.get("layer_types") or ()) - {"full_attention"})
  if others:
    raise errors.UserError(
      f"{where}: layer_types has {escape.listed(others)}; only full_attention "
      "is supported"
    )


def _slides(family: Family, hf: Mapping[str, Any]) -> bool:
  """Whether a layer has the sliding window, if there is one."""
  if "sliding_window" in family.defaults:
    return True
  if not hf_keys.flag(hf, "use_sliding_window"):
    return False
  if "max_window_layers" not in family.defaults:
    return True
  # The first layers have none. Where the file names the types of layers, these count.
  some = hf_keys.whole(hf, "max_window_layers") < hf["num_hidden_layers"]
  return some and not hf.get("layer_types")


def nope_layers(family: Family, hf: Mapping[str, Any], where: str) -> tuple[int, ...]:
  """Indices of the layers without rope.

  Args:
    family: of the model.
    hf: its completed config.json, in which `no_rope_layers` is 0 for such a layer.
    where: for messages.
  """
  if not family.nope:
    return ()
  layers, rotated = hf_keys.whole(hf, "num_hidden_layers"), hf.get("no_rope_layers")
  if rotated is None:
    key = "no_rope_layer_interval"
    interval = hf_keys.whole({key: 4, **hf}, key)
    return tuple(range(interval - 1, layers, interval))
  if len(rotated) < layers:
    raise errors.UserError(
      f"{where}: no_rope_layers has {len(rotated)} entries for {layers} layers"
    )
  if not all(one in (0, 1) for one in rotated):
    raise TypeError("no_rope_layers has more than 0 and 1")
  return tuple(i for i in range(layers) if not rotated[i])

"""Which keys of a config.json are read, change nothing, or are refused.

A key that would change the mathematics and is ignored gives another model without a
word. So an unknown key passes only if its name suggests nothing of the kind.
"""

import numbers
import re
from collections.abc import Mapping
from typing import Any

from skipalign_jax.runtime import errors, escape

# Read by `families` and `model_config`.
READ = frozenset(
  """
  model_type vocab_size num_hidden_layers hidden_size intermediate_size
  num_attention_heads num_key_value_heads head_dim rms_norm_eps tie_word_embeddings
  attention_bias mlp_bias max_position_embeddings original_max_position_embeddings
  rope_theta rope_scaling rope_parameters sliding_window use_sliding_window
  max_window_layers layer_types no_rope_layers no_rope_layer_interval
  """.split()
)

# Keys that would change the mathematics, and the values with which they do not.
VALUES = {
  "hidden_act": ("silu",),
  "hidden_activation": (None, "silu"),
  "activation_function": (None, "silu"),
  "partial_rotary_factor": (None, 1),
  "rotary_pct": (None, 1),
  "use_rope": (None, True),
  "rope_interleaved": (None, False),
  "use_mrope": (None, False),
  "alibi": (None, False),
  "attn_logit_softcapping": (None,),
  "final_logit_softcapping": (None,),
  "logit_scale": (None, 1),
  "logits_scaling": (None, 1),
  "embedding_multiplier": (None, 1),
  "embedding_scale": (None, 1),
  "scale_emb": (None, 1),
  "residual_multiplier": (None, 1),
  "attention_multiplier": (None,),
  "attention_chunk_size": (None,),
  "scale_attn_weights": (None, True),
  "clip_qkv": (None,),
  "use_qk_norm": (None, False),
  "qk_layernorm": (None, False),
  "num_experts": (None, 0),
  "num_local_experts": (None, 0),
  "num_nextn_predict_layers": (None, 0),
  "is_causal": (None, True),
  "add_cross_attention": (None, False),
  "is_encoder_decoder": (None, False),
}

# Their names look like mathematics, but the logits do not depend on them.
NEUTRAL = frozenset(
  """
  attn_implementation flash_attn flash_attention use_flash_attn use_flash_attention
  use_flash_attention_2 chunk_size_feed_forward cross_attention_hidden_size
  gradient_checkpointing is_llama_config logits_to_keep
  num_logits_to_keep output_attentions output_hidden_states output_router_logits
  pruned_heads router_aux_loss_coef tie_encoder_decoder quantization_config
  """.split()
)

_MATHEMATICS = re.compile(
  r"rope|rotary|yarn|ntk|attn|attention|alibi|causal|mask|window|sliding|theta|scal(e|ing)"
  r"|scalar|multipl|factor|norm|bias|soft_?cap|softmax|logit|embed|position|resid|hidden"
  r"|layer|head|expert|moe|router|activation|clip|clamp|mlp|ffn|interleave|parallel"
  r"|(^|_)(act|beta|cap|depth|dim|emb|eps|gate|glu|kv|lora|mup|post|pre|qk|qkv|rank"
  r"|sinks?|ssm|tied?)(_|$)"
)
# For training, or ids of tokens.
_NEUTRAL_ENDINGS = ("dropout", "pdrop", "_token_id", "_token_index")


def flag(hf: Mapping[str, Any], key: str) -> bool:
  """A key that is true or false; null is false.

  Raises:
    TypeError: it is something else, such as the text "false", which is true in Python.
  """
  value = hf.get(key)
  if not isinstance(value, bool | None):
    raise TypeError(f"{key} is {value!r}, not true or false")
  return bool(value)


def number(hf: Mapping[str, Any], key: str) -> float:
  """A key that is a number; TypeError if it is something else, such as a text."""
  value = hf[key]
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise TypeError(f"{key} is {value!r}, not a number")
  return float(value)


def whole(hf: Mapping[str, Any], key: str) -> int:
  """A key that is a whole number; TypeError if it is something else."""
  value = number(hf, key)
  if not value.is_integer():
    raise TypeError(f"{key} is {value!r}, not a whole number")
  return int(hf[key])


def check(hf: Mapping[str, Any], where: str) -> None:
  """Raises UserError for a key that asks for what this decoder does not do.

  Keys that begin with an underscore are the libraries' own notes; an empty value asks
  for nothing.
  """
  for key, neutral in VALUES.items():
    if hf.get(key) not in neutral:
      raise errors.UserError(
        f"{where}: {key} {hf[key]!r} is not supported and would be ignored; expected "
        f"{neutral[-1]!r}"
      )
  for key, value in hf.items():
    known = key in READ or key in VALUES or key in NEUTRAL
    neutral = key.startswith("_") or key.endswith(_NEUTRAL_ENDINGS)
    if known or neutral or value is None or value in ([], {}):
      continue
    if _MATHEMATICS.search(key.lower()):
      raise errors.UserError(
        f"{where}: the key {escape.line(key)} ({escape.line(value)[:60]}) is unknown "
        "and its name suggests that it changes the mathematics; if transformers gives "
        "the same logits without it, remove it in a copy of the model's folder"
      )

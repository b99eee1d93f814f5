"""Which keys of a GGUF header are read, change nothing, or are refused.

Almost every key of an architecture changes the mathematics, so an unknown one is
refused. Names are without the architecture: rope.freq_base, not llama.rope.freq_base.
Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
from collections.abc import Mapping
from typing import Any

from skipalign_jax.runtime import errors, escape

# Read by `gguf`.
READ = frozenset(
  """
  block_count context_length embedding_length feed_forward_length vocab_size
  expert_count attention.head_count attention.head_count_kv attention.key_length
  attention.layer_norm_rms_epsilon attention.sliding_window rope.dimension_count
  rope.freq_base rope.scale_linear rope.scaling.type rope.scaling.factor
  rope.scaling.original_context_length rope.scaling.yarn_beta_fast
  rope.scaling.yarn_beta_slow
  """.split()
)

# Keys that would change the mathematics, and the values with which they do not.
VALUES = {
  "attention.causal": (None, True),
  "attention.clamp_kqv": (None, 0),
  "attention.max_alibi_bias": (None, 0),
  "attention.output_scale": (None, 0, 1),
  "attention.temperature_length": (None, 0),
  "attention.temperature_scale": (None, 0),
  "attention.shared_kv_layers": (None, 0),
  "attn_logit_softcapping": (None, 0),
  "final_logit_softcapping": (None, 0),
  "embedding_scale": (None, 0, 1),
  "logit_scale": (None, 0, 1),
  "residual_scale": (None, 0, 1),
  "expert_shared_count": (None, 0),
  "leading_dense_block_count": (None, 0),
  "nextn_predict_layers": (None, 0),
  "rope.scaling.alpha": (None, 0, 1),
  "rope.scaling.attn_factor": (None, 1),
  "rope.scaling.yarn_log_multiplier": (None, 0),
  "swin_norm": (None, False),
  "use_parallel_residual": (None, False),
}

# The logits do not depend on them. llama.cpp computes these architectures with RMSNorm
# alone, and pooling comes after the last hidden state.
NEUTRAL = frozenset(
  """
  attention.layer_norm_epsilon expert_used_count pooling_type rope.scaling.finetuned
  tensor_data_layout
  """.split()
)


def check(own: Mapping[str, Any], head_dim: int, kind: str, where: str) -> None:
  """Raises UserError for a key that asks for what this decoder does not do.

  Args:
    own: keys of the architecture, without its name.
    head_dim: of q and k.
    kind: of the rope's scaling: none, linear or yarn.
    where: the file, for messages.
  """
  scale = own.get("attention.scale") or head_dim**-0.5
  values = VALUES | {
    "attention.value_length": (None, head_dim),
    "attention.scale": (None, 0, own.get("attention.scale"))
    if math.isclose(scale, head_dim**-0.5, rel_tol=1e-5)
    else (None, 0),
    # -1 is llama.cpp's default, which is 1 for yarn and 0 without it.
    "rope.scaling.yarn_ext_factor": (None, -1, 1 if kind == "yarn" else 0),
    # With yarn, `gguf_rope` reads it.
    "rope.scaling.yarn_attn_factor": (None, own.get("rope.scaling.yarn_attn_factor"))
    if kind == "yarn"
    else (None, 1),
  }
  for key, value in own.items():
    if key in READ or key in NEUTRAL:
      continue
    if key not in values:
      raise errors.UserError(
        f"{where}: the key {escape.line(key)} ({escape.line(value)[:60]}) is unknown "
        "and may change the mathematics; take the model from its HF folder"
      )
    if value not in values[key]:
      raise errors.UserError(
        f"{where}: {key} {escape.line(value)[:60]} is not supported and would be "
        "ignored; take the model from its HF folder"
      )

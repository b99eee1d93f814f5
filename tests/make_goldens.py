"""Writes tests/goldens/{rope,logits}.npz from transformers' own PyTorch code.

python tests/make_goldens.py     (needs torch and transformers, half a minute)
python tests/make_goldens.py --device   (only what check_device has of them)

The goldens are what this project's rope and model are tested against without
torch: angles and logits that another implementation computed. Weights are not
stored; both sides draw them from `weights`.
"""

import json
import pathlib
import sys

import numpy as np

from skipalign_jax.planning import goldens

FOLDER = pathlib.Path(__file__).parent / "goldens"
LENGTH = goldens.LENGTH
tokens, weights = goldens.tokens, goldens.draw_weights
OF_DEVICE = ("llama3", "qwen2", "qwen3", "smollm3")  # for check_device

# Several orders of magnitude, the paper's scales, and an odd head size.
ROPES = {
  "none": {"rope_type": "default", "rope_theta": 10_000.0},
  "none_5m": {"rope_type": "default", "rope_theta": 5_000_000.0},
  **{
    f"ntk_{length}": {
      "rope_type": "default",
      "rope_theta": 10_000.0 * (length / 4096) ** (128 / 126),
    }
    for length in (16_384, 32_768, 51_200, 100_000)
  },
  "linear_4": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
  "yarn_16": {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 4096,
  },
  "yarn_betas": {
    "rope_type": "yarn",
    "rope_theta": 500_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "attention_factor": 1.25,
  },
  "llama3_8": {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  },
  "llama3_32": {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  },
}
HEAD_DIMS = (16, 64, 80, 128)

_TINY = {
  "model_type": "llama",
  "vocab_size": 61,
  "hidden_size": 32,
  "intermediate_size": 56,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 4,
  "head_dim": 8,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-5,
  "tie_word_embeddings": False,
  "max_position_embeddings": 4096,
  "rope_parameters": ROPES["none"],
}
MODELS = {
  "llama2_mha": _TINY,
  "llama2_gqa": _TINY | {"num_key_value_heads": 2},
  "yi": _TINY
  | {
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 200_000,
    "rope_parameters": ROPES["none_5m"],
  },
  "smollm2_tied": _TINY
  | {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,  # 3 × 8 is not hidden_size
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
  },
  "biases": _TINY | {"attention_bias": True, "mlp_bias": True},
  "linear": _TINY | {"rope_parameters": ROPES["linear_4"]},
  "yarn": _TINY
  | {"max_position_embeddings": 65_536, "rope_parameters": ROPES["yarn_16"]},
  "llama3": _TINY
  | {"max_position_embeddings": 65_536, "rope_parameters": ROPES["llama3_8"]},
  "mistral": _TINY
  | {
    "model_type": "mistral",
    "num_key_value_heads": 2,
    "head_dim": 16,  # 4 × 16 is not hidden_size
    "sliding_window": None,
    "max_position_embeddings": 32_768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
  },
  "qwen2": _TINY
  | {
    "model_type": "qwen2",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": 16,  # not used
    "max_position_embeddings": 32_768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
  },
  "qwen3": _TINY
  | {
    "model_type": "qwen3",
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40_960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
  },
  "smollm3": _TINY  # yarn scales what is rotated, and only that
  | {
    "model_type": "smollm3",
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "no_rope_layers": [1, 0, 1],
    "tie_word_embeddings": True,
    "pad_token_id": None,  # SmolLM3's own ids lie beyond 61
    "bos_token_id": None,
    "eos_token_id": None,
    "max_position_embeddings": 65_536,
    "rope_parameters": ROPES["yarn_16"],
  },
}


def positions(kind: str, window: int) -> np.ndarray:
  """positions_L: contiguous, or three runs whose last token ends the window."""
  return goldens.skipped(window) if kind == "skipped" else np.arange(LENGTH)


def of_device() -> dict:
  """What skipalign_jax/planning/goldens.json has."""
  logits, models = np.load(FOLDER / "logits.npz"), {}
  for name in OF_DEVICE:
    logits_LV = logits[f"{name}/skipped"][0]
    models[name] = {
      "config": MODELS[name],
      "seed": list(MODELS).index(name),
      "logits": [float(f"{x:.7g}") for x in logits_LV[-1]],
      "loss": goldens.loss(logits_LV),
    }
  drawn = {name: goldens.drawn(name).tolist() for name in goldens.STRATEGIES}
  return {"positions": drawn, "models": models}


def write_of_device() -> None:
  """Writes goldens.json, a line per golden."""
  path = pathlib.Path(goldens.__file__).with_suffix(".json")
  sections = [
    f'"{section}": {{\n'
    + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in values.items())
    + "\n}"
    for section, values in of_device().items()
  ]
  path.write_text("{\n" + ",\n".join(sections) + "\n}\n")


def main() -> None:
  import torch
  from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
  from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

  ropes = {}
  for name, rope in ROPES.items():
    original = rope.get("original_max_position_embeddings", 4096)
    window = int(original * rope.get("factor", 1))
    for head_dim in HEAD_DIMS:
      config = LlamaConfig(
        **_TINY
        | {
          "hidden_size": 2 * head_dim,
          "num_attention_heads": 2,
          "num_key_value_heads": 2,
          "head_dim": head_dim,
          "max_position_embeddings": window,
          "rope_parameters": dict(rope),
        }
      )
      embedding = LlamaRotaryEmbedding(config)
      ropes[f"{name}/{head_dim}/inv_freq"] = embedding.inv_freq.numpy()
      ropes[f"{name}/{head_dim}/scale"] = np.float32(embedding.attention_scaling)
  np.savez_compressed(FOLDER / "rope.npz", **ropes)

  logits = {}
  for seed, (name, hf) in enumerate(MODELS.items()):
    model = AutoModelForCausalLM.from_config(
      AutoConfig.for_model(**json.loads(json.dumps(hf)))
    ).eval()
    state = model.state_dict()
    if hf["tie_word_embeddings"]:
      del state["lm_head.weight"]
    drawn = weights({key: tuple(value.shape) for key, value in state.items()}, seed)
    model.load_state_dict({k: torch.tensor(v) for k, v in drawn.items()}, strict=False)
    model.tie_weights()
    for kind in ("contiguous", "skipped"):
      positions_L = positions(kind, hf["max_position_embeddings"])
      with torch.no_grad():
        # The mask is explicit: without one, transformers 5 takes a jump in
        # position_ids for the start of another packed sequence.
        out = model(
          input_ids=torch.tensor(tokens(hf["vocab_size"])),
          position_ids=torch.tensor(positions_L)[None],
          attention_mask=torch.ones(1, LENGTH, dtype=torch.long),
          use_cache=False,
        )
      logits[f"{name}/{kind}"] = out.logits.numpy()
  np.savez_compressed(FOLDER / "logits.npz", **logits)
  for path in sorted(FOLDER.glob("*.npz")):
    print(path, path.stat().st_size)


if __name__ == "__main__":
  if sys.argv[1:] != ["--device"]:
    main()
  write_of_device()

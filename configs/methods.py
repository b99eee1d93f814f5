"""All methods of this project on one small model, side by side, as one sweep.

SmolLM2-135M-Instruct by configs/smollm2_ntk.py: 100 steps on the built-in dialogues,
or on your chats with --config.data.train=FILE; then passkeys beyond its window of 8192.

Commands:
  python -m skipalign_jax.sweep --config=configs/methods.py --run
  python -m skipalign_jax.sweep --config=configs/methods.py:tiny --run      # minutes
Hardware: two CPU cores (hours) or one GPU. Not run by us but for :tiny.
"""

from skipalign_jax.sweep import rows

CONFIG = "configs/smollm2_ntk.py"
WEIGHTS = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def get_sweep(variant: str = "") -> rows.Sweep:
  at = lambda name: {"positions.strategy": name}
  sequences = {"loss.reduction": "sequence"}
  table = {
    "base": rows.Row(
      model=WEIGHTS, evaluate={"rope.kind": "ntk", "rope.target_length": 32_768}
    ),
    "Normal-SFT": rows.Row(CONFIG, at("contiguous")),
    "PackedSFT": rows.Row(CONFIG, at("contiguous") | {"data.packing_mask": False}),
    "LongAlign, packed": rows.Row(CONFIG, at("contiguous") | sequences),
    "LongAlign, sorted": rows.Row(
      CONFIG,
      at("contiguous")
      | sequences
      | {"data.packing": False, "data.batching": "sorted", "batch_size": 4},
    ),
    "Skip-All": rows.Row(CONFIG, at("skip_all")),
    "Skip-Inner": rows.Row(CONFIG, at("skip_inner")),
    "SkipAlign": rows.Row(CONFIG),
    "SkipAlign, uniform gaps": rows.Row(CONFIG, {"positions.gaps": "uniform"}),
    "SkipAlign, LoRA": rows.Row(CONFIG, {"lora.rank": 16}),
    "SkipAlign, Long-Short": rows.Row(CONFIG, {"long_short.alpha": 0.1}),
    "PoSE": rows.Row(CONFIG, at("pose")),
    "RandPos": rows.Row(CONFIG, at("randpos")),
    "CREAM": rows.Row(CONFIG, at("cream")),
  }
  for alpha in (0.1, 0.3, 0.5, 1.0):  # of Long-Short Alignment's table; 0: Normal-SFT
    changes = at("contiguous") | {"long_short.alpha": alpha}
    table[f"Long-Short, alpha={alpha}"] = rows.Row(CONFIG, changes)
  needle = {"task": "needle", "lengths": "1024,4096,8192,12288,16384", "depths": 5}
  return rows.sweep("Methods", table, {"needle": needle}, variant, "methods")

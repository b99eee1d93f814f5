"""All methods of this project on one small model, as one sweep.

SmolLM2-135M-Instruct with configs/smollm2_ntk.py: 100 steps on the built-in dialogues,
or on your chats with --config.data.train=FILE (rows with DPO and SimPO train on the
built-in pairs); then passkeys beyond its window of 8192.

Commands:
  python -m skipalign_jax.sweep --config=configs/methods.py --run
  python -m skipalign_jax.sweep --config=configs/methods.py:tiny --run      # minutes
Hardware: two CPU cores (hours) or one GPU. Not run by us except :tiny.
"""

from skipalign_jax.sweep import runs

CONFIG = "configs/smollm2_ntk.py"
WEIGHTS = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def get_sweep(variant: str = "") -> runs.Sweep:
  at = lambda name: {"positions.strategy": name}
  sequences = {"loss.reduction": "sequence"}
  pairs = {"data.train": "builtin:pairs:2000", "optim.learning_rate": 1e-5}
  dpo = pairs | {"loss.kind": "dpo", "loss.beta": 0.1}
  simpo = pairs | {"loss.kind": "simpo", "loss.beta": 2.5, "loss.margin": 0.3}
  table = {
    "base": runs.Run(
      model=WEIGHTS, evaluate={"rope.kind": "ntk", "rope.target_length": 32_768}
    ),
    "Normal-SFT": runs.Run(CONFIG, at("contiguous")),
    "PackedSFT": runs.Run(CONFIG, at("contiguous") | {"data.packing_mask": False}),
    "LongAlign, packed": runs.Run(CONFIG, at("contiguous") | sequences),
    "LongAlign, sorted": runs.Run(
      CONFIG,
      at("contiguous")
      | sequences
      | {"data.packing": False, "data.batching": "sorted", "batch_size": 4},
    ),
    "Skip-All": runs.Run(CONFIG, at("skip_all")),
    "Skip-Inner": runs.Run(CONFIG, at("skip_inner")),
    "SkipAlign": runs.Run(CONFIG),
    "SkipAlign, uniform gaps": runs.Run(CONFIG, {"positions.gaps": "uniform"}),
    "SkipAlign, LoRA": runs.Run(CONFIG, {"lora.rank": 16}),
    "SkipAlign, Long-Short": runs.Run(CONFIG, {"long_short.alpha": 0.1}),
    "SkipAlign, self-distillation": runs.Run(CONFIG, {"distill.weight": 1.0}),
    "Self-distillation": runs.Run(
      CONFIG, at("contiguous") | {"distill.weight": 1.0, "distill.reach": "limit"}
    ),
    "Self-distillation, strategy": runs.Run(
      CONFIG, {"distill.weight": 1.0, "distill.view": "strategy"}
    ),
    "DPO": runs.Run(CONFIG, at("contiguous") | dpo),
    "SkipAlign, DPO": runs.Run(CONFIG, dpo),
    "SkipAlign, SimPO": runs.Run(CONFIG, simpo),
    "EndPrompt, DPO": runs.Run(CONFIG, at("endprompt") | dpo),
    "LOGO's positions, SimPO": runs.Run(
      CONFIG, at("logo") | {"positions.chunks": 8} | simpo
    ),
    "PoSE": runs.Run(CONFIG, at("pose")),
    "RandPos": runs.Run(CONFIG, at("randpos")),
    "CREAM": runs.Run(CONFIG, at("cream")),
    "EndPrompt": runs.Run(CONFIG, at("endprompt")),
    "EndPrompt, random": runs.Run(
      CONFIG, at("endprompt") | {"positions.terminal_at": "random"}
    ),
    "EndPrompt, cue": runs.Run(CONFIG, at("endprompt") | {"positions.terminal": "cue"}),
    "Randomized YaRN": runs.Run(
      CONFIG,
      at("randpos")
      | {"positions.resample": "epoch", "rope.kind": "yarn"}
      | {"positions.schedule": "8192,16384,24576,32768"},
    ),
  }
  for alpha in (
    0.1,
    0.3,
    0.5,
    1.0,
  ):  # of Long-Short Alignment's table; 0 is Normal-SFT
    changes = at("contiguous") | {"long_short.alpha": alpha}
    table[f"Long-Short, alpha={alpha}"] = runs.Run(CONFIG, changes)
  needle = {"task": "needle", "lengths": "1024,4096,8192,12288,16384", "depths": 5}
  return runs.sweep("Methods", table, {"needle": needle}, variant, "methods")

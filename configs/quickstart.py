"""The quick start: `make quickstart` fine-tunes SmolLM2-135M-Instruct on a CPU.

Skip-Outer on built-in dialogues, which state facts and ask about them turns later.

Hardware: two CPU cores and 8 GB of memory. Weights: `make weights`.
"""

from skipalign_jax import config


def get_config(variant: str = "") -> config.ConfigDict:
  c = config.default()
  c.model.init_from = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  c.model.remat = "dots"
  c.rope.kind = "ntk"
  c.positions.max_position = 32_768
  c.data.train = "builtin:recall:1000"
  c.data.eval = "holdout:16"
  c.data.seq_len = 512
  c.data.packing = True
  c.batch_size = 2
  c.optim.learning_rate = 1e-4
  c.steps = 24
  c.eval.every = 0
  c.checkpoint.every = 0
  return config.apply_variant(c, variant)

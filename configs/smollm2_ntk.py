"""SkipAlign on SmolLM2-135M-Instruct: the paper's recipe on a laptop.

Window 8192, NTK-scaled to 32 768 positions; short chats of up to 1024 tokens,
Skip-Outer with L = 32 768. The learning rate is higher than the paper's 1e-5: the model
is 50 times smaller and the run is short.

Hardware: any CPU with 8 GB, or one GPU. Weights: `make weights`, or set
--config.model.init_from=HuggingFaceTB/SmolLM2-135M-Instruct to load them from the hub.
Command:
  python -m skipalign_jax.train --config=configs/smollm2_ntk.py \
    --workdir=runs/smollm2_ntk --config.data.train=chats.jsonl
"""

from skipalign_jax import config


def get_config(variant: str = "") -> config.ConfigDict:
  c = config.default()
  c.model.init_from = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  c.model.remat = "dots"
  c.rope.kind = "ntk"  # to positions.max_position
  c.positions.max_position = 32_768
  c.data.train = "builtin:recall:2000"
  c.data.seq_len = 1024
  c.data.packing = True
  c.batch_size = 1
  c.optim.learning_rate = 1e-4
  c.steps = 100
  c.eval.every = 50
  c.checkpoint.every = 20
  return config.apply_variant(c, variant)

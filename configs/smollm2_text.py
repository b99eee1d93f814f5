"""Continued training on plain text whose paragraphs skip, up to a million positions.

Without chats: every token is a target. The paragraphs of a document move like blocks of
a dialogue (Skip-All), with uniform gaps, nearly as in LongRecipe (2409.00509): pieces
of 1024 tokens have distances of up to 1 000 000. NTK-scaled rope to the same length.
data.text_blocks=sentences moves sentences instead.

Hardware: any CPU with 8 GB, or one GPU. Weights: `make weights`.
Command:
  python -m skipalign_jax.train --config=configs/smollm2_text.py \
    --workdir=runs/smollm2_text --config.data.train=book.txt.gz,more.parquet
Expected: not run at length.
"""

from skipalign_jax import config


def get_config(variant: str = "") -> config.ConfigDict:
  c = config.default()
  c.model.init_from = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  c.model.remat = "dots"
  c.rope.kind = "ntk"  # to positions.max_position
  c.positions.strategy = "skip_all"
  c.positions.max_position = 1_000_000
  c.positions.gaps = "uniform"
  c.positions.resample = "epoch"
  c.data.train = "builtin:text:2000"
  c.data.text_blocks = "paragraphs"
  c.data.seq_len = 1024
  c.data.packing = True
  c.batch_size = 1
  c.optim.learning_rate = 1e-4
  c.steps = 100
  c.eval.every = 50
  c.checkpoint.every = 20
  return config.apply_variant(c, variant)

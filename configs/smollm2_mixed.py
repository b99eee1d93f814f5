"""Short chats that skip, packed with real long documents (SkipAlign, §6).

The paper's first future direction: real long samples mixed with skipped short ones.
Rows of 8192 tokens hold a long document, a piece of one, or many chats, each of which
only attends to itself. Weights after * mix the sources: here an epoch has all chats and
half of the documents. Chats of less than 4096 tokens skip (Skip-Outer, L = 32 768);
longer ones do not, and neither do documents, which are one block each. NTK-scaled rope
to the same length.

Hardware: one GPU, or a CPU with 16 GB and patience. Weights: `make weights`.
Command:
  python -m skipalign_jax.train --config=configs/smollm2_mixed.py \
    --workdir=runs/smollm2_mixed --config.data.train='chats.jsonl,books.jsonl*0.5'
Expected: not run at length.
"""

from skipalign_jax import config


def get_config(variant: str = "") -> config.ConfigDict:
  c = config.default()
  c.model.init_from = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  c.model.remat = "dots"
  c.rope.kind = "ntk"  # to positions.max_position
  c.positions.max_position = 32_768
  c.positions.skip_below = 4096  # long dialogues do not skip
  c.data.train = "builtin:recall:2000,builtin:text:400*0.5"
  c.data.seq_len = 8192
  c.data.packing = True
  c.loss.reduction = "sequence"  # otherwise documents outweigh all chats
  c.batch_size = 1
  c.optim.learning_rate = 1e-4
  c.steps = 100
  c.eval.every = 50
  c.checkpoint.every = 20
  return config.apply_variant(c, variant)

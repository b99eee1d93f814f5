"""PackedSFT-50K on Llama-2-7B: the paper's baseline with long rows (§4).

Samples are packed into rows of 51 200 tokens at contiguous positions; NTK to the same
length. Here each sample only attends to itself and starts at position 0, as is usual
today. In the paper (as in LongChat) a row is one long sample: positions run through it,
and every token attends to all before it: --config.data.packing_mask=False. In
LongAlign's loss, short samples count as much as long ones:
--config.loss.reduction=sequence.

Hardware: 8 x A100 80 GB, one row per device (37 GiB by `plan`, triton attention). One
row at a time over all devices, for less memory (18 GiB) or longer rows:
--config.mesh.context=8 --config.mesh.fsdp=1 --config.grad_accum=8.
Command:
  python -m skipalign_jax.train --config=configs/llama2_packed_sft_50k.py \
    --workdir=runs/llama2_packed_sft_50k
Expected (paper, LongBench average): 43.6. Not run by us yet.
"""

from skipalign_jax import config


def get_config(variant: str = "") -> config.ConfigDict:
  c = config.default()
  c.model.init_from = "meta-llama/Llama-2-7b-hf"
  c.rope.kind = "ntk"
  c.rope.target_length = 51_200
  c.positions.strategy = "contiguous"
  c.data.train = "hub:allenai/tulu-v2-sft-mixture"
  c.data.template = "tulu"
  c.data.seq_len, c.data.packing = 51_200, True
  c.batch_size = 8
  c.epochs = 2
  return config.apply_variant(c, variant)

"""Normal-SFT on Llama-2-7B: the paper's baseline, contiguous positions (§4).

Like llama2_ntk.py, but without skipped positions. NTK to 32 768 positions, the longest
inference in the paper's LongBench setting.

Hardware: 8 x A100 80 GB.
Command:
  python -m skipalign_jax.train --config=configs/llama2_normal_sft.py \
    --workdir=runs/llama2_normal_sft
Expected (paper, LongBench average): 41.5. Not run by us yet.
"""

from skipalign_jax import config


def get_config(variant: str = "") -> config.ConfigDict:
  c = config.default()
  c.model.init_from = "meta-llama/Llama-2-7b-hf"
  c.rope.kind = "ntk"
  c.rope.target_length = 32_768
  c.positions.strategy = "contiguous"
  c.data.train = "hub:allenai/tulu-v2-sft-mixture"
  c.data.template = "tulu"
  c.epochs = 2
  return config.apply_variant(c, variant)

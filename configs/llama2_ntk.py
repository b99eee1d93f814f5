"""SkipAlign on Llama-2-7B: the paper's main recipe (arXiv 2405.03939, §4, app. A).

Skip-Outer, L = 100 000, p = 0.5; NTK-scaled rope; Tülu V2 truncated to 4096 tokens;
two epochs, learning rate 1e-5, AdamW without weight decay, 3 % warm-up, linear decay.
The paper gives no batch size: 128 is Tülu 2's.

Hardware: 8 x A100 80 GB (16 rows per device, 42.3 GiB), or 40 GB with grad_accum=2
(32.6 GiB) and XLA_PYTHON_CLIENT_MEM_FRACTION=0.9: by `plan`, not run.
Command:
  python -m skipalign_jax.train --config=configs/llama2_ntk.py --workdir=runs/llama2_ntk
Expected (paper, LongBench average): 44.1. Not run by us yet.
"""

from skipalign_jax import config


def get_config(variant: str = "") -> config.ConfigDict:
  c = config.default()
  c.model.init_from = "meta-llama/Llama-2-7b-hf"
  c.rope.kind = "ntk"  # to positions.max_position
  c.data.train = "hub:allenai/tulu-v2-sft-mixture"
  c.data.template = "tulu"
  c.epochs = 2
  return config.apply_variant(c, variant)

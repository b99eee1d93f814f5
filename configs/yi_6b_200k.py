"""SkipAlign on Yi-6B-200K: a model whose window needs no rope scaling (§4, app. A).

Like llama2_ntk.py, but without NTK: the base model already covers 200K positions.

Hardware: 8 x A100 80 GB.
Command:
  python -m skipalign_jax.train --config=configs/yi_6b_200k.py --workdir=runs/yi_6b_200k
Expected (paper, LongBench average): 45.3. Not run by us yet.
"""

from skipalign_jax import config


def get_config(variant: str = "") -> config.ConfigDict:
  c = config.default()
  c.model.init_from = "01-ai/Yi-6B-200K"
  c.rope.kind = "model"
  c.data.train = "hub:allenai/tulu-v2-sft-mixture"
  c.data.template = "tulu"
  c.epochs = 2
  return config.apply_variant(c, variant)

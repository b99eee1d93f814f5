"""SkipAlign on Llama-2-7B with adapters (QLoRA): the paper's recipe on one GPU.

Like llama2_ntk.py, but only adapters of rank 32 on all linear layers are trained, on a
base in 4-bit NormalFloat (LoRA 2106.09685, QLoRA 2305.14314; QLoRA needs adapters on
all layers to match the training of all weights). The learning rate is QLoRA's for 7B,
2e-4; the SkipAlign paper trains all weights at 1e-5 and uses no adapters.

Hardware: one GPU of 24 GB, one row at a time: 17.8 GiB of an A10's 22.0 (peak by
`plan`, not run), which JAX must be allowed to use. With --config.model.remat=full 7.5
GiB, and a third more arithmetic. Each of several GPUs can hold the whole base:
--config.mesh.data=8 --config.mesh.fsdp=1 --config.grad_accum=16.
Command:
  XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 python -m skipalign_jax.train \
    --config=configs/llama2_lora.py --workdir=runs/llama2_lora
Not run by us yet.
"""

from skipalign_jax import config


def get_config(variant: str = "") -> config.ConfigDict:
  c = config.default()
  c.model.init_from = "meta-llama/Llama-2-7b-hf"
  c.rope.kind = "ntk"  # to positions.max_position
  c.data.train = "hub:allenai/tulu-v2-sft-mixture"
  c.data.template = "tulu"
  c.grad_accum = 128  # one row at a time
  c.model.remat = "dots"
  c.epochs = 2
  c.lora.rank, c.lora.alpha = 32, 32.0
  c.lora.base = "nf4"
  c.optim.learning_rate = 2e-4
  return config.apply_variant(c, variant)

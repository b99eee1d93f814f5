"""The parts of google-tunix's training that two benchmarks share.

Needs benchmarks/requirements.txt; imported by the workers that run the peer.
"""

import jax.numpy as jnp
import optax
from tunix.models.llama3 import model as llama3
from tunix.sft import peft_trainer
from tunix.sft import utils as tunix_utils

from skipalign_jax import config as config_lib
from skipalign_jax.model import model_config


def shape(c: model_config.ModelConfig, remat: str) -> llama3.ModelConfig:
  """Its Llama3 with the sizes of our model."""
  return llama3.ModelConfig(
    num_layers=c.num_layers,
    vocab_size=c.vocab_size,
    embed_dim=c.embed_dim,
    hidden_dim=c.ffn_dim,
    num_heads=c.num_heads,
    head_dim=c.head_dim,
    num_kv_heads=c.num_kv_heads,
    rope_theta=int(c.rope.theta),
    norm_eps=c.norm_eps,
    weight_tying=c.tie_embeddings,
    remat_config=llama3.RematConfig[remat.upper()],
  )


def trainer(model: llama3.Llama3) -> peft_trainer.PeftTrainer:
  """Its trainer with AdamW by our defaults, clipped at norm 1."""
  c = config_lib.default().optim
  update = optax.chain(
    optax.clip_by_global_norm(c.clip_norm),
    optax.adamw(
      c.learning_rate,
      b1=c.beta1,
      b2=c.beta2,
      eps=c.eps,
      weight_decay=c.weight_decay,
    ),
  )
  settings = peft_trainer.TrainingConfig(eval_every_n_steps=10**9)
  return peft_trainer.PeftTrainer(model, update, settings)


def model_input(batch: peft_trainer.TrainingInput) -> dict:
  """The inputs of a step; no token is padding."""
  real = jnp.ones_like(batch.input_tokens, bool)
  return {
    "input_tokens": batch.input_tokens,
    "input_mask": batch.input_mask,
    "positions": tunix_utils.build_positions_from_mask(real),
    "attention_mask": tunix_utils.make_causal_attn_mask(real),
  }

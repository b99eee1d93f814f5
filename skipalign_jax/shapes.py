"""Shapes of well-known models: what a plan needs of them, without their weights."""

from skipalign_jax import model_config, rope


def _llama(
  vocab_size: int,
  num_layers: int,
  embed_dim: int,
  ffn_dim: int,
  num_heads: int,
  num_kv_heads: int,
  window: int,
  theta: float,
) -> model_config.ModelConfig:
  return model_config.ModelConfig(
    vocab_size=vocab_size,
    num_layers=num_layers,
    embed_dim=embed_dim,
    ffn_dim=ffn_dim,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=embed_dim // num_heads,
    norm_eps=1e-5,
    tie_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
    window=window,
    rope=rope.RopeConfig("none", theta),
  )


# Hub id → shape, as in the model's config.json.
KNOWN = {
  "meta-llama/Llama-2-7b-hf": _llama(32_000, 32, 4096, 11_008, 32, 32, 4096, 1e4),
  "meta-llama/Llama-2-13b-hf": _llama(32_000, 40, 5120, 13_824, 40, 40, 4096, 1e4),
  "meta-llama/Llama-2-70b-hf": _llama(32_000, 80, 8192, 28_672, 64, 8, 4096, 1e4),
  "01-ai/Yi-6B-200K": _llama(64_000, 32, 4096, 11_008, 32, 4, 200_000, 1e7),
  "01-ai/Yi-34B-200K": _llama(64_000, 60, 7168, 20_480, 56, 8, 200_000, 1e7),
}

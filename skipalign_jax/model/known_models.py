"""Shapes of well-known models, for plans without their files."""

from typing import Any

from skipalign_jax.model import model_config, rope


def _shape(
  vocab_size: int,
  num_layers: int,
  embed_dim: int,
  ffn_dim: int,
  num_heads: int,
  num_kv_heads: int,
  window: int,
  theta: float,
  **others: Any,
) -> model_config.ModelConfig:
  fields = dict(
    head_dim=embed_dim // num_heads,
    norm_eps=1e-5,
    tie_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
    rope=rope.RopeConfig("none", theta),
  )
  return model_config.ModelConfig(
    vocab_size=vocab_size,
    num_layers=num_layers,
    embed_dim=embed_dim,
    ffn_dim=ffn_dim,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    window=window,
    **fields | others,
  )


_LLAMA3 = rope.RopeConfig("llama3", 5e5, factor=8.0, original_window=8192)
_QWEN2 = dict(family="qwen2", attention_bias=True, norm_eps=1e-6)
_QWEN3 = dict(family="qwen3", norm_eps=1e-6)
_SMOLLM3 = dict(
  family="smollm3",
  norm_eps=1e-6,
  tie_embeddings=True,
  nope_layers=tuple(range(3, 36, 4)),
)

# Hub id → shape, as in the model's config.json.
KNOWN = {
  "meta-llama/Llama-2-7b-hf": _shape(32_000, 32, 4096, 11_008, 32, 32, 4096, 1e4),
  "meta-llama/Llama-2-13b-hf": _shape(32_000, 40, 5120, 13_824, 40, 40, 4096, 1e4),
  "meta-llama/Llama-2-70b-hf": _shape(32_000, 80, 8192, 28_672, 64, 8, 4096, 1e4),
  "meta-llama/Llama-3.1-8B": _shape(
    128_256, 32, 4096, 14_336, 32, 8, 131_072, 5e5, rope=_LLAMA3
  ),
  "01-ai/Yi-6B-200K": _shape(64_000, 32, 4096, 11_008, 32, 4, 200_000, 1e7),
  "01-ai/Yi-34B-200K": _shape(64_000, 60, 7168, 20_480, 56, 8, 200_000, 1e7),
  "mistralai/Mistral-7B-v0.3": _shape(
    32_768, 32, 4096, 14_336, 32, 8, 32_768, 1e6, family="mistral"
  ),
  "Qwen/Qwen2.5-7B": _shape(152_064, 28, 3584, 18_944, 28, 4, 131_072, 1e6, **_QWEN2),
  "Qwen/Qwen3-8B": _shape(151_936, 36, 4096, 12_288, 32, 8, 40_960, 1e6, **_QWEN3),
  "HuggingFaceTB/SmolLM3-3B": _shape(
    128_256, 36, 2048, 11_008, 16, 4, 65_536, 5e6, **_SMOLLM3
  ),
}

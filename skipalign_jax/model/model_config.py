"""The model's shape, and its two-way translation to a HF config.json."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from skipalign_jax import config as config_lib
from skipalign_jax.model import families, hf_keys, hf_rope, rope
from skipalign_jax.runtime import errors, escape


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A LLaMA-family decoder.

  Attributes:
    vocab_size: rows of the embedding, V.
    num_layers: decoder layers.
    embed_dim: residual width, D.
    ffn_dim: gated MLP width, F.
    num_heads: query heads, N.
    num_kv_heads: key/value heads, K; divides N.
    head_dim: width of one head, H; even.
    norm_eps: RMSNorm epsilon.
    tie_embeddings: the output matrix is the embedding.
    attention_bias: biases on q, k, v and, if `o_bias`, o.
    mlp_bias: biases on gate, up and down.
    window: positions the model was built for (max_position_embeddings).
    rope: how positions become angles.
    family: a model_type of transformers; see `families.TABLE` for what it fixes.
    nope_layers: indices of layers whose q and k are not rotated (NoPE).
  """

  vocab_size: int
  num_layers: int
  embed_dim: int
  ffn_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  norm_eps: float
  tie_embeddings: bool
  attention_bias: bool
  mlp_bias: bool
  window: int
  rope: rope.RopeConfig
  family: str = "llama"
  nope_layers: tuple[int, ...] = ()

  def __post_init__(self):
    own = {name: value for name, value in vars(self).items() if name != "rope"}
    config_lib.check_section("model", own)
    if self.num_heads % self.num_kv_heads:
      raise errors.UserError(
        f"model.num_kv_heads={self.num_kv_heads} must divide "
        f"model.num_heads={self.num_heads}"
      )
    if self.head_dim % 2:
      raise errors.UserError(f"model.head_dim={self.head_dim} must be even")
    for name, value in families.TABLE[self.family].fixed.items():
      if getattr(self, name) != value:
        raise errors.UserError(
          f"model.{name}={not value} conflicts with model.family={self.family}, where "
          f"it is {value}"
        )
    if self.nope_layers and not families.TABLE[self.family].nope:
      raise errors.UserError(
        f"model.nope_layers={self.nope_layers}: model.family={self.family} has no "
        "layers without rope; smollm3 does"
      )
    if not all(0 <= i < self.num_layers for i in self.nope_layers):
      raise errors.UserError(
        f"model.nope_layers={self.nope_layers} must be in 0 … {self.num_layers - 1}"
      )

  @property
  def o_bias(self) -> bool:
    """Whether o has a bias."""
    return self.attention_bias and families.TABLE[self.family].o_bias

  @property
  def qk_norm(self) -> bool:
    """Whether each head of q and k goes through an RMSNorm before rope."""
    return families.TABLE[self.family].qk_norm

  def num_params(self) -> int:
    """Number of trainable values."""
    query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
    attention = 2 * self.embed_dim * (query + kv)
    attention += self.attention_bias * (query + 2 * kv) + self.o_bias * self.embed_dim
    attention += self.qk_norm * 2 * self.head_dim
    mlp = 3 * self.embed_dim * self.ffn_dim
    mlp += self.mlp_bias * (2 * self.ffn_dim + self.embed_dim)
    layer = attention + mlp + 2 * self.embed_dim
    matrices = 1 if self.tie_embeddings else 2
    embed = matrices * self.vocab_size * self.embed_dim
    return self.num_layers * layer + embed + self.embed_dim


def from_hf(hf: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
  """Reads a transformers v4 or v5 config (a parsed config.json).

  Raises:
    UserError: unsupported architecture, missing keys, keys that would change the
      mathematics, or a `rope_scaling` that disagrees with `rope_parameters`.
  """
  try:
    family, hf = families.complete(hf, where)
    whole = functools.partial(hf_keys.whole, hf)
    flag = functools.partial(hf_keys.flag, hf)
    heads, width = whole("num_attention_heads"), whole("hidden_size")
    kv = "num_key_value_heads"
    return ModelConfig(
      vocab_size=whole("vocab_size"),
      num_layers=whole("num_hidden_layers"),
      embed_dim=width,
      ffn_dim=whole("intermediate_size"),
      num_heads=heads,
      num_kv_heads=heads if hf[kv] is None else whole(kv),
      head_dim=width // heads if hf["head_dim"] is None else whole("head_dim"),
      norm_eps=hf_keys.number(hf, "rms_norm_eps"),
      tie_embeddings=flag("tie_word_embeddings"),
      attention_bias=flag("attention_bias"),
      mlp_bias=flag("mlp_bias"),
      window=whole("max_position_embeddings"),
      rope=hf_rope.read(hf, where, family.theta),
      family=hf["model_type"],
      nope_layers=families.nope_layers(family, hf, where),
    )
  except KeyError as error:
    raise errors.UserError(f"{where}: key {error} is missing") from error
  except errors.UserError as error:
    if str(error).startswith(f"{where}: "):
      raise
    raise errors.UserError(f"{where}: {error}") from error  # of a dataclass
  except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
    raise errors.UserError(
      f"{where}: a value of the wrong type ({escape.line(error)})"
    ) from error


def to_hf(config: ModelConfig) -> dict[str, Any]:
  """The config.json of `config`, rope in both spellings (v4 and v5 readers).

  NTK has no HF rope type: its base goes into `rope_theta` with type default.
  """
  family = families.TABLE[config.family]
  free = {
    name: getattr(config, name)
    for name in ("attention_bias", "mlp_bias")
    if name not in family.fixed
  }
  if family.nope:
    rotated = [int(i not in config.nope_layers) for i in range(config.num_layers)]
    free["no_rope_layers"] = rotated
  r = config.rope
  theta = r.theta
  if r.kind == "ntk":
    theta = rope.ntk_theta(theta, r.factor, config.head_dim)
  scaling: dict[str, Any] = {}
  if r.kind in ("linear", "yarn", "llama3"):
    scaling = {"rope_type": r.kind, "factor": r.factor}
  if r.kind in ("yarn", "llama3"):
    scaling["original_max_position_embeddings"] = r.original_window
  if r.kind == "yarn":
    scaling |= {"beta_fast": r.beta_fast, "beta_slow": r.beta_slow}
    if r.attention_factor is not None:
      scaling["attention_factor"] = hf_rope.written_attention_factor(r.attention_factor)
  if r.kind == "llama3":
    # llama.cpp's converter reads it here, and takes 8192 where it is not.
    free["original_max_position_embeddings"] = r.original_window
    scaling |= {
      "low_freq_factor": r.low_freq_factor,
      "high_freq_factor": r.high_freq_factor,
    }
  return {
    "architectures": [family.architecture],
    "model_type": config.family,
    "vocab_size": config.vocab_size,
    "num_hidden_layers": config.num_layers,
    "hidden_size": config.embed_dim,
    "intermediate_size": config.ffn_dim,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "hidden_act": "silu",
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tie_embeddings,
    **free,
    **family.no_sliding,
    "max_position_embeddings": config.window,
    "rope_theta": theta,
    "rope_scaling": scaling or None,
    "rope_parameters": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
  }

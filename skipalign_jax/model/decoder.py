"""A LLaMA-family decoder (see `families`) in Flax NNX.

Shapes: B batch, L length, S cache length, D model, F ffn, N heads, K kv heads,
H head dim, V vocab, I/O in/out features. Matrices are [O, I] as in HF's files,
so converting a checkpoint never transposes. Layers are stacked on a leading
axis and scanned.

Master weights are fp32; products run in `compute_dtype` and accumulate in fp32;
norms, softmax, rotations and SwiGLU are fp32.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from skipalign_jax.model import (
  activation,
  attention,
  backends,
  cpu,
  lora,
  model_config,
  norm,
  products,
  rope,
  sharding,
)

ModelConfig = model_config.ModelConfig
Params = dict[str, Any]  # the nested dict of `hf.names`: embed, layers, norm, …


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cache:
  """Rotated keys and values of all layers, and which places are in use.

  Attributes:
    k, v: [layers, B, S, K, H]; on CPUs bf16 as bits, uint16 (see `cpu.to_bits`).
    segment_ids: [B, S]; 0 at places that are not in use.
    length: places written so far, the same for all rows.
  """

  k: jax.Array
  v: jax.Array
  segment_ids: jax.Array
  length: jax.Array


def empty_cache(
  config: ModelConfig, batch: int, length: int, dtype: jnp.dtype
) -> Cache:
  """A cache for `length` tokens per row."""
  kv = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
  return Cache(
    k=jnp.zeros(kv, dtype),
    v=jnp.zeros(kv, dtype),
    segment_ids=jnp.zeros((batch, length), jnp.int32),
    length=jnp.int32(0),
  )


# Names of what remat policies may keep; see also attention.KEPT.
INPUT, PRODUCT = "layer_input", "linear_output"


@jax.custom_vjp
def linear(x_TI: jax.Array, weight_OI: jax.Array) -> jax.Array:
  """x Wᵀ for T tokens, in x's dtype with fp32 accumulation.

  The gradient rule casts the cotangent to the compute dtype too: the default
  one would multiply in fp32, even if the forward pass does not.
  """
  return _linear_forward(x_TI, weight_OI)[0]


def _linear_forward(x_TI, weight_OI):
  weight_cast_OI = weight_OI.astype(x_TI.dtype)
  out_TO = cpu.few_rows(
    lambda x_TI: products.einsum("ti,oi->to", x_TI, weight_cast_OI).astype(x_TI.dtype),
    x_TI,
  )
  return cpu.named(out_TO, PRODUCT), (x_TI, weight_OI)


def _linear_backward(residuals, d_out_TO):
  x_TI, weight_OI = residuals
  weight_cast_OI = weight_OI.astype(x_TI.dtype)
  d_x_TI = products.einsum("to,oi->ti", d_out_TO, weight_cast_OI).astype(x_TI.dtype)
  d_weight_OI = cpu.weight_gradient(d_out_TO, x_TI, products.einsum)
  return d_x_TI, d_weight_OI.astype(weight_OI.dtype)


linear.defvjp(_linear_forward, _linear_backward)


BLOCKWISE = backends.Backend("blockwise", 2)


class Linear(nnx.Module):
  def __init__(self, in_dim: int, out_dim: int, bias: bool, rngs: nnx.Rngs):
    self.weight = nnx.Param(_normal(rngs, (out_dim, in_dim)))
    self.bias = nnx.Param(jnp.zeros(out_dim)) if bias else None

  def __call__(self, x_BLI: jax.Array) -> jax.Array:
    B, L, _ = x_BLI.shape
    x_TI, weight = x_BLI.reshape(B * L, -1), self.weight.get_value()
    if isinstance(weight, lora.Adapted):
      y_TO = cpu.named_with_gradient(lora.linear(x_TI, weight), PRODUCT)
    else:
      y_TO = linear(x_TI, weight)
    y_BLO = y_TO.reshape(B, L, -1)
    return y_BLO if self.bias is None else y_BLO + self.bias[...].astype(y_BLO.dtype)


class Attention(nnx.Module):
  def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
    query, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    self.q = Linear(c.embed_dim, query, c.attention_bias, rngs)
    self.k = Linear(c.embed_dim, kv, c.attention_bias, rngs)
    self.v = Linear(c.embed_dim, kv, c.attention_bias, rngs)
    self.o = Linear(query, c.embed_dim, c.o_bias, rngs)
    self.q_norm = norm.RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
    self.k_norm = norm.RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
    self.config = c

  def __call__(self, x_BLD, rotation, segment_ids_BL, backend, cache, layer):
    c = self.config
    B, L, _ = x_BLD.shape
    q_BLNH = self.q(x_BLD).reshape(B, L, c.num_heads, c.head_dim)
    k_BLKH = self.k(x_BLD).reshape(B, L, c.num_kv_heads, c.head_dim)
    v_BLKH = self.v(x_BLD).reshape(B, L, c.num_kv_heads, c.head_dim)
    if c.qk_norm:
      q_BLNH, k_BLKH = self.q_norm(q_BLNH), self.k_norm(k_BLKH)
    q_BLNH, k_BLKH = rope.apply(q_BLNH, *rotation), rope.apply(k_BLKH, *rotation)
    if cache is not None:
      write = lambda cached, new_BLKH: sharding.write_places(
        cached, _for_cache(new_BLKH, cached), layer, cache.length
      )
      cache = dataclasses.replace(
        cache, k=write(cache.k, k_BLKH), v=write(cache.v, v_BLKH)
      )
    if isinstance(backend, backends.FromCache):
      out_BLNH = backends.attend_cache(
        q_BLNH,
        cache.k,
        cache.v,
        segment_ids_BL,
        cache.segment_ids,
        cache.length,
        layer,
        backend,
      )
    else:  # training, or a whole prompt into an empty cache
      attend = functools.partial(backends.attend, backend=backend)
      out_BLNH = sharding.over_heads(attend)(q_BLNH, k_BLKH, v_BLKH, segment_ids_BL)
    return self.o(out_BLNH.reshape(B, L, -1)), cache


def _for_cache(x_BLKH: jax.Array, cached: jax.Array) -> jax.Array:
  return cpu.to_bits(x_BLKH) if cached.dtype == jnp.uint16 else x_BLKH


class MLP(nnx.Module):
  def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
    self.gate = Linear(c.embed_dim, c.ffn_dim, c.mlp_bias, rngs)
    self.up = Linear(c.embed_dim, c.ffn_dim, c.mlp_bias, rngs)
    self.down = Linear(c.ffn_dim, c.embed_dim, c.mlp_bias, rngs)

  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    return self.down(activation.swiglu(self.gate(x_BLD), self.up(x_BLD)))


class Layer(nnx.Module):
  def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
    self.attn_norm = norm.RMSNorm(c.embed_dim, c.norm_eps)
    self.attn = Attention(c, rngs)
    self.mlp_norm = norm.RMSNorm(c.embed_dim, c.norm_eps)
    self.mlp = MLP(c, rngs)

  def __call__(self, x_BLD, rotation, segment_ids_BL, backend, cache, layer):
    x_BLD = cpu.named_with_gradient(sharding.constrain_places(x_BLD), INPUT)
    attended_BLD, cache = self.attn(
      self.attn_norm(x_BLD), rotation, segment_ids_BL, backend, cache, layer
    )
    x_BLD = x_BLD + attended_BLD
    return x_BLD + self.mlp(self.mlp_norm(x_BLD)), cache


class Embedding(nnx.Module):
  def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
    self.weight = nnx.Param(_normal(rngs, (c.vocab_size, c.embed_dim)))


class Decoder(nnx.Module):
  def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
    self.config = c
    self.embed = Embedding(c, rngs)
    new_layer = nnx.vmap(lambda rngs: Layer(c, rngs))
    self.layers = new_layer(rngs.fork(split=c.num_layers))
    self.norm = norm.RMSNorm(c.embed_dim, c.norm_eps)
    self.lm_head = None if c.tie_embeddings else Embedding(c, rngs)

  def head(self) -> jax.Array:
    """head_VD, the output matrix."""
    return (self.lm_head or self.embed).weight[...]

  def __call__(
    self,
    tokens_BL: jax.Array,
    positions_BL: jax.Array,
    segment_ids_BL: jax.Array,
    compute_dtype: str,
    remat: str = "none",
    cache: Cache | None = None,
    backend: backends.Backend | backends.FromCache = BLOCKWISE,
  ) -> tuple[jax.Array, Cache | None]:
    """Final hidden states (normed), and the cache with these tokens in it.

    Args:
      tokens_BL: int32 ids.
      positions_BL: int32, for RoPE only.
      segment_ids_BL: int32; attention stays inside a segment; 0 is padding.
      compute_dtype: of the products, "bfloat16" or "float32".
      remat: what the backward pass recomputes: "none", "dots" (all but linear
        layers and attention) or "full" (all but the inputs of each layer).
      cache: None in training.
      backend: a kernel for training, and for whole prompts into an empty cache;
        FromCache to attend to the cache too, for the next part of a prompt or a token.

    Returns:
      hidden_BLD in compute_dtype, and the new cache or None.
    """
    x_BLD = self.embed.weight[...][tokens_BL].astype(compute_dtype)
    L = tokens_BL.shape[1]
    if cache is not None:
      cache = dataclasses.replace(
        cache,
        segment_ids=jax.lax.dynamic_update_slice(
          cache.segment_ids, segment_ids_BL, (0, cache.length)
        ),
      )
    inverse_P, scale = rope.inverse_frequencies(self.config.rope, self.config.head_dim)
    rotation = rope.rotation(positions_BL, inverse_P, scale)
    layer_def, layer_params = nnx.split(self.layers)

    def run_layer(carry, params_and_index):
      x_BLD, cache = carry
      params, index = params_and_index
      layer = nnx.merge(layer_def, jax.tree.map(cpu.from_bits, params))
      layer_rotation = rotation
      if self.config.nope_layers:
        rotates = jnp.all(index != jnp.array(self.config.nope_layers))
        layer_rotation = rope.only_if(rotates, *rotation)
      return layer(x_BLD, layer_rotation, segment_ids_BL, backend, cache, index), None

    indices = jnp.arange(self.config.num_layers)
    (x_BLD, cache), _ = jax.lax.scan(
      REMAT[remat](run_layer), (x_BLD, cache), (layer_params, indices)
    )
    if cache is not None:
      cache = dataclasses.replace(cache, length=cache.length + L)
    return self.norm(x_BLD), cache


def _keep(policy):
  return functools.partial(jax.checkpoint, policy=policy)


def _of_kernel(primitive, *inputs, **params) -> bool:
  """Whether this is a fused attention kernel; our own is named (attention.KEPT)."""
  if primitive.name == "custom_vjp_call":  # Triton's kernel in its own gradient rule
    return "pallas_call" in str(params)
  return primitive.name in ("pallas_call", "dot_product_attention_fwd_wrapper")


_named = jax.checkpoint_policies.save_only_these_names
REMAT = {
  "none": lambda f: f,
  "dots": _keep(
    jax.checkpoint_policies.save_from_both_policies(
      _named(INPUT, PRODUCT, attention.KEPT), _of_kernel
    )
  ),
  "full": _keep(_named(INPUT)),
}


@functools.cache
def definition(config: ModelConfig) -> tuple[nnx.GraphDef, Params]:
  """The model without weights, and their shapes as a nested dict."""
  abstract = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
  graph, state = nnx.split(abstract)
  return graph, nnx.to_pure_dict(state)


def init(config: ModelConfig, seed: int) -> Params:
  """Random fp32 weights."""
  return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(seed))))


def bind(config: ModelConfig, params: Params) -> Decoder:
  """The NNX model with these weights, from a plain dict."""
  return nnx.merge(definition(config)[0], nnx.State(params))


def logits(
  params: Params,
  config: ModelConfig,
  tokens_BL: jax.Array,
  positions_BL: jax.Array,
  segment_ids_BL: jax.Array,
  compute_dtype: str,
) -> jax.Array:
  """logits_BLV fp32, all at once: for parity checks, not for training."""
  decoder = bind(config, params)
  hidden_BLD, _ = decoder(tokens_BL, positions_BL, segment_ids_BL, compute_dtype)
  head_VD = decoder.head().astype(compute_dtype)
  return products.einsum("bld,vd->blv", hidden_BLD, head_VD)


def read(
  params: Params,
  tokens_BL: jax.Array,
  positions_BL: jax.Array,
  segment_ids_BL: jax.Array,
  cache: Cache,
  config: ModelConfig,
  compute_dtype: str,
  backend: backends.Backend | backends.FromCache,
) -> tuple[jax.Array, Cache]:
  """hidden_BLD of these tokens, and the cache with them in it."""
  return bind(config, params)(
    tokens_BL,
    positions_BL,
    segment_ids_BL,
    compute_dtype,
    cache=cache,
    backend=backend,
  )


def extend(
  params: Params,
  tokens_BL: jax.Array,
  positions_BL: jax.Array,
  segment_ids_BL: jax.Array,
  cache: Cache,
  config: ModelConfig,
  compute_dtype: str,
  backend: backends.Backend | backends.FromCache,
) -> tuple[jax.Array, Cache]:
  """Reads part of a prompt, or one token, for generation.

  Returns:
    logits_BV fp32 after the last token of each row, and the cache with all of
    these tokens in it. Not rounded to bf16, in which the first tokens are often equal.
  """
  rows = tokens_BL, positions_BL, segment_ids_BL
  hidden_BLD, cache = read(params, *rows, cache, config, compute_dtype, backend)
  head_VD = bind(config, params).head().astype(compute_dtype)
  logits = lambda hidden_BD: products.einsum("bd,vd->bv", hidden_BD, head_VD)
  return cpu.few_rows(logits, hidden_BLD[:, -1]), cache


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> jax.Array:
  return 0.02 * jax.random.normal(rngs.params(), shape)

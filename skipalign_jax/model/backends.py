"""Attention backends with one signature.

Shapes: B batch, L length, N heads, K kv heads, H head dim, M segments of a row.

Every backend is `(q_BLNH, k_BLKH, v_BLKH, segment_ids_BL) → out_BLNH`: causal by
array index, inside a segment, for any positions; softmax in fp32. Segments
are runs of equal ids. Only "xla" holds all L×L scores.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from skipalign_jax import config as config_lib
from skipalign_jax.model import attention, cpu, sharding
from skipalign_jax.runtime import errors

TILE = 128  # the kernels' length granularity
CPU_BLOCK, ACCELERATOR_BLOCK = 512, 2048  # keys of a cache at a time


@dataclasses.dataclass(frozen=True)
class Backend:
  """One choice of kernel.

  Attributes:
    name: key of BACKENDS.
    max_segments: the largest number of runs of equal segment ids in a row; 2 is one
      sample and the padding after it. cuDNN needs it.
  """

  name: str
  max_segments: int


@dataclasses.dataclass(frozen=True)
class FromCache:
  """Attention of new places to a KV cache that holds them.

  Attributes:
    block: keys whose scores exist at one time; 0 for all keys, masked.
  """

  block: int


def choose_cached(platform: str, new_places: int) -> FromCache:
  """How new places attend to a cache: in blocks, except single tokens on accelerators.

  There a loop costs more than reading places that are not in use, and a cache whose
  places are on several devices is read where it is. On CPUs single tokens read smaller
  blocks, less of which is not in use.
  """
  if platform == "cpu":
    return FromCache(CPU_BLOCK // 4 if new_places == 1 else CPU_BLOCK)
  return FromCache(0 if new_places == 1 else ACCELERATOR_BLOCK)


def cache_multiple(platform: str) -> int:
  """What a cache's number of places is a multiple of: all its blocks are whole."""
  return CPU_BLOCK if platform == "cpu" else ACCELERATOR_BLOCK


def choose(
  name: str,
  platform: str,
  dtype: str,
  length: int,
  head_dim: int,
  max_segments: int,
) -> Backend:
  """The backend that `attention.backend=name` means.

  Args:
    name: "auto" or a key of BACKENDS.
    platform: of the devices: "cpu", "gpu" or "tpu"; "cuda" of GPUs that are not here.
    dtype: of the products.
    length: L.
    head_dim: H.
    max_segments: see Backend.

  Raises:
    UserError: the kernel does not exist for these; the message lists what it needs.
  """
  config_lib.check_section("attention", {"backend": name})
  gpu = platform == "cuda" or (platform == "gpu" and _have_kernels())
  packed, narrow, whole = max_segments > 2, dtype == "bfloat16", length % TILE == 0
  needs = {
    "cudnn": (
      gpu and narrow and head_dim % 8 == 0 and head_dim <= 128,
      "an NVIDIA GPU (Ampere or later), model.compute_dtype=bfloat16 and head_dim a "
      "multiple of 8 up to 128",
    ),
    "triton": (
      gpu and narrow and whole and head_dim <= 128,
      "an NVIDIA GPU (Ampere or later), model.compute_dtype=bfloat16, data.seq_len a "
      f"multiple of {TILE} and head_dim up to 128",
    ),
    "splash": (
      platform == "tpu" and narrow and whole,
      f"a TPU, model.compute_dtype=bfloat16 and data.seq_len a multiple of {TILE}",
    ),
  }
  if name == "auto":
    # Packed rows on cuDNN need Hopper; Triton's kernel runs from Ampere on.
    first = "triton" if packed else "cudnn"
    fitting = [other for other in (first, "splash") if needs[other][0]]
    return Backend(fitting[0] if fitting else "blockwise", max_segments)
  fits, what = needs.get(name, (True, ""))
  if not fits:
    raise errors.UserError(
      f"attention.backend={name} needs {what}; here: {platform}, {dtype}, length "
      f"{length}, head_dim {head_dim}. Use attention.backend=auto."
    )
  return Backend(name, max_segments)


def _have_kernels() -> bool:
  """Whether the GPUs of this process run cuDNN's and Triton's kernels.

  NVIDIA's from Ampere on do: their compute capability is 8.0 or more. AMD's is no
  number.
  """
  found = (getattr(device, "compute_capability", "8.0") for device in jax.devices())
  majors = [capability.partition(".")[0] for capability in found]
  return all(major.isdecimal() and int(major) >= 8 for major in majors)


def attend(
  q_BLNH: jax.Array,
  k_BLKH: jax.Array,
  v_BLKH: jax.Array,
  segment_ids_BL: jax.Array,
  backend: Backend,
) -> jax.Array:
  """out_BLNH by the chosen backend."""
  kernel = BACKENDS[backend.name]
  if backend.name == "cudnn":
    kernel = functools.partial(cudnn, max_segments=backend.max_segments)
  return kernel(q_BLNH, k_BLKH, v_BLKH, segment_ids_BL)


def attend_cache(
  q_BLNH: jax.Array,
  k_ABSKH: jax.Array,
  v_ABSKH: jax.Array,
  query_segments_BL: jax.Array,
  key_segments_BS: jax.Array,
  start: jax.Array,
  layer: jax.Array,
  how: FromCache,
) -> jax.Array:
  """out_BLNH: see `attention.cached`; on meshes, each device its own heads."""
  if not how.block:
    may_attend_BLS = attention.mask_of_cache(
      start + jnp.arange(q_BLNH.shape[1]), query_segments_BL, key_segments_BS
    )
    k_BSKH, v_BSKH = _layer(k_ABSKH, layer), _layer(v_ABSKH, layer)
    return attention.plain(q_BLNH, k_BSKH, v_BSKH, may_attend_BLS)
  if not sharding.is_split():
    return attention.cached(
      q_BLNH,
      k_ABSKH,
      v_ABSKH,
      query_segments_BL,
      key_segments_BS,
      start,
      layer,
      how.block,
    )

  def attend(q_BLNH, k_BSKH, v_BSKH, query_segments_BL, key_segments_BS, start):
    one_layer = lambda x_BSKH: x_BSKH[None]
    return attention.cached(
      q_BLNH,
      one_layer(k_BSKH),
      one_layer(v_BSKH),
      query_segments_BL,
      key_segments_BS,
      start,
      jnp.int32(0),
      how.block,
    )

  return sharding.over_heads(attend)(
    q_BLNH,
    _layer(k_ABSKH, layer),
    _layer(v_ABSKH, layer),
    query_segments_BL,
    key_segments_BS,
    start,
  )


def _layer(x_ABSKH: jax.Array, layer: jax.Array) -> jax.Array:
  """x_BSKH, one layer of a cache."""
  return cpu.from_bits(x_ABSKH[layer])


def reference(q_BLNH, k_BLKH, v_BLKH, segment_ids_BL):
  """The definition: all scores at once."""
  index_L = jnp.arange(q_BLNH.shape[1])
  may_attend_BLS = attention.mask(index_L, segment_ids_BL, segment_ids_BL)
  return attention.plain(q_BLNH, k_BLKH, v_BLKH, may_attend_BLS)


def cudnn(q_BLNH, k_BLKH, v_BLKH, segment_ids_BL, max_segments):
  """cuDNN's flash attention.

  A row of one sample is described by its length; packed rows by the offsets and
  lengths of their segments, which cuDNN supports from Hopper on.
  """
  if max_segments <= 2:
    length_B = jnp.maximum(jnp.sum(segment_ids_BL > 0, axis=1), 1)
    return jax.nn.dot_product_attention(
      q_BLNH,
      k_BLKH,
      v_BLKH,
      is_causal=True,
      query_seq_lengths=length_B,
      key_value_seq_lengths=length_B,
      implementation="cudnn",
    )
  # Not in jax.nn yet.
  from jax._src.cudnn import fused_attention_stablehlo as fused

  offsets_BM, lengths_BM = runs(segment_ids_BL, max_segments)
  try:
    return fused.dot_product_attention(
      q_BLNH,
      k_BLKH,
      v_BLKH,
      q_seqlen=lengths_BM,
      kv_seqlen=lengths_BM,
      q_offsets=offsets_BM,
      kv_offsets=offsets_BM,
      scale=q_BLNH.shape[-1] ** -0.5,
      mask_type=fused.MaskType.PADDING_CAUSAL,
    )
  except NotImplementedError as error:
    raise errors.UserError(
      f"attention.backend=cudnn with data.packing: {error} Use "
      "attention.backend=triton, or data.packing=False."
    ) from error


def runs(segment_ids_BL: jax.Array, max_segments: int) -> tuple[jax.Array, jax.Array]:
  """Where the runs of equal ids begin, and their lengths.

  Returns:
    offsets int32 [B, M + 1] and lengths int32 [B, M]; −1 after the last run.
  """
  before_BL = jnp.pad(segment_ids_BL[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  run_BL = jnp.cumsum(segment_ids_BL != before_BL, axis=1) - 1
  count = functools.partial(jnp.bincount, length=max_segments + 1)
  lengths_BM = jax.vmap(count)(run_BL).astype(jnp.int32)
  offsets_BM = jnp.cumsum(lengths_BM, axis=1) - lengths_BM
  absent_BM = lengths_BM == 0
  offsets_BM = jnp.where(absent_BM, -1, offsets_BM)
  return offsets_BM, jnp.where(absent_BM, -1, lengths_BM)[:, :-1]


def triton(q_BLNH, k_BLKH, v_BLKH, segment_ids_BL, interpret=False):
  """JAX's flash attention for NVIDIA GPUs, written in Pallas for Triton."""
  from jax.experimental.pallas.ops.gpu import attention as pallas_gpu

  # The kernel does not support grouped queries.
  group = q_BLNH.shape[2] // k_BLKH.shape[2]
  k_BLNH, v_BLNH = (jnp.repeat(x, group, axis=2) for x in (k_BLKH, v_BLKH))
  return pallas_gpu.mha(
    q_BLNH,
    k_BLNH,
    v_BLNH,
    segment_ids_BL,
    sm_scale=q_BLNH.shape[-1] ** -0.5,
    causal=True,
    interpret=interpret,
  )


def splash(q_BLNH, k_BLKH, v_BLKH, segment_ids_BL, interpret=False):
  """JAX's Splash attention for TPUs, which skips tiles that are masked."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as pallas_tpu,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

  _, L, N, H = q_BLNH.shape
  block = next(size for size in (512, 256, TILE) if L % size == 0)
  kernel = pallas_tpu.make_splash_mha(
    mask=splash_attention_mask.MultiHeadMask(
      [splash_attention_mask.CausalMask((L, L))] * N
    ),
    block_sizes=pallas_tpu.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  segments = pallas_tpu.SegmentIds(segment_ids_BL, segment_ids_BL)
  heads_first = lambda x: x.swapaxes(1, 2)
  out_BNLH = jax.vmap(kernel)(  # the kernel does not scale the scores
    heads_first((q_BLNH * H**-0.5).astype(q_BLNH.dtype)),
    heads_first(k_BLKH),
    heads_first(v_BLKH),
    segments,
  )
  return out_BNLH.swapaxes(1, 2)


BACKENDS = {
  "xla": reference,
  "blockwise": attention.blockwise,
  "cudnn": cudnn,
  "triton": triton,
  "splash": splash,
}

"""The attention backends of this machine's devices, against the definition.

Shapes: B batch, L length, N heads, K kv heads, H head dim.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from skipalign_jax.model import backends, rope
from skipalign_jax.runtime import errors

HEADS, KV_HEADS = 8, 2
# Largest error of an output or gradient, by its largest value. bf16 has 8 bits. Where
# accelerators multiplied fp32 with fewer bits, which `model.products` does not allow,
# it would be 6e-4 (TF32, 11 bits) or 5e-3 (a TPU's default, 8); a CPU has 1e-6.
BOUNDS = {"bfloat16": 0.02, "float32": 1e-5}
ACCELERATOR_FP32 = 1e-4


@dataclasses.dataclass(frozen=True)
class Case:
  """One backend, and what it is tried on.

  Attributes:
    backend: key of backends.BACKENDS.
    dtype: of q, k and v.
    head_dim: H.
    packed: rows of several samples, or of one sample and padding.
  """

  backend: str
  dtype: str
  head_dim: int
  packed: bool

  def segments(self, length: int) -> np.ndarray:
    """segment_ids_BL of two rows with padding."""
    segments_BL = np.zeros((2, length), np.int32)
    segments_BL[:, : length - length // 8] = 1
    if self.packed:
      first, second = length // 4, length // 4 + 1
      segments_BL[0, first:second] = 2
      segments_BL[0, second : length // 2] = 3
      segments_BL[1, length // 3 : length // 2] = 2
    return segments_BL


def cases(platform: str, length: int, head_dims: tuple[int, ...]) -> Iterator[Case]:
  """Those that exist on a platform at a length."""
  for name in backends.BACKENDS:
    for dtype in BOUNDS:
      for head_dim in head_dims:
        for packed in (False, True):
          case = Case(name, dtype, head_dim, packed)
          try:
            backends.choose(name, platform, dtype, length, head_dim, _runs(case))
          except errors.UserError:
            continue
          yield case


def bound(case: Case, platform: str) -> float:
  """The largest error that is allowed."""
  if case.dtype == "float32" and platform != "cpu":
    return ACCELERATOR_FP32
  return BOUNDS[case.dtype]


def error(case: Case, length: int) -> float:
  """The largest error of output and gradients, each by its largest value.

  Against the definition in fp32, on the same device with all bits. q and k are rotated
  by positions that skip ahead. What padding gives does not count.

  Raises:
    UserError: the device cannot run the backend on these rows.
  """
  backend = backends.Backend(case.backend, _runs(case))
  segments_BL = jnp.asarray(case.segments(length))
  attend = lambda *qkv: backends.attend(*qkv, segments_BL, backend)
  found = _with_gradients(attend, *_inputs(case, segments_BL), segments_BL)
  expected = _defined(dataclasses.replace(case, backend="xla"), length)
  pairs = zip(found, expected, strict=True)
  return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


@functools.lru_cache
def _defined(case: Case, length: int) -> list[np.ndarray]:
  """Output and gradients by the definition, in fp32 with all bits."""
  segments_BL = jnp.asarray(case.segments(length))
  qkv, d_out_BLNH = _inputs(case, segments_BL)
  wide = lambda x: x.astype(jnp.float32)
  define = lambda *qkv: backends.reference(*qkv, segments_BL)
  with jax.default_matmul_precision("highest"):
    return _with_gradients(
      define, jax.tree.map(wide, qkv), wide(d_out_BLNH), segments_BL
    )


def _runs(case: Case) -> int:
  """Runs of equal segment ids in a row, at most: samples and the padding."""
  return 5 if case.packed else 2


def _inputs(
  case: Case, segments_BL: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
  """q, k and v of a layer, and the gradient of its output."""
  rng = np.random.default_rng(0)
  B, L = segments_BL.shape
  draw = lambda heads: jnp.asarray(
    rng.standard_normal((B, L, heads, case.head_dim)), jnp.float32
  )
  positions_BL = np.cumsum(rng.choice([1, 1, 1, 900], (B, L)), axis=1)
  rate_P = 1e4 ** (-np.arange(case.head_dim // 2) / (case.head_dim // 2))
  turn = rope.rotation(jnp.asarray(positions_BL), jnp.asarray(rate_P, jnp.float32), 1.0)
  q_BLNH, k_BLKH = (rope.apply(draw(heads), *turn) for heads in (HEADS, KV_HEADS))
  given = (q_BLNH, k_BLKH, draw(KV_HEADS), draw(HEADS))
  q_BLNH, k_BLKH, v_BLKH, d_out_BLNH = (x.astype(case.dtype) for x in given)
  return (q_BLNH, k_BLKH, v_BLKH), d_out_BLNH


def _with_gradients(
  attend: Callable[..., jax.Array],
  qkv: tuple[jax.Array, ...],
  d_out_BLNH: jax.Array,
  segments_BL: jax.Array,
) -> list[np.ndarray]:
  """The output and the gradients of q, k and v, in fp32."""
  used_BL11 = (segments_BL > 0)[..., None, None]

  @jax.jit
  def run(qkv, d_out_BLNH):
    out_BLNH, pull = jax.vjp(attend, *qkv)
    return out_BLNH * used_BL11, pull((d_out_BLNH * used_BL11).astype(out_BLNH.dtype))

  out_BLNH, gradients = run(qkv, d_out_BLNH)
  return [np.asarray(x, np.float32) for x in (out_BLNH, *gradients)]

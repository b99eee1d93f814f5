"""Rotary position embeddings: inverse frequencies and their application.

Shapes: B batch, L length, N heads, H head dim, P = H/2 rotated pairs.

`inverse_frequencies` is computed once from the config on the host; `rotation` is
the only place where positions enter the model. Angles are fp32 products of
int32 positions, never looked up in a table and never bf16 (in which position 257
equals 256).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.runtime import errors

# "model" stands for one of the others.
KINDS = tuple(kind for kind in config_lib.KEYS["rope.kind"].choices if kind != "model")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """How positions become angles.

  Attributes:
    kind: one of `KINDS`.
    theta: base of the unscaled frequencies.
    factor: window extension s = target length / original window; 1 for none.
    original_window: tokens the model was pretrained on (yarn, llama3).
    beta_fast, beta_slow: yarn's ramp, in turns over the original window.
    attention_factor: yarn's cos/sin multiplier; None for 0.1 ln(factor) + 1.
    low_freq_factor, high_freq_factor: llama3's wavelength band.
  """

  kind: str
  theta: float
  factor: float = 1.0
  original_window: int = 0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0

  def __post_init__(self):
    if self.kind == "dynamic":
      raise errors.UserError(
        "rope.kind=dynamic cannot be trained: its base depends on the longest "
        "position seen so far. Use rope.kind=ntk with rope.target_length."
      )
    if self.kind not in KINDS:
      raise errors.UserError(
        f"rope.kind={self.kind!r} is unknown; choose one of {', '.join(KINDS)}"
      )
    config_lib.check_section("rope", {"theta": self.theta})
    if not 1 <= self.factor < math.inf:
      raise errors.UserError(f"rope factor {self.factor} must be at least 1")
    bands = ("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")
    for name in (*bands, "attention_factor"):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise errors.UserError(f"rope {name}={value} must be above 0")
    if self.low_freq_factor >= self.high_freq_factor:
      raise errors.UserError(
        f"rope low_freq_factor={self.low_freq_factor} must be below "
        f"high_freq_factor={self.high_freq_factor}"
      )
    if self.kind in ("yarn", "llama3") and self.original_window <= 0:
      raise errors.UserError(
        f"rope.kind={self.kind} needs the original window of the model"
      )


def ntk_theta(theta: float, factor: float, head_dim: int) -> float:
  """NTK-aware base θ' = θ·s^(d/(d−2)): first pair unscaled, last exactly 1/s."""
  return theta * factor ** (head_dim / (head_dim - 2))


def inverse_frequencies(config: RopeConfig, head_dim: int) -> tuple[np.ndarray, float]:
  """Angular rate of each rotated pair, radians per position.

  Args:
    config: the rope.
    head_dim: H, even.

  Returns:
    inv_freq_P fp32, and the factor that multiplies cos and sin (1 but for
    yarn). Sources: PI 2306.15595, NTK-aware scaling and YaRN 2309.00071,
    Llama 3.1's wavelength bands.
  """
  assert head_dim % 2 == 0, head_dim
  theta = config.theta
  if config.kind == "ntk":
    theta = ntk_theta(theta, config.factor, head_dim)
  # In fp32 and in this order, to get the bits of PyTorch, with which the models were
  # pretrained: one unit in the last place turns position 100 000 by 6e-3.
  exponent_P = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  wide_P = np.float64(np.float32(theta)) ** exponent_P.astype(np.float64)
  inv_P = np.float32(1) / wide_P.astype(np.float32)
  scale = 1.0
  match config.kind:
    case "linear":
      inv_P = inv_P / config.factor
    case "yarn":
      inv_P = _yarn(config, head_dim, inv_P)
      scale = config.attention_factor
      if scale is None:
        scale = 0.1 * math.log(config.factor) + 1.0
    case "llama3":
      inv_P = _llama3(config, inv_P)
  assert inv_P.dtype == np.float32, inv_P.dtype
  return inv_P, float(scale)


def alike(one: RopeConfig, other: RopeConfig, head_dim: int) -> bool:
  """Whether two ropes turn alike; NTK may be spelled as the base that it means."""
  (one_P, one_scale), (other_P, other_scale) = (
    inverse_frequencies(config, head_dim) for config in (one, other)
  )
  same = np.allclose(one_P, other_P, rtol=1e-5, atol=0)
  return bool(same and np.isclose(one_scale, other_scale))


def _yarn(config: RopeConfig, head_dim: int, inv_P: np.ndarray) -> np.ndarray:
  def pair_with_turns(turns: float) -> float:
    """The (real) pair index that makes `turns` over the original window."""
    rate = turns * 2 * math.pi / config.original_window
    return -head_dim * math.log(rate) / (2 * math.log(config.theta))

  low = max(math.floor(pair_with_turns(config.beta_fast)), 0)
  high = min(math.ceil(pair_with_turns(config.beta_slow)), head_dim - 1)
  span = max(high - low, 0.001)
  pair_P = np.arange(head_dim // 2, dtype=np.float32)
  interpolate_P = np.clip((pair_P - low) / span, 0, 1)
  return inv_P * (1 - interpolate_P) + inv_P / config.factor * interpolate_P


def _llama3(config: RopeConfig, inv_P: np.ndarray) -> np.ndarray:
  turns_P = config.original_window / (2 * math.pi / inv_P)
  low, high = config.low_freq_factor, config.high_freq_factor
  keep_P = np.clip((turns_P - low) / (high - low), 0, 1)
  return inv_P * keep_P + inv_P / config.factor * (1 - keep_P)


def rotation(
  positions_BL: jax.Array, inv_freq_P: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array]:
  """cos_BLP and sin_BLP of position × rate, fp32, times `scale`.

  The same for all layers, so computed once per step and not in each of them.
  """
  angle_BLP = positions_BL[:, :, None].astype(jnp.float32) * inv_freq_P
  return jnp.cos(angle_BLP) * scale, jnp.sin(angle_BLP) * scale


def only_if(
  rotates: jax.Array, cos_BLP: jax.Array, sin_BLP: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The rotation, or one that changes nothing: for layers without rope."""
  return jnp.where(rotates, cos_BLP, 1.0), jnp.where(rotates, sin_BLP, 0.0)


def apply(x_BLNH: jax.Array, cos_BLP: jax.Array, sin_BLP: jax.Array) -> jax.Array:
  """Rotates the pairs (h, h + H/2) of every head, in fp32."""
  cos_BL1P, sin_BL1P = cos_BLP[:, :, None], sin_BLP[:, :, None]
  first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos_BL1P - second * sin_BL1P, second * cos_BL1P + first * sin_BL1P],
    axis=-1,
  )
  return rotated.astype(x_BLNH.dtype)

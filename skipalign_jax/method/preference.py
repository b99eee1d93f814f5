"""Preference training: of two replies to one prompt, the chosen one becomes likelier.

With y_w the chosen reply to x, y_l the rejected one, and π0 the model that the run
starts from, as it was there:

  DPO (2305.18290)     r(y) = β (log π(y|x) − log π0(y|x))
                       loss = −log σ(r(y_w) − r(y_l))
  SimPO (2405.14734)   r(y) = β/|y| · log π(y|x)
                       loss = −log σ(r(y_w) − r(y_l) − β·margin)

r is the implicit reward. A pair is two segments of one row: 2k − 1 has the prompt and
the chosen reply, 2k the same prompt and the rejected one. So no packing, microbatch or
mesh parts it. log π(y|x) is the sum over the targets of a segment.

Shapes: B rows, L places per row, P pairs per row (at most L // 2, so P = L // 2); the
last axis of [B, P, 2] is (chosen, rejected).
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections

from skipalign_jax import config as config_lib
from skipalign_jax.runtime import errors

# Keys of the section `loss` that a kind reads, besides chunk.
_READ_BY = {
  "sft": ("reduction",),
  "dpo": ("beta", "reference"),
  "simpo": ("beta", "margin"),
}


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
  """What is minimised.

  Attributes:
    kind: "sft" (no pairs), "dpo" or "simpo".
    beta: β; None only for sft.
    margin: γ/β of SimPO.
    reference: positions at which π0 reads a pair: "strategy", those of the run, or
      "contiguous".
  """

  kind: str = "sft"
  beta: float | None = None
  margin: float = 0.0
  reference: str = "strategy"

  def __post_init__(self):
    config_lib.check_section("loss", vars(self))

  @property
  def has_pairs(self) -> bool:
    """Whether a sample is a pair of replies."""
    return self.kind != "sft"


def from_config(loss: ml_collections.ConfigDict) -> PreferenceConfig:
  """From the section `loss` of a config."""
  names = [field.name for field in dataclasses.fields(PreferenceConfig)]
  return PreferenceConfig(**{name: loss[name] for name in names})


def check(config: ml_collections.ConfigDict) -> None:
  """Checks the keys of a whole config that belong to the kind of loss.

  Raises:
    UserError: a key has no effect with it, is missing, or does not go with pairs.
  """
  loss, kind = config.loss, f"loss.kind={config.loss.kind}"
  for key in ("reduction", "beta", "margin", "reference"):
    default = config_lib.KEYS[f"loss.{key}"].default
    if key not in _READ_BY[loss.kind] and loss[key] != default:
      users = " or ".join(name for name, keys in _READ_BY.items() if key in keys)
      raise errors.UserError(
        f"loss.{key}={loss[key]} has no effect with {kind}; leave it at {default}, or "
        f"use loss.kind={users}"
      )
  if loss.kind == "sft":
    return
  if loss.beta is None:
    raise errors.UserError(f"{kind} needs loss.beta, such as 0.1 (dpo) or 2.5 (simpo)")
  for key, possible in (
    ("long_short.alpha", (0.0,)),
    ("distill.weight", (0.0,)),
    ("data.text_window", (0,)),
    ("data.packing_mask", (True,)),
    ("data.rewritten", ("last",)),
    ("data.overlong", ("truncate", "drop")),
  ):
    section, name = key.split(".")
    if config[section][name] not in possible:
      raise errors.UserError(
        f"{key}={config[section][name]} is not possible with {kind}, which learns from "
        f"pairs of replies; set {key}={' or '.join(map(str, possible))}"
      )
  _check_reference(config)


def _check_reference(config: ml_collections.ConfigDict) -> None:
  """The reference is computed once, so its positions must not change."""
  p = config.positions
  if config.loss.reference == "contiguous" or p.strategy == "contiguous":
    return
  if config.loss.kind == "dpo" and (p.resample != "never" or p.schedule):
    raise errors.UserError(
      "loss.reference=strategy reads each pair once at the positions of the run, and "
      f"positions.resample={p.resample} with positions.schedule={p.schedule!r} changes "
      "them; set positions.resample=never and positions.schedule='', or "
      "loss.reference=contiguous"
    )


def of_pairs(x_BL: jax.Array, segment_ids_BL: jax.Array) -> jax.Array:
  """Sums over the segments of each row, as pairs [B, P, 2]; 0 without a segment."""
  P = x_BL.shape[1] // 2
  sums = lambda x_L, segment_L: jax.ops.segment_sum(x_L, segment_L, 2 * P + 1)
  sums_BS = jax.vmap(sums)(x_BL, segment_ids_BL)
  return sums_BS[:, 1:].reshape(-1, P, 2)  # 0 is padding


def count(weight_BL: jax.Array, segment_ids_BL: jax.Array) -> jax.Array:
  """Number of pairs in a batch; fp32 scalar."""
  targets_BP2 = of_pairs(weight_BL, segment_ids_BL)
  return jnp.sum(jnp.all(targets_BP2 > 0, axis=-1), dtype=jnp.float32)


def log_probs(
  log_p_BL: jax.Array, weight_BL: jax.Array, segment_ids_BL: jax.Array
) -> jax.Array:
  """log π(y|x) of the replies [B, P, 2], from log p of each place's target."""
  counted_BL = jnp.where(weight_BL > 0, log_p_BL, 0.0)  # NaN elsewhere does not matter
  return of_pairs(counted_BL, segment_ids_BL)


def loss_sum(
  config: PreferenceConfig,
  log_p_BL: jax.Array,
  weight_BL: jax.Array,
  segment_ids_BL: jax.Array,
  reference_BL: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Σ loss over the pairs of some rows, and sums of what is reported; fp32 scalars.

  Args:
    config: its kind is dpo or simpo.
    log_p_BL: log p of each place's target, fp32.
    weight_BL: 1 where the target counts, else 0.
    segment_ids_BL: as above.
    reference_BL: log π0(y|x) at the first place of each segment, 0 elsewhere. SimPO
      does not read it.
  """
  targets_BP2 = of_pairs(weight_BL, segment_ids_BL)
  rewards_BP2 = log_probs(log_p_BL, weight_BL, segment_ids_BL)
  margin = 0.0
  if config.kind == "dpo":
    rewards_BP2 -= of_pairs(reference_BL, segment_ids_BL)
  else:
    rewards_BP2 /= jnp.maximum(targets_BP2, 1)
    margin = config.beta * config.margin
  rewards_BP2 *= config.beta
  gap_BP = rewards_BP2[..., 0] - rewards_BP2[..., 1]
  is_pair_BP = jnp.all(targets_BP2 > 0, axis=-1)
  total = lambda x_BP: jnp.sum(jnp.where(is_pair_BP, x_BP, 0.0))
  loss = total(-jax.nn.log_sigmoid(gap_BP - margin))
  return loss, {
    "loss": loss,
    "rewards/chosen": total(rewards_BP2[..., 0]),
    "rewards/rejected": total(rewards_BP2[..., 1]),
    "rewards/margin": total(gap_BP),
    "rewards/accuracy": total(gap_BP > 0),
  }

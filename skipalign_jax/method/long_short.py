"""Long-Short Alignment as a regulariser (arXiv 2506.11769): a long and a short context
should give the same next-token distribution.

  loss = L_train + α · mean over pairs of SCE(p, q),   SCE(p, q) = H(p, q) + H(q, p)
  p: next-token distribution at place t, given the whole sample before it
  q: the same, given all but the sample's first l_extra tokens

The paper reads l_train + l_extra tokens, gives the first l_train to window A, the last
l_train to window B, and pairs A[l_extra:] with B[: l_train − l_extra]. Place by place
that is the sample with and without its first l_extra tokens; what B reads after A's
end is in no pair. So window B is here the same row in which the first l_extra tokens of
every sample belong to a segment of their own. Places, positions and targets do not
change: packed rows need nothing more, no window starts in a neighbour, and skipped
positions can be used too (B's are A's; RoPE sees only their differences).

l_extra ~ U{1 … ⌊m/2⌋} is drawn for every sample and step; a sample of m tokens is its
own l_train.

Shapes: B rows, L tokens per row.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from skipalign_jax import config as config_lib
from skipalign_jax.method import positions

HARMFUL_ALPHA = 0.5  # from this α on the paper reports worse long-context scores
STREAM = 2  # sets the random numbers apart from those of positions


@dataclasses.dataclass(frozen=True)
class LongShortConfig:
  """How the regulariser counts.

  Attributes:
    alpha: its weight; 0.1 to 0.3 helps, from 0.5 on it harms (paper, table on α).
    stop_gradient: the side that is a constant: "long" makes p a fixed teacher, "short"
      q; "none" trains both, as the paper does.
    min_context: pairs whose short context has fewer tokens do not count.
  """

  alpha: float
  stop_gradient: str
  min_context: int

  def __post_init__(self):
    config_lib.check_section("long_short", vars(self))


def windows(
  config: LongShortConfig,
  seed: int,
  step: jax.Array,
  batch: Mapping[str, jax.Array],
  weight_BL: jax.Array,
) -> dict[str, jax.Array]:
  """The short window of each sample, and which places make a pair.

  Args:
    config: min_context is read.
    seed: of the run.
    step: its number; each step draws its own windows.
    batch: `segment_ids` and `sample_ids`, [B, L].
    weight_BL: of each place's target in the loss; 0 where there is no target.

  Returns:
    segment_ids_2_BL int32: 0 on padding, 2s − 1 on the l_extra hidden tokens of
    segment s, 2s on the rest. pair_weight_BL fp32: weight_BL where the short window
    has a context, 0 elsewhere.
  """
  segment_BL = batch["segment_ids"]
  place_BL = positions.contiguous(segment_BL)
  size_BL = jax.vmap(positions.segment_sizes)(segment_BL)
  base = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAM), step)

  def draw(sample_id, size):
    key = jax.random.fold_in(base, sample_id)
    return jax.random.randint(key, (), 1, jnp.maximum(size // 2, 1) + 1)

  extra_BL = jax.vmap(jax.vmap(draw))(batch["sample_ids"], size_BL)
  context_BL = place_BL - extra_BL + 1  # tokens that the short window has read
  used_BL = (segment_BL > 0) & (context_BL >= max(config.min_context, 1))
  return {
    "segment_ids_2": jnp.where(segment_BL > 0, 2 * segment_BL - (context_BL < 1), 0),
    "pair_weight": jnp.where(used_BL, weight_BL, 0.0),
  }

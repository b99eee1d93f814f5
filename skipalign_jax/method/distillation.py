"""Self-distillation over positions (RoPE-Perturbed Self-Distillation, 2604.14339): the
model at one set of positions teaches itself at another.

  loss = CE(p) + λ · mean over pairs of KL(q ‖ p)
  p: at the positions of the teacher, a constant in the KL
  q: at the positions of the student, the same tokens

Two views:

  jump      teacher: the positions P of the run. Student: P_t + y · 1[t ≥ s]
            s ~ a place or the start of a block, y ~ U{1 … Y}
  strategy  teacher: contiguous. Student: the positions that positions.strategy draws.
            A short sample's own answer teaches its stretched copy (ours)

KL is 0 before the first difference, so pairs begin there. Positions stay below L: Y is
at most L − 1 − the last position. Where the paper's text is silent, a key of the config
says what is done.

Shapes: B rows, L tokens per row (in formulas, L is `max_position`).
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from skipalign_jax import config as config_lib
from skipalign_jax.method import positions

STREAM = 3  # sets the random numbers apart from those of positions and of long_short


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  """How the model teaches itself.

  Attributes:
    weight: λ; 0 turns it off.
    view: "jump" or "strategy".
    split: where the jump may be: "block", before any block but the first, or "token".
    reach: what Y is: "sample", the tokens of the sample (the paper's), or "limit", all
      the room up to L. Both stay below L.
    places: which places count: "targets" of the loss with their weights, or "all".
  """

  weight: float = 0.0
  view: str = "jump"
  split: str = "block"
  reach: str = "sample"
  places: str = "targets"

  def __post_init__(self):
    config_lib.check_section("distill", vars(self))


def leaves_room(recipe: positions.PositionConfig) -> bool:
  """Whether samples that a strategy moves can jump: they do not all end at L − 1."""
  at_end = recipe.strategy == "endprompt" and recipe.terminal_at == "end"
  return not at_end and recipe.strategy not in ("cream", "logo")


def views(
  config: DistillConfig,
  limit: jax.Array | int,
  seed: int,
  step: jax.Array,
  batch: Mapping[str, jax.Array],
  weight_BL: jax.Array,
) -> dict[str, jax.Array]:
  """The positions of both reads, and which places make a pair.

  Args:
    config: how they differ.
    limit: L, or L_t of the step; positions stay below it.
    seed: of the run.
    step: its number; each step draws its own jumps.
    batch: `segment_ids`, `block_ids`, `sample_ids` and `positions`, [B, L].
    weight_BL: of each place's target in the loss; 0 where there is no target.

  Returns:
    positions_BL of the teacher and positions_2_BL of the student, int32; and
    pair_weight_BL fp32, 0 where both reads are the same.
  """
  drawn_BL, segment_BL = batch["positions"], batch["segment_ids"]
  if config.view == "strategy":
    teacher_BL, student_BL = positions.contiguous(segment_BL), drawn_BL
  else:
    teacher_BL = drawn_BL
    student_BL = drawn_BL + _jumps(config, limit, seed, step, batch)
  counts_BL = weight_BL if config.places == "targets" else jnp.float32(1)
  # Both reads are the same as long as all tokens moved as far as the first one.
  moved_BL = student_BL - teacher_BL
  first_BL = jnp.arange(moved_BL.shape[1]) - positions.contiguous(segment_BL)
  differs_BL = moved_BL != jnp.take_along_axis(moved_BL, first_BL, axis=1)
  return {
    "positions": teacher_BL,
    "positions_2": student_BL,
    "pair_weight": jnp.where(differs_BL, counts_BL, 0.0),
  }


def _jumps(config, limit, seed, step, batch) -> jax.Array:
  """y · 1[t ≥ s] of every sample; 0 where a sample has no room or no place for it."""
  segment_BL = batch["segment_ids"]
  place_BL = positions.contiguous(segment_BL)
  last_BL = _greatest_of_segment(batch["positions"], segment_BL)
  at_BL = batch["block_ids"] if config.split == "block" else place_BL
  ends_BL = _greatest_of_segment(at_BL, segment_BL)
  room_BL = limit - 1 - last_BL
  if config.reach == "sample":
    size_BL = jax.vmap(positions.segment_sizes)(segment_BL)
    room_BL = jnp.minimum(room_BL, size_BL)
  base = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAM), step)

  def draw(sample_id, end, room):
    key = jax.random.fold_in(base, sample_id)
    start_key, jump_key = jax.random.split(key)
    start = jax.random.randint(start_key, (), 1, jnp.maximum(end, 1) + 1)
    return start, jax.random.randint(jump_key, (), 1, jnp.maximum(room, 1) + 1)

  start_BL, y_BL = jax.vmap(jax.vmap(draw))(batch["sample_ids"], ends_BL, room_BL)
  jumps_BL = (at_BL >= start_BL) & (room_BL > 0) & (segment_BL > 0)
  return jnp.where(jumps_BL, y_BL, 0)


def _greatest_of_segment(x_BL: jax.Array, segment_BL: jax.Array) -> jax.Array:
  """At each place, the greatest value of its segment."""
  greatest = lambda x_L, segment_L: jax.ops.segment_max(
    x_L, segment_L, num_segments=x_L.shape[0] + 1
  )[segment_L]
  return jax.vmap(greatest)(x_BL, segment_BL)

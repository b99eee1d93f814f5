"""Position ids for short samples that teach long-range dependencies.

SkipAlign (arXiv 2405.03939, eqs. 2-4). A dialogue of m tokens is split into
blocks c_0 … c_{n-1}, one per instruction or response. Inside a block, tokens keep
their order without gaps; whole blocks move right by a bias u_i:

  u_0 = 0
  R_i = L − m − u_{i−1}                                     the room that is left
  u_i = u_{i−1} + 1[DO_SKIP(c_i) and ε_i ≤ p and R_i ≥ 1]·s_i
  s_i ~ U{1 … R_i},   ε_i ~ U[0, 1)
  position(token t of block i) = t + u_i

so positions rise strictly, are contiguous inside a block, start at 0 and end
below L. (Eq. 4 as printed adds the earlier biases twice and exceeds L; this reading
is the one with the properties that the paper states.) A sample of L tokens or more
is not changed.

Draws depend on (seed, epoch, sample id, block) only: batch order, packing, host
count and resuming never change a sample's positions. Only RoPE reads them: segment
ids and array order decide which tokens attend to each other.

Shapes: B rows, L tokens per row (in equations, L is `max_position`), N blocks per row
(at most L, so N = L here).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from skipalign_jax import config as config_lib
from skipalign_jax.method import baselines, endprompt, logo
from skipalign_jax.runtime import errors

# DO_SKIP of each strategy, given whether a block is a response. Block 0 of a
# sample never moves. skip_outer, the paper's default, does not change a single
# turn: it has no second instruction to move.
DO_SKIP = {
  "contiguous": lambda is_response: jnp.zeros_like(is_response),
  "skip_all": lambda is_response: jnp.ones_like(is_response),
  "skip_inner": lambda is_response: is_response,
  "skip_outer": lambda is_response: ~is_response,
}


@dataclasses.dataclass(frozen=True)
class PositionConfig:
  """How positions are drawn.

  Attributes:
    strategy: a key of `DO_SKIP` or of `baselines.METHODS`, "endprompt" or "logo".
    max_position: L; every position is below it.
    skip_prob: p, the share of eligible blocks (or samples) that skip.
    prob_per: "block" draws ε for each block (eq. 4), "sample" once per sample.
    resample: "never" draws once per sample (the paper draws in preprocessing),
      "epoch" once per sample and epoch.
    gaps: "sequential" is eq. 3, whose early gaps take most of the room;
      "uniform" makes all ordered layouts of the gaps equally likely (LongRecipe's,
      2409.00509, over sentences are nearly so; see baselines.py).
    chunks: how many chunks PoSE makes of a sample, and LOGO of its context.
    skip_below: samples of at least this many tokens stay contiguous, since they teach
      long dependencies without skips; 0 for no limit.
    terminal: "turn", "response" or "cue", the part that EndPrompt and LOGO move to the
      end; LOGO has no cue.
    terminal_at: "end" of L or "random", where it moves to.
    schedule: limits L_t that rise over the run, separated by commas; "" for L all
      the time. See `limit_at`.
    cue, cue_weight: text and weight of what data/cue.py appends.
  """

  strategy: str
  max_position: int
  skip_prob: float
  prob_per: str
  resample: str
  gaps: str
  chunks: int = 2
  skip_below: int = 0
  terminal: str = "turn"
  terminal_at: str = "end"
  schedule: str = ""
  cue: str = ""
  cue_weight: float = 0.1

  def __post_init__(self):
    config_lib.check_section("positions", vars(self))
    limits = self.limits
    rises = limits == tuple(sorted(limits))
    if limits and (limits[0] < 1 or not rises or limits[-1] != self.max_position):
      raise errors.UserError(
        f"positions.schedule={self.schedule}: limits must be at least 1, rise or stay, "
        f"and end with positions.max_position={self.max_position}"
      )

  @property
  def limits(self) -> tuple[int, ...]:
    """The limits of `schedule`; empty without one."""
    try:
      return (
        tuple(int(part) for part in self.schedule.split(",")) if self.schedule else ()
      )
    except ValueError:
      raise errors.UserError(
        f"positions.schedule={self.schedule!r} must be whole numbers separated by "
        "commas, such as 8192,12288,16384"
      ) from None


def limit_at(
  config: PositionConfig, step: jax.Array | int, steps: int
) -> jax.Array | int:
  """L_t of a step: the k limits of the schedule have equal shares of the run.

  L_t = limits[min(k − 1, ⌊k · step / steps⌋)]: a function of the step alone, so that a
  resumed run continues in the middle of a stage. Randomized YaRN (2606.23687) is
  strategy randpos with rope.kind=yarn and such a schedule.

  Args:
    config: how positions are drawn.
    step: from 0 on.
    steps: of the run.
  """
  limits = config.limits
  if not limits:
    return config.max_position
  stage = jnp.minimum(len(limits) - 1, len(limits) * step // steps)
  return jnp.asarray(limits, jnp.int32)[stage]


def synthesize(
  config: PositionConfig,
  seed: int,
  batch: Mapping[str, jax.Array],
  limit: jax.Array | int | None = None,
) -> jax.Array:
  """Position ids of a batch of (packed) samples.

  Args:
    config: how to draw them.
    seed: of the run.
    batch: arrays [B, L]: `segment_ids` int (0 = padding, else the sample's
      number in its row), `block_ids` int (0 … n-1 in each sample),
      `is_response` bool, `sample_ids` uint32, `epochs` int; of preference pairs also
      `sample_sizes` int, the tokens m that count for both of a pair, so that their
      prompts, which have the same draws, get the same positions.
    limit: L_t of the step, from `limit_at`; max_position by default.

  Returns:
    positions_BL int32; 0 on padding.
  """
  names = ("segment_ids", "block_ids", "is_response", "sample_ids", "epochs")
  arrays = [jnp.asarray(batch[name]) for name in names]
  if config.strategy == "contiguous":  # no draws: keep them out of the program
    return contiguous(arrays[0])
  sizes_BL = batch.get("sample_sizes")
  if sizes_BL is None:
    sizes_BL = jax.vmap(segment_sizes)(arrays[0])
  draw_row = _baseline_row if config.strategy in baselines.METHODS else _skipalign_row
  limit = config.max_position if limit is None else limit
  base = jax.random.key(seed)
  draw = functools.partial(draw_row, config, limit, base)
  return jax.vmap(draw)(*arrays, jnp.asarray(sizes_BL))


def contiguous(segment_ids_BL: jax.Array) -> jax.Array:
  """0 … m−1 in every segment (Normal-SFT), 0 on padding."""
  return jax.vmap(_contiguous_row)(jnp.asarray(segment_ids_BL))


def _contiguous_row(segment_L: jax.Array) -> jax.Array:
  at_L = jnp.arange(segment_L.shape[0])
  start_L = jax.lax.cummax(jnp.where(_changes(segment_L), at_L, 0))
  return jnp.where(segment_L > 0, at_L - start_L, 0)


def _skipalign_row(
  config, limit, base, segment_L, block_L, is_response_L, sample_id_L, epoch_L, size_L
):
  """Positions of a row: t + u_i for token t of block i."""
  L = segment_L.shape[0]
  starts_block_L = _changes(segment_L) | _changes(block_L)
  # One entry per block, in row order; the entries after the last one are not used.
  first_N = jnp.nonzero(starts_block_L, size=L, fill_value=L - 1)[0]
  m_N = size_L[first_N]
  blocks = Blocks(
    count=starts_block_L.sum(),
    index=block_L[first_N],
    room=jnp.where(_may_skip(config, limit, m_N), limit - m_N, 0),
    key=jax.vmap(sample_key, (None, None, 0, 0))(
      base, config.resample, epoch_L[first_N], sample_id_L[first_N]
    ),
  )
  is_response_N = is_response_L[first_N]
  block_of_L = jnp.cumsum(starts_block_L) - 1
  place_L = _contiguous_row(segment_L)
  if config.strategy == "logo":
    is_terminal_N = endprompt.is_terminal(blocks, is_response_N, config.terminal)
    before_S = jnp.bincount(segment_L, 1 * ~is_terminal_N[block_of_L], length=L + 1)
    before_L, key_L = before_S[segment_L], blocks.key[block_of_L]
    has_end_L = before_L < segment_sizes(segment_L)
    room_L = jnp.where(has_end_L, blocks.room[block_of_L], 0)
    u_L = logo.biases(place_L, before_L, room_L, key_L, config.chunks)
    return jnp.where(segment_L > 0, place_L + u_L, 0)
  if config.strategy == "endprompt":
    u_N = endprompt.biases(blocks, is_response_N, config.terminal, config.terminal_at)
  else:
    do_skip_N = DO_SKIP[config.strategy](is_response_N) & (blocks.index > 0)
    u_N = BIASES[config.gaps](blocks, do_skip_N & _coin(config, blocks))
  return jnp.where(segment_L > 0, place_L + u_N[block_of_L], 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Blocks:
  """The blocks of one row, in order; arrays [N], but for `count`."""

  count: jax.Array  # how many of the N entries are used
  index: jax.Array  # i: number of the block in its sample
  room: jax.Array  # L − m of the sample
  key: jax.Array  # random key of the sample


def _coin(config: PositionConfig, blocks: Blocks) -> jax.Array:
  """ε_i < p: one draw per block, or one per sample."""
  index_N = blocks.index if config.prob_per == "block" else 0 * blocks.index
  key_N = jax.vmap(jax.random.fold_in)(blocks.key, 2 * index_N)
  return jax.vmap(jax.random.uniform)(key_N) < config.skip_prob


def sequential_biases(blocks: Blocks, chosen_N: jax.Array) -> jax.Array:
  """u_N by eqs. 3-4: each skip takes a uniform part of the room that is left."""

  def next_bias(i, u_N):
    u = jnp.where(blocks.index[i] == 0, 0, u_N[i - 1])
    R = blocks.room[i] - u
    key = jax.random.fold_in(blocks.key[i], 2 * blocks.index[i] + 1)
    s = jax.random.randint(key, (), 1, jnp.maximum(R, 1) + 1)
    return u_N.at[i].set(u + jnp.where(chosen_N[i] & (R >= 1), s, 0))

  zeros_N = jnp.zeros_like(blocks.room)
  return jax.lax.fori_loop(0, blocks.count, next_bias, zeros_N)


def uniform_biases(blocks: Blocks, chosen_N: jax.Array) -> jax.Array:
  """u_N such that all layouts of the chosen gaps are equally likely.

  Layouts of k gaps that share R blanks (some of them after the last block) are the
  k-subsets of R + k slots: the r-th smallest slot minus r is that gap's bias. Floyd's
  algorithm draws the subset, one slot per block.
  """
  N = chosen_N.shape[0]
  used_N = jnp.arange(N) < blocks.count
  chosen_N = chosen_N & used_N
  sample_N = jnp.cumsum((blocks.index == 0) & used_N)  # number in the row
  total_N = jnp.cumsum(chosen_N)
  before_sample_N = jax.lax.cummax(jnp.where(blocks.index == 0, total_N - chosen_N, 0))
  rank_N = total_N - before_sample_N - 1  # among the chosen of its sample

  def draw_slot(i, slot_N):
    last = blocks.room[i] + rank_N[i]  # rises to R + k − 1
    key = jax.random.fold_in(blocks.key[i], 2 * blocks.index[i] + 1)
    slot = jax.random.randint(key, (), 0, last + 1)
    taken = jnp.any((slot_N == slot) & (sample_N == sample_N[i]))
    slot = jnp.where(taken, last, slot)
    return slot_N.at[i].set(jnp.where(chosen_N[i], slot, -1))

  slot_N = jnp.full_like(blocks.room, -1)
  slot_N = jax.lax.fori_loop(0, blocks.count, draw_slot, slot_N)
  order_N = jnp.lexsort((slot_N, jnp.where(chosen_N, sample_N, N + 1)))
  sorted_N = slot_N[order_N]  # of chosen blocks first, sample by sample
  bias_N = sorted_N[jnp.maximum(total_N - 1, 0)] - rank_N
  return jnp.where(rank_N >= 0, bias_N, 0)


BIASES = {"sequential": sequential_biases, "uniform": uniform_biases}


def crop(
  config: PositionConfig,
  seed: int,
  batch: Mapping[str, jax.Array],
  N: int,
  limit: jax.Array | int | None = None,
) -> dict[str, jax.Array]:
  """Rows of N places cut out of longer ones, with their `positions`.

  For plain text under PoSE and CREAM, which choose the part of the text for each
  position.

  Args:
    config: its strategy is one of `baselines.CROPS`.
    seed: of the run.
    batch: as `synthesize` takes it, [B, W] with W ≥ N, one sample per row.
    N: tokens of the rows that are returned.
    limit: as for `synthesize`.

  Returns:
    The arrays of `batch`, [B, N], and positions_BN int32.
  """
  base = jax.random.key(seed)
  limit = config.max_position if limit is None else limit

  def row(arrays):
    length = jnp.sum(arrays["segment_ids"] > 0)
    key = sample_key(
      base, config.resample, arrays["epochs"][0], arrays["sample_ids"][0]
    )
    content_N, position_N = _baseline(config)(key, length, N, limit)
    stays = ~_may_skip(config, limit, jnp.minimum(length, N))
    content_N = jnp.where(stays, jnp.arange(N), content_N)
    position_N = jnp.where(stays, jnp.arange(N), position_N)
    used_N = jnp.arange(N) < length
    cut = {
      name: jnp.where(used_N, jnp.take(x_W, content_N, mode="clip"), x_W.dtype.type(0))
      for name, x_W in arrays.items()
    }
    return cut | {"positions": jnp.where(used_N, position_N, 0)}

  return jax.vmap(row)(dict(batch))


def _baseline(config: PositionConfig) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """method(key, length, N, L) → content_N, positions_N, as in `baselines`."""
  method = baselines.METHODS[config.strategy]
  if config.strategy == "pose":
    return functools.partial(method, chunks=config.chunks)
  if config.strategy == "randpos" and config.limits:
    return functools.partial(baselines.randpos_below, most=config.max_position)
  return method


def _baseline_row(
  config, limit, base, segment_L, block_L, is_response_L, sample_id_L, epoch_L, size_L
):
  """Positions of a row, sample by sample: these methods have no blocks."""
  L = segment_L.shape[0]
  at_L = jnp.arange(L)

  def place(segment, position_L):
    inside_L = segment_L == segment
    first = jnp.argmax(inside_L)
    m = size_L[first]
    key = sample_key(base, config.resample, epoch_L[first], sample_id_L[first])
    _, drawn_L = _baseline(config)(key, m, L, limit)
    drawn_L = jnp.where(_may_skip(config, limit, m), drawn_L, at_L)
    return jnp.where(inside_L, jnp.roll(drawn_L, first), position_L)

  zeros_L = jnp.zeros(L, jnp.int32)
  return jax.lax.fori_loop(1, jnp.max(segment_L) + 1, place, zeros_L)


def sample_key(
  base: jax.Array, resample: str, epoch: jax.Array, sample_id: jax.Array
) -> jax.Array:
  """The random key of a sample: folded from (seed, [epoch], sample id)."""
  if resample == "epoch":
    base = jax.random.fold_in(base, epoch)
  return jax.random.fold_in(base, sample_id)


def _may_skip(
  config: PositionConfig, limit: jax.Array | int, size: jax.Array
) -> jax.Array:
  """Whether a sample of this many tokens has room for skips, and needs them."""
  has_room = size < limit
  return has_room & (size < config.skip_below) if config.skip_below else has_room


def segment_sizes(segment_ids_L: jax.Array) -> jax.Array:
  """m_L: at each place of a row, how many places have its segment id."""
  L = segment_ids_L.shape[0]
  return jnp.bincount(segment_ids_L, length=L + 1)[segment_ids_L]


def _changes(x_L: jax.Array) -> jax.Array:
  """True where a value differs from the one before it; True at 0."""
  return jnp.concatenate([jnp.ones(1, bool), x_L[1:] != x_L[:-1]])

"""The position methods that SkipAlign is compared with, for one sample each.

PoSE (2309.10400), RandPos (2305.16843) and CREAM (2406.07138). All have one shape,

  method(key, length, N, L) → content_N, positions_N

for a text of `length` tokens, a row of N places and positions below L. The first
m = min(length, N) entries count: place t holds token content[t] of the text, at
position positions[t]. A text that fits is kept whole, content[t] = t; of a longer one
PoSE and CREAM take the parts to which their positions refer (plain text only: a reply
cannot be cut out of a dialogue). Positions rise strictly. A sample of L tokens or more
stays contiguous.

LongRecipe (2409.00509) moves sentences by gaps that are nearly those of strategy
skip_all, skip_prob 1, gaps uniform, with blocks that are sentences. There all layouts
are equally likely; LongRecipe's code pins the first sentence at position 0 after the
draw, which joins two gaps: its first gap is about twice as long as the others.

Shapes: N places of a row; all int32.
"""

import jax
import jax.numpy as jnp

SPREAD = 3.0  # CREAM's σ


def pose(
  key: jax.Array, length: jax.Array, N: int, L: int, chunks: int
) -> tuple[jax.Array, jax.Array]:
  """PoSE: a few chunks, each skipped ahead of the one before.

  With two chunks: r1 ~ U{1 … ⌈m/2⌉} tokens, then the rest, which is v ~ U{0 …
  length−m} tokens later in the text and has u ~ U{0 … L−m} larger positions. With more
  chunks, each takes at most an even share of the tokens that are left, and its v and u
  are at least those of the chunk before.
  """
  m = jnp.minimum(length, N)
  at_N = jnp.arange(N)

  def next_chunk(j, carry):
    start, v, u, content_N, position_N = carry
    share = (m - start + chunks - j) // (chunks - j + 1)  # rounded up
    start += _draw(key, 3 * j, 1, share)
    v = _draw(key, 3 * j + 1, v, length - m)
    u = _draw(key, 3 * j + 2, u, L - m)
    moved_N = at_N >= start
    content_N = jnp.where(moved_N, at_N + v, content_N)
    return start, v, u, content_N, jnp.where(moved_N, at_N + u, position_N)

  zero = jnp.int32(0)
  carry = jax.lax.fori_loop(1, chunks, next_chunk, (zero, zero, zero, at_N, at_N))
  return _contiguous_if(m >= L, at_N, carry[3:])


def randpos(
  key: jax.Array, length: jax.Array, N: int, L: int
) -> tuple[jax.Array, jax.Array]:
  """RandPos: m positions of 0 … L−1, all subsets equally likely, in order."""
  return _in_order(jax.random.permutation(key, L), length, N, L)


def randpos_below(
  key: jax.Array, length: jax.Array, N: int, L: jax.Array, most: int
) -> tuple[jax.Array, jax.Array]:
  """RandPos for an L ≤ `most` that a compiled program learns later: the same law.

  The order of uniform random numbers is a permutation; those at L and after come last.
  """
  uniform_X = jax.random.uniform(key, (most,))
  order_X = jnp.argsort(jnp.where(jnp.arange(most) < L, uniform_X, jnp.inf))
  return _in_order(order_X, length, N, L)


def _in_order(order_X, length, N, L):
  """The first m numbers of a permutation, sorted, as positions."""
  m = jnp.minimum(length, N)
  at_N, subset_N = jnp.arange(N), order_X[:N]
  position_N = jnp.sort(jnp.where(jnp.arange(len(subset_N)) < m, subset_N, L))
  position_N = jnp.pad(position_N, (0, N - len(subset_N)), constant_values=L)
  return _contiguous_if(m >= L, at_N, (at_N, position_N))


def cream(
  key: jax.Array, length: jax.Array, N: int, L: int
) -> tuple[jax.Array, jax.Array]:
  """CREAM: head and tail at the two ends of L, the middle anywhere between.

  With f = L/m, head and tail take h = ⌊m/3⌋ or 4f tokens (a fair coin; never more than
  ⌊m/3⌋), the middle the other m − 2h. It ends at e ~ U{h + (mid−1)α/2 … mα/2 − h − 1},
  where α is drawn from a Gaussian around 1 + f, which trains the distances of the
  middle most; draws below 2 count as 2, those above 2f as 2f. The text is taken at the
  same places. If it is shorter than L, its own end is the tail, and the middle ends
  before that tail. Fewer than three tokens have no middle and stay contiguous.

  The authors' code fixes the mean of that Gaussian at 9, which is 1 + f at f = 8 only;
  this follows the paper.
  """
  length = jnp.minimum(length, L)  # what is after it has no places
  m = jnp.minimum(length, N)
  at_N = jnp.arange(N)
  f = L / m
  third = m // 3
  short = jnp.clip((4 * f).astype(jnp.int32), 1, third)
  h = jnp.where(_draw(key, 0, 0, 1) == 0, third, short)
  mid = m - 2 * h
  alpha_X = jnp.linspace(2.0, 2.0 * f, 1000)
  below_X = jax.scipy.stats.norm.cdf(alpha_X, 1 + f, SPREAD)
  uniform = jax.random.uniform(jax.random.fold_in(key, 1))
  alpha = jnp.floor(jnp.interp(uniform, below_X, alpha_X)).astype(jnp.int32)
  e = _draw(key, 2, h + (mid - 1) * alpha // 2, m * alpha // 2 - h - 1)

  def three_parts(end, total):  # head, middle up to `end`, tail of 0 … total − 1
    in_middle_N = at_N - h + end - mid + 1
    tail_N = at_N - m + total
    return jnp.where(at_N < h, at_N, jnp.where(at_N < m - h, in_middle_N, tail_N))

  end_in_text = jnp.minimum(e, length - h - 1)
  drawn = three_parts(end_in_text, length), three_parts(e, L)
  return _contiguous_if((m >= L) | (m < 3), at_N, drawn)


METHODS = {"pose": pose, "randpos": randpos, "cream": cream}  # pose also takes chunks
CROPS = ("pose", "cream")  # methods that choose parts of a longer text


def _draw(key: jax.Array, stream: int, low: jax.Array, high: jax.Array) -> jax.Array:
  """An integer of low … high, both included; `low` if high is smaller."""
  key = jax.random.fold_in(key, stream)
  return jax.random.randint(key, (), low, jnp.maximum(low, high) + 1)


def _contiguous_if(condition, at_N, drawn):
  return tuple(jnp.where(condition, at_N, x_N) for x_N in drawn)

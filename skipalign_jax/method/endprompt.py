"""EndPrompt (arXiv 2605.14589): the last part of a sample jumps to the end of L.

Of a sample of m tokens the terminal part begins with block k; all blocks from k on get
one bias, with the room R = L − m:

  u_i = 0   (i < k)
  u_i = R   (i ≥ k)              terminal_at=end: the last token has position L − 1
  u_i ~ U{0 … R}, one draw       terminal_at=random (in the authors' code only)

With b terminal tokens, the distances 0 … max(m − b, b) − 1 and L − m + 1 … L − 1 occur,
and no others. The paper appends b tokens that say that the text is over (data/cue.py).
In chats the terminal part can be one that is there already, so that its targets are
real replies:

  terminal=turn      the last instruction and its response
  terminal=response  the last response, far away from its own question
  terminal=cue       the cue, the last block of every sample

A sample without a second turn (without a response) stays contiguous.

Shapes: N blocks of a row, in order, as in `positions.Blocks`.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from skipalign_jax.method import positions


def biases(
  blocks: "positions.Blocks", is_response_N: jax.Array, terminal: str, at: str
) -> jax.Array:
  """u_N, the bias of each block.

  Args:
    blocks: of a row of samples.
    is_response_N: which of them are responses.
    terminal: "turn", "response" or "cue".
    at: "end" or "random".
  """
  if at == "random":
    key_N = jax.vmap(jax.random.fold_in, (0, None))(blocks.key, 1)
    far_N = jax.vmap(lambda key, R: jax.random.randint(key, (), 0, R + 1))(
      key_N, blocks.room
    )
  else:
    far_N = blocks.room
  return jnp.where(is_terminal(blocks, is_response_N, terminal), far_N, 0)


def is_terminal(
  blocks: "positions.Blocks", is_response_N: jax.Array, terminal: str
) -> jax.Array:
  """Whether a block belongs to the terminal part of its sample."""
  starts_N = is_terminal_start(blocks, is_response_N, terminal)
  return _count(blocks, starts_N) > 0


def is_terminal_start(
  blocks: "positions.Blocks", is_response_N: jax.Array, terminal: str
) -> jax.Array:
  """Whether a block is the first one of the terminal part of its sample."""
  used_N = jnp.arange(len(blocks.index)) < blocks.count
  if terminal == "cue":
    goes_on_N = jnp.append(used_N[1:] & (blocks.index[1:] > 0), False)
    return ~goes_on_N & (blocks.index > 0)
  responses_N = is_response_N & used_N
  N = len(blocks.index)
  sample_N = jnp.cumsum(blocks.index == 0)  # number in the row
  of_sample_N = jnp.bincount(sample_N, 1 * responses_N, length=N + 1)[sample_N]
  last_N = responses_N & (_count(blocks, responses_N) == of_sample_N)
  if terminal == "turn":  # the instruction that the last response answers
    last_N = jnp.append(last_N[1:], False)
  return last_N & (blocks.index > 0)


def _count(blocks: "positions.Blocks", marks_N: jax.Array) -> jax.Array:
  """At each block, how many marks its sample has up to it."""
  total_N = jnp.cumsum(marks_N)
  before_N = jax.lax.cummax(jnp.where(blocks.index == 0, total_N - marks_N, 0))
  return total_N - before_N

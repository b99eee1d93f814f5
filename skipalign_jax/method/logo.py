"""LOGO's positions (arXiv 2410.18533): a short context spread over all of L.

Of a sample of m tokens the terminal part (b tokens, as in endprompt.py: the question
and its answer) goes to the end of L, as in EndPrompt. The t = m − b tokens before it
are cut into k chunks of c = ⌈t / k⌉ tokens, and the room before the end into k slots of
S = ⌊(L − b) / k⌋ positions. Chunk j is contiguous inside slot j; it starts there at

  ⌊i (S − c) / (n − 1)⌋,   n = ⌈S / c⌉ starts, which cover the slot,   i ~ U{0 … n − 1}

and chunk 0, which has the system prompt, at 0. In the paper the chunks are documents;
k is `positions.chunks`. A sample without a terminal part stays contiguous.

Shapes: L tokens of a row.
"""

import jax
import jax.numpy as jnp


def biases(
  place_L: jax.Array,
  before_L: jax.Array,
  room_L: jax.Array,
  key_L: jax.Array,
  chunks: int,
) -> jax.Array:
  """u_L: how far each token moves.

  Args:
    place_L: of the token in its sample, from 0.
    before_L: t of its sample.
    room_L: L − m of its sample; 0 keeps it contiguous.
    key_L: random keys of the samples.
    chunks: k.
  """
  c_L = jnp.maximum(-(-before_L // chunks), 1)
  chunk_L = place_L // c_L
  slot_L = (room_L + before_L) // chunks
  spare_L = jnp.maximum(slot_L - c_L, 0)
  starts_L = -(-slot_L // c_L)
  draw = lambda key, j, n: jax.random.randint(jax.random.fold_in(key, j), (), 0, n)
  i_L = jax.vmap(draw)(key_L, chunk_L, jnp.maximum(starts_L, 1))
  share_L = i_L / jnp.maximum(starts_L - 1, 1)  # fp32: a product could overflow int32
  offset_L = jnp.minimum((share_L * spare_L).astype(jnp.int32), spare_L)
  offset_L = jnp.where(chunk_L > 0, offset_L, 0)
  in_slot_L = chunk_L * slot_L + offset_L - chunk_L * c_L
  fits_L = (slot_L >= c_L) & (room_L > 0)
  return jnp.where(place_L < before_L, jnp.where(fits_L, in_slot_L, 0), room_L)

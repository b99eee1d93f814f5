"""The sum of attention's weights as part of their product, against one of its own.

python benchmarks/softmax_sums.py [--place=8192]

One layer of SmolLM2-135M: 512 places from `place` on attend to a cache of bf16, 512
keys at a time, as `inference.Engine` reads a prompt. With `cpu.with_sum`, and with what
other platforms do (XLA's cast to bf16, then a sum), alternating; prints the ratio.
"""

import argparse
import functools
import time
from collections.abc import Callable

import harness
import jax
import jax.numpy as jnp

from skipalign_jax.model import attention, cpu

PLACES, BLOCK, HEADS, KV_HEADS, DIM = 512, 512, 9, 3, 64


def apart(product: Callable, weight: jax.Array, v: jax.Array):
  """`cpu.with_sum` as on other platforms."""
  weight = jax.lax.optimization_barrier(weight.astype(v.dtype))
  total = jnp.sum(weight, axis=-1, keepdims=True, dtype=jnp.float32)
  return product(weight, v), total


def compiled(with_sum: Callable, arrays: dict) -> Callable:
  """`attention.cached` with one of the two."""
  kept, cpu.with_sum = cpu.with_sum, with_sum
  attend = functools.partial(attention.cached, block=BLOCK)
  found = jax.jit(lambda arrays: attend(**arrays)).lower(arrays).compile()
  cpu.with_sum = kept
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--place", type=int, default=8192)
  args = parser.parse_args()
  places = -(-(args.place + PLACES) // BLOCK) * BLOCK
  normal = lambda i, *shape: jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
  arrays = {
    "q_BLNH": normal(0, 1, PLACES, HEADS, DIM),
    "k_ABSKH": cpu.to_bits(normal(1, 1, 1, places, KV_HEADS, DIM)),
    "v_ABSKH": cpu.to_bits(normal(2, 1, 1, places, KV_HEADS, DIM)),
    "query_segments_BL": jnp.ones((1, PLACES), jnp.int32),
    "key_segments_BS": jnp.ones((1, places), jnp.int32),
    "start": jnp.int32(args.place),
    "layer": jnp.int32(0),
  }
  turns = {
    "with": compiled(cpu.with_sum, arrays),
    "apart": compiled(apart, arrays),
  }
  seconds: dict[str, list[float]] = {name: [] for name in turns}
  for i in range(31):
    for name, run in turns.items():
      begin = time.perf_counter()
      jax.block_until_ready(run(arrays))
      if i:
        seconds[name].append(time.perf_counter() - begin)
  print(harness.compare("with", seconds["with"], "apart", seconds["apart"])["text"])


if __name__ == "__main__":
  main()

"""The gain of a second row in a bf16 product on CPUs: python benchmarks/one_row.py.

One token times a vocabulary of 49,152 x 576, alone and padded to two rows as in
`cpu.few_rows`, alternating; prints the median ratio.
"""

import time

import harness
import jax
import jax.numpy as jnp


def main() -> None:
  weight_OI = jnp.ones((49_152, 576), jnp.bfloat16)
  seconds = {1: [], 2: []}
  product = jax.jit(
    lambda x_TI, weight_OI: jnp.einsum(
      "ti,oi->to", x_TI, weight_OI, preferred_element_type=jnp.float32
    )
  )
  for i in range(11):
    for rows, samples in seconds.items():
      x_TI = jnp.ones((rows, 576), jnp.bfloat16)
      begin = time.perf_counter()
      jax.block_until_ready(product(x_TI, weight_OI))
      if i:  # the first compiles
        samples.append(time.perf_counter() - begin)
  print(harness.compare("two rows", seconds[2], "one row", seconds[1])["text"])


if __name__ == "__main__":
  main()

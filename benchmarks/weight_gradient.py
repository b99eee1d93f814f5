"""The gain of cpu.weight_gradient: python benchmarks/weight_gradient.py [--rounds=30].

The gradient of a linear layer's weight (bf16, the shapes of SmolLM2-135M, 1024 tokens)
with the layout of `cpu.py` against the plain product, alternating.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from skipalign_jax.model import cpu

TOKENS = 1024
SHAPES = ((576, 1536), (1536, 576), (576, 576), (576, 192))  # in, out


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=30)
  args = parser.parse_args()
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  contenders = {
    "plain": jax.jit(lambda d, x: product("to,ti->oi", d, x)),
    "cpu.py": jax.jit(lambda d, x: cpu.weight_gradient(d, x, product)),
  }
  for inputs, outputs in SHAPES:
    draw = lambda n: jax.random.normal(jax.random.key(n), (TOKENS, n), jnp.bfloat16)
    d_out_TO, x_TI = jax.block_until_ready((draw(outputs), draw(inputs)))
    seconds = {name: [] for name in contenders}
    for _ in range(args.rounds + 1):  # the first one compiles
      for name, run in contenders.items():
        start = time.perf_counter()
        jax.block_until_ready(run(d_out_TO, x_TI))
        seconds[name].append(time.perf_counter() - start)
    plain, ours = (np.array(seconds[name][1:]) for name in contenders)
    rate = 2 * TOKENS * inputs * outputs / 1e9
    print(
      f"{inputs} -> {outputs}: plain {rate / np.median(plain):.0f} GFLOP/s, cpu.py "
      f"{rate / np.median(ours):.0f} GFLOP/s, {np.median(plain / ours):.2f}x"
    )


if __name__ == "__main__":
  main()

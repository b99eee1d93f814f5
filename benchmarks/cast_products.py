"""bf16 products against the same in fp32: python benchmarks/cast_products.py.

The larger products of a layer of SmolLM2-135M at 1024 tokens, with operands in bf16 as
they are and cast to fp32 first, as in `cpu.for_product`, alternating; prints the median
ratio of each. The cast pays on processors without instructions for bf16.
"""

import time

import harness
import jax
import jax.numpy as jnp

from skipalign_jax.model import cpu

SHAPES = {
  "ti,oi->to": ((1024, 576), (1536, 576)),
  "to,oi->ti": ((1024, 1536), (1536, 576)),
  "bkth,bksh->bkts": ((1, 3, 384, 64), (1, 3, 1024, 64)),
  "bkts,bksh->bkth": ((1, 3, 384, 1024), (1, 3, 1024, 64)),
}


def products(equation: str) -> dict:
  """Name → the product."""
  plain = lambda left, right: jnp.einsum(
    equation, left, right, preferred_element_type=jnp.float32
  )
  fp32 = lambda x: x.astype(jnp.float32)
  cast = lambda left, right: plain(fp32(left), fp32(right))
  return {"bf16": jax.jit(plain), "cast to fp32": jax.jit(cast)}


def main() -> None:
  print(f"this processor has products of bf16: {cpu.has_bf16_products()}")
  for equation, (left, right) in SHAPES.items():
    operands = jnp.ones(left, jnp.bfloat16), jnp.ones(right, jnp.bfloat16)
    turns = products(equation)
    seconds = {name: [] for name in turns}
    for i in range(21):
      for name, run in turns.items():
        begin = time.perf_counter()
        jax.block_until_ready(run(*operands))
        if i:  # the first compiles
          seconds[name].append(time.perf_counter() - begin)
    cast, bf16 = seconds["cast to fp32"], seconds["bf16"]
    print(f"{equation:18}", harness.compare("cast", cast, "bf16", bf16)["text"])


if __name__ == "__main__":
  main()

"""Bit strings, the questions about them, and the encoding of answers.

Shapes: B strings, L places: a start token, then bits, then padding.

The start token makes it possible to find lengths without position encodings: attention
averages over n + 1 places, of which one is special. Without it, a string of ones looks
the same at every length. The paper's text does not mention a start token (choice).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

START = 2  # the token before the bits 0 and 1
VOCAB = 3
LONGEST_TRAINED, LONGEST_TESTED = 10, 50  # bits (paper)
CAP = 1000.0  # limit of answers: 1/z² has no bound near z = 0


@dataclasses.dataclass(frozen=True)
class Task:
  """A question about a string of bits.

  Attributes:
    answer: (sum of the bits, their number) → y, fp32 arrays of any shape.
    minimum: the smallest possible y.
    whole: y is an integer.
    baseline: number of bits n → mean squared error of `blind`.
    blind: the answers of a solver that ignores all bits beyond those trained.
  """

  answer: Callable[[jax.Array, jax.Array], jax.Array]
  minimum: float
  whole: bool
  baseline: Callable[[int], float]
  blind: str


def _rest(n: int) -> int:
  return max(0, n - LONGEST_TRAINED)


# Baselines are exact: each bit is one with probability 1/2, so has variance 1/4.
TASKS = {
  "mean": Task(
    answer=lambda total, n: total / n,
    minimum=0.0,
    whole=False,
    baseline=lambda n: 0.25 / n,
    blind="always 1/2",
  ),
  "length": Task(
    answer=lambda total, n: n + 0 * total,
    minimum=1.0,
    whole=True,
    baseline=lambda n: float(_rest(n) ** 2),
    blind="counts to 10",
  ),
  "sum": Task(
    answer=lambda total, n: total + 0 * n,
    minimum=0.0,
    whole=True,
    baseline=lambda n: _rest(n) ** 2 / 4 + _rest(n) / 4,
    blind="adds 10 bits",
  ),
}


@dataclasses.dataclass(frozen=True)
class OutRep:
  """An output representation: the model learns f(x), tests read f⁻¹ of its output.

  x = y − minimum + 1, so that x ≥ 1 and every f is defined; for lengths x = y (choice
  for sums, which may be 0). An output that f cannot produce is replaced by the nearest
  one that it can: √ and 1/√ read negative outputs as 0. Answers are limited to ±CAP.

  Attributes:
    encode: f, on x ≥ 1.
    decode: its inverse.
  """

  encode: Callable[[jax.Array], jax.Array]
  decode: Callable[[jax.Array], jax.Array]


OUTREPS = {
  "y": OutRep(lambda x: x, lambda z: z),
  "√y": OutRep(jnp.sqrt, lambda z: jnp.maximum(z, 0) ** 2),
  "log y": OutRep(jnp.log, lambda z: jnp.exp(jnp.minimum(z, jnp.log(2 * CAP)))),
  "1/√y": OutRep(
    lambda x: jax.lax.rsqrt(x), lambda z: jnp.maximum(z, (2 * CAP) ** -0.5) ** -2
  ),
}


def encode(task: str, outrep: str, y: jax.Array) -> jax.Array:
  """The output that the model learns for the answer y; for means, y itself."""
  if outrep == "y":
    return y
  return OUTREPS[outrep].encode(y - TASKS[task].minimum + 1)


def decode(task: str, outrep: str, z: jax.Array) -> jax.Array:
  """The answer for an output: the inverse of `encode`, limited to ±CAP."""
  if outrep != "y":
    z = OUTREPS[outrep].decode(z) + TASKS[task].minimum - 1
  return jnp.clip(z, -CAP, CAP)


def draw_bits(
  key: jax.Array, length_B: jax.Array, longest: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Random strings of given lengths.

  Args:
    key: for the random bits.
    length_B: bits of each string, 1 … longest.
    longest: maximum length; L is longest + 1.

  Returns:
    tokens_BL and segment_ids_BL (1, and 0 on padding), int32, and the sums of the bits
    total_B, fp32.
  """
  B = length_B.shape[0]
  inside_BL = jnp.arange(1, longest + 1) <= length_B[:, None]
  bits_BL = jax.random.bernoulli(key, 0.5, (B, longest)) & inside_BL
  start_B1 = jnp.ones((B, 1), jnp.int32)
  tokens_BL = jnp.concatenate([START * start_B1, bits_BL.astype(jnp.int32)], axis=1)
  segment_ids_BL = jnp.concatenate([start_B1, inside_BL.astype(jnp.int32)], axis=1)
  return tokens_BL, segment_ids_BL, bits_BL.sum(1).astype(jnp.float32)


def mean_square(task: str, n: int) -> float:
  """E y² over strings of n bits: the error of always answering 0."""
  values = {"mean": 0.25 + 0.25 / n, "length": n**2, "sum": n**2 / 4 + n / 4}
  return float(np.float64(values[task]))

"""Low-rank adapters (LoRA, 2106.09685): y = W x + alpha/r · B (A x), W frozen.

Shapes: n layers, T tokens, I/O in/out features, R rank. Matrices are [O, I], so A is
[n, R, I] and B [n, O, R]; the frozen W may be quantised (QLoRA, 2305.14314).

Training has two trees. `adapters` holds A and B, fp32 masters, under the path of
their matrix (layers/attn/q/lora_a); optimizer and checkpoints have only this one.
`base` is the model's own tree of parameters as they are stored. `join` makes the tree
of both that the model computes with: the base, whose linear layers are `Adapted`.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from skipalign_jax import config as config_lib
from skipalign_jax.model import cpu, products, quantized, sharding
from skipalign_jax.runtime import errors

Tree = dict[str, Any]

# Name of a linear layer → path of its matrix.
MATRICES = {name: f"layers/attn/{name}/weight" for name in ("q", "k", "v", "o")} | {
  name: f"layers/mlp/{name}/weight" for name in ("gate", "up", "down")
}


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of config.lora.

  Attributes:
    rank: R, at least 1.
    alpha: the adapters' product is scaled by alpha / rank.
    targets: names of the linear layers that have adapters.
    base: how frozen matrices are stored, see `quantized.store`.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]
  base: str

  @property
  def scale(self) -> float:
    """alpha / rank."""
    return self.alpha / self.rank


def from_config(given: Mapping[str, Any]) -> Config | None:
  """Reads config.lora; None if all weights are trained.

  Raises:
    UserError: a value out of range, an unknown target, or no qwix where it is needed.
  """
  config_lib.check_section("lora", given)
  rank, alpha, targets = given["rank"], given["alpha"], given["targets"]
  if rank == 0:
    return None
  names = tuple(name for name in re.split(r"[,\s]+", targets) if name)
  unknown = [name for name in names if name not in MATRICES]
  if unknown or not names or len(set(names)) < len(names):
    wrong = f"{', '.join(unknown)} unknown" if unknown else "each once, at least one"
    raise errors.UserError(
      f"lora.targets={targets!r}: {wrong}; a comma list of {','.join(MATRICES)}"
    )
  quantized.check(given["base"])
  return Config(rank, float(alpha), names, given["base"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Adapted:
  """The weight of a linear layer that is not trained itself.

  Attributes:
    base: the matrix as it is stored, [n, O, I] or [O, I] of one layer.
    a, b: A and B; None without adapters.
    scale: of their product.
    split: the axes over which the product itself splits [O, I].
  """

  base: quantized.Stored
  a: jax.Array | None
  b: jax.Array | None
  scale: float = dataclasses.field(metadata=dict(static=True))
  split: PartitionSpec = dataclasses.field(metadata=dict(static=True))


def linear(x_TI: jax.Array, weight: Adapted) -> jax.Array:
  """x Wᵀ + scale · (x Aᵀ) Bᵀ in x's dtype, both summed in fp32.

  The gradient rule computes no gradient of W, and keeps no copy of it: a quantised
  matrix is dequantised again.
  """
  return _linear(x_TI, weight.base, weight.a, weight.b, weight.scale, weight.split)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _linear(x_TI, base, a_RI, b_OR, scale, split):
  return _forward(x_TI, base, a_RI, b_OR, scale, split)[0]


def _forward(x_TI, base, a_RI, b_OR, scale, split):
  dtype = x_TI.dtype
  out_TO = products.einsum("ti,oi->to", x_TI, _gathered(base, split, dtype))
  low_TR = None
  if a_RI is not None:
    low_TR = products.einsum("ti,ri->tr", x_TI, a_RI.astype(dtype)).astype(dtype)
    out_TO += scale * products.einsum("tr,or->to", low_TR, b_OR.astype(dtype))
  return out_TO.astype(dtype), (x_TI, low_TR, base, a_RI, b_OR)


def _backward(scale, split, residuals, d_out_TO):
  x_TI, low_TR, base, a_RI, b_OR = residuals
  dtype = x_TI.dtype
  d_x_TI = products.einsum("to,oi->ti", d_out_TO, _gathered(base, split, dtype))
  if a_RI is None:
    return d_x_TI.astype(dtype), None, None, None
  d_low_TR = scale * products.einsum("to,or->tr", d_out_TO, b_OR.astype(dtype))
  d_low_TR = d_low_TR.astype(dtype)
  d_x_TI += products.einsum("tr,ri->ti", d_low_TR, a_RI.astype(dtype))
  d_a_RI = cpu.weight_gradient(d_low_TR, x_TI, products.einsum)
  d_b_OR = scale * cpu.weight_gradient(d_out_TO, low_TR, products.einsum)
  return d_x_TI.astype(dtype), None, d_a_RI, d_b_OR


_linear.defvjp(_forward, _backward)


def _gathered(base, split, dtype):
  """W in `dtype`; devices exchange it as it is stored, before dequantising."""
  stored = jax.tree.map(lambda x: sharding.constrain(x, split), base)
  return quantized.dense(stored, dtype)


def describe(config: Config) -> str:
  """ "rank 16, alpha 16 on q, v, base in nf4"."""
  return (
    f"rank {config.rank}, alpha {config.alpha:g} on {', '.join(config.targets)}, base "
    f"in {config.base}"
  )


def join(config: Config, adapters: Tree, base: Tree) -> Tree:
  """The parameters that the model computes with.

  Structure only: joins abstract arrays and shardings too.
  """
  joined = jax.tree.map(lambda x: x, base)  # new dicts, the same arrays
  for name in MATRICES:
    layer = layer_of(joined, name)
    pair = layer_of(adapters, name) if name in config.targets else {}
    _, *axes = sharding.spec(MATRICES[name])
    split = PartitionSpec(*(axis if axis == "tensor" else None for axis in axes))
    layer["weight"] = Adapted(
      layer["weight"], pair.get("lora_a"), pair.get("lora_b"), config.scale, split
    )
  return joined


def merge(joined: Tree, dtype: jnp.dtype | str) -> Tree:
  """Plain parameters of a joined tree, in `dtype`, a layer at a time."""

  def plain(x):
    if not isinstance(x, Adapted):
      return x.astype(dtype)
    return jax.lax.map(lambda layer: _merged(layer).astype(dtype), x)

  return jax.tree.map(plain, joined, is_leaf=lambda x: isinstance(x, Adapted))


def _merged(weight):
  base_OI = quantized.dense(weight.base, jnp.float32)
  if weight.a is None:
    return base_OI
  return added(base_OI, weight.a, weight.b, weight.scale)


def added(
  base_OI: jax.Array, a_RI: jax.Array, b_OR: jax.Array, scale: float
) -> jax.Array:
  """W + scale · B A of one layer, fp32."""
  return base_OI + scale * products.einsum("or,ri->oi", b_OR, a_RI)


def layer_of(tree: Tree, name: str) -> Tree:
  """The dict of a linear layer, created if it is missing."""
  for key in MATRICES[name].split("/")[:-1]:
    tree = tree.setdefault(key, {})
  return tree

"""Optimizers that look at whole matrices, for layers that are stacked on axis 0.

Shapes: n layers, O/I out/in features, S the shorter side of a matrix.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from skipalign_jax.model import sharding

STACKED = "layers"  # what is below this name in a tree of parameters

# Muon's: Jordan's polynomial, and Moonlight's size of an update (2502.16982).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
UPDATE_RMS = 0.2


def is_matrix(x: Any) -> bool:
  """Whether a parameter is a stack of matrices: of linear layers or of adapters."""
  return x.ndim == 3


def each_layer(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Applies `inner` to the parameters of each layer by itself.

  Norms over a parameter, and its rows and columns, are then those of one layer.
  """
  of = lambda name, f: jax.vmap(f) if name == STACKED else f

  def init(params):
    return {name: of(name, inner.init)(part) for name, part in params.items()}

  def update(updates, state, params):
    done = {
      name: of(name, inner.update)(part, state[name], params[name])
      for name, part in updates.items()
    }
    new, state = ({name: pair[i] for name, pair in done.items()} for i in (0, 1))
    return new, state

  return optax.GradientTransformation(init, update)


def orthogonal() -> optax.GradientTransformation:
  """Replaces each layer's matrix by the nearest orthogonal one, nearly (Muon).

  The root mean square of an update is UPDATE_RMS, about that of Adam, so learning
  rates and weight decay mean the same for both. Each device takes whole matrices of
  some of the layers: products of split matrices would be kept whole by all of them.
  """

  def one(x_nOI):
    x_nOI = sharding.constrain_layers(x_nOI)
    longer = max(x_nOI.shape[1:])
    return UPDATE_RMS * longer**0.5 * newton_schulz(x_nOI)

  return optax.stateless(lambda updates, _: jax.tree.map(one, updates))


def newton_schulz(x_nOI: jax.Array) -> jax.Array:
  """U V' of each matrix U S V', with singular values that are only near 1."""
  if x_nOI.shape[1] > x_nOI.shape[2]:
    return newton_schulz(x_nOI.swapaxes(1, 2)).swapaxes(1, 2)
  a, b, c = COEFFICIENTS
  norm_n11 = jnp.linalg.norm(x_nOI, axis=(1, 2), keepdims=True)
  x_nSI = x_nOI / (norm_n11 + 1e-8)
  for _ in range(ITERATIONS):
    square_nSS = jnp.einsum("nsi,nti->nst", x_nSI, x_nSI)
    powers_nSS = b * square_nSS + c * jnp.einsum("nst,ntu->nsu", square_nSS, square_nSS)
    x_nSI = a * x_nSI + jnp.einsum("nst,nti->nsi", powers_nSS, x_nSI)
  return x_nSI

"""AdamW with linear warm-up and linear decay (SkipAlign, appendix A)."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import optax


def schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
  """Learning rate of step 0, 1, … steps−1.

  Rises linearly over the first `warmup_fraction` of the run (the first step
  already moves), then falls linearly towards 0.
  """
  warmup = max(1, math.ceil(config.warmup_fraction * steps))

  def learning_rate(step: jax.Array) -> jax.Array:
    rise = (step + 1) / warmup
    fall = (steps - step) / max(1, steps - warmup)
    return config.learning_rate * jnp.clip(jnp.minimum(rise, fall), 0, 1)

  return learning_rate


def make(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
  """The optax chain of `config.optim` for a run of `steps`."""
  clip = optax.clip_by_global_norm(config.clip_norm)
  return optax.chain(
    clip if config.clip_norm else optax.identity(),
    optax.adamw(
      schedule(config, steps),
      b1=config.beta1,
      b2=config.beta2,
      eps=config.eps,
      weight_decay=config.weight_decay,
    ),
  )

"""How gradients become updates: the optimizers and learning rates of config.optim.

The defaults, AdamW with linear warm-up and linear decay, are those of SkipAlign
(appendix A). All kinds clip gradients first, and decay a weight by learning rate ×
weight_decay × weight.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from skipalign_jax import config as config_lib
from skipalign_jax.runtime import errors
from skipalign_jax.training import layerwise

# Keys of config.optim that only some kinds or schedules read.
_READ_BY = {
  "kind": {
    "adamw": ("beta1", "beta2", "eps"),
    "adafactor": (),
    "lion": ("beta1", "beta2"),
    "muon": ("beta1", "beta2", "eps", "momentum"),
  },
  "schedule": {
    "linear": ("final_fraction",),
    "constant": (),
    "cosine": ("final_fraction",),
    "wsd": ("decay_fraction", "final_fraction"),
  },
}


def check(config: ml_collections.ConfigDict) -> None:
  """Checks that the keys of config.optim belong together.

  Raises:
    UserError: a key was changed that nothing reads, or the phases of the schedule are
      longer than the run.
  """
  for choice, reads in _READ_BY.items():
    sometimes = {key for keys in reads.values() for key in keys}
    for key in sorted(sometimes - set(reads[config[choice]])):
      default = config_lib.KEYS[f"optim.{key}"].default
      if config[key] != default:
        users = " or ".join(name for name, keys in reads.items() if key in keys)
        raise errors.UserError(
          f"optim.{key}={config[key]} has no effect with optim.{choice}="
          f"{config[choice]}; leave it at {default}, or use optim.{choice}={users}"
        )
  warmup, decay = config.warmup_fraction, config.decay_fraction
  if config.schedule == "wsd" and warmup + decay > 1:
    raise errors.UserError(
      f"optim.warmup_fraction={warmup} and optim.decay_fraction={decay} are together "
      "more than the whole run; decrease one of them"
    )


def schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
  """Learning rate of step 0, 1, … steps−1.

  Rises linearly over the first `warmup_fraction` of the run (the first step already
  moves), then falls towards `final_fraction` of the highest rate, which it would reach
  at step `steps`. Fractions are rounded up to whole steps.
  """
  warmup = _whole_steps(config.warmup_fraction, steps)
  left = _SCHEDULES[config.schedule](config, steps, warmup)
  final = config.final_fraction

  def learning_rate(step: jax.Array) -> jax.Array:
    rise = (step + 1) / warmup
    fall = final + (1 - final) * left(step)
    return config.learning_rate * jnp.clip(jnp.minimum(rise, fall), 0, 1)

  return learning_rate


def _whole_steps(fraction: float, steps: int) -> int:
  """A fraction of a run, rounded up; 0.07 of 100 steps are 7, not 7.000000000000001."""
  return max(1, math.ceil(round(fraction * steps, 6)))


def _linear(config, steps, warmup):
  return lambda step: (steps - step) / max(1, steps - warmup)


def _constant(config, steps, warmup):
  return jnp.ones_like


def _cosine(config, steps, warmup):
  linear = _linear(config, steps, warmup)
  # (1 + cos(π (1 − x))) / 2 = sin²(π x / 2), which is also exact for small x.
  return lambda step: jnp.sin(math.pi / 2 * jnp.minimum(linear(step), 1)) ** 2


def _wsd(config, steps, warmup):
  decay = _whole_steps(config.decay_fraction, steps)
  return lambda step: jnp.minimum((steps - step) / decay, 1)


# Name → what of the falling part is left at a step, from 1 to 0.
_SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
  "linear": _linear,
  "constant": _constant,
  "cosine": _cosine,
  "wsd": _wsd,
}


def make(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
  """The optax chain of `config.optim` for a run of `steps`."""
  clip = optax.clip_by_global_norm(config.clip_norm)
  return optax.chain(
    clip if config.clip_norm else optax.identity(),
    _KINDS[config.kind](config, schedule(config, steps)),
  )


def _adamw(config, rate):
  return optax.adamw(
    rate,
    b1=config.beta1,
    b2=config.beta2,
    eps=config.eps,
    weight_decay=config.weight_decay,
  )


def _adafactor(config, rate):
  """Without momentum, and with steps that do not depend on the size of the weights."""
  factored = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
  return _decayed(layerwise.each_layer(factored), config, rate)


def _lion(config, rate):
  return optax.lion(
    rate, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay
  )


def _muon(config, rate):
  momentum = optax.trace(config.momentum, nesterov=True)
  matrices = optax.chain(momentum, layerwise.orthogonal())
  return optax.partition(
    {"muon": _decayed(matrices, config, rate), "adamw": _adamw(config, rate)},
    lambda params: jax.tree.map(
      lambda x: "muon" if layerwise.is_matrix(x) else "adamw", params
    ),
  )


def _decayed(direction, config, rate):
  return optax.chain(
    direction,
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(rate),
  )


_KINDS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon}

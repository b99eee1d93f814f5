"""The weights that a run starts from, on their devices."""

from typing import Any

import jax
import numpy as np

from skipalign_jax.hf import adapters, reference, weights
from skipalign_jax.model import decoder, lora_state, model_config, sharding
from skipalign_jax.training import recipe as recipe_lib
from skipalign_jax.training import state as state_lib


def of_run(
  recipe: recipe_lib.Recipe,
  opened: reference.Model | None,
  start: dict[str, weights.Parameter],
  at: state_lib.TrainState,
) -> tuple[decoder.Params, decoder.Params | None]:
  """What is trained, as it is at the start, and the frozen base under adapters.

  Args:
    recipe: of the step.
    opened: the model that the run starts from; None from scratch.
    start: adapters that it starts from; empty without.
    at: where each array of the state lives.
  """
  base = frozen_base(recipe, opened, at.base)
  if start:
    return read_adapters(start, at.params), base
  if recipe.adapters:
    return zero_adapters(recipe, at.params), base
  return full(opened, recipe.model, recipe.seed, at.params), base


def full(
  opened: reference.Model | None,
  shape: model_config.ModelConfig,
  seed: int,
  shardings: Any,
) -> decoder.Params:
  """fp32 weights on their devices: those of the reference, or random ones."""
  if opened is None:
    return jax.jit(lambda: decoder.init(shape, seed), out_shardings=shardings)()
  return reference.load_params(opened, np.float32, sharding.placer(shardings))


def read_adapters(
  start: dict[str, weights.Parameter], shardings: Any
) -> decoder.Params:
  """fp32 adapters on their devices, as `peft_adapter.Adapter.start` has them."""
  return reference.build_params(start, np.float32, sharding.placer(shardings))


def zero_adapters(recipe: recipe_lib.Recipe, shardings: Any) -> decoder.Params:
  """fp32 adapters on their devices; with them the model equals its base."""
  _, like = decoder.definition(recipe.model)
  draw = lambda: lora_state.init(recipe.adapters, like, recipe.seed)
  return jax.jit(draw, out_shardings=shardings)()


def frozen_base(
  recipe: recipe_lib.Recipe, opened: reference.Model | None, shardings: Any
) -> decoder.Params | None:
  """The base under adapters as it is stored, on its devices; None without adapters."""
  if not recipe.adapters:
    return None
  if opened is None:
    base = adapters.random_base(recipe.model, recipe.seed)
  else:
    base = opened.weights
  place = lora_state.placer(recipe.adapters, shardings)
  return reference.build_params(base, np.float32, place)

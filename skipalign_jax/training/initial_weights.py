"""The weights that a run starts from, on their devices."""

from typing import Any

import jax
import numpy as np

from skipalign_jax.hf import adapters, reference, weights
from skipalign_jax.model import decoder, lora_state, model_config, sharding
from skipalign_jax.training import recipe as recipe_lib


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

"""From a config to everything that a run needs before its first step.

Every contradiction is refused here, before anything is written.
"""

import dataclasses
import pathlib

import jax
import optax
import transformers

from skipalign_jax import config as config_lib
from skipalign_jax.data import pipeline
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.evals import scheduled
from skipalign_jax.hf import reference, weights
from skipalign_jax.model import rope, sharding
from skipalign_jax.runtime import distributed, terminal
from skipalign_jax.training import loggers, resolve
from skipalign_jax.training import optimizer as optimizer_lib
from skipalign_jax.training import recipe as recipe_lib


@dataclasses.dataclass(frozen=True)
class Setup:
  """All of a run that does not change while it trains.

  Attributes:
    config: the resolved config.
    folder: the workdir.
    console: of this process; quiet in all but the first.
    opened: the model that the run starts from; None from scratch.
    adapters: A and B that it starts from (lora.init_from); empty without.
    tokenizer: of the model.
    mesh: all devices.
    recipe: of the step.
    data: rows to train on and held-out batches.
    schedule: learning rate of each step.
    optimizer: what turns gradients into updates.
    evaluations: tasks that run during training.
  """

  config: config_lib.ConfigDict
  folder: pathlib.Path
  console: terminal.Console
  opened: reference.Model | None
  adapters: dict[str, weights.Parameter]
  tokenizer: transformers.PreTrainedTokenizerFast
  mesh: jax.sharding.Mesh
  recipe: recipe_lib.Recipe
  data: pipeline.Data
  schedule: optax.Schedule
  optimizer: optax.GradientTransformation
  evaluations: list[scheduled.Scheduled]


def prepare(
  config: config_lib.ConfigDict, folder: pathlib.Path, console: terminal.Console
) -> Setup:
  """Checks the config, opens the model and reads the data.

  Raises:
    UserError: a key contradicts another key, the model, the data or the devices.
  """
  positions = resolve.check(config)
  if distributed.is_first():
    loggers.check_installed(config.log.to)
  evaluations = scheduled.schedule(config)
  name = config.model.init_from
  opened = reference.open_model(name) if name else None
  tokenizer = tokenizer_lib.resolve(config)
  if opened and config.data.tokenizer:
    opened = reference.with_tokenizer(opened, tokenizer)
  shape = resolve.model_from(config, opened and opened.config, len(tokenizer))
  reference.check_vocabulary(tokenizer, shape)
  mesh = sharding.make_mesh(dict(config.mesh))
  resolve.check_mesh(config, shape, mesh.shape)
  platform = mesh.devices.flat[0].platform
  recipe = recipe_lib.from_config(config, shape, positions, platform)
  adapters = {}
  if name := config.lora.init_from:
    adapter = reference.open_adapter(name)
    adapters = adapter.start(recipe.adapters, shape)
    if own := adapter.other_rope(shape):
      console.print(
        f"NOTE       the adapters in {name} were trained with another rope "
        f"({_describe(own)}) than this run has ({_describe(shape.rope)}); with "
        "rope.kind and rope.target_length of that run they continue as they were"
      )
  share = sharding.process_share(mesh)
  data = pipeline.build(config, tokenizer, *share, console)
  resolve.check_steps(config, positions, data.steps)
  recipe = dataclasses.replace(recipe, steps=data.steps)
  return Setup(
    config=config,
    folder=folder,
    console=console,
    opened=opened,
    adapters=adapters,
    tokenizer=tokenizer,
    mesh=mesh,
    recipe=recipe,
    data=data,
    schedule=optimizer_lib.schedule(config.optim, data.steps),
    optimizer=optimizer_lib.make(config.optim, data.steps),
    evaluations=evaluations,
  )


def _describe(own: rope.RopeConfig) -> str:
  """ "ntk, theta 10000, factor 24.4"."""
  return f"{own.kind}, theta {own.theta:g}, factor {own.factor:.3g}"

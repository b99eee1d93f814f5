"""The recipe of a step: all that it needs and never changes."""

import dataclasses

import ml_collections

from skipalign_jax import config as config_lib
from skipalign_jax.method import distillation, long_short, positions, preference
from skipalign_jax.model import backends, lora, model_config


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that a step needs and never changes."""

  model: model_config.ModelConfig
  positions: positions.PositionConfig
  long_short: long_short.LongShortConfig
  crop: int  # tokens that a longer row of text is cut to; 0 keeps rows as they are
  seed: int
  compute_dtype: str
  remat: str
  attention: backends.Backend
  loss_chunk: int
  grad_accum: int
  adapters: lora.Config | None = None  # None trains all weights
  steps: int = 1  # of the run, which positions.schedule divides
  distill: distillation.DistillConfig = dataclasses.field(
    default_factory=distillation.DistillConfig
  )
  loss: preference.PreferenceConfig = dataclasses.field(
    default_factory=preference.PreferenceConfig
  )

  @property
  def pair_weight(self) -> float:
    """α or λ: the weight of what a second read adds; 0 if there is no second read."""
    return self.long_short.alpha or self.distill.weight

  @property
  def reads(self) -> tuple[int, int]:
    """How often a step reads its batch: all reads, and those with a backward pass."""
    if not self.pair_weight:
      return 1, 1
    constant = self.long_short.alpha and self.long_short.stop_gradient == "short"
    return 2, 1 if constant else 2


def from_config(
  config: ml_collections.ConfigDict,
  shape: model_config.ModelConfig,
  position_recipe: positions.PositionConfig,
  platform: str,
) -> Recipe:
  """The recipe that a config means, for a model of this shape.

  Args:
    config: the whole config.
    shape: of the model.
    position_recipe: what `resolve.check` made of config.positions.
    platform: of the devices: "cpu", "gpu", "cuda" or "tpu".

  Raises:
    UserError: the attention backend does not exist there.
  """
  regulariser = long_short.LongShortConfig(**config.long_short)
  # A short window cuts each sample in two; a pair has two segments.
  parts = 2 if regulariser.alpha or config_lib.has_pairs(config) else 1
  backend = backends.choose(
    config.attention.backend,
    platform,
    config.model.compute_dtype,
    config.data.seq_len,
    shape.head_dim,
    parts * config_lib.max_samples(config.data) + 1,  # and the padding
  )
  return Recipe(
    model=shape,
    positions=position_recipe,
    long_short=regulariser,
    crop=config.data.seq_len if config.data.text_window else 0,
    seed=config.seed,
    compute_dtype=config.model.compute_dtype,
    remat=config.model.remat,
    attention=backend,
    loss_chunk=config.loss.chunk,
    grad_accum=config.grad_accum,
    adapters=lora.from_config(config.lora),
    distill=distillation.DistillConfig(**config.distill),
    loss=preference.from_config(config.loss),
  )

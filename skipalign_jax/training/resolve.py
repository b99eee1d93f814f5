"""From a config to what it means: the model's shape, its rope, its positions.

`config.check` looks at each key by itself. Contradictions between keys, or between the
config and the model that it starts from, are refused here. Both happen before anything
is loaded or written.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from skipalign_jax import config as config_lib
from skipalign_jax.method import baselines, positions, preference
from skipalign_jax.model import lora, model_config, rope, sharding
from skipalign_jax.runtime import errors
from skipalign_jax.training import loggers, optimizer, trace

SHAPE_FIELDS = tuple(
  field.name
  for field in dataclasses.fields(model_config.ModelConfig)
  if field.name != "rope"
)

_HAVE_DEFAULTS = {
  field.name
  for field in dataclasses.fields(model_config.ModelConfig)
  if field.default is not dataclasses.MISSING
}


def check(config: ml_collections.ConfigDict) -> positions.PositionConfig:
  """Validates all that needs no model: each key, then keys that belong together.

  Returns:
    The position recipe.

  Raises:
    UserError: see `config.check`; or keys that contradict each other.
  """
  config_lib.check(config)
  sharding.check_sizes(dict(config.mesh))
  if lora.from_config(config.lora) is None:
    _check_no_adapters(config.lora)
  optimizer.check(config.optim)
  loggers.names(config.log.to)
  trace.parse(config.profile)
  preference.check(config)
  recipe = positions.PositionConfig(**config.positions)
  if recipe.strategy != "contiguous" and recipe.max_position < config.data.seq_len:
    raise errors.UserError(
      f"positions.max_position={recipe.max_position} is smaller than "
      f"data.seq_len={config.data.seq_len}, so nothing could skip; increase "
      "positions.max_position or use positions.strategy=contiguous"
    )
  if (config.steps is None) == (config.epochs is None):
    raise errors.UserError(
      f"set exactly one of steps and epochs (now steps={config.steps}, "
      f"epochs={config.epochs}); None unsets one, as in --config.steps=None "
      "--config.epochs=1"
    )
  if config.steps is not None:
    check_steps(config, recipe, config.steps)
  if config.batch_size % config.grad_accum:
    raise errors.UserError(
      f"grad_accum={config.grad_accum} must divide batch_size={config.batch_size}"
    )
  _check_rows(config.data)
  least = config.long_short.min_context
  if config.long_short.alpha and least >= config.data.seq_len:
    raise errors.UserError(
      f"long_short.min_context={least} must be below data.seq_len="
      f"{config.data.seq_len}, or no short context counts; decrease it"
    )
  if recipe.strategy in ("endprompt", "logo") and recipe.terminal == "cue":
    _check_cue(config)
  if config.distill.weight:
    _check_distillation(config)
  if config.data.text_window:
    _check_window(config)
  return recipe


def check_steps(
  config: ml_collections.ConfigDict, recipe: positions.PositionConfig, steps: int
) -> None:
  """Checks the keys that name steps, or parts of a run, against its number of steps.

  `check` calls it where the config has that number; with epochs the data have it.

  Raises:
    UserError: the run ends before the last limit of positions.schedule, or before the
      last step of profile.
  """
  trace.check(config.profile, steps)
  if len(recipe.limits) > steps:
    raise errors.UserError(
      f"positions.schedule has {len(recipe.limits)} limits and the run {steps} steps, "
      "so it would end before the last one; leave some out, or train longer (steps, "
      "epochs)"
    )


def _check_no_adapters(given: Mapping[str, Any]) -> None:
  """Refuses settings of adapters in a run that trains all weights.

  With lora.init_from the adapter's own check says what to set.
  """
  if given["init_from"]:
    return
  for key, default in config_lib.default().lora.items():
    if given[key] != default:
      raise errors.UserError(
        f"lora.{key}={given[key]} has no effect with lora.rank=0, which trains all "
        f"weights; set lora.rank, or leave lora.{key} at {default!r}"
      )


def _check_distillation(config: ml_collections.ConfigDict) -> None:
  """What distill.weight can be combined with."""
  if config.long_short.alpha:
    raise errors.UserError(
      f"distill.weight={config.distill.weight} and "
      f"long_short.alpha={config.long_short.alpha} each need the second read of a "
      "batch; set one of them to 0"
    )
  p = config.positions
  if p.max_position < config.data.seq_len:
    raise errors.UserError(
      f"distill.weight={config.distill.weight}: positions.max_position="
      f"{p.max_position} is smaller than data.seq_len={config.data.seq_len}, so long "
      "samples have no room for a jump; increase positions.max_position"
    )
  if config.distill.view == "strategy" and (
    p.strategy == "contiguous" or config.data.text_window
  ):
    raise errors.UserError(
      "distill.view=strategy compares positions.strategy with contiguous positions of "
      "the same tokens; choose another positions.strategy and data.text_window=0, or "
      "distill.view=jump"
    )


def _check_cue(config: ml_collections.ConfigDict) -> None:
  """What positions.terminal=cue can be combined with."""
  if config.positions.strategy == "logo" or config_lib.has_pairs(config):
    raise errors.UserError(
      "positions.terminal=cue needs positions.strategy=endprompt and loss.kind=sft, "
      f"not {config.positions.strategy} and {config.loss.kind}; set "
      "positions.terminal=turn or response"
    )
  if not config.data.packing_mask:
    raise errors.UserError(
      "positions.terminal=cue moves the last block of each sample, and "
      "data.packing_mask=False joins the samples of a row; set data.packing_mask=True"
    )


def _check_rows(data: ml_collections.ConfigDict) -> None:
  """How samples become rows: keys of `data` that contradict each other."""
  if data.batching == "sorted" and data.packing:
    raise errors.UserError(
      "data.batching=sorted puts samples of similar length together, and "
      "data.packing=True fills all rows anyway; use only one of them"
    )
  if not data.packing and not data.packing_mask:
    raise errors.UserError(
      "data.packing_mask=False joins the samples of a packed row, but "
      "data.packing=False packs no rows; set data.packing=True"
    )


def _check_window(config: ml_collections.ConfigDict) -> None:
  """What data.text_window can be combined with; `pipeline` refuses chats."""
  data, window = config.data, f"data.text_window={config.data.text_window}"
  if config.positions.strategy not in baselines.CROPS:
    known = " or ".join(baselines.CROPS)
    raise errors.UserError(
      f"{window} crops texts, which needs positions.strategy={known}; "
      "data.text_window=0 turns cropping off"
    )
  if data.text_window <= data.seq_len:
    raise errors.UserError(
      f"{window} must be greater than data.seq_len={data.seq_len}, the length after "
      "cropping; data.text_window=0 turns cropping off"
    )
  if data.packing or data.batching == "sorted":
    raise errors.UserError(
      f"{window}: a row that is cropped holds one piece of text; set "
      "data.packing=False and data.batching=shuffled"
    )
  if config.loss.reduction == "sequence":
    raise errors.UserError(
      f"loss.reduction=sequence weights whole samples, but {window} crops them later; "
      "use loss.reduction=token"
    )


def check_mesh(
  config: ml_collections.ConfigDict,
  shape: model_config.ModelConfig,
  mesh: Mapping[str, int],
) -> None:
  """Checks that rows, their tokens and heads can be split over a mesh's axes.

  Args:
    config: the whole config.
    shape: of the model.
    mesh: axis → devices along it.

  Raises:
    UserError: an axis whose size does not divide what it splits.
  """
  rows = config.batch_size // config.grad_accum
  devices = mesh["data"] * mesh["fsdp"]
  if rows % devices:
    raise errors.UserError(
      f"a microbatch of {rows} rows (batch_size / grad_accum) cannot be divided over "
      f"{devices} devices (mesh.data x mesh.fsdp); change batch_size or grad_accum. A "
      "run that is resumed keeps both: give it a number of devices that divides "
      f"{rows}"
    )
  for length in (*config_lib.buckets(config.data), config_lib.row_length(config.data)):
    if length % mesh["context"]:
      raise errors.UserError(
        f"rows of {length} tokens (data.seq_len={config.data.seq_len}) cannot be split "
        f"into mesh.context={mesh['context']} equal parts; change one of the two"
      )
  check_heads(shape, mesh)


def check_heads(shape: model_config.ModelConfig, mesh: Mapping[str, int]) -> None:
  """Checks that the heads of attention can be split; see `check_mesh`."""
  devices = mesh["tensor"] * mesh["context"]
  if shape.num_heads % devices:
    raise errors.UserError(
      f"attention splits heads over mesh.tensor x mesh.context = {devices} devices, "
      f"but the model has {shape.num_heads} query and {shape.num_kv_heads} kv heads; "
      "choose sizes whose product divides the number of query heads"
    )


def model_from(
  config: ml_collections.ConfigDict,
  base: model_config.ModelConfig | None,
  vocab_size: int,
) -> model_config.ModelConfig:
  """The model's shape and rope.

  Args:
    config: the whole config.
    base: shape of the model that the run starts from; None from scratch.
    vocab_size: of the tokenizer; the default for a model from scratch.

  Raises:
    UserError: from scratch, a key is missing; otherwise a key contradicts `base`.
  """
  given = {name: config.model[name] for name in SHAPE_FIELDS}
  if base is None:
    base = _from_scratch(given, config.rope.theta, vocab_size)
  else:
    _check_agreement(given, base, config)
  return _with_rope(base, config)


def _from_scratch(
  given: dict[str, Any], theta: float | None, vocab_size: int
) -> model_config.ModelConfig:
  """The shape that the config gives, with an unscaled rope."""
  if given["vocab_size"] is None:
    given["vocab_size"] = vocab_size
  given = {
    name: value
    for name, value in given.items()
    if value is not None or name not in _HAVE_DEFAULTS
  }
  missing = [f"model.{name}" for name, value in given.items() if value is None]
  if theta is None:
    missing.append("rope.theta")
  if missing:
    raise errors.UserError(
      "training from scratch (model.init_from is empty) needs values for "
      f"{', '.join(missing)}"
    )
  return model_config.ModelConfig(**given, rope=rope.RopeConfig("none", theta))


def _check_agreement(
  given: dict[str, Any],
  base: model_config.ModelConfig,
  config: ml_collections.ConfigDict,
) -> None:
  """Refuses a value of the config that differs from the model's own."""
  given = given | {"theta": config.rope.theta}
  theirs = dataclasses.asdict(base) | {"theta": base.rope.theta}
  for name, value in given.items():
    if value is not None and value != theirs[name]:
      where = "rope" if name == "theta" else "model"
      raise errors.UserError(
        f"{where}.{name}={value}, but {config.model.init_from} has {theirs[name]}; "
        "do not set this key when starting from weights"
      )


def _with_rope(
  base: model_config.ModelConfig, config: ml_collections.ConfigDict
) -> model_config.ModelConfig:
  kind, target = config.rope.kind, config.rope.target_length
  if kind == "model":
    if target is not None:
      raise errors.UserError(
        f"rope.target_length={target} needs rope.kind=ntk (or linear, yarn, llama3); "
        "rope.kind=model keeps the model's own rope"
      )
    return base
  if base.rope.kind not in ("none", kind):
    raise errors.UserError(
      f"rope.kind={kind} conflicts with the model's own config, which has "
      f"{base.rope.kind} with factor {base.rope.factor}; use rope.kind=model"
    )
  if kind == "none":
    return base
  if target is None:
    target = max(config.positions.max_position, base.window)
  unscaled = _unscaled_window(base, config)
  if target < unscaled:
    raise errors.UserError(
      f"rope.target_length={target} is below the model's window of {unscaled:.0f}; "
      "increase it"
    )
  scaled = dataclasses.replace(
    base.rope,
    kind=kind,
    factor=target / unscaled,
    original_window=(
      base.rope.original_window if base.rope.kind == kind else base.window
    ),
  )
  return dataclasses.replace(base, window=target, rope=scaled)


def _unscaled_window(
  base: model_config.ModelConfig, config: ml_collections.ConfigDict
) -> float:
  """Positions that a factor of 1 means: those before the model's own scaling.

  Raises:
    UserError: the model does not say how many these are.
  """
  own = base.rope
  if own.kind != config.rope.kind:
    return base.window
  if own.kind == "llama3":
    # Its factor is no ratio of lengths: Llama 3.1 has 8 from 8192 to 131072, Llama 3.2
    # has 32. What its window has is what its factor is for.
    return base.window / own.factor
  if own.kind == "linear" and own.factor > 1 and own.original_window == base.window:
    # Files have the window before scaling there, or the one after it.
    raise errors.UserError(
      f"rope.kind=linear: {config.model.init_from} is scaled by {own.factor:g} "
      f"already, and does not say whether its window of {base.window} is the one "
      "before that or after; use rope.kind=model, or let its config.json have the one "
      "after as max_position_embeddings and the one before as "
      "original_max_position_embeddings, next to the factor"
    )
  return own.original_window

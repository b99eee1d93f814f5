"""From a config to what it means: the model's shape, its rope, its positions.

Every contradiction between keys, or between the config and the model that it
starts from, is refused here, before anything is loaded or written.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from skipalign_jax import config as config_lib
from skipalign_jax.method import baselines, long_short, positions
from skipalign_jax.model import lora, model_config, rope
from skipalign_jax.runtime import errors

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
  """Validates keys that need no model; returns the position recipe."""
  recipe = positions.PositionConfig(**config.positions)
  long_short.LongShortConfig(**config.long_short)
  if recipe.strategy != "contiguous" and recipe.max_position < config.data.seq_len:
    raise errors.UserError(
      f"positions.max_position={recipe.max_position} is smaller than "
      f"data.seq_len={config.data.seq_len}: nothing could skip. Raise the first "
      "or use positions.strategy=contiguous."
    )
  if (config.steps is None) == (config.epochs is None):
    raise errors.UserError(
      f"set one of steps and epochs, not both or none (steps={config.steps}, "
      f"epochs={config.epochs})"
    )
  _choice("model.compute_dtype", config.model.compute_dtype, ("bfloat16", "float32"))
  _choice("model.remat", config.model.remat, ("none", "dots", "full"))
  lora.from_config(config.lora)
  for key in ("batch_size", "grad_accum", "log_every"):
    _positive(key, config[key])
  _positive("data.seq_len", config.data.seq_len)
  _positive("loss.chunk", config.loss.chunk)
  _choice("loss.reduction", config.loss.reduction, ("token", "sequence"))
  _check_rows(config.data)
  if config.data.text_window:
    _check_window(config)
  if config.batch_size % config.grad_accum:
    raise errors.UserError(
      f"grad_accum={config.grad_accum} must divide batch_size={config.batch_size}"
    )
  return recipe


def _check_rows(data: ml_collections.ConfigDict) -> None:
  """How samples become rows: keys of `data` that contradict each other."""
  _choice("data.batching", data.batching, ("shuffled", "sorted"))
  if data.batching == "sorted" and data.packing:
    raise errors.UserError(
      "data.batching=sorted puts samples of like length together, and packing fills "
      "all rows anyway; use one of them"
    )
  if not data.packing and not data.packing_mask:
    raise errors.UserError(
      "data.packing_mask=False joins the samples of a packed row, and "
      "data.packing=False packs none; set data.packing=True"
    )
  known = ("none", "sentences", "paragraphs")
  _choice("data.text_blocks", data.text_blocks, known)


def _check_window(config: ml_collections.ConfigDict) -> None:
  """What rows that the step crops go together with; `pipeline` refuses chats."""
  data, told = config.data, f"data.text_window={config.data.text_window}"
  if config.positions.strategy not in baselines.CROPS:
    known = " or ".join(baselines.CROPS)
    raise errors.UserError(f"{told} crops texts as positions.strategy={known} says")
  if data.text_window <= data.seq_len:
    raise errors.UserError(
      f"{told} must exceed data.seq_len={data.seq_len}, to which pieces of it are "
      "cropped; 0 turns cropping off"
    )
  if data.packing or data.batching == "sorted":
    raise errors.UserError(
      f"{told}: rows that the step crops hold one piece of text each; it needs "
      "data.packing=False and data.batching=shuffled"
    )
  if config.loss.reduction == "sequence":
    raise errors.UserError(
      f"loss.reduction=sequence weighs whole samples, and {told} crops them later; "
      "use loss.reduction=token"
    )


def check_mesh(
  config: ml_collections.ConfigDict,
  shape: model_config.ModelConfig,
  mesh: Mapping[str, int],
) -> None:
  """Checks that rows, places and heads spread evenly over a mesh's axes.

  Args:
    config: the whole config.
    shape: of the model.
    mesh: axis → devices along it.
  """
  rows = config.batch_size // config.grad_accum
  devices = mesh["data"] * mesh["fsdp"]
  if rows % devices:
    raise errors.UserError(
      f"a microbatch of {rows} rows (batch_size / grad_accum) does not spread over "
      f"{devices} devices (mesh.data x mesh.fsdp); change batch_size or grad_accum"
    )
  for length in (*config_lib.buckets(config.data), config_lib.row_length(config.data)):
    if length % mesh["context"]:
      raise errors.UserError(
        f"rows of {length} tokens (data.seq_len={config.data.seq_len}) do not split "
        f"into mesh.context={mesh['context']} equal parts"
      )
  check_heads(shape, mesh)


def check_heads(shape: model_config.ModelConfig, mesh: Mapping[str, int]) -> None:
  """Checks that attention's heads spread evenly; see `check_mesh`."""
  devices = mesh["tensor"] * mesh["context"]
  if shape.num_heads % math.lcm(shape.num_kv_heads, devices):
    raise errors.UserError(
      f"attention splits heads over mesh.tensor x mesh.context = {devices} devices, "
      f"but the model has {shape.num_heads} query and {shape.num_kv_heads} kv heads; "
      "choose axes whose product divides the query heads evenly"
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
  """
  given = {name: config.model[name] for name in SHAPE_FIELDS}
  if base is None:
    if given["vocab_size"] is None:
      given["vocab_size"] = vocab_size
    given = {
      name: value
      for name, value in given.items()
      if value is not None or name not in _HAVE_DEFAULTS
    }
    missing = [f"model.{name}" for name, value in given.items() if value is None]
    if config.rope.theta is None:
      missing.append("rope.theta")
    if missing:
      raise errors.UserError(
        f"training from scratch (model.init_from is empty) needs {', '.join(missing)}"
      )
    plain = rope.RopeConfig("none", config.rope.theta)
    base = model_config.ModelConfig(**given, rope=plain)
  else:
    _agree(given, base, config)
  return _with_rope(base, config)


def _agree(
  given: dict[str, Any],
  base: model_config.ModelConfig,
  config: ml_collections.ConfigDict,
) -> None:
  given = given | {"theta": config.rope.theta}
  theirs = dataclasses.asdict(base) | {"theta": base.rope.theta}
  for name, value in given.items():
    if value is not None and value != theirs[name]:
      where = "rope" if name == "theta" else "model"
      raise errors.UserError(
        f"{where}.{name}={value} but {config.model.init_from} has {theirs[name]}; "
        "leave the key out when starting from weights"
      )


def _with_rope(
  base: model_config.ModelConfig, config: ml_collections.ConfigDict
) -> model_config.ModelConfig:
  kind, target = config.rope.kind, config.rope.target_length
  if kind == "model":
    if target is not None:
      raise errors.UserError(
        "rope.target_length needs rope.kind=ntk (or linear, yarn, llama3): "
        "rope.kind=model keeps the model's own rope"
      )
    return base
  if base.rope.kind not in ("none", kind):
    raise errors.UserError(
      f"rope.kind={kind} fights the model's own config, which says "
      f"{base.rope.kind} with factor {base.rope.factor}; use rope.kind=model"
    )
  original = base.rope.original_window if base.rope.kind == kind else base.window
  if kind == "none":
    return base
  if target is None:
    target = max(config.positions.max_position, base.window)
  if target < original:
    raise errors.UserError(
      f"rope.target_length={target} is below the model's window {original}"
    )
  scaled = dataclasses.replace(
    base.rope, kind=kind, factor=target / original, original_window=original
  )
  return dataclasses.replace(base, window=target, rope=scaled)


def _choice(key: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    raise errors.UserError(f"{key}={value!r}; choose one of {', '.join(known)}")


def _positive(key: str, value: int) -> None:
  if value < 1:
    raise errors.UserError(f"{key}={value} must be at least 1")

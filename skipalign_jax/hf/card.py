"""The README.md of an exported model: how it was trained, from its config.

Only named keys of the resolved config are written, never the whole config and nothing
from the environment, so that no secret and no path of a cache is published.
"""

import pathlib
from importlib import metadata
from typing import Any

from skipalign_jax.hf import hub, native
from skipalign_jax.model import lora, model_config
from skipalign_jax.runtime import escape

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers")


def library_versions() -> dict[str, str]:
  """Installed version of each of `LIBRARIES`."""
  return {name: metadata.version(name) for name in LIBRARIES}


def write(
  config: model_config.ModelConfig,
  described: native.Description | None,
  step: int | None,
  dtype: str,
) -> str:
  """Model card in Markdown.

  Args:
    config: the exported model.
    described: config.json of the workdir it comes from, None otherwise.
    step: its checkpoint.
    dtype: of the weights.
  """
  trained = described is not None and described.config is not None
  base = described.base if described else None
  lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
  if trained:
    lines.append("tags: [skipalign, long-context]")
  if base and (hub_id := hub.public_id(base)):
    lines.append(f'base_model: "{hub_id.partition("@")[0]}"')
  lines += [
    "---",
    "",
    "# " + ("Fine-tuned model" if trained else "Converted model"),
    "",
  ]
  lines.append(
    f"A {config.family}-architecture model of {config.num_params():,} parameters in "
    f"{dtype}, exported by skipalign_jax."
  )
  rows = [*_model_rows(config, base)]
  if trained:
    rows += _training_rows(described.config, step)
  versions = (described.versions if described else None) or {}
  if versions:
    rows.append(
      ("library versions", ", ".join(f"{k} {v}" for k, v in versions.items()))
    )
  lines += ["", "| | |", "|---|---|"]
  lines += [f"| {name} | {escape.markdown(value)} |" for name, value in rows]
  if trained:
    lines += ["", *_USE]
  return "\n".join(lines) + "\n"


def write_adapters(described: native.Description, step: int, dtype: str) -> str:
  """Model card of a run's adapters in PEFT's format, in Markdown.

  Args:
    described: config.json of the run.
    step: its checkpoint.
    dtype: of the adapters.
  """
  lines = ["---", "library_name: peft", "tags: [skipalign, long-context, lora]"]
  if hub_id := hub.public_id(described.base or ""):
    lines.append(f'base_model: "{hub_id.partition("@")[0]}"')
  rows = _model_rows(described.model_config, described.base)
  rows += _training_rows(described.config, step)
  lines += ["---", "", "# LoRA adapters", ""]
  lines += [
    f"Adapters in {dtype}, exported by skipalign_jax.",
    "",
    "| | |",
    "|---|---|",
  ]
  lines += [f"| {name} | {escape.markdown(value)} |" for name, value in rows]
  return "\n".join([*lines, "", *_USE]) + "\n"


_USE = (
  "Use it as any model of its kind. In training code of your own that skips "
  "positions, pass an explicit all-ones `attention_mask` next to `position_ids`: "
  "without one, transformers 5 takes every jump for the start of another packed "
  "sequence and does not attend across it.",
)


def _model_rows(
  config: model_config.ModelConfig, base: str | None
) -> list[tuple[str, Any]]:
  r = config.rope
  scaled = f"{r.kind} × {r.factor:g} of base {r.theta:g}"
  rows = [
    ("rope", f"base {r.theta:g}, unscaled" if r.kind == "none" else scaled),
    ("positions the rope is set for", config.window),
  ]
  return [("base model", base and _public_name(base)), *rows] if base else rows


def _training_rows(config: dict[str, Any], step: int | None) -> list[tuple[str, Any]]:
  def get(key: str) -> Any:
    value: Any = config
    for part in key.split("."):
      value = value.get(part) if isinstance(value, dict) else None
    return value

  adapters = lora.from_config(config["lora"]) if "lora" in config else None
  strategy = get("positions.strategy")
  skipping = str(strategy).startswith("skip")
  rows = [
    ("positions", strategy),
    (
      "extension length L",
      get("positions.max_position") if strategy != "contiguous" else None,
    ),
    ("limits over the run", get("positions.schedule") or None),
    ("skip probability p", get("positions.skip_prob") if skipping else None),
    ("gap law", get("positions.gaps") if skipping else None),
    ("data", _public_sources(get("data.train"))),
    ("chat template", get("data.template")),
    ("tokens per row", get("data.seq_len")),
    ("packing", get("data.packing")),
    ("optimizer steps", step),
    ("batch size", get("batch_size")),
    ("optimizer", get("optim.kind")),
    ("learning rate", get("optim.learning_rate")),
    ("schedule", get("optim.schedule")),
    ("warm-up fraction", get("optim.warmup_fraction")),
    ("weight decay", get("optim.weight_decay")),
    ("seed", get("seed")),
    ("adapters", adapters and lora.describe(adapters)),
  ]
  return [(name, value) for name, value in rows if value is not None]


def _public_name(reference: str) -> str:
  """A hub id, or the last part of a local path: folder names can be private."""
  if hub_id := hub.public_id(reference):
    return hub_id
  kind = "file" if reference.endswith(".gguf") else "folder"
  return f"local {kind} {pathlib.PurePath(reference).name}"


def _public_sources(sources: Any) -> str:
  parts = sources if isinstance(sources, list | tuple) else str(sources).split(",")
  return ", ".join(
    part if part.startswith(("builtin:", "hub:")) else pathlib.PurePath(part).name
    for part in map(str.strip, map(str, parts))
  )

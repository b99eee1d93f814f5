"""Writes the adapters of a run as PEFT does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipalign_jax.hf import (
  adapters,
  card,
  export,
  hub,
  names,
  native,
  peft_adapter,
  peft_config,
  reference,
  safetensors_files,
  weights,
)
from skipalign_jax.model import lora, model_config
from skipalign_jax.runtime import errors, files

if TYPE_CHECKING:
  import transformers


def write(
  model: reference.Model,
  tokenizer: transformers.PreTrainedTokenizerFast,
  stop_ids: Sequence[int],
  out: str | os.PathLike[str],
  dtype: str,
) -> tuple[int, list[str]]:
  """Writes `out`, all of it or nothing.

  Args:
    model: a run that trained adapters.
    tokenizer: its tokenizer, chat template included.
    stop_ids: ids that end a reply, into config.json.
    out: a folder that does not exist or is empty.
    dtype: one of `export.DTYPES`; "keep" is float32, as they were trained.

  Returns:
    Bytes of the adapters, and notes for who loads them.

  Raises:
    UserError: the model has no adapters or no base, `out` is not empty, or values are
      NaN, infinite or too large for `dtype`.
  """
  described, config = _adapters_of(model)
  base = reference.open_model(described.base)
  written = "float32" if dtype == "keep" else dtype
  pairs = adapters.open_pairs(
    model.location.path, model.location.step, model.config, config
  )
  with files.new_folder(out) as folder:
    files.write_json(folder / peft_config.FILE, _settings(described.base, config))
    whole = export.hf_config(
      model.config, model.hf_config, tokenizer, stop_ids, written
    )
    files.write_json(folder / "config.json", whole)
    export.save_tokenizer(tokenizer, folder, export.grown_window(model))
    text = card.write_adapters(described, model.location.step, written)
    (folder / "README.md").write_text(text, encoding="utf-8")
    tensors = _tensors(pairs, config, written)
    total = safetensors_files.write_tensors(folder, tensors)
    (folder / safetensors_files.SINGLE).rename(folder / peft_adapter.FILE)
  return total, list(_notes(base, model, config))


def _adapters_of(model: reference.Model) -> tuple[native.Description, lora.Config]:
  """The run and its adapters; UserError without."""
  described = config = None
  if model.kind == "workdir":
    described = native.read_config(model.location.path)
    config = adapters.config_of(described)
  if config is None:
    raise errors.UserError(
      f"{model.reference}: --format=peft writes the adapters of a run (lora.rank above "
      "0), and this is not one; use --format=hf"
    )
  if described.base is None:
    raise errors.UserError(
      f"{model.reference}: the adapters' base has random weights, which no file has; "
      "use --format=hf, which merges them"
    )
  return described, config


def _settings(base: str, config: lora.Config) -> dict[str, Any]:
  """adapter_config.json."""
  hub_id = hub.public_id(base)
  name, _, revision = hub_id.partition("@")
  alpha = config.alpha
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": name or base,
    "revision": revision or None,
    "inference_mode": True,
    "r": config.rank,
    "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "target_modules": [f"{one}_proj" for one in config.targets],
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layers_to_transform": None,
    "layers_pattern": None,
  }


def _tensors(
  pairs: dict[str, weights.Parameter], config: lora.Config, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
  for name in config.targets:
    path = lora.MATRICES[name]
    for side in "ab":
      stacked = pairs[path.replace("/weight", f"/lora_{side}")].read((), dtype)
      for layer, tensor in enumerate(stacked):
        module = names.hf_name(path, layer).removesuffix(".weight")
        tensor_name = f"{peft_config.PREFIX}{module}.lora_{side.upper()}.weight"
        yield export.check_finite(tensor_name, tensor, dtype)


def _notes(
  base: reference.Model, model: reference.Model, config: lora.Config
) -> Iterator[str]:
  """What is not the same for who loads the adapters on the base alone."""
  if (base.config.rope, base.config.window) != (model.config.rope, model.config.window):
    written = model_config.to_hf(model.config)
    keys = ("rope_parameters", "max_position_embeddings")
    overrides = json.dumps({key: written[key] for key in keys})
    yield (
      "the run has another rope than its base. It is in config.json of the new folder, "
      "which is read here; with peft, load the base with "
      "config=AutoConfig.from_pretrained() of that file; with vLLM, add "
      f"--hf-overrides='{overrides}'; or export with --format=hf"
    )
  if base.kind != "hf":
    yield (
      f"peft cannot read the base {base.reference}; export it, too, and write its "
      f"folder into {peft_config.FILE}"
    )
  stored = base.weights["embed/weight"].dtype.name
  if config.base != stored:
    yield (
      f"the adapters were trained over a base in {config.base}, and its files are in "
      f"{stored}, over which they compute a little less exactly. --format=hf merges "
      "them with the base of the training"
    )

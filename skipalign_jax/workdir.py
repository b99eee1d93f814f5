"""The folder of a run: who it belongs to, and what it was started with.

workdir/
  config.json    resolved config and model shape; makes the folder a model reference
  tokenizer/     as transformers saves it
  checkpoints/   see checkpoint.py
  metrics.jsonl, tensorboard/, positions.png
"""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import ml_collections
import transformers

from skipalign_jax import errors, model_config

FORMAT = "skipalign_jax"

# Keys that may change when a run goes on; all others shape its numbers.
FREE = ("log_every", "eval.every", "checkpoint.", "mesh.", "data.cache_dir")


def claim(
  folder: pathlib.Path,
  config: ml_collections.ConfigDict,
  shape: model_config.ModelConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
  """Makes `folder` the workdir of this config, or checks that it is.

  Raises:
    UserError: it belongs to another config, or is something else.
  """
  if folder.is_file():
    raise errors.UserError(f"--workdir={folder} is a file; name a folder")
  described = folder / "config.json"
  if described.exists():
    _same_run(described, config)
  elif folder.exists() and any(folder.iterdir()):
    raise errors.UserError(
      f"--workdir={folder} has files but no run in it; name a new folder"
    )
  try:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
      "format": FORMAT,
      "model_config": dataclasses.asdict(shape),
      "base": config.model.init_from or None,
      "config": config.to_dict(),
    }
    new = folder / "config.json.new"
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    new.replace(described)
    if not (folder / "tokenizer").exists():
      half = folder / "tokenizer.new"
      shutil.rmtree(half, ignore_errors=True)
      tokenizer.save_pretrained(half)
      half.replace(folder / "tokenizer")
  except OSError as error:
    raise errors.UserError(f"--workdir={folder} cannot be written: {error}") from error


def _same_run(described: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  try:
    content = json.loads(described.read_text(encoding="utf-8"))
    theirs = _flatten(content["config"])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f"{described} is not the config of a training run; name a new --workdir"
    ) from error
  ours = _flatten(json.loads(json.dumps(config.to_dict())))
  different = [
    f"  {key}: the run has {theirs.get(key)!r}, now {ours.get(key)!r}"
    for key in sorted(theirs.keys() | ours.keys())
    if theirs.get(key) != ours.get(key) and not key.startswith(FREE)
  ]
  if different:
    raise errors.UserError(
      f"{described.parent} holds a run of another config:\n"
      + "\n".join(different)
      + "\nUse a new --workdir, or give the same values to continue it."
    )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat

"""The folder of a run: claimed by one config, refused to any other.

workdir/
  config.json    resolved config and model shape; makes the folder a model reference,
                 together with model.init_from where adapters are trained
  steps.json     how many steps the run has
  tokenizer/     as transformers saves it
  checkpoints/   see checkpoint.py
  evals/         NAME/STEP/: what config.evals found
  metrics.jsonl, tensorboard/, positions.png
"""

import hashlib
import json
import pathlib
import shutil
import time
from typing import Any

import ml_collections
import transformers

from skipalign_jax import errors, model_config
from skipalign_jax.hf import (
  adapters,
  card,
  export,
  native,
  reference,
  safetensors_io,
)

STEPS = "steps.json"

# Keys that may change when a run goes on; all others shape its numbers.
FREE = (
  "log_every",
  "eval.every",
  "evals.",
  "checkpoint.",
  "mesh.",
  "data.cache_dir",
  "data.workers",
)


def claim(
  folder: pathlib.Path,
  config: ml_collections.ConfigDict,
  shape: model_config.ModelConfig,
  base: reference.Model | None,
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> None:
  """Makes `folder` the workdir of this config, or checks that it is.

  Raises:
    UserError: it belongs to another config, is something else, or cannot be
      written.
  """
  try:
    if (folder / "config.json").exists():
      _check_same(folder, config)
      if base is not None:
        adapters.check_base(folder, native.read_config(folder), base.weights)
    else:
      if folder.exists() and any(folder.iterdir()):
        raise errors.UserError(
          f"--workdir={folder} has files but no run in it; name a new folder"
        )
      folder.mkdir(parents=True, exist_ok=True)
      description = native.Description(
        model_config=shape,
        hf_config=base and base.hf_config,
        generation_config=base and base.generation_config,
        base=config.model.init_from or None,
        config=config.to_dict(),
        versions=card.library_versions(),
        base_digest=adapters.digest(base.weights)
        if base and config.lora.rank
        else None,
      )
      native.write_config(folder, description)
    if not (folder / native.TOKENIZER).exists():
      half = folder / f".{native.TOKENIZER}.new"
      shutil.rmtree(half, ignore_errors=True)
      export.save_tokenizer(tokenizer, half)
      half.replace(folder / native.TOKENIZER)
  except OSError as error:
    raise errors.UserError(f"--workdir={folder} cannot be used: {error}") from error


def write_steps(folder: pathlib.Path, steps: int) -> None:
  """Notes how many steps the run has, so that others can tell whether it is done."""
  safetensors_io.write_json(folder / STEPS, {"steps": steps})


def read_steps(folder: pathlib.Path) -> int | None:
  """What `write_steps` noted; None where no run has begun."""
  if not (folder / STEPS).exists():
    return None
  return int(safetensors_io.read_json(folder / STEPS)["steps"])


def check_shared(folder: pathlib.Path, written: str) -> None:
  """Raises UserError when this process does not see what process 0 claimed.

  Args:
    folder: the workdir, as this process knows it.
    written: `identity` of it in process 0.
  """
  for _ in range(20):  # a network filesystem may show it a little later
    if (found := identity(folder)) == written:
      return
    time.sleep(0.5)
  raise errors.UserError(
    f"--workdir={folder} is not the folder that process 0 writes to"
    f"{'' if found else ' (here it does not exist)'}; all processes need one on a "
    "filesystem that they share"
  )


def identity(folder: pathlib.Path) -> str:
  """Tells one claimed folder from another; empty without one."""
  file = folder / "config.json"
  return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def _check_same(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  if (
    not native.is_workdir(folder)
    or (found := native.read_config(folder)).config is None
  ):
    raise errors.UserError(
      f"--workdir={folder} is a model, not a training run; name a new folder"
    )
  theirs = _flatten(found.config)
  ours = _flatten(json.loads(json.dumps(config.to_dict())))  # tuples become lists
  different = [
    f"  {key}: the run has {theirs.get(key)!r}, now {ours.get(key)!r}"
    for key in sorted(theirs.keys() | ours.keys())
    if theirs.get(key) != ours.get(key) and not key.startswith(FREE)
  ]
  if different:
    raise errors.UserError(
      f"--workdir={folder} holds a run of another config:\n"
      + "\n".join(different)
      + "\nName a new folder, or give the same values to continue that run."
    )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat

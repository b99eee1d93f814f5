"""Where a model reference is: a local file or folder, or a download of the hub."""

from __future__ import annotations

import dataclasses
import pathlib

from skipalign_jax.hf import (
  hub,
  native,
  peft_adapter,
  peft_config,
  safetensors_files,
)
from skipalign_jax.runtime import errors, escape, paths

FORMS = """a model reference is one of
  hub:org/name[@revision]   a model on the Hugging Face hub; org/name will do where
                            there is no local org
  path/to/folder            an HF folder (config.json, *.safetensors)
  path/to/model.gguf        a GGUF file
  path/to/workdir[@step]    a training or import folder; latest step if none
  path/to/adapter[@base]    an adapter in PEFT's format; base: a reference, by default
                            the one in adapter_config.json"""

# Of subfolders only additional_chat_templates/*.jinja; others have checkpoints or
# other formats. "consolidated" is the same model again, in Mistral's own.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
_NOT_FROM_HUB = ["*/*.json", "*/*.safetensors", "consolidated*"]


@dataclasses.dataclass(frozen=True)
class Location:
  """The file or folder of a reference.

  Attributes:
    kind: "hf", "gguf", "workdir" or "adapter".
    path: local folder or file.
    step: checkpoint step of a workdir, None elsewhere.
    base: reference of the model below an adapter, if the user named it.
    hub_id: ORG/NAME or ORG/NAME@REVISION of a model on the hub, "" elsewhere.
  """

  kind: str
  path: pathlib.Path
  step: int | None = None
  base: str = ""
  hub_id: str = ""


def locate(reference: str) -> Location:
  """Finds the file or folder of a reference; downloads a hub model.

  Raises:
    UserError: it does not exist or is not a model; lists the accepted forms.
  """
  if not reference:
    raise errors.UserError(f"the model reference is empty; {FORMS}")
  if not reference.startswith(hub.PREFIX):
    with errors.of_storage(f"{reference}: "):
      if found := _locate_path(reference):
        return found
  if hub_id := hub.model_id(reference):
    folder = _download(hub_id)
    kind = "adapter" if _is_adapter(folder) else "hf"
    return Location(kind, folder, hub_id=hub_id)
  hint = ""
  if hub.is_id(reference.partition("@")[0]):
    hint = f". For a model on the hub, give {hub.PREFIX}{reference}"
  raise errors.UserError(f"{reference}: no such file or folder{hint}; {FORMS}")


def _locate_path(reference: str) -> Location | None:
  """The location of a local file or folder; None where there is none."""
  if paths.problem(reference):
    return None
  path = paths.given(reference, reference)
  if path.is_file():
    if path.suffix == ".gguf":
      return Location("gguf", path)
    raise errors.UserError(f"{reference}: is a file but not a .gguf; {FORMS}")
  if path.is_dir():
    return _locate_folder(path, None)
  if adapter := _locate_adapter(reference):
    return adapter
  folder, _, step = reference.rpartition("@")
  if not folder or not (path := paths.given(folder, reference)).is_dir():
    return None
  if not step.isdecimal():
    raise errors.UserError(
      f"{reference}: the step after @ must be an integer, not {step!r}"
    )
  return _locate_folder(path, int(step))


def _locate_adapter(reference: str) -> Location | None:
  """The location of ADAPTER@BASE; BASE may have an @, too."""
  for at in (i for i, character in enumerate(reference) if character == "@"):
    folder, base = reference[:at], reference[at + 1 :]
    path = paths.given(folder, reference) if folder else None
    if path and base and path.is_dir() and not native.is_workdir(path):
      if _is_adapter(path):
        return Location("adapter", path, base=base)
  return None


def _is_adapter(folder: pathlib.Path) -> bool:
  """Whether a folder has an adapter; UserError if it has whole weights, too."""
  if not peft_config.is_adapter(folder):
    return False
  if safetensors_files.has_weights(folder):
    raise errors.UserError(
      f"{folder}: has an adapter (adapter_config.json) and whole weights. If these are "
      "merged, remove adapter_config.json in a copy; else remove the whole weights"
    )
  return True


def _locate_folder(path: pathlib.Path, step: int | None) -> Location:
  if native.is_workdir(path):
    native.check_path(path, str(path))
    return Location("workdir", path, native.find_step(path, step))
  if step is not None:
    raise errors.UserError(
      f"{path}@{step}: only a training folder has steps; this is not one; {FORMS}"
    )
  if _is_adapter(path):
    return Location("adapter", path)
  if (path / peft_adapter.FILE).is_file() and not safetensors_files.has_weights(path):
    raise errors.UserError(
      f"{path}: has {peft_adapter.FILE} without {peft_config.FILE}; copy this file, "
      "too, from where the adapter comes from"
    )
  if (path / "config.json").is_file():
    return Location("hf", path)
  inside = sorted(p.name for p in path.glob("*.gguf"))
  hint = f" Did you mean {path / escape.line(inside[0])}?" if inside else ""
  raise errors.UserError(f"{path}: has no config.json.{hint} {FORMS}")


def _download(hub_id: str) -> pathlib.Path:
  import huggingface_hub  # takes long to load

  name, _, revision = hub_id.partition("@")
  with hub.downloading(
    f"{hub_id}: it is not a local path and", f"name a local folder. {FORMS}"
  ):
    folder = huggingface_hub.snapshot_download(
      name,
      revision=revision or None,
      local_files_only=not hub.is_reachable(),
      allow_patterns=_HUB_FILES,
      ignore_patterns=_NOT_FROM_HUB,
    )
  return pathlib.Path(folder)

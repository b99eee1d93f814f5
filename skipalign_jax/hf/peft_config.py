"""adapter_config.json: the settings of an adapter in PEFT's format.

PEFT 0.21's `LoraConfig` has some fifty keys. Those that only say how an adapter was
trained are read over; every other key that is set must be understood, or the adapter is
refused: ignored, it would give another model.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from skipalign_jax.hf import hub
from skipalign_jax.model import lora
from skipalign_jax.runtime import errors, escape, files

FILE = "adapter_config.json"
PREFIX = "base_model.model."  # of the names of tensors

_READ = {
  "peft_type",
  "task_type",
  "base_model_name_or_path",
  "revision",
  "r",
  "lora_alpha",
  "use_rslora",
  "rank_pattern",
  "alpha_pattern",
  "init_lora_weights",
  "target_modules",
  "exclude_modules",
  "layers_to_transform",
}
# They change how adapters are trained or where they begin, not what they compute. If
# biases were trained by `bias`, the file has their tensors, which are refused.
_NEUTRAL = {
  "auto_mapping",
  "bias",
  "peft_version",
  "inference_mode",
  "lora_dropout",
  "layers_pattern",
  "eva_config",
  "loftq_config",
  "megatron_core",
  "qalora_group_size",
  "runtime_config",
  "ensure_weight_tying",
}
_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # that leave the base as it is
_PATTERN = re.compile(r"[\w.\\^$]+", re.ASCII)  # module names, perhaps with anchors
_REMEDY = (
  "With peft, load it on its base model, then merge_and_unload() and save_pretrained() "
  "to a new folder"
)


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """The settings of an adapter.

  Attributes:
    where: the file, for messages.
    base: reference of the model that it belongs to; "" if the file names none.
    rank: of A and B, where `ranks` has no other.
    alpha: their product is scaled by alpha / rank, where `alphas` has no other.
    root: by alpha / √rank (rsLoRA, 2312.03732).
    ranks, alphas: those of some modules, by patterns of their names.
    everywhere: names of the linear layers that have adapters in all decoder layers;
      empty if the file says it in another way.
  """

  where: str
  base: str
  rank: int
  alpha: float
  root: bool
  ranks: Mapping[str, int]
  alphas: Mapping[str, float]
  everywhere: tuple[str, ...]

  def rank_of(self, module: str) -> int:
    """The rank of a module, such as model.layers.0.mlp.up_proj."""
    return _of(self.ranks, module, self.rank)

  def scale_of(self, module: str) -> float:
    """The factor of its B A."""
    rank = self.rank_of(module)
    return _of(self.alphas, module, self.alpha) / (rank**0.5 if self.root else rank)


def is_adapter(folder: pathlib.Path) -> bool:
  """Whether a folder has an adapter's settings."""
  return (folder / FILE).is_file()


def read(folder: pathlib.Path) -> AdapterConfig:
  """The settings in a folder.

  Raises:
    UserError: damaged, another kind of adapter, or a key that is not supported.
  """
  path = folder / FILE
  given = files.read_json(path)
  _check(path, given)
  damaged = lambda key: errors.UserError(
    f"{path}: {key}={escape.line(given.get(key))[:100]} is damaged"
  )
  rank, alpha = given.get("r"), given.get("lora_alpha")
  if not _is_rank(rank):
    raise damaged("r")
  if not _is_number(alpha):
    raise damaged("lora_alpha")
  if not isinstance(given.get("use_rslora"), bool | None):
    raise damaged("use_rslora")
  for key, accepts in (("rank_pattern", _is_rank), ("alpha_pattern", _is_number)):
    found = given.get(key) or {}
    if not isinstance(found, dict) or not all(map(accepts, found.values())):
      raise damaged(key)
    if not all(map(_is_pattern, found)):
      raise errors.UserError(
        f"{path}: {key} has patterns that are not names of modules. {_REMEDY}"
      )
  return AdapterConfig(
    where=str(path),
    base=_base(given),
    rank=rank,
    alpha=float(alpha),
    root=bool(given.get("use_rslora")),
    ranks=given.get("rank_pattern") or {},
    alphas=given.get("alpha_pattern") or {},
    everywhere=_everywhere(given),
  )


def _check(path: pathlib.Path, given: Mapping[str, Any]) -> None:
  """Raises UserError for what is not computed here as in PEFT."""
  kind = given.get("peft_type")
  if kind != "LORA":
    raise errors.UserError(
      f"{path}: peft_type={escape.line(kind)[:100]}; only adapters of the type LORA "
      f"are read. {_REMEDY}"
    )
  task = given.get("task_type")
  if task not in (None, "CAUSAL_LM"):
    raise errors.UserError(
      f"{path}: task_type={escape.line(task)[:100]}; only adapters of language models "
      "(CAUSAL_LM) are read"
    )
  start = given.get("init_lora_weights", True)
  if not isinstance(start, bool | str) or start not in _STARTS:
    raise errors.UserError(
      f"{path}: init_lora_weights={escape.line(start)[:100]} changes the weights of "
      f"the base, which this adapter needs. {_REMEDY}"
    )
  for key, value in given.items():
    if key not in _READ | _NEUTRAL and value:
      raise errors.UserError(
        f"{path}: key {escape.line(key)[:100]} is set and not supported: without it, "
        f"the adapter would compute something else. {_REMEDY}"
      )


def _base(given: Mapping[str, Any]) -> str:
  """The reference of the base, with its revision."""
  name, revision = given.get("base_model_name_or_path"), given.get("revision")
  if not isinstance(name, str):
    return ""
  if isinstance(revision, str) and revision and hub.is_id(name):
    return f"{name}@{revision}"
  return name


def _everywhere(given: Mapping[str, Any]) -> tuple[str, ...]:
  """Linear layers that are named without their decoder layers."""
  targets = given.get("target_modules")
  some = given.get("exclude_modules") or given.get("layers_to_transform") is not None
  if some or not isinstance(targets, list):
    return ()
  short = {f"{name}_proj": name for name in lora.MATRICES}
  return tuple(short[one] for one in targets if isinstance(one, str) and one in short)


def _of(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
  """The value of the first pattern that matches the end of a module's name."""
  for pattern, value in patterns.items():
    if re.match(rf"(.*\.)?({pattern})$", module):
      return value
  return otherwise


def _is_pattern(text: str) -> bool:
  if not _PATTERN.fullmatch(text) or len(text) > 200:
    return False
  try:
    re.compile(text)
  except re.error:
    return False
  return True


def _is_rank(value: Any) -> bool:
  return type(value) is int and 1 <= value <= 1 << 20


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)

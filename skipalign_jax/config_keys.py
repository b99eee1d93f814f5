"""One key of the config: its default, its meaning and the values that it may have."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

import ml_collections

_KINDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a finite number",
  str: "a text",
  tuple: "a tuple of whole numbers",
  object: "a text or a tuple of texts",
}


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of the config; see `key`.

  Attributes:
    default: value in a new config. None: unset, and the key may stay unset.
    meaning: what the key does, in plain text.
    kind: type of the values; `object` is a text or a tuple of texts.
    choices: the allowed texts; empty for all.
    at_least, at_most: bounds that are allowed.
    above, below: bounds that are not allowed.
    or_value: a number that is allowed although it is outside the bounds.
  """

  default: Any
  meaning: str
  kind: type
  choices: tuple[str, ...] = ()
  at_least: float | None = None
  at_most: float | None = None
  above: float | None = None
  below: float | None = None
  or_value: float | None = None

  def field(self) -> Any:
    """The default as a ConfigDict stores it; the type of the key is fixed with it."""
    if self.default is None:
      return ml_collections.config_dict.placeholder(self.kind)
    if self.kind is object:
      return ml_collections.FieldReference(self.default, field_type=object)
    return self.default

  def allowed(self) -> str:
    """The choices or the range in words; "" if every value of the type is allowed."""
    if self.choices:
      return f"one of {', '.join(self.choices)}"
    if self.at_least is not None and self.at_most is not None:
      return f"from {_shown(self.at_least)} to {_shown(self.at_most)}"
    bounds = {
      "at least": self.at_least,
      "above": self.above,
      "at most": self.at_most,
      "below": self.below,
    }
    words = [f"{w} {_shown(b)}" for w, b in bounds.items() if b is not None]
    alternative = "" if self.or_value is None else f", or {self.or_value}"
    return " and ".join(words) + alternative

  def accepts(self, value: Any) -> bool:
    """Whether the key may have this value. NaN and infinity are not numbers here."""
    if value is None:
      return self.default is None
    if self.kind in (int, float):
      return self._accepts_number(value)
    if self.kind is tuple:
      return isinstance(value, tuple) and all(type(one) is int for one in value)
    if self.kind is object:
      texts = [value] if isinstance(value, str) else value
      return isinstance(texts, Sequence) and all(isinstance(t, str) for t in texts)
    return isinstance(value, self.kind) and (not self.choices or value in self.choices)

  def _accepts_number(self, value: Any) -> bool:
    number = numbers.Integral if self.kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, number):
      return False
    if not -math.inf < value < math.inf:
      return False
    return value == self.or_value or (
      (self.at_least is None or value >= self.at_least)
      and (self.above is None or value > self.above)
      and (self.at_most is None or value <= self.at_most)
      and (self.below is None or value < self.below)
    )

  def problem(self, name: str, value: Any) -> str:
    """Says that the key `name` cannot have this value, and which ones it can have."""
    allowed = self.allowed()
    if self.choices:
      remedy = f"choose {allowed}"
    else:
      remedy = f"set it to {_KINDS[self.kind]}{', ' if allowed else ''}{allowed}"
    default = "None, for unset" if self.default is None else self.default
    return f"{name}={value!r} is not allowed; {remedy} (default: {default})"


def _shown(bound: float) -> str:
  """Limits of 32-bit numbers are written as powers of two."""
  for power in (30, 31, 32):
    if bound in (2**power, 2**power - 1):
      return f"2^{power}" if bound == 2**power else f"2^{power} - 1"
  return f"{bound:,}"


def key(default: Any, meaning: str, kind: type | None = None, **allowed: Any) -> Key:
  """A key; `kind` is needed only if the default is None or has several types."""
  return Key(default, meaning, kind or type(default), **allowed)


@dataclasses.dataclass(frozen=True)
class Section:
  """Keys that belong together.

  Attributes:
    name: in front of the dot; "" for keys without a section.
    meaning: of the whole section, in plain text.
    keys: name → key. Empty: the section accepts any keys.
  """

  name: str
  meaning: str
  keys: dict[str, Key]

  def full_names(self) -> dict[str, Key]:
    """ "section.name" → key."""
    prefix = f"{self.name}." if self.name else ""
    return {f"{prefix}{name}": key for name, key in self.keys.items()}


def section(name: str, meaning: str, /, **keys: Key) -> Section:
  """A section and its keys, in order."""
  return Section(name, meaning, keys)


# What users of TRL, axolotl and LLaMA-Factory write for our keys. A name with a section
# is meant with it; the others are compared with what comes after the last dot.
OTHER_NAMES = {
  "optim.learning_rate": "lr peak_lr",
  "optim.schedule": "lr_scheduler lr_scheduler_type scheduler",
  "optim.kind": "optimizer optim_type optim",
  "optim.warmup_fraction": "warmup_ratio warmup warmup_steps",
  "optim.beta1": "adam_beta1 b1",
  "optim.beta2": "adam_beta2 b2",
  "optim.eps": "adam_epsilon epsilon",
  "optim.clip_norm": "max_grad_norm gradient_clipping grad_clip",
  "model.init_from": (
    "model.name model.path model_name_or_path model_name base_model model_id"
  ),
  "model.compute_dtype": "bf16 fp16 dtype torch_dtype",
  "model.remat": "gradient_checkpointing activation_checkpointing",
  "attention.backend": (
    "attn_implementation flash_attention flash_attn use_flash_attention_2"
  ),
  "data.train": (
    "data.path data.name dataset datasets dataset_name train_file data_files"
  ),
  "data.eval": "eval_dataset val_set_size val_size validation",
  "data.seq_len": "max_seq_length max_length cutoff_len sequence_len block_size",
  "data.overlong": "excess_length_strategy truncation_mode truncation",
  "data.packing": "sample_packing pack neat_packing",
  "data.batching": "group_by_length",
  "data.workers": (
    "dataloader_num_workers num_workers preprocessing_num_workers dataset_num_proc "
    "num_proc"
  ),
  "data.template": "chat_template",
  "data.tokenizer": "tokenizer_name tokenizer_name_or_path",
  "positions.skip_prob": "p prob probability",
  "positions.max_position": "L max_position_embeddings",
  "rope.kind": "rope_scaling rope_type",
  "batch_size": (
    "per_device_train_batch_size micro_batch_size global_batch_size train_batch_size"
  ),
  "grad_accum": "gradient_accumulation_steps accumulation_steps",
  "epochs": "num_train_epochs num_epochs",
  "steps": "max_steps num_steps total_steps",
  "eval.every": "eval_steps evaluation_strategy eval_strategy",
  "eval.at_start": "eval_on_start",
  "checkpoint.every": "save_steps save_strategy",
  "checkpoint.keep": "save_total_limit",
  "checkpoint.keep_best": "load_best_model_at_end",
  "log_every": "logging_steps",
  "log.to": "report_to",
  "log.project": "wandb_project",
  "loss.kind": "loss_type pref_loss rl",
  "loss.beta": "dpo_beta pref_beta",
  "lora.rank": "use_lora lora_r r use_peft adapter finetuning_type",
  "lora.alpha": "lora_alpha",
  "lora.targets": "target_modules lora_target lora_target_modules",
  "lora.base": "load_in_4bit load_in_8bit quantization_bit",
}
# What they set in a config and is no key here.
NOT_KEYS = {
  "output_dir": "the folder of a run is the flag --workdir=DIR",
  "deepspeed": "mesh.fsdp divides weights and optimizer over devices",
  "fsdp_config": "mesh.fsdp divides weights and optimizer over devices",
  **dict.fromkeys(
    ("train_on_inputs", "assistant_only_loss", "completion_only_loss"),
    "only replies are learned, always",
  ),
  "resume_from_checkpoint": "the same command with the same --workdir resumes a run",
  "overwrite_output_dir": "a new run needs a new --workdir",
  "run_name": "a run has the name of its --workdir",
  "dataset_text_field": "a document is read from text, a chat from messages",
  "trust_remote_code": "code of a model is never run",
  "lora_dropout": "adapters are trained without dropout",
  **dict.fromkeys(
    ("push_to_hub", "hub_model_id"),
    "export the run, and then: hf upload ORG/NAME FOLDER",
  ),
  **dict.fromkeys(
    ("early_stopping", "early_stopping_patience"),
    "a run makes all its steps; checkpoint.keep_best keeps its best checkpoint",
  ),
}


def meant(name: str, keys: Sequence[str]) -> str:
  """What a name that is not a key stands for elsewhere, as a sentence; or ""."""
  last = name.rpartition(".")[2]
  if last in NOT_KEYS:
    return NOT_KEYS[last]
  for wanted in (name, last):
    for key, others in OTHER_NAMES.items():
      if wanted in others.split() and key in keys:
        return f"did you mean {key}?"
  own = [key for key in keys if key.rpartition(".")[2] == last]
  return f"did you mean {' or '.join(own)}?" if own else ""

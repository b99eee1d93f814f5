"""Imports, exports and verifies models, and reports each step."""

import shlex
import time
from collections.abc import Iterator

import numpy as np
import transformers

from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import (
  card,
  export,
  native,
  parity,
  peft_export,
  reference,
  weights,
)
from skipalign_jax.runtime import files, paths, terminal

_CONSOLE = terminal.Console()


def import_model(model: str, tokenizer: str, out: str) -> int:
  """Writes a workdir that training can start from; returns the exit status.

  Args:
    model: reference.
    tokenizer: reference of the tokenizer; "" takes the model's own.
    out: new folder.

  Raises:
    UserError: a reference cannot be read, or `out` cannot be written.
  """
  target = paths.output(out, f"--out={out}")
  native.check_path(target, f"--out={out}")
  opened, tokens = _open(model, tokenizer)
  reference.check_vocabulary(tokens, opened.config)
  start = time.perf_counter()
  with files.new_folder(target) as folder:
    native.write_config(
      folder,
      native.Description(
        model_config=opened.config,
        hf_config=opened.hf_config,
        generation_config=opened.generation_config,
        base=opened.origin,
        versions=card.library_versions(),
      ),
    )
    export.save_tokenizer(tokens, folder / native.TOKENIZER)
    native.write_params(folder, 0, _reported(opened))
  _CONSOLE.print(f"{out}: written in {time.perf_counter() - start:.0f} s")
  _CONSOLE.print(f"train from it with --config.model.init_from={shlex.quote(out)}")
  return 0


def export_model(
  model: str, tokenizer: str, out: str, dtype: str, shard_bytes: int
) -> int:
  """Writes an HF folder; returns the exit status.

  Args:
    model: reference.
    tokenizer: reference of the tokenizer; "" takes the model's own.
    out: new folder.
    dtype: one of `export.DTYPES`.
    shard_bytes: upper size of a weight file.

  Raises:
    UserError: a reference cannot be read, or `out` cannot be written.
  """
  target = paths.output(out, f"--out={out}")
  opened, tokens = _open(model, tokenizer)
  start = time.perf_counter()
  stop_ids = tokenizer_lib.stop_token_ids(tokens, opened.eos_ids)
  total = export.export(opened, tokens, stop_ids, target, dtype, shard_bytes)
  seconds = time.perf_counter() - start
  written = f"{terminal.size(total)} of weights written in {seconds:.0f} s"
  _CONSOLE.print(f"{out}: {written}")
  _CONSOLE.print(
    "load it with transformers.AutoModelForCausalLM.from_pretrained"
    f"({out!r}), or here as --model={shlex.quote(out)}"
  )
  if not export.is_read_alike(tokens, target):
    _CONSOLE.print(
      "note: AutoTokenizer of transformers does not read this tokenizer as it is (the "
      f"model type is {opened.config.family}), and splits some texts in another way. "
      f"Load it with transformers.PreTrainedTokenizerFast.from_pretrained({out!r})"
    )
  for note in export.notes_on_llama_cpp(opened, tokens, target):
    _CONSOLE.print(f"note: {note}")
  return 0


def export_adapters(model: str, tokenizer: str, out: str, dtype: str) -> int:
  """Writes the adapters of a run as PEFT does; returns the exit status.

  Args:
    model: reference of the run.
    tokenizer: reference of the tokenizer; "" takes the model's own.
    out: new folder.
    dtype: one of `export.DTYPES`.

  Raises:
    UserError: a reference cannot be read, has no adapters, or `out` cannot be written.
  """
  target = paths.output(out, f"--out={out}")
  opened, tokens = _open(model, tokenizer)
  stop_ids = tokenizer_lib.stop_token_ids(tokens, opened.eos_ids)
  total, notes = peft_export.write(opened, tokens, stop_ids, target, dtype)
  _CONSOLE.print(f"{out}: {terminal.size(total)} of adapters written")
  for note in notes:
    _CONSOLE.print(f"note: {note}")
  _CONSOLE.print(
    f"load it with peft.PeftModel.from_pretrained(base, {out!r}), or here, with its "
    f"base, as --model={shlex.quote(out)}"
  )
  return 0


def verify(model: str, length: int, tolerance: float) -> int:
  """Compares logits with those of transformers; returns the exit status.

  Args:
    model: reference.
    length: tokens compared.
    tolerance: largest difference of a logit; above it the status is 1.

  Raises:
    UserError: the reference cannot be read, or torch is not installed.
  """
  opened = reference.open_model(model)
  _describe(opened)
  if opened.kind != "hf":
    _CONSOLE.print(
      "note: transformers gets the config and the weights as they were read here; "
      "export and verify the HF folder to compare the reading too"
    )
  worst = 0.0
  for name, difference, scale in parity.compare(opened, length):
    _CONSOLE.print(
      f"{name}: largest difference {difference:.2e} among logits up to {scale:.1f}"
    )
    # NaN compares false with everything and must not pass for agreement.
    worst = max(worst, difference) if np.isfinite(difference) else np.inf
  if worst > tolerance:
    _CONSOLE.print(f"FAILED: above the tolerance of {tolerance:.0e}")
    return 1
  _CONSOLE.print(f"agrees with transformers within {tolerance:.0e}")
  return 0


def _open(
  model: str, tokenizer: str
) -> tuple[reference.Model, transformers.PreTrainedTokenizerFast]:
  opened = reference.open_model(model)
  tokens = reference.load_tokenizer(tokenizer or model)
  if tokenizer:
    opened = reference.with_tokenizer(opened, tokens)
  _describe(opened)
  return opened, tokens


def _describe(model: reference.Model) -> None:
  stored = model.weights["embed/weight"].dtype.name
  where = "" if model.location.step is None else f", step {model.location.step}"
  _CONSOLE.print(
    f"{model.reference}: {model.kind}{where}, {model.config.num_params():,} "
    f"parameters in {stored}"
  )


def _reported(model: reference.Model) -> Iterator[weights.Parameter]:
  """The parameters of a model; prints each before it is used."""
  for i, parameter in enumerate(model.weights.values()):
    shape = list(parameter.shape)
    _CONSOLE.print(f"[{i + 1}/{len(model.weights)}] {parameter.path} {shape}")
    yield parameter

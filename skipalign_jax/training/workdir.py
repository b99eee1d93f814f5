"""The folder of a run: claimed by one config, refused to any other.

workdir/
  config.json    resolved config and model shape; makes the folder a model reference,
                 together with model.init_from where adapters are trained
  steps.json     how many steps the run has
  tokenizer/     as transformers saves it
  checkpoints/   see checkpoint.py
  evals/         NAME/STEP/: results of config.evals
  metrics.jsonl, tensorboard/, positions.png, training.png
  starts.jsonl   see starts.py
  reference.safetensors  see reference_log_probs.py
  loggers.json   see loggers.py; wandb/ is its own
  nonfinite/, damaged/   batches and checkpoints that were moved away, if any
  .lock          held by the process that writes here
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
import shlex
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

import ml_collections

from skipalign_jax.hf import (
  adapters,
  card,
  export,
  native,
  reference,
  template_dates,
)
from skipalign_jax.model import model_config, rope
from skipalign_jax.runtime import errors, files, locks, storage, terminal
from skipalign_jax.training import metrics, same_run, starts

if TYPE_CHECKING:  # slow to load
  import transformers

STEPS = "steps.json"
DAMAGED = "damaged"  # has the checkpoints that were set aside
# NFS may show a new folder up to a minute late (acdirmax) to a host that has looked for
# it before it was there.
_TRIES, _PAUSE = 140, 0.5  # seconds


def claim(
  folder: pathlib.Path,
  config: ml_collections.ConfigDict,
  shape: model_config.ModelConfig,
  base: reference.Model | None,
  tokenizer: transformers.PreTrainedTokenizerFast,
  console: terminal.Console,
) -> TextIO:
  """Makes `folder` the workdir of this config, or checks that it is.

  Returns:
    The lock on it; closing it, or the end of this process, releases it.

  Raises:
    UserError: it belongs to another config, another model or a run that is still
      running, is not a workdir, or cannot be written.
  """
  try:
    if (folder / "config.json").exists():
      held = locks.take(folder, "--workdir", console)
      _check_same(folder, config)
      _check_model(folder, shape)
      if base is not None:
        adapters.check_base(folder, native.read_config(folder), base.weights)
    else:
      # A start that was killed may leave these files.
      ours = {locks.NAME, files.unfinished("config.json")}
      if folder.exists() and {path.name for path in folder.iterdir()} - ours:
        raise errors.UserError(
          f"--workdir={folder} has files but no run in it; give a new folder"
        )
      folder.mkdir(parents=True, exist_ok=True)
      held = locks.take(folder, "--workdir", console)
      description = native.Description(
        model_config=shape,
        hf_config=base and base.hf_config,
        generation_config=base and base.generation_config,
        base=base and base.origin,
        config=config.to_dict(),
        versions=card.library_versions(),
        base_digest=adapters.digest(base.weights)
        if base and config.lora.rank
        else None,
      )
      native.write_config(folder, description)
    if not (folder / native.TOKENIZER).exists():
      with files.replacing(folder / native.TOKENIZER) as new:
        export.save_tokenizer(tokenizer, new)
    return held
  except OSError as error:
    raise errors.UserError(
      f"--workdir={folder} cannot be used: {storage.explain(error)}"
    ) from error


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
  """Reports what the user can do when storage fails inside the block."""
  before = f"the run in --workdir={folder} cannot continue: "
  after = (
    ".\nCheckpoints in it are untouched. Once this is fixed, the same command resumes "
    "from the latest."
  )
  try:
    with errors.of_storage(before, after):
      yield
  except FileNotFoundError as error:
    if folder.is_dir():
      raise
    gone = "it has gone; is a disk missing?"
    raise errors.UserError(f"{before}{gone}{after}") from error


def check_start(folder: pathlib.Path, start: int, steps: int) -> None:
  """Checks that a run still has its steps, and its checkpoints.

  Args:
    folder: the workdir.
    start: the latest checkpoint; 0 for none.
    steps: of the whole run.

  Raises:
    UserError: the run had another number of steps; it has had checkpoints and none is
      there, or the latest is of a step that the run does not have.
  """
  before = _steps_before(folder)
  if before not in (None, steps):
    raise errors.UserError(
      f"--workdir={folder} is of a run of {before} steps, and its config and data now "
      f"make {steps}: the data has changed, or another version counted the steps of an "
      "epoch otherwise. Resume with that data and version, or start a new --workdir "
      "with model.init_from on this one"
    )
  if start > steps:
    raise errors.UserError(
      f"{folder / native.CHECKPOINTS} has step {start}, but the run has {steps} steps: "
      "checkpoints are named after their steps. Give each its own name again"
    )
  if start or not _had_checkpoints(folder):
    return
  raise errors.UserError(
    f"--workdir={folder} is of a run that has saved checkpoints, and none is in "
    f"{folder / native.CHECKPOINTS}. Bring that folder back (is a disk missing?), or "
    "give a new --workdir to begin again"
  )


def _had_checkpoints(folder: pathlib.Path) -> bool:
  """Whether a start continued from one or set one aside, or steps ran that come after
  one was saved."""
  path = folder / starts.FILE
  before = starts.read(path) if path.exists() else []
  if any(one["step"] for one in before) or (folder / DAMAGED).is_dir():
    return True
  path = folder / "metrics.jsonl"
  if not before or not path.exists():
    return False
  # Of the last start: the interval may have changed since then.
  every = before[-1]["config"]["checkpoint"]["every"]
  # The save of step 2·every waits until that of step every is on disk.
  return every > 0 and any(one["step"] > 2 * every for one in metrics.read(path))


def date_of(folder: pathlib.Path, given: str) -> str:
  """The date that the chat template prints in a run: that of its first start.

  Args:
    folder: the workdir; may not exist yet.
    given: `data.date`; "" takes the run's, and today in a new one.

  Raises:
    UserError: the run has another one.
  """
  config = None
  if (folder / "config.json").exists() and native.is_workdir(folder):
    config = native.read_config(folder).config
  found = (config or {}).get("data", {}).get("date", "")
  if given and found and given != found:
    raise errors.UserError(
      f"data.date={given}: the run in --workdir={folder} has data.date={found}; leave "
      "the key empty to resume it, or give a new folder"
    )
  return given or found or template_dates.today()


def write_steps(folder: pathlib.Path, steps: int) -> None:
  """Writes how many steps the run has, so that others can see whether it is done."""
  files.write_json(folder / STEPS, {"steps": steps})


def read_steps(folder: pathlib.Path) -> int | None:
  """The number of steps that `write_steps` wrote; None where no run has begun."""
  if not (folder / STEPS).exists():
    return None
  steps = files.read_json(folder / STEPS).get("steps")
  if not isinstance(steps, int):
    raise errors.UserError(
      f"{folder / STEPS} is damaged: it has no steps; run the training's command again"
    )
  return steps


def _steps_before(folder: pathlib.Path) -> int | None:
  """The number of steps of the last start; None where it is not known."""
  try:
    return read_steps(folder)
  except errors.UserError:
    return None  # damaged: this start writes it again


def check_shared(folder: pathlib.Path, written: str) -> None:
  """Raises UserError when this process does not see what process 0 claimed.

  Args:
    folder: the workdir, as this process knows it.
    written: `identity` of it in process 0.
  """
  for _ in range(_TRIES):
    if (found := identity(folder)) == written:
      return
    time.sleep(_PAUSE)
  raise errors.UserError(
    f"--workdir={folder} is not the folder that process 0 writes to"
    f"{'' if found else ' (here it does not exist)'}; all processes need one on a "
    "filesystem that they share"
  )


def identity(folder: pathlib.Path) -> str:
  """A digest that differs between claimed folders; empty without one."""
  file = folder / "config.json"
  return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def check_there(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Raises UserError if the folder of a run that trains is not the run's any more.

  Orbax would make a folder that has gone again, and nobody could read what is in it.
  """
  if not (folder / "config.json").exists():
    raise errors.UserError(
      f"the run in --workdir={folder} cannot continue: its folder has gone, or was "
      "moved or emptied while it was written to. Where it is now, the same command "
      "resumes from the latest checkpoint"
    )
  _check_same(folder, config)


def _check_same(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  if (
    not native.is_workdir(folder)
    or (found := native.read_config(folder)).config is None
  ):
    raise errors.UserError(
      f"--workdir={folder} is a model, not a training run; give a new folder"
    )
  different = same_run.differences(
    found.config, config.to_dict(), same_run.FREE, ("the run has", "now")
  )
  if different:
    longer = any(line.startswith(("  steps:", "  epochs:")) for line in different)
    name = shlex.quote(str(folder))
    raise errors.UserError(
      f"--workdir={folder} holds a run with another config:\n"
      + "\n".join(different)
      + "\nGive a new folder, or the same values to resume that run."
      + f" To train on, give a new folder and model.init_from={name}." * longer
    )


def _check_model(folder: pathlib.Path, shape: model_config.ModelConfig) -> None:
  """Raises UserError if model.init_from has become a model of another shape or rope.

  The weights of a run that is resumed are its own, but its shape is read again.
  """
  described = native.read_config(folder)
  known, alike = described.model_config, True
  if known.head_dim == shape.head_dim:
    alike = rope.alike(known.rope, shape.rope, shape.head_dim)
  before, now = (
    dataclasses.asdict(dataclasses.replace(one, rope=shape.rope if alike else one.rope))
    for one in (known, shape)
  )
  different = [
    f"  {key}: the run has {before[key]}, now {now[key]}"
    for key in now
    if before[key] != now[key]
  ]
  if different:
    raise errors.UserError(
      f"--workdir={folder} is of a run whose model was another one:\n"
      + "\n".join(different)
      + f"\nBring back {described.base or 'the version'} as it was when the run began, "
      "or give a new folder."
    )

"""The study in its folder: results.json is made once, then only read."""

import json
import pathlib
import time
from typing import Any

import numpy as np

from skipalign_jax.hf import card
from skipalign_jax.runtime import compile_cache, errors, files, terminal
from studies.length import figure, tasks, training, verdict

REMEDY = "delete it or name another folder"
SHAPE = ("num_layers", "embed_dim", "ffn_dim", "num_heads", "num_kv_heads", "head_dim")
REPORT_SECONDS = 10  # between two lines about the progress of training


def make_and_show(
  folder: pathlib.Path, seeds: int, steps: int, console: terminal.Console
) -> None:
  """Makes results.json if it is missing, and figure.png; prints the tables.

  Args:
    folder: of both files.
    seeds: of each model.
    steps: of training.
    console: for progress and tables.

  Raises:
    UserError: the folder cannot be used, or its results are damaged or of other
      settings; or training diverged.
  """
  path = folder / "results.json"
  content = earlier(path, protocol(seeds, steps))
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if content is None:
      compile_cache.enable()
      files.write_json(path, run(seeds, steps, console))
    # Read back, so that the figure cannot show what is not in the file.
    content = files.read_json(path)
    report = verdict.report(content)
    figure.draw(content, folder / "figure.png")
  except OSError as error:
    raise errors.UserError(f"--out={folder} cannot be used: {error}") from error
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise errors.UserError(f"{path} is damaged ({error!r}); {REMEDY}") from error
  console.print_markdown(report)
  console.print(f"\nwritten to {folder}: results.json, figure.png")


def protocol(seeds: int, steps: int) -> dict[str, Any]:
  """All settings that change the numbers."""
  return {
    "steps": steps,
    "seeds": seeds,
    "batch": training.BATCH,
    "learning_rate": training.LEARNING_RATE,
    "test_strings": training.TEST_STRINGS,
    "trained_lengths": [1, tasks.LONGEST_TRAINED],
    "model": {name: getattr(training.MODEL, name) for name in SHAPE},
    "rope_theta": training.MODEL.rope.theta,
    "skip": [training.SKIPS.strategy, training.SKIPS.max_position],
  }


def earlier(path: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
  """The results of an earlier run; None if there are none.

  Args:
    path: of results.json.
    wanted: the protocol that they must have.

  Raises:
    UserError: they have another protocol, or cannot be read.
  """
  if not path.exists():
    return None
  try:
    content = files.read_json(path)
  except errors.UserError as error:
    raise errors.UserError(f"{error}; {REMEDY}") from error
  found = content.get("protocol")
  if not isinstance(found, dict):
    raise errors.UserError(f"{path} has no protocol; {REMEDY}")
  wanted = json.loads(json.dumps(wanted))
  if found != wanted:
    different = ", ".join(
      f"{key} {found.get(key)!r}, now {wanted.get(key)!r}"
      for key in sorted(found.keys() | wanted.keys())
      if found.get(key) != wanted.get(key)
    )
    raise errors.UserError(f"{path} is of other settings ({different}); {REMEDY}")
  return content


def run(seeds: int, steps: int, console: terminal.Console) -> dict[str, Any]:
  """Trains and tests all models; the content of results.json."""
  models = seeds * len(training.CELLS)
  console.print(f"{models} models ({len(training.CELLS)} kinds x {seeds} seeds)")
  began = reported = time.monotonic()
  for params_SC, done, loss_SC in training.train(seeds, steps):  # noqa: B007
    if time.monotonic() - reported > REPORT_SECONDS or done == steps:
      reported = time.monotonic()
      console.print(f"step {done}/{steps}, {reported - began:.0f} s")
  if not np.isfinite(loss_SC).all():
    diverged = [c for c, loss_S in zip(training.CELLS, loss_SC.T, strict=True)
                if not np.isfinite(loss_S).all()]  # fmt: skip
    raise errors.UserError(f"training diverged for {diverged}; nothing was written")
  found = training.test(params_SC, seeds)
  console.print(f"tested, {time.monotonic() - began:.0f} s")
  content: dict[str, Any] = {
    "protocol": protocol(seeds, steps),
    "versions": card.library_versions(),
    "seconds": round(time.monotonic() - began, 1),
    "tested": list(training.TESTED),
    "baselines": {
      name: {"blind": t.blind, "mse": [t.baseline(n) for n in training.TESTED]}
      for name, t in tasks.TASKS.items()
    },
    "cells": [
      cell._asdict()
      | {
        "train_loss": _short(loss_SC[:, c]),
        "mse": _short(found["mse"][:, c]),
        "accuracy": _short(found["accuracy"][:, c])
        if tasks.TASKS[cell.task].whole
        else None,
      }
      for c, cell in enumerate(training.CELLS)
    ],
  }
  content["summary"] = verdict.summary(content)
  content["claims"] = verdict.claims(content)
  return content


def _short(values: np.ndarray) -> Any:
  """Lists of numbers with five digits; further digits are noise."""
  if values.ndim:
    return [_short(value) for value in values]
  return float(f"{float(values):.5g}")

"""Trains the study's models: python -m studies.length --out=DIR.

Long-Short Alignment (arXiv 2506.11769) argues that a model goes on to longer inputs
where its outputs do not change with length: the mean of bits rather than their number,
or the number through 1/√y. This trains small decoders on strings of 1 to 10 bits and
asks about up to 50. DIR gets results.json, then figure.png, drawn from it alone; where
results are there already, only the figure and the tables are made again.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import numpy as np
from rich import console as rich_console

from skipalign_jax.hf import card
from skipalign_jax.runtime import compile_cache, errors, files, terminal
from studies.length import figure, tasks, training, verdict

AGAIN = "delete it or name another folder"
SHAPE = ("num_layers", "embed_dim", "ffn_dim", "num_heads", "num_kv_heads", "head_dim")


def main(argv: list[str] | None = None) -> int:
  """Runs the study, or shows what an earlier run found; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m studies.length",
    description=__doc__,
    formatter_class=terminal.HelpFormatter,
  )
  parser.add_argument("--out", required=True, help="folder for results and figure")
  parser.add_argument("--steps", type=int, default=600, help="of training")
  parser.add_argument("--seeds", type=int, default=5, help="of each model")
  args = parser.parse_args(argv)
  console = terminal.Console()
  for name, least in (("steps", 1), ("seeds", 2)):
    if getattr(args, name) < least:
      raise errors.UserError(
        f"--{name}={getattr(args, name)} must be at least {least}"
        + (": intervals need two" if name == "seeds" else "")
      )
  folder = pathlib.Path(args.out).expanduser()
  content = earlier(folder / "results.json", protocol(args.seeds, args.steps))
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if content is None:
      compile_cache.enable()
      content = run(args.seeds, args.steps, console)
      files.write_json(folder / "results.json", content)
    # Read back, so that the figure cannot show what the file does not hold.
    content = files.read_json(folder / "results.json")
    report = verdict.report(content)
    figure.draw(content, folder / "figure.png")
  except OSError as error:
    raise errors.UserError(f"--out={folder} cannot be used: {error}") from error
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f"{folder / 'results.json'} is damaged ({error!r}); {AGAIN}"
    ) from error
  console.print_markdown(report)
  console.print(f"\nwritten to {folder}: results.json, figure.png")
  return 0


def protocol(seeds: int, steps: int) -> dict[str, Any]:
  """All that shapes the numbers."""
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
  """Results that are there already; None without any.

  Raises:
    UserError: they come from other settings, or cannot be read.
  """
  if not path.exists():
    return None
  try:
    content = files.read_json(path)
  except errors.UserError as error:
    raise errors.UserError(f"{error}; {AGAIN}") from error
  found = content.get("protocol")
  if not isinstance(found, dict):
    raise errors.UserError(f"{path} has no protocol; {AGAIN}")
  wanted = json.loads(json.dumps(wanted))
  if found != wanted:
    different = ", ".join(
      f"{key} {found.get(key)!r}, now {wanted.get(key)!r}"
      for key in sorted(found.keys() | wanted.keys())
      if found.get(key) != wanted.get(key)
    )
    raise errors.UserError(f"{path} holds another study ({different}); {AGAIN}")
  return content


def run(seeds: int, steps: int, console: rich_console.Console) -> dict[str, Any]:
  """Trains and tests all models; the content of results.json."""
  models = seeds * len(training.CELLS)
  console.print(f"{models} models ({len(training.CELLS)} kinds x {seeds} seeds)")
  began = told = time.monotonic()
  for params_SC, done, loss_SC in training.train(seeds, steps):  # noqa: B007
    if time.monotonic() - told > 10 or done == steps:
      told = time.monotonic()
      console.print(f"step {done}/{steps}, {told - began:.0f} s")
  if not np.isfinite(loss_SC).all():
    lost = [c for c, loss_S in zip(training.CELLS, loss_SC.T, strict=True)
            if not np.isfinite(loss_S).all()]  # fmt: skip
    raise errors.UserError(f"training diverged for {lost}; nothing was written")
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
  """Lists of numbers with five digits: the rest is noise of the strings drawn."""
  if values.ndim:
    return [_short(value) for value in values]
  return float(f"{float(values):.5g}")


if __name__ == "__main__":
  errors.run_command(main)

"""Every method trains: 20 steps of each row of configs/methods.py on real chats.

python benchmarks/methods_real.py --chats=FILE --books=PATTERN [--rows=NAME,…] [--page]

Each row is a training of its own, `python -m skipalign_jax.train` in OUT/rows/NAME; the
same command resumes with the rows that are missing. Its checkpoint is deleted, its
records are kept. Rows that this script adds: `MORE`. With --page, only the page is
written, from what is there.

What the page shows: the loss of the first five steps and of the last five. "Noise" is
the standard deviation of the 20 losses around their straight line; the difference of
two means of five has the standard error noise · √(2/5). The held-out loss reads the
same samples at contiguous positions before and after.
"""

import argparse
import dataclasses
import math
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import harness
import numpy as np

from skipalign_jax.runtime import files
from skipalign_jax.sweep import plan as plan_lib
from skipalign_jax.sweep import runs
from skipalign_jax.training import metrics

STEPS, PART = 20, 5  # steps of a run; those of a mean at each end
COMMON = {
  "steps": STEPS,
  "batch_size": 1,
  "data.seq_len": 256,
  "data.eval": "holdout:4",
  "eval.every": 0,
  "checkpoint.every": 0,
}
PAIRS = "builtin:pairs:60"
CONFIG = "configs/smollm2_ntk.py"
BOOKS = "BOOKS"  # stands for --books
MORE = {
  "EndPrompt, response": {
    "positions.strategy": "endprompt",
    "positions.terminal": "response",
  },
  "Nearly LongRecipe, on books": {
    "data.train": BOOKS,
    "data.text_blocks": "sentences",
    "positions.strategy": "skip_all",
    "positions.skip_prob": 1.0,
    "positions.gaps": "uniform",
  },
  "PoSE, cropped, on books": {
    "data.train": BOOKS,
    "data.text_window": 1024,
    "data.packing": False,
    "data.batching": "shuffled",
    "positions.strategy": "pose",
  },
  "SkipAlign, adafactor": {"optim.kind": "adafactor"},
  "SkipAlign, lion": {"optim.kind": "lion", "optim.learning_rate": 2e-5},
  "SkipAlign, muon": {"optim.kind": "muon"},
  "SkipAlign, wsd": {"optim.schedule": "wsd"},
  "SkipAlign, long chats split": {"data.overlong": "split"},
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--chats", required=True, help="file of chats")
  parser.add_argument("--books", required=True, help="source of texts")
  parser.add_argument("--out", default="runs/methods_real", help="folder")
  parser.add_argument("--rows", default="", help="names of folders; all by default")
  parser.add_argument("--page", action="store_true", help="only write the page")
  args = parser.parse_args()
  out = pathlib.Path(args.out)
  sweep = table(args.chats, args.books)
  chosen = runs.select(sweep, args.rows.split(",")) if args.rows else sweep
  if not args.page:
    plan = plan_lib.Plan(chosen, out, [f"--config.{k}={v}" for k, v in COMMON.items()])
    for name in chosen.runs:
      train(plan, name)
      write_page(sweep, out)
  write_page(sweep, out)


def table(chats: str, books: str) -> runs.Sweep:
  """The trained rows of configs/methods.py on these chats, and `MORE`."""
  sweep = runs.load("configs/methods.py")
  trained = {name: run.changes for name, run in sweep.runs.items() if run.config}
  found = {}
  for name, changes in (trained | MORE).items():
    source = changes.get("data.train", chats)
    if source.startswith("builtin:pairs"):
      source = PAIRS
    source = {BOOKS: books}.get(source, source)
    found[name] = runs.Run(CONFIG, {**changes, "data.train": source})
  return dataclasses.replace(sweep, runs=found, evaluations={})


def train(plan: plan_lib.Plan, name: str) -> None:
  """Trains a row that is not done; records how long it took and how it ended."""
  folder = plan.workdir(name)
  if (folder / "done.json").exists():
    return
  shutil.rmtree(folder, ignore_errors=True)
  print(f"{name} …", flush=True)
  before, begin = harness.environment(), time.monotonic()
  status = subprocess.run([sys.executable, *plan.train_command(name)]).returncode
  if status:
    print(f"{name}: ended with status {status}", flush=True)
    return
  shutil.rmtree(folder / "checkpoints")
  done = {"seconds": time.monotonic() - begin, "environment": before}
  files.write_json(folder / "done.json", done)


def measured(folder: pathlib.Path) -> dict[str, Any]:
  """The numbers of a row that is done."""
  records = list(metrics.read(folder / "metrics.jsonl"))
  steps = [record for record in records if "loss" in record]
  held_out = [record["eval_loss"] for record in records if "eval_loss" in record]
  losses = np.array([record["loss"] for record in steps])
  assert len(losses) == STEPS and np.isfinite(losses).all(), folder
  at = np.arange(STEPS)
  trend = np.polynomial.Polynomial.fit(at, losses, 1)
  seconds = [one["tokens"] / one["tokens_per_second"] for one in steps[2:]]
  return {
    "losses": losses,
    "noise": float(np.std(losses - trend(at), ddof=2)),
    "held_out": held_out,
    "seconds": statistics.median(seconds),
    "steps": steps,
  }


def ends(values: Sequence[float]) -> tuple[float, float]:
  """Means of the first and of the last five."""
  return statistics.mean(values[:PART]), statistics.mean(values[-PART:])


def notes(found: dict[str, Any]) -> str:
  """What else the records of a row have: rewards, KL, regulariser, positions."""
  steps, texts = found["steps"], []
  for key, label in (
    ("rewards/margin", "margin"),
    ("rewards/accuracy", "accuracy"),
    ("kl", "KL"),
    ("sce", "SCE"),
  ):
    if key in steps[0]:
      first, last = ends([one[key] for one in steps])
      texts.append(f"{label} {first:.3f} → {last:.3f}")
  furthest = max(one["largest_position"] for one in steps)
  texts.append(f"largest position {furthest:,}")
  return "; ".join(texts)


def row_of(name: str, run: runs.Run, folder: pathlib.Path) -> list[str]:
  """The cells of a row of the page."""
  shown = {key: value for key, value in run.changes.items() if key != "data.train"}
  source = run.changes["data.train"]
  if source == PAIRS:
    shown["data.train"] = source
  keys = ", ".join(f"`{key}={value}`" for key, value in shown.items())
  if not (folder / "done.json").exists():
    return [name, keys, *["not run"] * 2, *[""] * 4]
  found = measured(folder)
  first, last = ends(found["losses"])
  drop = (first - last) / (found["noise"] * math.sqrt(2 / PART))
  before, *_, after = found["held_out"]
  return [
    name,
    keys,
    f"{first:.3f}",
    f"{last:.3f}",
    f"{found['noise']:.3f} ({drop:+.1f})",
    f"{before:.3f} → {after:.3f}",
    f"{found['seconds']:.1f}",
    notes(found),
  ]


def write_page(sweep: runs.Sweep, out: pathlib.Path) -> None:
  """OUT/table.md, from what is done."""
  heads = ["method", "changes of the config", "steps 1–5", "16–20"]
  heads += ["noise (fall in standard errors)", "held out", "s per step", "notes"]
  rows = [
    row_of(name, run, out / "rows" / runs.slug(name))
    for name, run in sweep.runs.items()
  ]
  lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
  out.mkdir(parents=True, exist_ok=True)
  (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()

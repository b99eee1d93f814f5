"""Checks and times this machine's devices, and writes a report."""

import argparse
import datetime
import functools
import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.method import positions
from skipalign_jax.model import sharding
from skipalign_jax.planning import (
  attention_errors,
  device_report,
  estimate,
  goldens,
  timed_programs,
)
from skipalign_jax.runtime import compile_cache, errors, files, paths, storage, terminal

Record = dict[str, Any]
VERSIONS = ("skipalign_jax", "jax", "jaxlib")
# Tokens of a row and widths of a head in the checks of attention.
ATTENTION = {"small": (128, (64,)), "full": (1024, (64, 128))}
LOSS_BOUND = 0.02  # nats between one device and several: products are in bf16


def run(args: argparse.Namespace) -> int:
  """Prints the report and writes report.json and report.md; returns the exit status.

  They are written after each part, and a part that fails does not end the others.

  Args:
    args: the flags of `skipalign_jax.check_device`.

  Raises:
    UserError: --out cannot be written.
  """
  out = paths.output(args.out, f"--out={args.out}")
  compile_cache.enable()
  console = terminal.Console()
  device = jax.devices()[0]
  size = args.size
  if size == "auto":
    size = "small" if device.platform == "cpu" else "full"
  record = describe(device, size)
  console.print(device_report.heading(record))
  steps = {
    "positions": check_positions,
    "goldens": lambda: list(goldens.check(device.platform)),
    "attention": lambda: check_attention(device.platform, *ATTENTION[size]),
    "losses": lambda: check_losses(jax.device_count()),
    "programs": lambda: time_programs(size, device),
  }
  for name, step in steps.items():
    record[name] = tried(step)
    record["passed"] = device_report.passed(record)
    console.print(device_report.section(name, record))
    try:
      _write(out, record)
    except OSError as error:
      raise errors.UserError(
        f"--out={args.out} cannot be written: {storage.explain(error)}"
      ) from error
  console.print(f"\nwritten to {out}: report.json, report.md")
  return 0 if record["passed"] else 1


def _write(out: pathlib.Path, record: Record) -> None:
  out.mkdir(parents=True, exist_ok=True)
  files.write_json(out / "report.json", record)
  files.write_text(out / "report.md", device_report.markdown(record))


def tried(step: Callable[[], Any]) -> Any:
  """What a step returns; {"failed": why} for one that raises, as anything here may."""
  try:
    return step()
  except Exception as error:  # a compiler has many, such as for memory that runs out
    terminal.print_exception(error)
    return {"failed": f"{type(error).__name__}: {errors.first_line(error)}"}


def describe(device: jax.Device, size: str) -> Record:
  """What is checked, where and when."""
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return {
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
    "platform": device.platform,
    "device": device.device_kind,
    "devices": jax.device_count(),
    "memory_gib": None if limit is None else limit / timed_programs.GIB,
    "size": size,
  }


def check_positions() -> Record:
  """Whether positions are those of a CPU, bit for bit."""
  config = config_lib.default()
  batch = timed_programs.batch(100, rows=64, length=256)
  try:
    cpu = jax.devices("cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS leaves it out
    return {"skipped": "JAX has no CPU here (JAX_PLATFORMS)"}
  found = []
  for where in (jax.devices()[0], cpu):
    with jax.default_device(where):
      draw = jax.jit(positions.synthesize, static_argnums=(0, 1))
      recipe = positions.PositionConfig(**config.positions)
      found.append(np.asarray(draw(recipe, 0, batch)))
  return {"equal": bool((found[0] == found[1]).all()), "largest": int(found[0].max())}


def check_attention(
  platform: str, length: int, head_dims: tuple[int, ...]
) -> list[Record]:
  """A record per backend, type, width of a head and kind of rows."""
  found = []
  for case in attention_errors.cases(platform, length, head_dims):
    record = vars(case) | {"bound": attention_errors.bound(case, platform)}
    try:
      error = attention_errors.error(case, length)
      record |= {"error": error, "holds": error <= record["bound"]}
    except errors.UserError as refused:
      record |= {"refused": errors.first_line(refused)}
    except Exception as error:  # Pallas has its own, and those of XLA
      failed = f"{type(error).__name__}: {errors.first_line(error)}"
      record |= {"failed": failed, "holds": False}
    found.append(record)
  return found


def check_losses(devices: int) -> Record:
  """Losses of three steps on 1, 2, 4 … devices, and their largest difference."""
  counts = [1 << n for n in range(devices.bit_length()) if 1 << n <= devices]
  found = timed_programs.losses_by_devices(timed_programs.SMALL[0], counts)
  one = np.array(found[1])
  difference = max(float(np.abs(np.array(x) - one).max()) for x in found.values())
  return {
    "by_devices": {str(count): x for count, x in found.items()},
    "difference": difference,
    "bound": LOSS_BOUND,
    "holds": bool(np.isfinite(one).all()) and difference <= LOSS_BOUND,
  }


def time_programs(size: str, device: jax.Device) -> list[Record]:
  """Training, prefill and decoding of each model that fits."""
  mesh = sharding.make_mesh(dict(data=1, fsdp=-1, tensor=1, context=1))
  runs = timed_programs.SMALL if size == "small" else timed_programs.FULL
  found = []
  for one in runs:
    planned = timed_programs.job(one, "train", mesh, device.platform)
    needed = timed_programs.needed_bytes(planned) / timed_programs.GIB
    record = {
      "model": one.name,
      "parameters": one.shape.num_params(),
      "rows": planned.rows,
      "length": one.length,
      "attention": planned.recipe.attention.name,
      "planned_gib": needed,
    }
    if not timed_programs.fits(planned, device):
      found.append(record | {"skipped": _too_little(needed, device)})
      continue
    dtype = planned.recipe.compute_dtype
    for timed in (
      functools.partial(_train, one, planned, mesh),
      functools.partial(timed_programs.generate, one, mesh, dtype),
    ):
      record = tried(timed) | record  # of two failures, the first
    found.append(record)
  return found


def _too_little(needed: float, device: jax.Device) -> str:
  """Why a model that needs so many GiB a device does not run."""
  has = device.memory_stats()["bytes_limit"] / timed_programs.GIB
  why = f"needs about {needed:.1f} GiB a device, and JAX has {has:.1f}"
  if device.platform != "gpu":
    return why
  return f"{why}, by default 75 % of a GPU's; XLA_PYTHON_CLIENT_MEM_FRACTION sets it"


def _train(
  one: timed_programs.Run, planned: estimate.Job, mesh: jax.sharding.Mesh
) -> Record:
  measured = timed_programs.train(planned, mesh, one.repeats)
  return {"train": measured, "plan": timed_programs.ratios(measured, planned)}

"""The plans in docs/plan.md: python benchmarks/plans.py [--out=FILE].

Runs the command `plan` for each of PLANS (pip install -e '.[plan]'; half a minute
each), writes their records as JSON and prints the page's table. `--table=FILE` prints
the table of records that were written before.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
GIB = 2**30
TULU = "--samples=326154"
LLAMA2 = "--config=configs/llama2_ntk.py"
PACKED = "--config=configs/llama2_packed_sft_50k.py"
YI = "--config=configs/yi_6b_200k.py"
LONG_YI = (YI, "--job=generate", "--length=200000", "--config.mesh.fsdp=1")

PLANS = {
  "Llama-2-7B, SkipAlign": (LLAMA2, "--topology=a100-80gb:8", TULU),
  "Llama-2-7B, SkipAlign, 2 microbatches": (
    LLAMA2,
    "--topology=a100-40gb:8",
    TULU,
    "--config.grad_accum=2",
  ),
  "Llama-2-7B, 1 row per device, no product recomputed": (
    LLAMA2,
    "--topology=a100-80gb:8",
    "--config.batch_size=8",
    "--config.model.remat=dots",
  ),
  "Llama-2-7B, PackedSFT-50K": (PACKED, "--topology=a100-80gb:8"),
  "Llama-2-7B, PackedSFT-50K, a row over 8 devices": (
    PACKED,
    "--topology=a100-80gb:8",
    "--config.mesh.fsdp=1",
    "--config.mesh.context=8",
    "--config.batch_size=1",
  ),
  "Yi-6B-200K, SkipAlign": (YI, "--topology=a100-80gb:8", TULU),
  "Llama-2-70B, SkipAlign": (
    LLAMA2,
    "--topology=v5p:4x4x4",
    TULU,
    "--config.model.init_from=meta-llama/Llama-2-70b-hf",
  ),
  "Yi-6B, 200K prompt": (
    *LONG_YI,
    "--topology=a100-80gb:8",
    "--config.mesh.context=8",
  ),
  "Yi-6B, 200K prompt, the last part of 8192": (
    YI,
    "--job=generate",
    "--length=204800",
    "--part=8192",
    "--config.mesh.fsdp=1",
    "--topology=a100-80gb:8",
    "--config.mesh.context=8",
  ),
}


def plan(
  arguments: tuple[str, ...], variables: Mapping[str, str] | None = None
) -> dict:
  """The record of one plan; `variables` are those of the environment that differ."""
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run(
      [sys.executable, "-m", "skipalign_jax.plan", *arguments, "--search=0",
       f"--out={folder}"],
      cwd=ROOT,
      env=os.environ | (variables or {}),
      check=True,
      stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (record,) = json.loads((pathlib.Path(folder) / "plan.json").read_text())
  return record


def row(label: str, record: dict) -> str:
  """One line of the table per program (generation has two)."""
  settings, lines = record["settings"], []
  mesh = " x ".join(f"{a} {n}" for a, n in record["mesh"].items() if n > 1)
  for program in record["programs"]:
    memory, flops = program["bytes_per_device"], program["flops"]
    low, high = program["estimate"]["tokens_per_second"]
    name = label if program["program"] == "train_step" else program["program"]
    name = name if name == label else f"{label}: {name}"
    lines.append(
      f"| {name} | {record['topology']} ({mesh}) "
      f"| {program['rows_per_device']:g} x {program['length']:,} "
      f"| {settings['attention']}, {settings['remat']} "
      f"| {memory['peak'] / GIB:.1f} of {memory['available'] / GIB:.1f} GiB "
      f"| {flops['recompute_factor']:.2f} | {low:,.0f}-{high:,.0f} |"
    )
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", default="")
  parser.add_argument("--table", default="", help="records written before")
  args = parser.parse_args()
  if args.table:
    records = json.loads(pathlib.Path(args.table).read_text())
  else:
    records = {label: plan(arguments) for label, arguments in PLANS.items()}
  print(
    "| run | devices (mesh) | rows x tokens per device | attention, remat "
    "| peak per device | executed / model FLOPs | tokens/s, estimate |\n"
    "|---|---|---|---|---|---|---|"
  )
  for label, record in records.items():
    print(row(label, record))
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
  main()

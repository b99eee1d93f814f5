"""What products hide, docs/plan.md: python benchmarks/overlap.py [--rows=1,3]

Runs the command `plan` (pip install -e '.[plan]'; half a minute to two each) on the
step of Llama-2-7B, with the flags of XLA that the files in launch/ set, with fewer and
with none, and prints the table.
"""

import argparse
import re

import harness
import plans

SLURM, TPU_VM = "launch/slurm.sbatch", "launch/tpu_vm.sh"
A100, H100, V5P = (f"--topology={t}" for t in ("a100-80gb:8", "h100:8", "v5p:2x2x2"))
ONE_ROW = ("--config.batch_size=8", "--config.model.remat=dots")
FEW = ("--config.batch_size=32",)
LIMIT, SCHEDULER = "parallel_collective_overlap_limit", "latency_hiding_scheduler"


def flags(path: str, leave_out: str = "") -> str:
  """The flags of the array `flags` in a launch file; some can be left out.

  Args:
    path: of the file, from the root of the repository.
    leave_out: a part of the names of those that are not wanted.
  """
  text = (plans.ROOT / path).read_text()
  (inner,) = re.findall(r"^flags=\((.*?)^\)", text, re.M | re.S)
  found = re.findall(r"^\s+(--xla\S*)", inner, re.M)
  return " ".join(f for f in found if not leave_out or leave_out not in f)


# (devices, what of the config differs, what the flags are called, the flags)
ROWS = [
  (A100, (), "none", ""),
  (A100, (), "latency hiding scheduler only", f"--xla_gpu_enable_{SCHEDULER}=true"),
  (A100, (), f"`{SLURM}` without the limit of four", flags(SLURM, LIMIT)),
  (A100, (), f"`{SLURM}`", flags(SLURM)),
  (A100, ONE_ROW, f"`{SLURM}`", flags(SLURM)),
  (H100, (), "none", ""),
  (H100, (), f"`{SLURM}`", flags(SLURM)),
  (V5P, FEW, "none", ""),
  (V5P, FEW, f"`{TPU_VM}`", flags(TPU_VM)),
]


def row(name: str, record: dict) -> str:
  """One line of the table."""
  (program,) = record["programs"]
  total = lambda key: sum(c[key] for c in program["collectives"])
  share = lambda key: f"{total(key) / total('sent_bytes'):.0%}"
  peak = program["bytes_per_device"]["peak"] / plans.GIB
  return (
    f"| {record['topology']}, {program['rows_per_device']:g} | {name} "
    f"| {share('asynchronous_bytes')} | {share('hidden_bytes')} | {peak:.1f} GiB |"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--rows", default="", help="numbers of rows, from 1; default: all"
  )
  args = parser.parse_args()
  chosen = harness.numbers(args.rows) or range(1, len(ROWS) + 1)
  print("| devices, rows per device | flags | asynchronous | hidden | peak |")
  print("|---|---|---|---|---|")
  for number in chosen:
    devices, changes, name, value = ROWS[number - 1]
    variable = "LIBTPU_INIT_ARGS" if devices == V5P else "XLA_FLAGS"
    record = plans.plan((plans.LLAMA2, devices, *changes), {variable: value})
    print(row(name, record), flush=True)


if __name__ == "__main__":
  main()

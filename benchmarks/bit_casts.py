"""Casts between bfloat16 and uint16 in training steps compiled for accelerators.

python benchmarks/bit_casts.py [--topologies=a100-80gb:8,v5e:4x8] [--remat=dots,full]
  [--length=2048] [--out=FILE]

CPUs keep values for the backward pass as bits (`model/cpu.py`); this counts what of
that is in programs for others. Llama-2-7B, a row per device, fsdp over all devices,
adapters too. The command `plan` compiles each step for a description of the topology,
with no device, and XLA writes down the program before and after it optimizes.
Needs the `plan` extra.
"""

import collections
import os
import pathlib
import re
import tempfile

import harness
import plans

from skipalign_jax.runtime import hardware

CAST = re.compile(r" = (?:bf16|u16)\[\S+ bitcast-convert\(")
KERNEL = re.compile(r" = .* (fusion|custom-call|copy|dot|convolution)\(")
VARIANTS = {"all weights": (), "adapters": ("--config.lora.rank=16",)}


def step(topology: hardware.Topology, remat: str, length: int, extra: tuple) -> dict:
  """Counts and bytes of one compiled step."""
  with tempfile.TemporaryDirectory() as folder:
    os.environ["XLA_FLAGS"] = (
      f"--xla_dump_to={folder} --xla_dump_hlo_as_text "
      "--xla_dump_hlo_module_re=.*train_step.*"
    )
    record = plans.plan(
      (
        plans.LLAMA2,
        f"--topology={topology.name}",
        f"--config.batch_size={topology.devices}",
        f"--config.data.seq_len={length}",
        f"--config.model.remat={remat}",
        *extra,
      )
    )
    before, after = (
      max(pathlib.Path(folder).glob(f"*{stage}_optimizations.txt")).read_text()
      for stage in ("before", "after")
    )
  kernels = collections.Counter(KERNEL.findall(after))
  memory = record["programs"][0]["bytes_per_device"]
  return {
    "casts_traced": len(CAST.findall(before)),
    "casts_compiled": len(CAST.findall(after)),
    "u16_compiled": after.count(" = u16["),
    "kernels": sum(kernels.values()),
    "copies": kernels["copy"],
    "temporaries": memory["temporaries"],
    "peak": memory["peak"],
  }


def main() -> None:
  parser = harness.arguments(__doc__)
  parser.add_argument("--topologies", default="a100-80gb:8,v5e:4x8")
  parser.add_argument("--remat", default="dots,full")
  parser.add_argument("--length", type=int, default=2048)
  args = parser.parse_args()
  environment = harness.environment()
  results, rows = [], []
  for topology in hardware.parse(args.topologies):
    for remat in args.remat.split(","):
      for variant, extra in VARIANTS.items():
        found = step(topology, remat, args.length, extra)
        name = dict(topology=topology.name, remat=remat, trained=variant)
        results.append(name | found)
        sizes = [f"{found[k] / hardware.GIB:.3f}" for k in ("temporaries", "peak")]
        rows.append([*name.values(), *list(found.values())[:-2], *sizes])
  head = ["topology", "remat", "trained", "casts traced", "casts compiled"]
  head += ["u16 arrays", "kernels", "copies", "temporaries, GiB", "peak, GiB"]
  print(harness.table(head, rows))
  harness.report(args, environment, results)


if __name__ == "__main__":
  main()

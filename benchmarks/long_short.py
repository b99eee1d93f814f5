"""The cost of Long-Short Alignment: a step with the regulariser against a plain one.

python benchmarks/long_short.py [--lengths=1024,2048] [--dtype=bfloat16] [--rounds=5]

One process, one state, one row of the same tokens; the variants alternate. The
regulariser reads the row twice, forward and backward, so its step should take about
twice as long; less if the gradient of one side is stopped. Memory: the compiler's plan
of the step (arguments, results that are not donated, temporaries).
"""

import harness

ALPHA = {"long_short.alpha": 0.1}
VARIANTS = {
  "plain": {},
  "regularised": ALPHA,
  "short side given": ALPHA | {"long_short.stop_gradient": "short"},
}


class Ours:
  def __init__(self, model: str, dtype: str, remat: str):
    self._steps = harness.Steps(model, dtype, remat, **VARIANTS)
    self._model = model

  def step(self, variant: str, length: int) -> float:
    return self._steps.step(variant, harness.dialogue(self._model, length))[0]

  def planned(self, variant: str, length: int) -> dict[str, int]:
    """Bytes of the compiled step, and the FLOPs that it runs."""
    batch = harness.dialogue(self._model, length)
    memory = self._steps.compile(variant, batch).memory_analysis()
    return {
      "peak": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
      "temporaries": memory.temp_size_in_bytes,
      "executed_flops": self._steps.executed(variant, batch),
    }


def main() -> None:
  parser = harness.arguments(__doc__)
  parser.add_argument("--lengths", default="1024,2048")
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"))
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  before = harness.environment()

  worker = harness.Worker(Ours, model=args.model, dtype=args.dtype, remat=args.remat)
  cells = [(v, int(length)) for length in args.lengths.split(",") for v in VARIANTS]
  planned = {cell: worker("planned", variant=cell[0], length=cell[1]) for cell in cells}
  turns = {
    cell: lambda cell=cell: worker("step", variant=cell[0], length=cell[1])
    for cell in cells
  }
  harness.rounds(turns, 1)  # uses all memory once; not timed
  seconds, failed = harness.rounds(turns, args.rounds)
  worker.close()
  assert not failed, failed

  rows, records = [], []
  for variant, length in cells:
    base, cell = ("plain", length), (variant, length)
    pairs = zip(seconds[cell], seconds[base], strict=True)
    ratio = harness.spread([one / two for one, two in pairs])
    over = lambda key: planned[cell][key] / planned[base][key]  # noqa: B023
    rows.append(
      [
        f"{variant}, {length}",
        harness.show(harness.spread(seconds[cell]), ".2f"),
        harness.show(ratio, ".2f"),
        f"{over('executed_flops'):.2f}",
        f"{planned[cell]['peak'] / 2**30:.2f} GiB",
        f"{over('peak'):.2f}",
        f"{over('temporaries'):.2f}",
      ]
    )
    records.append(
      {"variant": variant, "length": length, "seconds": seconds[cell], "ratio": ratio}
      | planned[cell]
    )
  heads = ["step", "seconds", "x plain", "FLOPs", "planned", "x plain", "temporaries"]
  print(f"\n{args.model}, one row, {args.dtype}, remat {args.remat}")
  print(harness.table(heads, rows))
  print("(median, and extremes over rounds)")
  harness.report(args, before, {"cells": records})


if __name__ == "__main__":
  main()

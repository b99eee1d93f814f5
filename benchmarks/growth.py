"""How the time and the memory of a training step grow with its length.

python benchmarks/growth.py [--lengths=512,1024,2048,4096,8192] [--remat=dots]
  [--dtype=bfloat16] [--rounds=3] [--out=FILE]

One row per step, skip_outer. Time: one process with one state; the lengths alternate.
Memory: the compiler's plan (`memory_analysis`: state, temporaries), and the peak
resident set of a new process per length, minus the resident set before the first step
is compiled.

FLOPs are counted in two ways. By formula (`harness.flops`): 6·N·tokens for products
with weights, 6·layers·L²·heads·head_dim for causal attention. And as executed, counted
in the step's jaxpr like in `plan`: attention's gradient computes the scores again, a
seventh product, and half of each tile on the diagonal is wasted. Time should not grow
faster than the second count: seconds over FLOPs, relative to the shortest length, stay
near 1 or fall. Memory should be linear: bytes per token stay near those of the shortest
length.
"""

import harness


class Ours:
  def __init__(self, model: str, dtype: str, remat: str):
    self._steps = harness.Steps(model, dtype, remat, ("skip_outer",))
    self._model = model
    self._batches = {}

  def step(self, length: int) -> float:
    return self._steps.step("skip_outer", self._batch(length))[0]

  def planned(self, length: int) -> dict[str, int]:
    """Bytes of the compiled step, arguments and temporaries; FLOPs that it runs."""
    compiled = self._steps.compile("skip_outer", self._batch(length))
    analysis = compiled.memory_analysis()
    return {
      "arguments": analysis.argument_size_in_bytes,
      "temporaries": analysis.temp_size_in_bytes,
      "executed_flops": self._steps.executed("skip_outer", self._batch(length)),
    }

  def resident(self, length: int) -> dict[str, int]:
    """Bytes resident before compiling, and at the peak of two steps."""
    batch = self._batch(length)
    before = harness.resident_bytes("VmRSS")
    self._steps.step("skip_outer", batch)
    self._steps.step("skip_outer", batch)
    return {"before": before, "peak": harness.resident_bytes("VmHWM")}

  def _batch(self, length: int):
    if length not in self._batches:
      self._batches[length] = harness.dialogue(self._model, length)
    return self._batches[length]


def measure(args, lengths: list[int]) -> tuple[dict, dict, dict, dict]:
  """Length → compiler's plan, seconds of each round, error, resident bytes."""
  settings = dict(model=args.model, dtype=args.dtype, remat=args.remat)
  worker = harness.Worker(Ours, **settings)
  planned = {length: worker("planned", length=length) for length in lengths}
  turns = {length: lambda at=length: worker("step", length=at) for length in lengths}
  harness.rounds(turns, 1)  # uses all memory once; not timed
  seconds, failed = harness.rounds(turns, args.rounds)
  worker.close()
  resident = {}
  for length in lengths:
    worker = harness.Worker(Ours, **settings)
    resident[length] = worker("resident", length=length)
    worker.close()
  return planned, seconds, failed, resident


def relate(result: dict, base: dict) -> None:
  """Adds the time per FLOP relative to the shortest length, by both counts."""
  pairs = zip(result["seconds_per_flop"], base["seconds_per_flop"], strict=True)
  relative = [a / b for a, b in pairs]
  factor = lambda r: r["planned"]["executed_flops"] / sum(r["flops"].values())
  growth = factor(result) / factor(base)
  result["seconds_per_flop_relative"] = harness.spread(relative)
  result["seconds_per_executed_flop_relative"] = harness.spread(
    [ratio / growth for ratio in relative]
  )


def row(result: dict) -> list:
  """One line of the table."""
  work, resident = result["flops"], result["resident_bytes"]
  return [
    result["length"],
    harness.show(result["seconds"]),
    f"{sum(work.values()) / 1e12:.2f}",
    f"{100 * work['attention'] / sum(work.values()):.0f} %",
    harness.show(result["seconds_per_flop_relative"], ".2f"),
    harness.show(result["seconds_per_executed_flop_relative"], ".2f"),
    f"{result['planned']['temporaries'] / 2**30:.2f}",
    f"{result['temporary_bytes_per_token'] / 2**20:.2f}",
    f"{resident['peak'] / 2**30:.2f}",
    f"{(resident['peak'] - resident['before']) / 2**30:.2f}",
  ]


def main() -> None:
  parser = harness.arguments(__doc__)
  parser.add_argument("--lengths", default="512,1024,2048,4096,8192")
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"))
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  before = harness.environment()
  config = harness.open_model(args.model).config
  lengths = harness.numbers(args.lengths)
  planned, seconds, failed, resident = measure(args, lengths)

  results, rows = [], []
  for length in lengths:
    if length in failed:
      rows.append([length, failed[length], *[""] * 8])
      continue
    work = harness.flops(config, length)
    held = resident[length]["peak"] - resident[length]["before"]
    result = {
      "length": length,
      "flops": work,
      "seconds": harness.spread(seconds[length]),
      "planned": planned[length],
      "resident_bytes": resident[length],
      "seconds_per_flop": [s / sum(work.values()) for s in seconds[length]],
      "temporary_bytes_per_token": planned[length]["temporaries"] / length,
      "resident_bytes_per_token": held / length,
    }
    results.append(result)
    relate(result, results[0])
    rows.append(row(result))
  print(f"\n{args.model}, 1 row, {args.dtype}, remat={args.remat}")
  head = ["L", "seconds per step", "TFLOP", "attention", "s/FLOP, relative"]
  head += ["s/executed", "temporaries, GiB", "MiB per token", "peak RSS, GiB"]
  head += ["of it the step"]
  print(harness.table(head, rows))
  harness.report(args, before, results)


if __name__ == "__main__":
  main()

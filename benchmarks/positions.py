"""The costs of position synthesis and packing, as shares of a training step.

python benchmarks/positions.py [--length=1024] [--dtype=bfloat16] [--rounds=10]

One process, one state, one row of the same tokens; four variants alternate:

  contiguous  one dialogue fills the row, positions 0, 1, 2 …
  skip_outer  the same, positions drawn in the step as in the paper
  packed      the row cut into samples of two exchanges (segments), contiguous
  packed skip_outer

The function that draws positions is also timed alone, for skip_outer on both rows. Its
time over the step's is the precise share: the difference of two steps has the noise of
both.
"""

import time

import harness
import jax

from skipalign_jax.method import positions

VARIANTS = {
  "contiguous": ("contiguous", "full"),
  "skip_outer": ("skip_outer", "full"),
  "packed": ("contiguous", "packed"),
  "packed skip_outer": ("skip_outer", "packed"),
}


class Ours:
  def __init__(self, model: str, length: int, dtype: str):
    strategies = ("contiguous", "skip_outer")
    self._steps = harness.Steps(model, dtype, "dots", strategies)
    full = harness.dialogue(model, length)
    self._batches = {"full": full, "packed": harness.cut_into_samples(full, turns=2)}
    recipe = self._steps.recipes["skip_outer"]
    self._draw = jax.jit(
      lambda batch: positions.synthesize(recipe.positions, recipe.seed, batch)
    )

  def step(self, variant: str) -> float:
    strategy, rows = VARIANTS[variant]
    return self._steps.step(strategy, self._batches[rows])[0]

  def draw(self, rows: str) -> float:
    """Seconds of one synthesis, mean of ten."""
    batch = jax.device_put(self._batches[rows])
    jax.block_until_ready(self._draw(batch))
    begin = time.perf_counter()
    for _ in range(10):
      jax.block_until_ready(self._draw(batch))
    return (time.perf_counter() - begin) / 10

  def describe(self) -> dict[str, dict[str, int]]:
    """Numbers of blocks and samples in each row."""
    counts = {}
    for name, batch in self._batches.items():
      blocks = batch["segment_ids"] * 100_000 + batch["block_ids"]
      counts[name] = {
        "samples": int(batch["segment_ids"].max()),
        "blocks": len(set(blocks.ravel().tolist())),
      }
    return counts


def main() -> None:
  parser = harness.arguments(__doc__)
  parser.add_argument("--length", type=int, default=1024)
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--rounds", type=int, default=10)
  args = parser.parse_args()
  before = harness.environment()

  worker = harness.Worker(Ours, model=args.model, length=args.length, dtype=args.dtype)
  counts = worker("describe")
  turns = {name: lambda name=name: worker("step", variant=name) for name in VARIANTS}
  turns |= {
    f"draw, {rows} row": lambda rows=rows: worker("draw", rows=rows) for rows in counts
  }
  harness.rounds(turns, 1)  # compiles, and uses all memory once; not timed
  seconds, failed = harness.rounds(turns, args.rounds)
  worker.close()
  assert not failed, failed

  base = seconds["contiguous"]
  draws = [name for name in turns if name.startswith("draw")]
  difference = lambda name: [a - b for a, b in zip(seconds[name], base, strict=True)]
  shares = {
    **{name: harness.share(difference(name), base) for name in VARIANTS},
    **{name: harness.share(seconds[name], base) for name in draws},
  }
  rows = [
    [
      name,
      harness.show(harness.spread(seconds[name]), ".4f"),
      harness.show(shares[name]),
    ]
    for name in turns
  ]
  print(f"\n{args.model}, 1 x {args.length} tokens, {args.dtype}; a row has {counts}")
  print(harness.table(["what", "seconds", "% of a contiguous step"], rows))
  print("(median, and extremes over rounds; for steps the difference to contiguous)")
  worst = max(shares[name]["median"] for name in draws)
  packing = shares["packed"]["median"]
  verdict = lambda value, limit: "met" if value < limit else "MISSED"
  print(f"drawing positions below 0.5 %: {worst:.3f} %, {verdict(worst, 0.5)}")
  print(f"packing below 5 %: {packing:.2f} %, {verdict(packing, 5)}")
  harness.report(
    args,
    before,
    {
      "row": counts,
      "seconds": {name: harness.spread(x) for name, x in seconds.items()},
      "percent_of_contiguous_step": shares,
    },
  )


if __name__ == "__main__":
  main()

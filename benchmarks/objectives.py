"""What objectives cost: steps with a second read or with pairs, against a plain step.

python benchmarks/objectives.py [--lengths=1024,2048] [--dtype=bfloat16] [--rounds=5]

One process, one state; the variants alternate, round by round. Those in `SECOND_READ`
read a row of one long dialogue twice, forward and backward (less where one side has no
gradient); those in `PAIRS` read a row of packed preference pairs. Each is compared with
a plain step on the same tokens. "log π0" is the pass that DPO makes once over all pairs
before the first step; it is no step. Memory: the compiler's plan (arguments, results
that are not donated, temporaries), which does not depend on other work of the machine.
"""

import time
from typing import Any

import harness
import jax
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import pipeline
from skipalign_jax.method import positions
from skipalign_jax.model import decoder, sharding
from skipalign_jax.runtime import terminal
from skipalign_jax.training import objective

LONG_SHORT, DISTILL = {"long_short.alpha": 0.1}, {"distill.weight": 1.0}
SECOND_READ = {
  "plain": {},
  "Long-Short": LONG_SHORT,
  "Long-Short, short side given": LONG_SHORT | {"long_short.stop_gradient": "short"},
  "self-distillation, jump": DISTILL,
  "self-distillation, strategy": DISTILL | {"distill.view": "strategy"},
}
PAIRS = {
  "plain on pairs": {},
  "DPO": {"loss.kind": "dpo", "loss.beta": 0.1},
  "SimPO": {"loss.kind": "simpo", "loss.beta": 2.5, "loss.margin": 0.3},
}
READ = "log π0"
BASE = dict.fromkeys(SECOND_READ, "plain") | dict.fromkeys(PAIRS, "plain on pairs")
BASE[READ] = "plain on pairs"


class Ours:
  def __init__(self, model: str, dtype: str, remat: str):
    self._steps = harness.Steps(model, dtype, remat, **SECOND_READ, **PAIRS)
    self._model = model
    self._batches: dict[Any, dict[str, np.ndarray]] = {}
    self._read = jax.jit(self._log_probs)
    self._compiled: dict[int, Any] = {}

  def step(self, variant: str, length: int) -> float:
    """Seconds of a step, or of reading a batch of pairs for log π0."""
    batch = self._batch(variant, length)
    if variant != READ:
      return self._steps.step(variant, batch)[0]
    run = self._compile_read(batch)
    begin = time.perf_counter()
    jax.block_until_ready(run(*self._arguments(batch)))
    return time.perf_counter() - begin

  def planned(self, variant: str, length: int) -> dict[str, int]:
    """Bytes of the compiled program, and the FLOPs of a step."""
    batch = self._batch(variant, length)
    if variant == READ:
      compiled, flops = self._compile_read(batch), 0
    else:
      compiled = self._steps.compile(variant, batch)
      flops = self._steps.executed(variant, batch)
    memory = compiled.memory_analysis()
    return {
      "peak": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
      "temporaries": memory.temp_size_in_bytes,
      "executed_flops": flops,
    }

  def _log_probs(self, params: decoder.Params, batch: dict[str, Any]) -> jax.Array:
    """log π of the replies of a batch of pairs at contiguous positions."""
    batch = batch | {"positions": positions.contiguous(batch["segment_ids"])}
    return objective.reply_log_probs(self._steps.recipes["DPO"], params, batch)

  def _arguments(self, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    at = sharding.batch_sharding(self._steps.mesh)
    return self._steps.state.params, jax.device_put(batch, at)

  def _compile_read(self, batch: dict[str, np.ndarray]) -> Any:
    length = batch["tokens"].shape[1]
    if length not in self._compiled:
      with jax.set_mesh(self._steps.mesh):
        self._compiled[length] = self._read.lower(*self._arguments(batch)).compile()
    return self._compiled[length]

  def _batch(self, variant: str, length: int) -> dict[str, np.ndarray]:
    """One row: a long dialogue, or packed pairs."""
    key = (BASE[variant], length)
    if key not in self._batches:
      make = pairs if BASE[variant] in PAIRS else harness.dialogue
      self._batches[key] = make(self._model, length)
    return self._batches[key]


def pairs(name: str, length: int) -> dict[str, np.ndarray]:
  """A batch of one row of built-in preference pairs, packed; log π0 is 0."""
  c = config_lib.default()
  c.data.train, c.data.eval = "builtin:pairs:200", "holdout:4"
  c.data.seq_len, c.data.packing = length, True
  c.batch_size, c.steps, c.loss.kind, c.loss.beta = 1, 1, "dpo", 0.1
  quiet = terminal.Console(quiet=True)
  data = pipeline.build(c, harness.open_tokenizer(name), 0, 1, quiet)
  data.train_rows.set_reference(data.train_rows.empty_reference())
  return dict(next(data.train_iterator()))


def main() -> None:
  parser = harness.arguments(__doc__)
  parser.add_argument("--lengths", default="1024,2048")
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"))
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  before = harness.environment()

  worker = harness.Worker(Ours, model=args.model, dtype=args.dtype, remat=args.remat)
  cells = [(v, length) for length in harness.numbers(args.lengths) for v in BASE]
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
    base, cell = (BASE[variant], length), (variant, length)
    steps = zip(seconds[cell], seconds[base], strict=True)
    ratio = harness.spread([one / two for one, two in steps])
    over = lambda key: planned[cell][key] / planned[base][key]  # noqa: B023
    rows.append(
      [
        f"{variant}, {length}",
        harness.show(harness.spread(seconds[cell]), ".2f"),
        harness.show(ratio, ".2f"),
        f"{over('executed_flops'):.2f}" if variant != READ else "",
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

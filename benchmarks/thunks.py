"""How a program spends its time on a CPU.

python benchmarks/thunks.py [--program=step] [--length=1024] [--dtype=bfloat16]
  [--out=FILE]

The second run of the program is traced by XLA's profiler, and the time of each
instruction (XLA calls it a thunk) is added up by what the instruction does:

linear, vocabulary, attention   products: with weights, with the vocabulary, of
                                queries, keys and values
exponentials                    softmax and silu, with what is fused with them
moves                           conversions, copies, transposes, parts of arrays
update                          the rest outside of the loops over layers and rows:
                                above all the norm of the gradients and Adam
other                           the rest inside: norms, rotations, masks, sums

step      the training step on one row (`Steps` in harness.py), contiguous positions
prefill   a prompt, read part by part by `inference.Engine`

"Both cores" is processor time over time and cores, of the run without a trace: threads
that wait for work in a loop count as busy.
"""

import collections
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable

import harness
import jax

from skipalign_jax.hf import reference
from skipalign_jax.model import inference
from skipalign_jax.planning import hlo_text

NESTED = ("while", "call", "conditional")  # their time is that of what they run
MOVES = {
  "parameter", "constant", "bitcast", "convert", "copy", "transpose", "reshape",
  "broadcast", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad",
  "get-tuple-element", "tuple", "bitcast-convert", "gather", "iota",
}  # fmt: skip
KINDS = (
  "linear", "vocabulary", "attention", "exponentials", "moves", "update", "other"
)  # fmt: skip


def kinds(text: str, vocabulary: int) -> dict[str, str]:
  """Instruction → kind, of all that a compiled program runs as thunks.

  Args:
    text: of the program, optimized.
    vocabulary: its size; no other axis may have it.
  """
  computations, entry = hlo_text.parse(text)
  fused = {
    called
    for instructions in computations.values()
    for instruction in instructions
    if instruction.opcode == "fusion"
    for called in hlo_text.called(instruction)
  }
  return {
    one.name: _kind(one, computations, vocabulary, name == entry)
    for name, instructions in computations.items()
    if name not in fused
    for one in instructions
    if one.opcode not in NESTED
  }


def _kind(
  instruction: hlo_text.Instruction,
  computations: hlo_text.Computations,
  vocabulary: int,
  outside: bool,
) -> str:
  """The kind of one instruction; `outside`: of the loops over layers and rows."""
  parts = [instruction, *_parts(instruction, computations)]
  for part in parts:
    if part.opcode == "dot":
      if "lhs_batch_dims" in part.text:
        return "attention"
      sizes = {n for _, shape in hlo_text.arrays(part.result) for n in shape}
      sides = [i for i in parts if i.name in part.operands]
      sizes |= {n for i in sides for _, s in hlo_text.arrays(i.result) for n in s}
      return "vocabulary" if vocabulary in sizes else "linear"
  opcodes = {part.opcode for part in parts}
  if opcodes & {"exponential", "logistic"}:
    return "exponentials"
  if opcodes <= MOVES | {"fusion"}:
    return "moves"
  return "update" if outside else "other"


def _parts(
  instruction: hlo_text.Instruction, computations: hlo_text.Computations
) -> list[hlo_text.Instruction]:
  """What is fused in an instruction."""
  if instruction.opcode != "fusion":
    return []
  inner = [i for name in hlo_text.called(instruction) for i in computations[name]]
  return inner + [part for i in inner for part in _parts(i, computations)]


def thunks(folder: pathlib.Path) -> dict[tuple[str, str], float]:
  """(module, instruction) → seconds, of the traces in a folder."""
  seconds: dict[tuple[str, str], float] = collections.Counter()
  for file in folder.rglob("*.xplane.pb"):
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
      for line in plane.lines:
        for event in line.events:
          stats = dict(event.stats)
          if "hlo_op" in stats and not event.name.startswith("end: "):
            seconds[stats["hlo_module"], stats["hlo_op"]] += event.duration_ns / 1e9
  return seconds


def programs(folder: pathlib.Path, vocabulary: int) -> dict[tuple[str, str], str]:
  """(module, instruction) → kind, of the programs that XLA wrote to a folder."""
  found: dict[tuple[str, str], str] = {}
  for file in sorted(folder.glob("*.cpu_after_optimizations.txt")):
    module = file.name.split(".")[1]
    for name, kind in kinds(file.read_text(), vocabulary).items():
      found[module, name] = kind
  return found


def step(model: str, length: int, dtype: str) -> Callable[[], None]:
  """One update on one full row."""
  steps = harness.Steps(model, dtype, "dots", ["contiguous"])
  batch = harness.dialogue(model, length)
  return lambda: steps.step("contiguous", batch) and None


def prefill(model: str, length: int, dtype: str) -> Callable[[], None]:
  """A prompt up to its first new token."""
  opened = harness.open_model(model)
  engine = inference.Engine(reference.load_params(opened, dtype), opened.config, dtype)
  prompt = harness.dialogue(model, length)["tokens"][0].tolist()
  return lambda: list(engine.generate([prompt], 1, stop_ids=())) and None


def measure(run: Callable[[], None], vocabulary: int, dump: pathlib.Path) -> dict:
  """Runs a program three times: to compile, for its time, with a trace."""
  run()
  used, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
  run()
  seconds = time.perf_counter() - begin
  now = resource.getrusage(resource.RUSAGE_SELF)
  busy = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    traced = thunks(pathlib.Path(folder))
  of = programs(dump, vocabulary)
  by_kind = dict.fromkeys(KINDS, 0.0)
  for thunk, spent in traced.items():
    if thunk in of:
      by_kind[of[thunk]] += spent
  return {
    "seconds": seconds,
    "both_cores": busy / seconds / len(os.sched_getaffinity(0)),
    "kernel_seconds": now.ru_stime - used.ru_stime,
    "thunk_seconds": by_kind,
  }


def show(program: str, result: dict) -> None:
  """Prints one program's table."""
  total = sum(result["thunk_seconds"].values())
  rows = [
    [kind, f"{spent:.2f}", f"{spent / total:.0%}"]
    for kind, spent in result["thunk_seconds"].items()
  ]
  print(
    f"{program}: {result['seconds']:.2f} s, both cores {result['both_cores']:.0%}, in "
    f"the system {result['kernel_seconds']:.2f} s of processor time; with a trace the "
    f"thunks take {total:.2f} s"
  )
  print(harness.table(["thunks", "s", "share"], rows))


def main() -> None:
  parser = harness.arguments(__doc__)
  parser.add_argument("--program", default="step", choices=["step", "prefill"])
  parser.add_argument("--length", default=1024, type=int)
  parser.add_argument("--dtype", default="bfloat16")
  args = parser.parse_args()
  before = harness.environment()
  with tempfile.TemporaryDirectory() as dump:
    # Read when XLA compiles for the first time, which nothing has done yet.
    flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    make = {"step": step, "prefill": prefill}[args.program]
    run = make(args.model, args.length, args.dtype)
    vocabulary = harness.open_model(args.model).config.vocab_size
    result = measure(run, vocabulary, pathlib.Path(dump))
  show(f"{args.program}, {args.length} tokens, {args.dtype}", result)
  harness.report(args, before, result)


if __name__ == "__main__":
  main()

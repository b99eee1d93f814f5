"""Our step and google-tunix's, planned by one compiler.

python benchmarks/plan_peer.py [--topology=a100-80gb:8] [--length=4096]
  [--rows=1,2,4,8,16,32] [--out=FILE]

Llama-2-7B, fsdp over all devices, no device needed: both steps are compiled for one
description of the topology, with abstract weights, and analysed by the same code (XLA's
memory analysis; collectives of the optimized HLO, rings assumed). Neither has run on
hardware. Needs the `plan` extra and benchmarks/requirements.txt.

ours   the command `plan` for configs/llama2_ntk.py: fp32 masters and moments, bf16
       products, attention in one kernel, loss in chunks, layers scanned
tunix  its Llama3, with as many kv heads as heads, its shardings on a mesh of fsdp
       alone, and the train step of its PeftTrainer with its default loss, jitted as
       in the trainer (nnx.jit; the optimizer is donated, the model is not).
       AdamW with our settings, clipped at norm 1. It has no compute dtype: "float32"
       also multiplies in float32, "bfloat16" also keeps weights and moments in
       bfloat16, a third of our state. Its remat "decoder" computes each layer again,
       like our "full"; "none" keeps all. If JAX's default device is a CPU, it omits its
       constraints on activations; here they are kept, as on GPUs.

Each variant is compiled with --rows rows per device, in this order, up to the first one
that does not fit with the reserve that `plan` assumes.
"""

import dataclasses
import os
import tempfile
import time

import harness
import plans

from skipalign_jax.model import known_models
from skipalign_jax.runtime import hardware

MODEL = "meta-llama/Llama-2-7b-hf"
# (contender, dtype of products, remat)
VARIANTS = (
  ("ours", "bfloat16", "full"),
  ("ours", "bfloat16", "dots"),
  ("tunix", "float32", "decoder"),
  ("tunix", "bfloat16", "decoder"),
  ("tunix", "bfloat16", "none"),
)


class Tunix:
  """Compiles the peer's step, in its own process."""

  def __init__(self, topology: str):
    import jax
    import numpy as np

    from skipalign_jax.planning import compiler

    (self._topology,) = hardware.parse(topology)
    log = os.path.join(tempfile.mkdtemp(prefix="plan_"), "stderr.log")
    compiler.prepare(self._topology.hardware.platform, log)
    devices = np.array(compiler.devices(self._topology)).reshape(-1, 1)
    self._mesh = jax.sharding.Mesh(devices, ("fsdp", "tp"))

  def measure(self, dtype: str, remat: str, rows: int, length: int) -> dict:
    """The compiler's analysis of a step with `rows` rows over all devices."""
    import jax
    import jax.numpy as jnp
    from tunix.sft import peft_trainer

    from skipalign_jax.planning import compiler

    begin = time.monotonic()
    with self._mesh:
      step, model, optimizer = self._build(dtype, remat)
      row = lambda dtype: jax.ShapeDtypeStruct(
        (rows, length), dtype, sharding=self._at("fsdp")
      )
      batch = peft_trainer.TrainingInput(
        input_tokens=row(jnp.int32), input_mask=row(jnp.bool_)
      )
      compiled = step.lower(model, optimizer, batch).compile()
    seconds = time.monotonic() - begin
    return dataclasses.asdict(compiler.read(self._topology, compiled, 0, seconds))

  def _at(self, *spec):
    import jax

    return jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec(*spec))

  def _build(self, dtype, remat):
    """The jitted step, and the abstract model and optimizer that it takes."""
    import jax
    import tunix_peer
    from flax import nnx
    from tunix.models.llama3 import model as llama3

    # Its own function without the check of the default device.
    llama3.shard = lambda x, spec: jax.lax.with_sharding_constraint(x, self._at(*spec))
    shape = tunix_peer.shape(known_models.KNOWN[MODEL], remat)
    trainers = []

    def build():
      model = llama3.Llama3(shape, rngs=nnx.Rngs(0))
      params = nnx.state(model, nnx.Param)
      nnx.update(model, jax.tree.map(lambda x: x.astype(dtype), params))
      trainers.append(tunix_peer.trainer(model))
      return trainers[0].model, trainers[0].optimizer

    model, optimizer = nnx.eval_shape(build)
    lay_out = lambda x, spec: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=self._at(*spec)
    )
    for part in (model, optimizer):
      state = nnx.state(part)
      nnx.update(part, jax.tree.map(lay_out, state, nnx.get_partition_spec(state)))

    trainer = trainers[0].with_gen_model_input_fn(tunix_peer.model_input)
    step = nnx.jit(trainer.create_train_step_fn(), donate_argnames=("optimizer",))
    return step, model, optimizer


def ours(topology: str, remat: str, rows: int, length: int) -> dict:
  """The same analysis of our step, from the command `plan`."""
  record = plans.plan(
    (
      plans.LLAMA2,
      f"--topology={topology}",
      f"--config.batch_size={rows}",
      f"--config.data.seq_len={length}",
      f"--config.model.remat={remat}",
    )
  )
  (program,) = record["programs"]
  memory = program["bytes_per_device"]
  return {
    "arguments": memory["arguments"],
    "temporaries": memory["temporaries"],
    "peak": memory["peak"],
    "refused": program["refused"],
    "traffic": {"collectives": program["collectives"]},
    "seconds": program["compile_seconds"],
    "attention": record["settings"]["attention"],
  }


def tunix(topology: str, **settings) -> dict:
  """The analysis of the peer's step, in a process that may die."""
  worker = harness.Worker(Tunix, topology=topology)
  try:
    found = worker("measure", **settings)
  except harness.Failed as error:
    found = {"refused": str(error)}
  worker.close()
  return found


def row(result: dict, available: int) -> list[str]:
  """One line of the table."""
  gib = lambda size: f"{size / hardware.GIB:.1f}"
  head = [f"{result['contender']}, {result['dtype']}", result["remat"]]
  head.append(f"{result['rows_per_device']}")
  if result["refused"]:
    return [*head, result["refused"], *[""] * 4]
  collectives = result["traffic"]["collectives"]
  return [
    *head,
    gib(result["arguments"]),
    gib(result["peak"]) + ("" if result["fits"] else f" (more than {gib(available)})"),
    f"{sum(c['sent_bytes'] for c in collectives) / 1e9:.1f}",
    f"{sum(c['count'] for c in collectives):,}",
    f"{result['seconds']:.0f}",
  ]


def main() -> None:
  parser = harness.arguments(__doc__)
  parser.add_argument("--topology", default="a100-80gb:8")
  parser.add_argument("--length", type=int, default=4096)
  parser.add_argument("--rows", default="1,2,4,8,16,32", help="rows per device")
  args = parser.parse_args()
  before = harness.environment()
  (topology,) = hardware.parse(args.topology)
  kind = topology.hardware
  available = kind.memory - sum(kind.reserve.values())
  results = []
  for contender, dtype, remat in VARIANTS:
    for rows_per_device in harness.numbers(args.rows):
      rows = rows_per_device * topology.devices
      common = dict(remat=remat, rows=rows, length=args.length)
      if contender == "ours":
        found = ours(args.topology, **common)
      else:
        found = tunix(args.topology, dtype=dtype, **common)
      fits = not found["refused"] and found["peak"] <= available
      result = dict(contender=contender, dtype=dtype, rows_per_device=rows_per_device)
      results.append(found | result | dict(remat=remat, fits=fits))
      print(row(results[-1], available), flush=True)
      if not fits:
        break
  head = ["step", "remat", "rows per device", "state, GiB", "peak, GiB", "sent, GB"]
  head += ["collectives", "to compile, s"]
  sizes = f"{args.length} tokens per row; bytes per device"
  print(f"\n{MODEL}, {args.topology}, {sizes}")
  print(harness.table(head, [row(result, available) for result in results]))
  harness.report(args, before, results)


if __name__ == "__main__":
  main()

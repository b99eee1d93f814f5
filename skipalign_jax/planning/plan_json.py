"""A plan as the records of plan.json."""

import dataclasses
import math
from typing import Any

from skipalign_jax.model import lora
from skipalign_jax.planning import anchors, compiler, estimate, hlo, search
from skipalign_jax.runtime import hardware

PREALLOCATED = 0.75  # share of a GPU that JAX's allocator takes by default

Record = dict[str, Any]


def program(
  job: estimate.Job,
  topology: hardware.Topology,
  measured: compiler.Measured | None,
  executed: int,
) -> Record:
  """The record of one program on one topology.

  Args:
    job: the program.
    topology: the devices that it would run on.
    measured: the compiler's result; None for arithmetic only.
    executed: FLOPs over all devices, from the traced program.
  """
  compiled = measured is not None and not measured.refused
  traffic = measured.traffic if compiled else None
  needed = estimate.model_flops(job)
  if job.part and job.kind == "prefill":
    executed = needed  # the trips of its loop depend on data: not in the program
  sent = _sent(traffic) if traffic else estimate.min_traffic(
    job, topology.devices_per_host
  )  # fmt: skip
  bounds = estimate.bounds(job, topology.hardware, executed, sent)
  memory, fits = _memory(job, topology.hardware, measured)
  return {
    "program": "train_step" if job.kind == "train" else job.kind,
    "compiled": compiled,
    "refused": measured.refused if measured else "",
    "compile_seconds": round(measured.seconds, 1) if measured else None,
    "rows": job.rows,
    "length": job.length,
    "new": job.new,
    "rows_per_device": job.micro_rows,
    "bytes_per_device": memory,
    "fits": fits,
    "flops": {
      "model": needed,
      "executed": executed,
      "recompute_factor": executed / needed,
    },
    "collectives": [dataclasses.asdict(c) for c in traffic.collectives]
    if traffic
    else None,
    "loops_of_unknown_length": traffic.unknown_loops if traffic else None,
    "sent_bytes_per_device": round(sum(sent.values())),
    "bounds_seconds": dataclasses.asdict(bounds),
    "estimate": _estimate(job, topology, needed, bounds),
  }


def _memory(
  job: estimate.Job, kind: hardware.Hardware, measured: compiler.Measured | None
) -> tuple[Record, bool]:
  """The bytes of a device, and whether the program fits it."""
  state = estimate.state_bytes(job)
  if measured is None:
    source, peak = "analytic", state + estimate.activation_bytes(job)
    fit = search.fit(kind, peak)
  else:
    source = "refused" if measured.refused else "compiled"
    peak = measured.peak
    fit = search.fit(kind, peak, measured.refused)
  compiled = source == "compiled"
  record = {
    "state": state,
    "arguments": measured.arguments if compiled else None,
    "temporaries": measured.temporaries if compiled else None,
    "peak": peak or None,
    "peak_is": source,
    "reserve": dict(kind.reserve),
    "needed": fit.needed or None,
    "available": fit.available,
    "margin": fit.available - fit.needed if fit.needed else None,
  }
  return record, fit.fits


def _estimate(
  job: estimate.Job, topology: hardware.Topology, needed: int, bounds: estimate.Bounds
) -> Record:
  """Ranges of seconds, MFU and tokens/s, from the low end to the high one."""
  low, high = estimate.seconds(bounds)
  peak = topology.hardware.peak(job.recipe.compute_dtype)
  at_peak = needed / topology.devices / peak
  new = job.rows * job.new
  return {
    "seconds": [low, high],
    "mfu": [at_peak / high, at_peak / low],
    "tokens_per_second": [new / high, new / low],
  }


def _sent(traffic: hlo.Traffic) -> dict[bool, float]:
  """To other hosts or not → bytes that a device sends."""
  sent = sum(collective.sent_bytes for collective in traffic.collectives)
  between = sum(collective.network_bytes for collective in traffic.collectives)
  return {False: sent - between, True: between}


def topology(
  job: estimate.Job,
  where: hardware.Topology,
  programs: list[Record],
  advice: list[str],
  searched: Record | None,
  duration: Record | None,
) -> Record:
  """The record of one topology, as in plan.json.

  Args:
    job: as configured; a generation has several programs.
    where: the topology.
    programs: records of `program`.
    advice: what to change, in sentences.
    searched: result of the search for other settings; None if there was none.
    duration: steps and hours of the whole run; None for generation.
  """
  recipe = job.recipe
  return {
    "topology": where.name,
    "device": where.hardware.kind,
    "devices": where.devices,
    "mode": "compiled" if any(p["compiled"] or p["refused"] for p in programs)
    else "analytic",
    "job": "train" if job.kind == "train" else "generate",
    "mesh": job.axes,
    "parameters": recipe.model.num_params(),
    "settings": {
      "batch_size": job.rows,
      "length": job.length,
      "grad_accum": recipe.grad_accum,
      "remat": recipe.remat,
      "loss_chunk": recipe.loss_chunk,
      "compute_dtype": recipe.compute_dtype,
      "attention": recipe.attention.name,
      "adapters": lora.describe(recipe.adapters) if recipe.adapters else "",
    },
    "programs": programs,
    "search": searched,
    "duration": duration,
    "advice": advice,
    "published": anchors.lines(where.hardware.name) if job.kind == "train" else [],
    "assumptions": assumptions(where, recipe.compute_dtype),
  }  # fmt: skip


def assumptions(where: hardware.Topology, dtype: str) -> list[str]:
  """The assumptions that the numbers rest on, in addition to the compiled program.

  Args:
    where: the topology.
    dtype: of the products.
  """
  kind, (low, high) = where.hardware, estimate.PRODUCT_EFFICIENCY
  reserve = ", ".join(
    f"{size / hardware.GIB:.2f} GiB {name}" for name, size in kind.reserve.items()
  )
  network = (
    f", {kind.network / 1e9:.0f} GB/s to other hosts" if kind.platform == "cuda" else ""
  )
  return [
    f"reserved on a device next to the program: {reserve} (assumed, not measured)",
    f"data sheet: {kind.peak(dtype) / 1e12:.4g} TFLOP/s {dtype}, "
    f"{kind.memory_bandwidth / 1e9:.0f} GB/s memory, {kind.link / 1e9:.0f} GB/s one "
    f"way to its neighbours{network}",
    f"products run at {low:.0%} to {high:.0%} of the peak; at best everything else "
    "overlaps with them, at worst nothing does",
    "every row is full: padding counts as tokens, and attention as one sample per row",
    *_float32(kind, dtype),
  ]


def _float32(kind: hardware.Hardware, dtype: str) -> list[str]:
  """Why the peak is low; [] for bfloat16."""
  if dtype != "float32":
    return []
  how = {
    "cuda": "use no tensor cores (and no TF32)",
    "tpu": "are six products in bfloat16 each",
  }[kind.platform]
  faster = kind.peak("bfloat16") / kind.peak(dtype)
  return [f"float32 products {how}: the peak of bfloat16 is {faster:.0f} times as high"]


def allocator_advice(programs: list[Record], where: hardware.Topology) -> list[str]:
  """A setting of JAX's GPU allocator, if a program needs more than its default.

  Args:
    programs: records of `program`.
    where: the topology.
  """
  worst = max((p["bytes_per_device"]["peak"] or 0) for p in programs)
  kind = where.hardware
  if kind.platform != "cuda" or not worst or not all(p["fits"] for p in programs):
    return []
  need = (worst + kind.reserve["allocator fragmentation"]) / kind.memory
  if need <= PREALLOCATED:
    return []
  share = math.ceil(need * 100) / 100
  return [
    f"JAX takes {PREALLOCATED:.0%} of a GPU by default; set "
    f"XLA_PYTHON_CLIENT_MEM_FRACTION={share:.2f} or more"
  ]

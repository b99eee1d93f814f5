"""A plan as records for JSON, and as a table to read."""

import dataclasses
import math
from typing import Any

from rich import console as rich_console
from rich import table as rich_table

from skipalign_jax.model import lora
from skipalign_jax.planning import compiler, estimate, hardware, hlo, search

GIB = hardware.GIB
PREALLOCATED = 0.75  # share of a GPU that JAX's allocator takes unless told otherwise

Record = dict[str, Any]


def program(
  job: estimate.Job,
  topology: hardware.Topology,
  measured: compiler.Measured | None,
  executed: int,
) -> Record:
  """One program on one topology.

  Args:
    job: the program.
    topology: where it would run.
    measured: what the compiler said; None for arithmetic only.
    executed: FLOPs over all devices, from the traced program.
  """
  kind = topology.hardware
  known = measured is not None and not measured.refused
  state = estimate.state_bytes(job)
  if measured is None:
    peak = state + estimate.activation_bytes(job)
    sent = estimate.least_traffic(job, topology.devices_per_host)
    fit = _fit_of(peak, kind)
  else:
    peak, fit = measured.peak, search.fit(kind, measured)
    sent = _sent(measured.traffic) if known else estimate.least_traffic(
      job, topology.devices_per_host
    )  # fmt: skip
  wanted = estimate.model_flops(job)
  if job.part and job.kind == "prefill":
    executed = wanted  # its loop runs as often as there are keys: not in the program
  least = estimate.bounds(job, kind, executed, sent)
  low, high = estimate.seconds(least)
  at_peak = wanted / topology.devices / kind.flops
  new = job.rows * job.new
  return {
    "program": "train_step" if job.kind == "train" else job.kind,
    "compiled": known,
    "refused": measured.refused if measured else "",
    "compile_seconds": round(measured.seconds, 1) if measured else None,
    "rows": job.rows,
    "length": job.length,
    "new": job.new,
    "rows_per_device": job.micro_rows,
    "bytes_per_device": {
      "state": state,
      "arguments": measured.arguments if known else None,
      "temporaries": measured.temporaries if known else None,
      "peak": peak or None,
      "peak_is": "compiled" if known else "refused" if measured else "analytic",
      "reserve": dict(kind.reserve),
      "needed": fit.needed or None,
      "available": fit.available,
      "margin": fit.available - fit.needed if fit.needed else None,
    },
    "fits": fit.fits,
    "flops": {
      "model": wanted,
      "executed": executed,
      "recompute_factor": executed / wanted,
    },
    "collectives": [dataclasses.asdict(c) for c in measured.traffic.collectives]
    if known
    else None,
    "loops_of_unknown_length": measured.traffic.unknown_loops if known else None,
    "sent_bytes_per_device": round(sum(sent.values())),
    "bounds_seconds": dataclasses.asdict(least),
    "estimate": {
      "seconds": [low, high],
      "mfu": [at_peak / high, at_peak / low],
      "tokens_per_second": [new / high, new / low],
    },
  }


def _fit_of(peak: int, kind: hardware.Hardware) -> search.Fit:
  needed = peak + sum(kind.reserve.values())
  return search.Fit(needed, kind.memory, needed <= kind.memory)


def _sent(traffic: hlo.Traffic) -> dict[bool, float]:
  total = {False: 0.0, True: 0.0}
  for row in traffic.collectives:
    total[row.crosses_hosts] += row.sent_bytes
  return total


def topology(
  asked: estimate.Job,
  where: hardware.Topology,
  programs: list[Record],
  advice: list[str],
  searched: Record | None,
  duration: Record | None,
) -> Record:
  """The record of one topology, as plan.json holds it."""
  recipe = asked.recipe
  return {
    "topology": where.name,
    "device": where.hardware.kind,
    "devices": where.devices,
    "mode": "compiled" if any(p["compiled"] or p["refused"] for p in programs)
    else "analytic",
    "job": "train" if asked.kind == "train" else "generate",
    "mesh": asked.axes,
    "parameters": recipe.model.num_params(),
    "settings": {
      "batch_size": asked.rows,
      "length": asked.length,
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
    "assumptions": assumptions(where),
  }  # fmt: skip


def assumptions(where: hardware.Topology) -> list[str]:
  """What the numbers rest on, beside the compiled program."""
  kind, (low, high) = where.hardware, estimate.PRODUCT_EFFICIENCY
  reserve = ", ".join(f"{b / GIB:.2f} GiB {name}" for name, b in kind.reserve.items())
  network = (
    f", {kind.network / 1e9:.0f} GB/s to other hosts" if kind.platform == "cuda" else ""
  )
  return [
    f"beside the program a device holds: {reserve} (assumed, not measured)",
    f"data sheet: {kind.flops / 1e12:.0f} TFLOP/s bf16, "
    f"{kind.memory_bandwidth / 1e9:.0f} GB/s memory, {kind.link / 1e9:.0f} GB/s one "
    f"way to its neighbours{network}",
    f"products run at {low:.0%} to {high:.0%} of the peak; at best everything else "
    "hides behind them, at worst nothing does",
    "every row is full: padding counts as tokens, and attention as one sample a row",
  ]


def allocator_advice(record: Record, where: hardware.Topology) -> list[str]:
  """What to tell JAX's GPU allocator, if the program needs more than its default."""
  worst = max((p["bytes_per_device"]["peak"] or 0) for p in record)
  kind = where.hardware
  if kind.platform != "cuda" or not worst or not all(p["fits"] for p in record):
    return []
  need = (worst + kind.reserve["allocator fragmentation"]) / kind.memory
  if need <= PREALLOCATED:
    return []
  share = math.ceil(need * 100) / 100
  return [
    f"JAX takes {PREALLOCATED:.0%} of a GPU by default; set "
    f"XLA_PYTHON_CLIENT_MEM_FRACTION={share:.2f} or more"
  ]


def show(records: list[Record], console: rich_console.Console) -> None:
  """Prints a column a program, and what to do."""
  table = rich_table.Table()
  table.add_column("a device and step", no_wrap=True)
  columns = [(record, p) for record in records for p in record["programs"]]
  for record, p in columns:
    name = p["program"] if p["program"] != "train_step" else ""
    heading = f"{record['topology']}\n{name}".strip()
    table.add_column(heading, justify="right", overflow="fold")
  for label, cell in ROWS:
    table.add_row(label, *(cell(record, p) for record, p in columns))
  console.print(table)
  for record in records:
    for p in record["programs"]:
      _show_collectives(record, p, console)
  several = len(records) > 1
  shared = [
    line
    for line in records[0]["assumptions"]
    if several and all(line in record["assumptions"] for record in records)
  ]
  for record in records:
    lines = [*record["advice"], *record["assumptions"]]
    _show_list(record["topology"], [x for x in lines if x not in shared], console)
  _show_list("all of them", shared, console)


def _show_list(title: str, lines: list[str], console: rich_console.Console) -> None:
  if lines:
    console.print(f"{title}:")
  for line in lines:
    console.print(f"  - {line}")


def _show_collectives(record, p, console) -> None:
  if not p["collectives"]:
    return
  console.print(f"{record['topology']} {p['program']}: collectives a device and step")
  small = 0
  for c in p["collectives"]:
    if c["sent_bytes"] < 1e-3 * p["sent_bytes_per_device"]:
      small += 1
      continue
    where = "between hosts" if c["crosses_hosts"] else "inside a host or slice"
    console.print(
      f"  {c['kind']:<18} {c['dtype']:<5} {c['count']:>6} x  "
      f"{c['payload_bytes'] / 1e9:9.2f} GB whole, {c['sent_bytes'] / 1e9:9.2f} GB sent"
      f"  {where}"
    )
  if small:
    console.print(f"  and {small} kinds below 0.1 %")
  if p["loops_of_unknown_length"]:
    console.print(
      f"  {p['loops_of_unknown_length']} loop(s) with collectives run as often as the "
      "data asks; counted once"
    )


def _gib(value: float | None) -> str:
  return "?" if value is None else f"{value / GIB:.2f} GiB"


def _range(values, form) -> str:
  low, high = (form(v) for v in values)
  return low if low == high else f"{low} - {high}"


def _time(seconds: float) -> str:
  return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _fits(p: Record) -> str:
  margin = p["bytes_per_device"]["margin"]
  if p["fits"]:
    return f"yes, {_gib(margin)} left"
  if margin is None or margin >= 0:
    return "NO"
  # A refusal names one part of what was wanted.
  return f"NO, by {'at least ' if p['refused'] else ''}{_gib(-margin)}"


def _hours(record: Record) -> str:
  duration = record["duration"]
  if duration is None:
    return "-"
  if duration["hours"] is None:
    return "give --samples"
  return _range(duration["hours"], lambda h: f"{h:,.1f} h")


ROWS = (
  ("how", lambda r, p: "compiled" if p["compiled"] else
    "refused by the compiler" if p["refused"] else "ANALYTIC (not compiled)"),
  ("parameters", lambda r, p: f"{r['parameters'] / 1e9:.3f} B"),
  ("mesh", lambda r, p: " ".join(f"{a}={n}" for a, n in r["mesh"].items() if n > 1)
    or "one device"),
  ("rows x tokens, all devices", lambda r, p: f"{p['rows']} x {p['length']:,}"),
  ("places computed at a time", lambda r, p: f"{p['new']:,}"),
  ("rows of a microbatch", lambda r, p: str(p["rows_per_device"])),
  ("microbatches", lambda r, p: str(r["settings"]["grad_accum"])),
  ("remat, loss chunk", lambda r, p:
    f"{r['settings']['remat']}, {r['settings']['loss_chunk']}"),
  ("trained", lambda r, p: r["settings"]["adapters"] or "all weights"),
  ("state between steps", lambda r, p: _gib(p["bytes_per_device"]["state"])),
  ("arguments", lambda r, p: _gib(p["bytes_per_device"]["arguments"])),
  ("temporaries", lambda r, p: _gib(p["bytes_per_device"]["temporaries"])),
  ("peak", lambda r, p: _gib(p["bytes_per_device"]["peak"])),
  ("reserve (assumed)", lambda r, p:
    _gib(sum(p["bytes_per_device"]["reserve"].values()))),
  ("of", lambda r, p: _gib(p["bytes_per_device"]["available"])),
  ("FITS", lambda r, p: _fits(p)),
  ("model FLOPs", lambda r, p: f"{p['flops']['model']:.3e}"),
  ("executed / model", lambda r, p: f"{p['flops']['recompute_factor']:.3f}"),
  ("at least: arithmetic", lambda r, p: _time(p["bounds_seconds"]["arithmetic"])),
  ("at least: memory", lambda r, p: _time(p["bounds_seconds"]["memory"])),
  ("at least: interconnect", lambda r, p: _time(p["bounds_seconds"]["interconnect"])),
  ("estimate: seconds", lambda r, p: _range(p["estimate"]["seconds"], _time)),
  ("estimate: MFU", lambda r, p:
    _range(p["estimate"]["mfu"], lambda x: f"{x:.0%}")),
  ("estimate: tokens/s", lambda r, p:
    _range(p["estimate"]["tokens_per_second"], lambda x: f"{x:,.0f}")),
  ("estimate: whole run", lambda r, p: _hours(r)),
  ("largest microbatch that fits", lambda r, p:
    str(r["search"]["largest_rows_per_device"]) if r["search"] else "-"),
)  # fmt: skip

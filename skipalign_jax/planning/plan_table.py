"""A plan as a table to read, from the records of `plan_json`."""

from collections.abc import Callable, Sequence

from skipalign_jax.planning import plan_json
from skipalign_jax.runtime import hardware, terminal

Record = plan_json.Record
SMALL = 1e-3  # share of a program's traffic below which a collective is not listed


def show(records: Sequence[Record], console: terminal.Console) -> None:
  """Prints a column per program, its collectives, and what to change.

  Args:
    records: of `plan_json.topology`, one per topology.
    console: prints.
  """
  columns = [(record, p) for record in records for p in record["programs"]]
  headings = ["per device and step"]
  for record, p in columns:
    name = p["program"] if p["program"] != "train_step" else ""
    headings.append(f"{record['topology']}\n{name}".strip())
  rows = [[label, *(cell(record, p) for record, p in columns)] for label, cell in ROWS]
  console.print(terminal.table(headings, rows))
  for record, p in columns:
    _show_collectives(record, p, console)
  shared = [
    line
    for line in records[0]["assumptions"]
    if len(records) > 1 and all(line in record["assumptions"] for record in records)
  ]
  for record in records:
    lines = [*record["advice"], *record["published"], *record["assumptions"]]
    own = [line for line in lines if line not in shared]
    _show_list(record["topology"], own, console)
  _show_list("all of them", shared, console)


def _show_list(title: str, lines: list[str], console: terminal.Console) -> None:
  if lines:
    console.print(f"{title}:")
  for line in lines:
    console.print(f"  - {line}")


def _show_collectives(record: Record, p: Record, console: terminal.Console) -> None:
  if not p["collectives"]:
    return
  console.print(f"{record['topology']} {p['program']}: collectives per device and step")
  small = 0
  for c in p["collectives"]:
    if c["sent_bytes"] < SMALL * p["sent_bytes_per_device"]:
      small += 1
      continue
    where = "inside a host or slice"
    if c["crosses_hosts"]:
      where = f"{c['network_bytes'] / 1e9:.2f} GB of it between hosts"
    console.print(
      f"  {c['kind']:<18} {c['dtype']:<5} {c['count']:>6} x  "
      f"{c['payload_bytes'] / 1e9:9.2f} GB whole, {c['sent_bytes'] / 1e9:9.2f} GB sent"
      f" ({_share(c, 'hidden_bytes')} hidden)  {where}"
    )
  if small:
    console.print(f"  and {small} kinds below {SMALL:.1%}")
  if p["loops_of_unknown_length"]:
    console.print(
      f"  {p['loops_of_unknown_length']} loop(s) with collectives run as often as the "
      "data needs; counted once"
    )


def _share(collective: Record, key: str) -> str:
  return f"{collective[key] / collective['sent_bytes']:.0%}"


def _hidden(p: Record) -> str:
  sums = [
    sum(c[key] for c in p["collectives"] or ())
    for key in ("sent_bytes", "asynchronous_bytes", "hidden_bytes")
  ]
  if not sums[0]:
    return "-"
  return f"{sums[2] / sums[0]:.0%} ({sums[1] / sums[0]:.0%} asynchronous)"


def _gib(value: float | None) -> str:
  return "?" if value is None else f"{value / hardware.GIB:.2f} GiB"


def _range(values: Sequence[float], form: Callable[[float], str]) -> str:
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
  # A refusal names one part of what was needed.
  return f"NO, by {'at least ' if p['refused'] else ''}{_gib(-margin)}"


def _hours(record: Record) -> str:
  duration = record["duration"]
  if duration is None:
    return "-"
  if duration["hours"] is None:
    return "give --samples"
  return _range(duration["hours"], lambda h: f"{h:,.1f} h")


def _largest(search: Record | None) -> str:
  """Rows of a microbatch; "or more" where the search ended before one did not fit."""
  rows = search and search["largest_rows_per_device"]
  if rows is None:  # not looked for, or a generation
    return "-"
  larger = [t for t in search["tried"] if t["micro_rows"] > rows and not t["fits"]]
  return str(rows) if larger or not rows else f"{rows} or more"


# Label → cell, from the record of a topology and that of a program.
ROWS: tuple[tuple[str, Callable[[Record, Record], str]], ...] = (
  ("source", lambda r, p: "compiled" if p["compiled"] else
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
  ("memory of a device", lambda r, p: _gib(p["bytes_per_device"]["available"])),
  ("FITS", lambda r, p: _fits(p)),
  ("model FLOPs", lambda r, p: f"{p['flops']['model']:.3e}"),
  ("executed / model", lambda r, p: f"{p['flops']['recompute_factor']:.3f}"),
  ("at least: arithmetic", lambda r, p: _time(p["bounds_seconds"]["arithmetic"])),
  ("at least: memory", lambda r, p: _time(p["bounds_seconds"]["memory"])),
  ("at least: interconnect", lambda r, p: _time(p["bounds_seconds"]["interconnect"])),
  ("traffic hidden by products", lambda r, p: _hidden(p)),
  ("estimate: seconds", lambda r, p: _range(p["estimate"]["seconds"], _time)),
  ("estimate: MFU", lambda r, p:
    _range(p["estimate"]["mfu"], lambda x: f"{x:.0%}")),
  ("estimate: tokens/s", lambda r, p:
    _range(p["estimate"]["tokens_per_second"], lambda x: f"{x:,.0f}")),
  ("estimate: whole run", lambda r, p: _hours(r)),
  ("largest microbatch that fits", lambda r, p: _largest(r["search"])),
)  # fmt: skip

"""The report of check_device as text: lines for a terminal, Markdown for a file."""

from collections.abc import Iterator
from typing import Any

from skipalign_jax.runtime import escape

Record = dict[str, Any]


def passed(record: Record) -> bool:
  """Whether all checks of the parts that ran hold."""
  return all(all(checks(record[name])) for name in _SECTIONS if name in record)


def checks(part: Record | list[Record]) -> Iterator[bool]:
  """Each check of a part: whether it holds."""
  for one in part if isinstance(part, list) else [part]:
    yield "failed" not in one
    yield one.get("equal", True)
    yield one.get("holds", True)


def heading(record: Record) -> str:
  """Versions and devices."""
  versions = ", ".join(f"{name} {x}" for name, x in record["versions"].items())
  memory = record["memory_gib"]
  each = f", {memory:.1f} GiB each" if memory else ""
  return (
    f"devices    {record['devices']} x {record['device']} ({record['platform']})"
    f"{each}\nversions   {versions}"
  )


def section(name: str, record: Record) -> str:
  """A part of the report, as lines for a terminal."""
  found = record[name]
  if "failed" in found:
    return f"{name:10} FAILS: {found['failed']}"
  return "\n".join(_SECTIONS[name](found))


def markdown(record: Record) -> str:
  """The whole report, or that of the parts that have ended."""
  names = [name for name in _SECTIONS if name in record]
  verdict = "All checks hold." if record["passed"] else "**Some checks fail.**"
  if len(names) < len(_SECTIONS):
    verdict = f"**Not complete: nothing after {names[-1]}.** {verdict}"
  parts = [
    f"# Check of {record['devices']} x {escape.markdown(record['device'])}, "
    f"{record['date']}",
    f"`python -m skipalign_jax.check_device --size={record['size']}`. {verdict}",
    _block(heading(record)),
    *(f"## {name.capitalize()}\n\n{_block(section(name, record))}" for name in names),
  ]
  return "\n\n".join(parts) + "\n"


def _block(text: str) -> str:
  return f"```\n{text}\n```"


def _positions(found: Record) -> Iterator[str]:
  if "skipped" in found:
    yield f"positions  not compared: {found['skipped']}"
    return
  verdict = "equal" if found["equal"] else "NOT equal"
  yield f"positions  {verdict} to a CPU's, up to {found['largest']:,}"


def _goldens(found: list[Record]) -> Iterator[str]:
  yield "goldens    error of positions, logits (by the largest) and losses (nats)"
  for one in found:
    verdict = "" if one["holds"] else "  FAILS"
    error = f"{one['error']:.1e} (at most {one['bound']:.0e})"
    yield f"  {one['golden']:20}  {error}{verdict}"


def _attention(found: list[Record]) -> Iterator[str]:
  yield "attention  largest error of output and gradients, by the definition in fp32"
  for one in found:
    rows = "packed" if one["packed"] else "single"
    name = f"{one['backend']:9} {one['dtype']:8} head {one['head_dim']:3} {rows:6}"
    if "refused" in one:
      yield f"  {name}  not possible here: {one['refused']}"
      continue
    if "failed" in one:
      yield f"  {name}  FAILS: {one['failed']}"
      continue
    verdict = "" if one["holds"] else "  FAILS"
    yield f"  {name}  {one['error']:.1e} (at most {one['bound']:.0e}){verdict}"


def _losses(found: Record) -> Iterator[str]:
  counts = ", ".join(found["by_devices"])
  verdict = "" if found["holds"] else "  FAILS"
  yield (
    f"losses     differ by {found['difference']:.1e} nats (at most {found['bound']}); "
    f"numbers of devices: {counts}{verdict}"
  )


def _programs(found: list[Record]) -> Iterator[str]:
  for one in found:
    yield (
      f"{one['model']:10} {one['parameters'] / 1e6:,.1f}M parameters, {one['rows']} "
      f"rows x {one['length']} tokens, attention {one['attention']}"
    )
    if "skipped" in one:
      yield f"  not run: {one['skipped']}"
      continue
    if "train" in one:
      yield from _training(one["train"], one["plan"])
    if "prefill_seconds" in one:
      yield (
        f"  prefill  {one['prefill_tokens_per_second']:,.0f} tok/s; decoding "
        f"{one['decode_tokens_per_second']:,.1f} tok/s"
      )
    if "failed" in one:
      yield f"  FAILS: {one['failed']}"


def _training(train: Record, plan: Record) -> Iterator[str]:
  seconds = train["seconds"]
  mfu = f", MFU {train['mfu']:.1%}" if "mfu" in train else ""
  yield (
    f"  training {train['tokens_per_second']:,.0f} tok/s "
    f"({train['tokens_per_second_per_device']:,.0f} per device{mfu}); a step "
    f"{seconds['median']:.3f} s ({seconds['min']:.3f} to {seconds['max']:.3f}), "
    f"compiled in {train['compile_seconds']:.0f} s; loss {train['losses'][0]:.2f} -> "
    f"{train['losses'][-1]:.2f}"
  )
  if "memory_by_compiled" in plan:
    yield (
      f"  memory   peak {train['peak_memory_gib']:.2f} GiB: "
      f"{plan['memory_by_compiled']:.2f} times the compiler's "
      f"{train['compiled_gib']:.2f} GiB, {plan['memory_by_arithmetic']:.2f} times "
      "that of arithmetic"
    )
  if "estimated_seconds" in plan:
    shortest, longest = plan["estimated_seconds"]
    yield (
      f"  plan     {shortest:.3f} to {longest:.3f} s a step: measured is "
      f"{plan['time_by_shortest']:.2f} and {plan['time_by_longest']:.2f} times these"
    )
  else:
    yield "  plan     no estimate of time: the peak of this device is not known"


_SECTIONS = {
  "positions": _positions,
  "goldens": _goldens,
  "attention": _attention,
  "losses": _losses,
  "programs": _programs,
}

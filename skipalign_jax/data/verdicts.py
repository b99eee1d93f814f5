"""What became of the records of a source: its report, and when it cannot be used."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from skipalign_jax.data import (
  chat,
  dialogues,
  overlong,
  schemas,
  sources,
  token_table,
)
from skipalign_jax.runtime import errors

_NOTHING = "nothing to learn"  # begins reasons of sound records
_USABLE = ("ok", "truncated")
_TOO_LONG = (chat.NO_TARGET, overlong.DROPPED)
_NO_KNOWN_FORM = ("unrecognised columns", "the record is")
_TOOLS_NOT_WRITTEN = ("tool_calls are not written", "turns of tool are not written")
_SHOWN = 20  # different reasons in a message
_NOT_LEARNED = {
  "rewritten": "replies that the chat template rewrites when more messages follow "
  "(data.rewritten)",
  "calls": "replies that call tools (data.learn_tool_calls)",
  "excluded": "replies that the data excludes (weight, train, loss_mask …)",
}


def report(source: sources.Source, rows: token_table.Rows, is_text: bool) -> str:
  """Counts of a source's samples, tokens and unusable records, in a few lines.

  Args:
    source: where the records come from.
    rows: of the Arrow table, see `prepare`.
    is_text: all samples are plain text.
  """
  column = rows.column
  counts = collections.Counter(column("status").tolist())
  lengths, several, documents = column("length"), "turns", ""
  if is_text:
    several = "blocks"
    documents = f" of {len(np.unique(column('number')[lengths > 0])):,} documents"
  elif (records := len(np.unique(column("number")[lengths > 0]))) < sum(lengths > 0):
    documents = f" of {records:,} records"
  lines = [
    f"{source.describe()}: {(lengths > 0).sum():,} samples{documents} "
    f"({(column('turns') > 1).sum():,} with several {several}), "
    f"{int(lengths.sum()):,} tokens, {int(column('targets').sum()):,} targets, "
    f"{counts['truncated']:,} truncated"
  ]
  dropped = {k: n for k, n in counts.items() if k not in _USABLE}
  if dropped:
    lines.append("  left out: " + ", ".join(_listed(dropped, "")))
  lines += _lost(column)
  for name, what in _NOT_LEARNED.items():
    if count := int(column(name).sum()):
      lines.append(f"  not learned: {count:,} {what}")
  if split := int(column("split").sum()):
    lines.append(
      f"  encoded apart from their headers: {split:,} replies, whose first "
      "characters would change their tokens"
    )
  if named := int(column("named").sum()):
    lines.append(
      f"  read as plain text: names of special tokens in {named:,} documents; if these "
      "are chats, give them as messages"
    )
  return "\n".join(lines)


def _lost(column: Callable[[str], np.ndarray]) -> list[str]:
  """A line on the tokens that are lost because chats are too long."""
  lost, targets = int(column("lost").sum()), int(column("lost_targets").sum())
  if not lost:
    return []
  share = lost / (lost + int(column("length").sum()))
  learned = targets / max(1, targets + int(column("targets").sum()))
  return [
    f"  lost beyond data.seq_len (data.overlong): about {lost:,} tokens ({share:.1%}), "
    f"{targets:,} of them targets ({learned:.1%} of the targets)"
  ]


def check(
  source: sources.Source, rows: token_table.Rows, max_bad_fraction: float
) -> None:
  """Raises UserError if a source has nothing to use, or too much that is unusable.

  Args:
    source: where the records come from.
    rows: of the Arrow table, see `prepare`.
    max_bad_fraction: of the records, which may be unusable. Those without a target are
      not counted: they were cut off, or are not to be learned.
  """
  statuses = rows.column("status")
  if not len(statuses):
    raise errors.UserError(f"data source {source.name} has no records")
  counts = collections.Counter(statuses.tolist())
  bad = {reason: n for reason, n in counts.items() if not _is_fine(reason)}
  # A text has one table row per piece, a chat one per reply or part (data.rewritten,
  # data.overlong); each is still one record.
  numbers = rows.column("number")
  records = len(np.unique(numbers))
  unusable = len(np.unique(numbers[np.isin(statuses, list(bad))]))
  if unusable > max_bad_fraction * records:
    first = lambda reason: rows.column("example")[np.argmax(statuses == reason)]
    listed = _listed(bad, "x ", lambda reason: f", first at {first(reason)}")
    raise errors.UserError(
      f"data source {source.name}: {unusable:,} of {records:,} records are "
      f"unusable, more than data.max_bad_fraction={max_bad_fraction}:\n"
      + "\n".join(f"  {line}" for line in listed)
      + "".join(f"\n{hint}" for hint in _hints(bad))
      + "\nFix them, or increase data.max_bad_fraction to train without them."
    )
  if any(counts[status] for status in _USABLE):
    return
  if set(counts) <= set(_TOO_LONG):
    raise errors.UserError(
      f"data source {source.name}: no sample has a target within its first "
      "data.seq_len tokens, or all are longer (data.overlong); increase data.seq_len"
    )
  reasons = ", ".join(_listed(counts, "x "))
  raise errors.UserError(
    f"data source {source.name} has no usable record: {reasons}"
    + "".join(f"\n{hint}" for hint in _hints(counts))
  )


def _is_fine(status: str) -> bool:
  no_damage = status in _TOO_LONG or status.startswith(_NOTHING)
  return status in _USABLE or no_damage


def _listed(counts: Mapping[str, int], times: str, more=lambda reason: "") -> list[str]:
  """Each reason with its count, the most frequent first."""
  ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
  lines = [f"{n:,} {times}{reason}{more(reason)}" for reason, n in ordered[:_SHOWN]]
  if rest := ordered[_SHOWN:]:
    lines.append(f"{sum(n for _, n in rest):,} {times}{len(rest):,} other reasons")
  return lines


def _hints(reasons: Iterable[str]) -> list[str]:
  """What to do about reasons that name a key or a role."""
  hints, reasons = [], list(reasons)
  if any(reason.startswith(_NO_KNOWN_FORM) for reason in reasons):
    hints.append(schemas.KNOWN_COLUMNS)
  if "not valid JSON" in reasons:
    hints.append("Each record is one line, or the file is one JSON array of records.")
  if "not UTF-8" in reasons:
    hints.append("Save the file as UTF-8.")
  if any(" not understood" in reason for reason in reasons):
    hints.append("Keys that change nothing can be listed in data.ignore_keys.")
  if any(reason.startswith("unknown role") for reason in reasons):
    hints.append(f"Known roles: {', '.join(schemas.ROLES)}.")
  if any("tools is not read" in reason for reason in reasons):
    hints.append("data.ignore_keys=tools reads such chats without their tools.")
  for key in dialogues.THOUGHT_KEYS:
    if any(f"{key} is not written" in reason for reason in reasons):
      hints.append(f"data.ignore_keys={key} reads such chats without their thoughts.")
  if any(reason in ("no chosen reply", "no rejected reply") for reason in reasons):
    hints.append("loss.kind=sft learns from chats; dpo and simpo need both replies.")
  if any("without a name" in reason for reason in reasons):
    hints.append("data.learn_tool_calls=False reads calls without names.")
  if any(reason.startswith(_TOOLS_NOT_WRITTEN) for reason in reasons):
    hints.append(
      "The chat template does not write these: take a model whose template has tools, "
      "or chats without them."
    )
  if any("calls of tools" in reason for reason in reasons):
    hints.append("data.learn_tool_calls=True learns replies that call tools.")
  return hints

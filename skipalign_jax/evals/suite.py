"""A documented set of tasks on one model, and one table.

--preset=long: needle (passkey), ruler, babilong (ours), mrcr (ours) and longbench_v2,
at the same lengths and with the same seed. Each task has a folder of its own in --out,
as if `evaluate TASK` had written it; the same command resumes where it was stopped. A
task without its data is left out, and the table says so.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from skipalign_jax.evals import haystack, option_values, tasks
from skipalign_jax.evals.ruler import documents
from skipalign_jax.runtime import escape, paths

_LONG_CHATS = 4096  # tokens; shorter ones have no room for eight needles


@dataclasses.dataclass(frozen=True)
class Options:
  """What of a preset can be chosen."""

  preset: str = "long"  # long
  haystack: str = ""  # books: .txt, .txt.gz; without, tasks with books are left out
  qa: str = ""  # folder for RULER's qa_1 and qa_2
  longbench_v2: str = ""  # file with LongBench v2's records
  lengths: str = "4096,8192"  # tokens of a prompt and its reply, at most
  samples: int = 10  # per cell of a task: length, and depth or kind of question
  chat: bool = True  # use the chat template
  seed: int = 0  # of all questions


@dataclasses.dataclass(frozen=True)
class Part:
  """A task of a suite, with its options."""

  task: str
  options: Any


def parts(options: Options) -> tuple[list[Part], list[str]]:
  """The tasks of a preset that have their data, and what is left out, with the reason.

  Raises:
    UserError: an unknown preset, numbers out of range, or files that cannot be used;
      the tasks would find out later, after those before them.
  """
  option_values.names("preset", options.preset, ("long",))
  option_values.at_least(options, samples=1, seed=0)
  shortest = option_values.numbers("lengths", options.lengths)[0]
  both = dict(lengths=options.lengths, chat=options.chat, seed=options.seed)
  books = both | dict(haystack=options.haystack, samples=options.samples)
  needles = "2,4,8" if shortest >= _LONG_CHATS else "2,4"
  given = {
    "needle": books | dict(variant="passkey", own_pages=True),
    "ruler": books | dict(qa=options.qa),
    "babilong": books,
    "mrcr": books | dict(needles=needles),
    "longbench_v2": dict(data=options.longbench_v2, chat=options.chat),
  }
  lacks = {}
  if not options.haystack:
    lacks |= dict.fromkeys(("babilong", "mrcr"), "no --haystack")
  if not options.longbench_v2:
    lacks["longbench_v2"] = "no --longbench_v2"
  found = [
    Part(name, tasks.options(name, its))
    for name, its in given.items()
    if name not in lacks
  ]
  _check_files(options, {part.task: part.options for part in found})
  return found, [f"{name} ({reason})" for name, reason in lacks.items()]


def _check_files(options: Options, given: Mapping[str, Any]) -> None:
  if options.haystack:
    haystack.read(options.haystack)
  tasks.module("ruler").chosen(given["ruler"])
  for name in documents.FILES if options.qa else ():
    if path := documents.path_of(options.qa, name):
      documents.read(path, name)
  if options.longbench_v2:
    longbench_v2 = tasks.module("longbench_v2")
    path = paths.given(options.longbench_v2, f"--longbench_v2={options.longbench_v2}")
    next(longbench_v2.records(path), None)


def table(
  model: str, summaries: Mapping[str, dict[str, Any]], skipped: Sequence[str]
) -> str:
  """The results as Markdown, in percent, with 95 % intervals.

  Args:
    model: its name.
    summaries: task → summary of its results.
    skipped: tasks that were left out, with reasons.
  """
  lengths = sorted(
    {n for one in summaries.values() for n in one["by_length"] if n.isdigit()}, key=int
  )
  rows = [["", *(f"{int(n):,}" for n in lengths), "all", "95 %", "items"]]
  notes = [f"left out: {', '.join(skipped)}"] if skipped else []
  for name, one in summaries.items():
    whole = one["interval"]
    means = {n: found["mean"] for n, found in one["by_length"].items()}
    rows.append([f"**{name}**", *_cells(means, lengths), _percent(whole["mean"])])
    rows[-1] += [f"{_percent(whole['low'])} to {_percent(whole['high'])}"]
    rows[-1] += [str(whole["n"])]
    for part, by_length in one.get("table", {}).items():
      rows.append([part, *_cells(by_length, lengths), "", "", ""])
    if one.get("lacks"):
      of = one.get("mean_of", "")
      notes.append(f"{name}: {of}{' without ' * bool(of)}{', '.join(one['lacks'])}")
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  lines.insert(1, "| --- " + "| ---: " * (len(rows[0]) - 1) + "|")
  listed = [f"- {escape.markdown(note)}" for note in notes]
  return "\n".join(
    [f"### {escape.markdown(model)}", "", *lines, *([""] if listed else []), *listed]
  )


def _cells(means: Mapping[str, float], lengths: Sequence[str]) -> list[str]:
  return [_percent(means[n]) if n in means else "-" for n in lengths]


def _percent(share: float) -> str:
  return f"{100 * share:.1f}"

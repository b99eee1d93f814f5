"""LongBench v2 (2412.15204): questions about long texts with four choices, from a file.

Greedy replies in the form "The correct answer is (A)", read as the authors' code reads
them. A prompt that is too long loses its middle before the chat template is applied.
The words of the prompt are ours; --prompts=FOLDER takes the authors' 0shot.txt. Base
models have no template: use --chat=False.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from skipalign_jax.evals import intervals, option_values
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.longbench import task as longbench_task
from skipalign_jax.runtime import errors, paths, untrusted

SIZE = 503  # records of the benchmark
LETTERS = "ABCD"
DIFFICULTIES = ("easy", "hard")
LENGTHS = ("short", "medium", "long")  # below 32K words, up to 128K, above
PROMPT_FILE = "0shot.txt"
PROMPT = """Below is a text, and after it a question with four choices. One is right.

<text>
$DOC$
</text>

Question: $Q$
(A) $C_A$
(B) $C_B$
(C) $C_C$
(D) $C_D$

Reply with the right choice, in this form: "The correct answer is (letter)"."""
# Of the authors' template: place → key of a record.
PLACES = {"$DOC$": "context", "$Q$": "question"} | {
  f"$C_{letter}$": f"choice_{letter}" for letter in LETTERS
}
_ANSWERS = tuple(
  re.compile(f"The correct answer is {form}") for form in (r"\(([A-D])\)", "([A-D])")
)


@dataclasses.dataclass(frozen=True)
class Options:
  """Which records to evaluate, and how."""

  data: str = ""  # file with the records: a JSON array or JSON lines, .gz or not
  prompts: str = ""  # folder with the authors' 0shot.txt; by default our words
  max_length: int = 120_000  # tokens of a prompt
  max_new_tokens: int = 128  # of a reply, at most
  chat: bool = True  # use the chat template


def items(options: Options, subject: subject_lib.Subject) -> list[items_lib.Item]:
  """One prompt per record.

  Raises:
    UserError: numbers out of range, or records or a prompt that cannot be used.
  """
  option_values.at_least(options, max_length=2, max_new_tokens=1)
  source, template = template_of(options.prompts)
  if not options.data:
    raise errors.UserError("--data=FILE is needed: LongBench v2's records (data.json)")
  path = paths.given(options.data, f"--data={options.data}")
  found = []
  for index, record in enumerate(records(path)):
    text, before, after = longbench_task.truncate(
      subject, fill(template, record), options.max_length
    )
    prefix, suffix = subject.around(options.chat)
    tokens, _ = subject.encode_prompt(prefix + text + suffix, options.chat)
    found.append(
      items_lib.of_prompt(
        str(index),
        items_lib.Prompt(tuple(tokens), options.max_new_tokens, subject.stop_ids),
        record=record.get("_id", index),
        tokens_before=before,
        tokens_after=after,
        truncated=before > options.max_length,
        prompts=source,
        expected=record["answer"],
        **{key: record[key] for key in ("difficulty", "length", "domain")},
      )
    )
  if not found:
    raise errors.UserError(f"--data: {path} has no records")
  return found


def records(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The records of a file, in order.

  Raises:
    UserError: the file cannot be read, or a record lacks what the task needs.
  """
  try:
    for number, record in _values(path):
      _check(f"--data: {path}, record {number}", record)
      yield record
  except errors.UserError:  # of a record
    raise
  except untrusted.BROKEN as error:
    raise errors.UserError(f"--data: {path} cannot be read ({error})") from error


def _values(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
  if untrusted.first_character(path) == b"[":
    yield from untrusted.array_items(path)
    return
  for number, (_, line) in enumerate(untrusted.lines(path), 1):
    if len(line) > untrusted.MAX_RECORD_BYTES:
      raise ValueError(
        f"record {number} has more than {untrusted.MAX_RECORD_BYTES >> 20} MiB"
      )
    yield number, untrusted.parse_json(line)


def _check(where: str, record: Any) -> None:
  if not isinstance(record, dict):
    raise errors.UserError(f"{where}: a record must be a JSON object")
  texts = {key: lambda x: bool(x.strip()) for key in (*PLACES.values(), "domain")}
  allowed: dict[str, tuple[str, Callable[[str], bool]]] = {
    **{key: ("a text that is not empty", fits) for key, fits in texts.items()},
    "answer": ("A, B, C or D", lambda x: x in tuple(LETTERS)),
    "difficulty": (" or ".join(DIFFICULTIES), lambda x: x in DIFFICULTIES),
    "length": ("short, medium or long", lambda x: x in LENGTHS),
  }
  for key, (wanted, fits) in allowed.items():
    value = record.get(key)
    if not isinstance(value, str) or not fits(value):
      shown = repr(value) if key in record else "missing"
      shown = shown if len(shown) <= 40 else shown[:37] + "…"
      raise errors.UserError(f"{where}: {key!r} must be {wanted}; it is {shown}")


def template_of(folder: str) -> tuple[str, str]:
  """The name of a prompt's origin, and the prompt with PLACES in it.

  Raises:
    UserError: the folder's file cannot be read, or a place is missing in it.
  """
  if not folder:
    return "ours", PROMPT
  path = paths.given(folder, f"--prompts={folder}") / PROMPT_FILE
  try:
    data = untrusted.read(path, untrusted.MAX_JSON_BYTES)
    text = data.decode("utf-8")
  except untrusted.BROKEN as error:
    raise errors.UserError(
      f"--prompts={folder}: {path} cannot be read ({error}). Name a folder with "
      f"LongBench v2's {PROMPT_FILE}"
    ) from error
  if missing := [place for place in PLACES if place not in text]:
    raise errors.UserError(f"--prompts: {path} has no {missing[0]}")
  return f"{PROMPT_FILE} {hashlib.sha256(data).hexdigest()[:8]}", text


def fill(template: str, record: dict[str, Any]) -> str:
  """A prompt. Places that a record's own texts have in them stay as they are."""
  pattern = "|".join(map(re.escape, PLACES))
  put = lambda found: record[PLACES[found[0]]].strip()
  return re.sub(pattern, put, template.strip())


def measure(
  options: Options, subject: subject_lib.Subject, batch: Sequence[items_lib.Item]
) -> list[items_lib.Record]:
  """Replies, the letters in them, and scores."""
  del options
  found = []
  for item, reply in zip(batch, items_lib.replies(subject, batch), strict=True):
    letter = answer_in(reply)
    right = letter == item.record["expected"]
    found.append({"reply": reply, "answer": letter, "score": float(right)})
  return found


def answer_in(reply: str) -> str | None:
  """The letter of a reply; None if it is not in the form that was asked for."""
  text = reply.replace("*", "")
  found = (pattern.search(text) for pattern in _ANSWERS)
  return next((match[1] for match in found if match), None)


def summarize(options: Options, records: Sequence[items_lib.Record]) -> dict[str, Any]:
  """Shares of right answers: of all, by difficulty, by length and by domain.

  A reply without an answer is wrong. `lacks` says what an average lacks that can be
  compared with published ones.
  """
  del options
  overall = intervals.of_scores([record["score"] for record in records])
  source = records[0]["prompts"]
  lacks = [] if len(records) == SIZE else [f"{len(records)} of {SIZE} records"]
  lacks += ["the authors' prompt"] if source == "ours" else []
  by = {
    key: intervals.by(key, sorted(records, key=lambda r: names.index(r[key])))
    for key, names in (("difficulty", DIFFICULTIES), ("length", LENGTHS))
  }
  return {
    "average": overall["mean"],
    "lacks": lacks,
    "prompts": source,
    "random_choice": 1 / len(LETTERS),
    "without_answer": sum(record["answer"] is None for record in records),
    "truncated": sum(record["truncated"] for record in records),
    "interval": overall,
    "by_difficulty": by["difficulty"],
    "by_length": by["length"],
    "by_domain": intervals.by("domain", records),
  }

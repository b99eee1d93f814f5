"""Runs a task on a model: in batches, saved as it goes, gone on with after a kill.

folder/
  protocol.json  task, options, model: what makes two evaluations the same
  records.jsonl  a record an item, a batch at a time
  results.json   protocol, items, summary; written at the end
  *.png          where the task draws

A batch is saved whole or not at all, and batches depend on all items, not on those
that are left: so a joined evaluation equals an uninterrupted one.
"""

import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from rich import console as rich_console
from rich import progress

from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.runtime import distributed, errors, files, untrusted

Record = items_lib.Record


class Store:
  """The records of one evaluation, in its folder, which process 0 reads and writes.

  Attributes:
    records: id → record, of this and earlier runs; the same in all processes.
  """

  def __init__(self, folder: pathlib.Path, protocol: dict[str, Any]):
    """Claims the folder, or finds the records of the same evaluation in it.

    Raises:
      UserError: the folder holds another evaluation, or cannot be used.
    """
    self._folder = folder
    self._path = folder / "records.jsonl"
    self.records: dict[str, Record] = {}
    lines: list[str] = []
    with distributed.together():
      if distributed.is_first():
        lines = self._open(protocol)
    for i in range(int(distributed.exchange(str(len(lines)))[0])):
      line = distributed.exchange(lines[i] if lines else "")[0]
      self.records |= {record["id"]: record for record in json.loads(line)}

  def _open(self, protocol: dict[str, Any]) -> list[str]:
    folder = self._folder
    try:
      folder.mkdir(parents=True, exist_ok=True)
      if (folder / "protocol.json").exists():
        self._check_same(protocol)
        return self._read()
      if any(folder.iterdir()):
        raise errors.UserError(
          f"--out={folder} has files but no evaluation in it; name a new folder"
        )
      files.write_json(folder / "protocol.json", protocol)
      return []
    except OSError as error:
      raise errors.UserError(f"--out={folder} cannot be used: {error}") from error

  def _check_same(self, protocol: dict[str, Any]) -> None:
    theirs = files.read_json(self._folder / "protocol.json")
    ours = json.loads(json.dumps(protocol))
    different = [
      f"  {key}: there {theirs.get(key)!r}, now {ours.get(key)!r}"
      for key in sorted(theirs.keys() | ours.keys())
      if theirs.get(key) != ours.get(key)
    ]
    if different:
      raise errors.UserError(
        f"--out={self._folder} holds another evaluation:\n"
        + "\n".join(different)
        + "\nName a new folder."
      )

  def _read(self) -> list[str]:
    """The whole lines, a batch each; a killed run may leave half a one."""
    if not self._path.exists():
      return []
    data = self._path.read_bytes()
    lines = []
    for line in data.splitlines(keepends=True):
      if not (line.endswith(b"\n") and _is_batch(line)):
        break
      lines.append(line)
    if (whole := b"".join(lines)) != data:
      half = self._path.with_suffix(".new")
      half.write_bytes(whole)
      half.replace(self._path)
    return [line.decode() for line in lines]

  def add(self, batch: Sequence[Record]) -> None:
    """Saves the records of a batch: one line, on disk when this returns.

    Raises:
      UserError: the disk is full, or the folder is gone.
    """
    with distributed.together():
      if distributed.is_first():
        self._append(json.dumps(list(batch)) + "\n")
    self.records |= {record["id"]: record for record in batch}

  def _append(self, line: str) -> None:
    try:
      with self._path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise errors.UserError(
        f"{self._path} cannot be written ({error}). {len(self.records)} items are "
        "saved; make room, and the same command goes on from there."
      ) from error


def _is_batch(line: bytes) -> bool:
  try:
    return all(isinstance(record["id"], str) for record in untrusted.parse_json(line))
  except (ValueError, LookupError, TypeError):
    return False


class Questions:
  """Puts a task's items to the model, each once: what the store has is not asked.

  Attributes:
    protocol: what makes this evaluation the same as another.
    notes: what a reader of the results has to know.
  """

  def __init__(
    self,
    name: str,
    subject: subject_lib.Subject,
    folder: pathlib.Path,
    protocol: dict[str, Any],
    console: rich_console.Console,
  ):
    """Touches no file yet."""
    self.protocol = protocol
    self.notes: list[str] = []
    self._name = name
    self._subject = subject
    self._folder = folder
    self._console = console

  def ask(
    self,
    items: Sequence[items_lib.Item],
    measure: Callable[[Sequence[items_lib.Item]], Sequence[Record]],
    **identity: Any,
  ) -> list[Record]:
    """Asks in batches; once an evaluation.

    Args:
      items: all of them.
      measure: gives a record an item of a batch.
      identity: more that makes two evaluations the same; JSON.

    Returns:
      A record an item: its id, `item.record` and what was measured.

    Raises:
      UserError: no items, or a folder that cannot be used.
    """
    if not items:
      raise errors.UserError(f"{self._name}: these options leave nothing to ask")
    assert len({item.id for item in items}) == len(items), "ids must be unique"
    self.protocol |= {"items_sha256": items_lib.digest(items), **identity}
    self.notes += notes(self._subject, items)
    store = Store(self._folder, self.protocol)
    if store.records:
      self._console.print(
        f"{self._name}: {len(store.records)} of {len(items)} items are done"
      )
    with Progress(self._console, self._name, len(items)) as bar:
      for batch in items_lib.batches(self._subject, items):
        if not all(item.id in store.records for item in batch):
          measured = measure(batch)
          assert len(measured) == len(batch)
          store.add(
            [
              {"id": item.id} | item.record | found
              for item, found in zip(batch, measured, strict=True)
            ]
          )
        bar.advance(len(batch))
    return [store.records[item.id] for item in items]


def run(
  name: str,
  task: ModuleType,
  options: Any,
  subject: subject_lib.Subject,
  folder: pathlib.Path,
  console: rich_console.Console,
  limit: int = 0,
) -> dict[str, Any]:
  """Evaluates, or goes on with what is in `folder`.

  Args:
    name: of the task.
    task: its module, with `items`, `measure` and `summarize`, or with `run`, which
      asks `Questions` itself; and maybe `draw`.
    options: its `Options`.
    subject: the model.
    folder: for records, results and pictures.
    console: told about progress.
    limit: takes only the first so many items; 0 takes all.

  Returns:
    What results.json holds.

  Raises:
    UserError: options, data or folder that cannot be used.
  """
  protocol = {
    "task": name,
    "options": dataclasses.asdict(options),
    "limit": limit,
    **subject.identity,
    "batch_tokens": subject.batch_tokens,
    "skipalign_jax": importlib.metadata.version("skipalign_jax"),
  }
  questions = Questions(name, subject, folder, protocol, console)
  if hasattr(task, "run"):
    records, summary = task.run(options, subject, questions, limit)
  else:
    items = task.items(options, subject)
    records = questions.ask(
      items[:limit] if limit else items,
      functools.partial(task.measure, options, subject),
    )
    summary = task.summarize(options, records)
  results = {
    "protocol": questions.protocol,
    "notes": questions.notes,
    "summary": summary,
    "items": records,
  }
  with distributed.together():
    if distributed.is_first():
      _write(task, options, results, folder, console)
  return results


def _write(task, options, results, folder, console) -> None:
  try:
    files.write_json(folder / "results.json", results)
    for picture in task.draw(options, results, folder) if hasattr(task, "draw") else ():
      console.print(f"{results['protocol']['task']}: drawn in {picture}")
  except OSError as error:
    raise errors.UserError(
      f"results cannot be written to {folder} ({error}). All items are saved; make "
      "room and run the same command again."
    ) from error


def notes(subject: subject_lib.Subject, items: Sequence[items_lib.Item]) -> list[str]:
  """What a reader of the results has to know."""
  beyond = sum(item.places > subject.window for item in items)
  if not beyond:
    return []
  return [
    f"{beyond} of {len(items)} items need more than the model's window of "
    f"{subject.window} positions; they were asked whole, at positions beyond it"
  ]


class Progress:
  """A progress bar on a terminal; elsewhere a line every few seconds."""

  SECONDS_BETWEEN_LINES = 10

  def __init__(self, console: rich_console.Console, name: str, total: int):
    self._console = console
    self._name = name
    self._total = total
    self._done = 0
    self._last_line = time.monotonic()
    self._bar = progress.Progress(
      progress.TextColumn(name),
      progress.BarColumn(),
      progress.MofNCompleteColumn(),
      progress.TimeElapsedColumn(),
      progress.TimeRemainingColumn(),
      console=console,
      disable=console.quiet or not console.is_terminal,
    )
    self._task = self._bar.add_task(name, total=total)

  def __enter__(self) -> "Progress":
    self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    self._bar.stop()

  def advance(self, count: int) -> None:
    """So many more items are done."""
    self._done += count
    self._bar.advance(self._task, count)
    due = time.monotonic() - self._last_line > self.SECONDS_BETWEEN_LINES
    if not self._console.is_terminal and due:
      self._last_line = time.monotonic()
      self._console.print(f"{self._name}: {self._done}/{self._total} items")

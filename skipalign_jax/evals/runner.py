"""Runs a task on a model in batches; a run that was killed resumes from its folder.

folder/
  protocol.json  task, options, model: what makes two evaluations the same
  records.jsonl  the records of one batch per line
  results.json   protocol, notes, summary, items, made_with (commit, libraries, hardware
                 of the last start) and, of the command `evaluate`, model: flags of its
                 template, config of its training; written at the end
  *.png          if the task draws
  .lock          held by the process that writes here

A batch is saved whole or not at all, and batches depend on all items, not on those
that are left. So a resumed evaluation equals an uninterrupted one.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import option_values
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.hf import environment, template_dates
from skipalign_jax.model import digest
from skipalign_jax.runtime import (
  distributed,
  errors,
  files,
  locks,
  plotting,
  progress,
  storage,
  terminal,
)

Record = items_lib.Record


class Store:
  """The records of one evaluation. Only process 0 reads and writes their folder.

  Attributes:
    records: id → record, of this and earlier runs; the same in all processes.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    protocol: dict[str, Any],
    console: terminal.Console,
    held: contextlib.ExitStack,
  ):
    """Takes a new folder, or reads the records of the same evaluation from it.

    Args:
      folder: is made if it does not exist.
      protocol: what makes two evaluations the same.
      console: for a note if the filesystem has no locks.
      held: its end gives the folder's lock back.

    Raises:
      UserError: the folder holds another evaluation or is being written by another
        process, is damaged or cannot be used.
    """
    self._folder = folder
    self._console = console
    self._path = folder / "records.jsonl"
    self.records: dict[str, Record] = {}
    lines: list[str] = []
    with distributed.together():
      if distributed.is_first():
        lines = [json.dumps(batch) for batch in self._open(protocol, held)]
    for i in range(int(distributed.exchange(str(len(lines)))[0])):
      line = distributed.exchange(lines[i] if lines else "")[0]
      self.records |= {record["id"]: record for record in json.loads(line)}

  def _open(
    self, protocol: dict[str, Any], held: contextlib.ExitStack
  ) -> list[list[Record]]:
    folder, path = self._folder, self._folder / "protocol.json"
    try:
      folder.mkdir(parents=True, exist_ok=True)
      # A start that was killed may leave these files.
      ours = {locks.NAME, files.unfinished(path.name)}
      found = {one.name for one in folder.iterdir()} - ours
      if found and path.name not in found:
        raise errors.UserError(
          f"--out={folder} has files but no evaluation in it; name a new folder"
        )
      held.callback(locks.release, locks.take(folder, "--out", self._console))
      if path.exists():
        self._check_same(protocol)
        return self._read()
      files.write_json(path, protocol)
      return []
    except OSError as error:
      raise errors.UserError(
        f"--out={folder} cannot be used: {storage.explain(error)}"
      ) from error

  def _check_same(self, protocol: dict[str, Any]) -> None:
    theirs = files.read_json(self._folder / "protocol.json")
    ours = json.loads(json.dumps(protocol))
    different = [
      f"  {key}: {theirs.get(key)!r} in the folder, {ours.get(key)!r} now"
      for key in sorted(theirs.keys() | ours.keys())
      if theirs.get(key) != ours.get(key)
    ]
    if different:
      raise errors.UserError(
        f"--out={self._folder} holds another evaluation:\n"
        + "\n".join(different)
        + "\nName a new folder."
      )

  def _read(self) -> list[list[Record]]:
    if not self._path.exists():
      return []
    files.cut_half_line(self._path)
    return files.read_json_lines(self._path, _check_batch)

  def add(self, batch: Sequence[Record]) -> None:
    """Saves the records of a batch: one line, on disk when this returns.

    Raises:
      UserError: the disk is full, or the folder no longer exists.
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
        f"{self._path} cannot be written ({storage.explain(error)}). "
        f"{len(self.records)} items are saved; the same command resumes from there."
      ) from error


def _check_batch(batch: Any) -> None:
  if not isinstance(batch, list):
    raise ValueError("it is not a list of records")
  for record in batch:
    if not isinstance(record["id"], str):
      raise ValueError("an id is not text")
    if where := files.not_finite(record):
      raise ValueError(f"{record['id']}: {where} is NaN or infinite")


class Evaluation:
  """One run of a task: measures its items and saves their records.

  Attributes:
    protocol: what makes two evaluations the same.
    notes: what a reader of the results has to know.
  """

  def __init__(
    self,
    name: str,
    subject: subject_lib.Subject,
    folder: pathlib.Path,
    protocol: dict[str, Any],
    console: terminal.Console,
    held: contextlib.ExitStack,
  ):
    """Does not touch the folder yet; the end of `held` gives its lock back."""
    self.protocol = protocol
    self.notes: list[str] = []
    self._name = name
    self._subject = subject
    self._folder = folder
    self._console = console
    self._held = held

  def records(
    self,
    items: Sequence[items_lib.Item],
    measure: Callable[[Sequence[items_lib.Item]], Sequence[Record]],
    **identity: Any,
  ) -> list[Record]:
    """Measures items in batches; to be called once per evaluation.

    Args:
      items: all of them. Those that have a saved record are not measured again.
      measure: returns one record per item of a batch.
      identity: more that makes two evaluations the same; JSON.

    Returns:
      One record per item: its id, `Item.record` and what was measured.

    Raises:
      UserError: no items, a folder that cannot be used, or a model whose output is NaN
        or infinite.
    """
    if not items:
      raise errors.UserError(f"{self._name}: these options select no items")
    assert len({item.id for item in items}) == len(items), "ids must be unique"
    self.protocol |= {"items_sha256": items_lib.digest(items), **identity}
    self.notes += notes(self._subject, items)
    store = Store(self._folder, self.protocol, self._console, self._held)
    if store.records:
      self._console.print(
        f"{self._name}: {len(store.records)} of {len(items)} items are done"
      )
    done = 0
    with progress.Progress(self._console, self._name, len(items)) as bar:
      for batch in items_lib.batches(self._subject, items):
        if not all(item.id in store.records for item in batch):
          store.add(items_lib.measured(self._subject, measure, batch))
        done += len(batch)
        bar.update(done, f"{self._name}: {done}/{len(items)} items")
    return [store.records[item.id] for item in items]


def date_of(folder: pathlib.Path) -> str:
  """The date of the evaluation in `folder`, or today; the same in all processes."""
  date, path = "", folder / "protocol.json"
  with distributed.together():
    if distributed.is_first():
      found = files.read_json(path) if path.exists() else {}
      date = str(found.get("date", template_dates.today()))
  return distributed.exchange(date)[0]


def run(
  name: str,
  task: ModuleType,
  options: Any,
  subject: subject_lib.Subject,
  folder: pathlib.Path,
  console: terminal.Console,
  limit: int = 0,
) -> dict[str, Any]:
  """Evaluates, or resumes the evaluation in `folder`.

  Args:
    name: of the task.
    task: its module, with `items`, `measure` and `summarize`, or with `run`, which
      calls `Evaluation.records` itself; and maybe `draw`.
    options: its `Options`.
    subject: the model.
    folder: for records, results and pictures.
    console: for progress.
    limit: evaluates only so many items, the first ones; 0 evaluates all.

  Returns:
    The content of results.json.

  Raises:
    UserError: options, data or folder that cannot be used; numbers out of range.
  """
  option_values.check_at_least("limit", limit, 0)
  option_values.check_at_least("batch_tokens", subject.batch_tokens, 1)
  protocol = {
    "task": name,
    "options": dataclasses.asdict(options),
    "limit": limit,
    **subject.identity,
    "weights": digest.of(subject.engine.params),
    "batch_tokens": subject.batch_tokens,
    "skipalign_jax": importlib.metadata.version("skipalign_jax"),
  }
  with contextlib.ExitStack() as held:
    evaluation = Evaluation(name, subject, folder, protocol, console, held)
    if hasattr(task, "run"):
      records, summary = task.run(options, subject, evaluation, limit)
    else:
      items = task.items(options, subject)
      records = evaluation.records(
        items[:limit] if limit else items,
        functools.partial(task.measure, options, subject),
      )
      summary = task.summarize(options, records)
    results = {
      "protocol": evaluation.protocol,
      "notes": evaluation.notes,
      "summary": summary,
      "items": records,
      "made_with": environment.describe(),
      **({"model": subject.described} if subject.described else {}),
    }
    with distributed.together():
      if distributed.is_first():
        _write(task, options, results, folder, console)
  return results


def _write(task, options, results, folder, console) -> None:
  """Pictures, then results.json, which says to a sweep that all is there."""
  name = results["protocol"]["task"]
  try:
    if hasattr(task, "draw") and plotting.possible(console, folder / f"{name}.png"):
      for picture in task.draw(options, results, folder):
        console.print(f"{name}: drawn in {picture}")
    files.write_json(folder / "results.json", results)
  except OSError as error:
    raise errors.UserError(
      f"results cannot be written to {folder} ({storage.explain(error)}). All items "
      "are saved; run the same command again."
    ) from error


def notes(subject: subject_lib.Subject, items: Sequence[items_lib.Item]) -> list[str]:
  """What a reader of the results has to know."""
  beyond = sum(item.places // item.rows > subject.window for item in items)
  if not beyond:
    return []
  return [
    f"{beyond} of {len(items)} items need more than the model's window of "
    f"{subject.window} positions; they were evaluated whole, at positions beyond it"
  ]

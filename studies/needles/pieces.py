"""The study in pieces: each writes one JSON file and is skipped if the file exists.

OUT/
  settings.json            of the study that the folder holds
  tokenizer/, cache/       as train reads them
  seedN/*.jsonl            the seed's texts and chats
  seedN/pretrain/STAGE/    workdirs of the curriculum
  seedN/rows/ROW/sS/       workdir of a row at NTK target S
  results/seedN/ROW/       sS.validation.json, sS.test.json
"""

import collections
import dataclasses
import fcntl
import itertools
import json
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from skipalign_jax.runtime import errors, files, terminal
from skipalign_jax.training import metrics
from skipalign_jax.training import run as run_lib
from studies.needles import needles, recipes, words

SILENT = terminal.Console(quiet=True)
VALIDATION, TEST = "validation", "test"
KINDS = {VALIDATION: words.VALIDATION, TEST: words.TEST}


class Stopped(Exception):  # noqa: N818 (a signal, not a fault)
  """Training was stopped by a signal, whose exit status this is."""


@dataclasses.dataclass(frozen=True)
class Piece:
  """One step of the study.

  Attributes:
    result: the file that it writes; its name is the piece's name.
    needs: results that must exist before.
    make: computes the content of the file.
  """

  result: pathlib.Path
  needs: tuple[pathlib.Path, ...]
  make: Callable[[], dict[str, Any]]


class Study:
  """The pieces of one study in one folder."""

  def __init__(
    self, folder: pathlib.Path, settings: recipes.Settings, change: str = ""
  ):
    """Creates the folder, or opens it again.

    Args:
      folder: of all pieces.
      settings: of the study.
      change: one of recipes.FOLLOW_UPS, of which alone pieces are made; "": all.

    Raises:
      UserError: it has a study of other settings, or cannot be written.
    """
    self.folder, self.settings, self.change = folder, settings, change
    wanted = json.loads(json.dumps(dataclasses.asdict(settings)))
    path = folder / "settings.json"
    try:
      if path.exists():
        if (found := files.read_json(path)) != wanted:
          keys = [k for k in wanted if found.get(k) != wanted[k]]
          raise errors.UserError(
            f"--out={folder} has a study of other settings ({', '.join(keys)}); name "
            "another folder or delete it"
          )
        return
      words.tokenizer().save_pretrained(folder / "tokenizer")
      files.write_json(path, wanted)
    except OSError as error:
      raise errors.UserError(f"--out={folder} cannot be used: {error}") from error

  def result(self, seed: int, row: str, target: int, kind: str) -> pathlib.Path:
    """The file with the numbers of a model."""
    name = f"s{target}.{kind}.json"
    return self.folder / "results" / f"seed{seed}" / slug(row) / name

  def base_result(self, seed: int) -> pathlib.Path:
    return self.folder / "results" / f"seed{seed}" / "pretrain.json"

  def pieces(self) -> Iterator[Piece]:
    """All pieces that are known now, those of the main table first.

    The pilots' validation needles decide at which NTK target a row is tested: its later
    pieces are known when these are finished.
    """
    c = self.settings
    yield from map(self._pretrain, self.wanted())
    seeds = self.seeds()
    pilots = seeds[: c.pilots]
    for row in self._rows():
      make = self._train if row != recipes.BASE else self._evaluate_base
      tried = c.targets if row != recipes.BASE else (1, *c.targets)
      for seed in pilots:
        yield from (make(seed, row, target) for target in tried)
      if target := self.chosen(row):
        for seed in seeds:
          yield make(seed, row, target)
          yield self._evaluate(seed, row, target, TEST)
    yield from (self._evaluate(seed, recipes.BASE, 1, TEST) for seed in seeds)
    for rows in () if self.change else recipes.SWEEPS.values():
      for row in rows:
        if target := self.chosen(recipes.OUTER):
          for seed in seeds[: c.sweep_seeds]:
            yield self._train(seed, row, target)

  def _rows(self) -> list[str]:
    """Rows of the tables, in the order in which they are made."""
    if self.change:
      changed = (f"{row}, {self.change}" for row in recipes.FOLLOWED)
      return [recipes.BASE, *changed]
    return [*recipes.ROWS, recipes.BASE, *recipes.FOLLOW_UP_ROWS]

  def wanted(self) -> list[int]:
    """Seeds that are or may be used: the first that are not known to fail."""
    found = []
    for seed in self.settings.candidates:
      if self._retrieves(seed) is not False:
        found.append(seed)
    return found[: self.settings.seeds]

  def seeds(self) -> list[int]:
    """Seeds that are used, as far as all candidates before them are known."""
    known = itertools.takewhile(lambda s: self._retrieves(s) is not None, self.wanted())
    return list(known)

  def _retrieves(self, seed: int) -> bool | None:
    """Whether a base finds enough inside its window; None before it is trained."""
    path = self.base_result(seed)
    if not path.exists():
      return None
    scores = files.read_json(path)["text"]["1"]
    return accuracy(scores) >= self.settings.retrieves

  def chosen(self, row: str) -> int | None:
    """The NTK target of a row: the best on the pilots' validation needles.

    Best by `beyond`; of equals, the smallest. None before all pilots are finished. Test
    needles are not used.
    """
    means, pilots = {}, self.seeds()[: self.settings.pilots]
    if len(pilots) < self.settings.pilots:
      return None
    for target in self.settings.targets:
      paths = [self.result(seed, row, target, VALIDATION) for seed in pilots]
      if not all(path.exists() for path in paths):
        return None
      found = [files.read_json(path)[form_of(row)] for path in paths]
      means[target] = np.mean([self.beyond(scores) for scores in found])
    return max(means, key=lambda target: (means[target], -target))

  def beyond(self, scores: dict[str, Any]) -> float:
    """Mean accuracy over the tested lengths beyond the window."""
    lengths = (n for n in self.settings.tested if n > 1)
    return float(np.mean([accuracy(scores[str(n)]) for n in lengths]))

  def _pretrain(self, seed: int) -> Piece:
    return Piece(self.base_result(seed), (), lambda: self._run_pretraining(seed))

  def _train(self, seed: int, row: str, target: int) -> Piece:
    return Piece(
      self.result(seed, row, target, VALIDATION),
      (self.base_result(seed),),
      lambda: (
        self._run_sft(seed, row, target)
        | self._run_evaluation(seed, row, target, VALIDATION)
      ),
    )

  def _evaluate_base(self, seed: int, row: str, target: int) -> Piece:
    return self._evaluate(seed, row, target, VALIDATION)

  def _evaluate(self, seed: int, row: str, target: int, kind: str) -> Piece:
    needs = self.base_result(seed)
    if row != recipes.BASE:
      needs = self.result(seed, row, target, VALIDATION)
    return Piece(
      self.result(seed, row, target, kind),
      (needs,),
      lambda: self._run_evaluation(seed, row, target, kind),
    )

  def _workdir(self, seed: int, row: str, target: int) -> pathlib.Path:
    if row == recipes.BASE:
      last = len(self.settings.curriculum) - 1
      return self.folder / f"seed{seed}" / "pretrain" / str(last)
    return self.folder / f"seed{seed}" / "rows" / slug(row) / f"s{target}"

  def _run_pretraining(self, seed: int) -> dict[str, Any]:
    c, before, found = self.settings, "", {}
    read = collections.Counter()  # documents of each length in the stages before
    for stage, (length, steps, copies) in enumerate(c.curriculum):
      count = steps * c.pretrain_tokens // length
      numbers = range(read[length], read[length] + count)
      texts = ({"text": words.text(seed, i, length - 1, copies)} for i in numbers)
      write_lines(self.folder / f"seed{seed}" / f"text{stage}.jsonl", texts)
      workdir = self.folder / f"seed{seed}" / "pretrain" / str(stage)
      config = recipes.pretraining(c, seed, stage, before, self.folder)
      found[str(stage)] = run_train(config, workdir)
      read[length] += count
      before = str(workdir)
    subject = needles.open_subject(pathlib.Path(before), c.window, None)
    scores = needles.find(
      subject, seed, words.VALIDATION, "text", c.window, c.validation
    )
    return {"pretraining": found, "text": {"1": scores}}

  def _run_sft(self, seed: int, row: str, target: int) -> dict[str, Any]:
    c = self.settings
    # One file has enough dialogues for all rows, each seen once, and some to hold out.
    longest = max(r.steps for r in recipes.ALL_ROWS.values())
    count = round(c.steps * longest) * c.dialogues + 128
    facts = recipes.ALL_ROWS[row].per_question
    chats = (
      words.dialogue(seed, i, c.window, per_question=facts) for i in range(count)
    )
    path = self.folder / f"seed{seed}" / recipes.chats_of(facts)
    write_lines(path, ({"messages": messages} for messages in chats))
    config = recipes.sft(
      c,
      seed,
      recipes.ALL_ROWS[row],
      target,
      str(self._workdir(seed, recipes.BASE, 1)),
      self.folder,
    )
    return {"sft": run_train(config, self._workdir(seed, row, target))}

  def _run_evaluation(
    self, seed: int, row: str, target: int, kind: str
  ) -> dict[str, Any]:
    """Needles in the row's own format; for the tables, all other measures too."""
    c, own = self.settings, form_of(row)
    facts = recipes.ALL_ROWS[row].per_question if row != recipes.BASE else 1
    scaled_to = target if row == recipes.BASE else None
    workdir = self._workdir(seed, row, target)
    subject = needles.open_subject(workdir, c.window, scaled_to)
    counts, lengths = {own: c.validation}, c.tested
    if kind == TEST:
      lengths += c.further
      counts = {own: c.test, "text" if own == "chat" else "chat": c.retained}
    found: dict[str, Any] = {
      form: {
        str(length): needles.find(
          subject,
          seed,
          KINDS[kind],
          form,
          length * c.window,
          count,
          facts if form == "chat" else 1,
        )
        for length in lengths
      }
      for form, count in counts.items()
    }
    if kind == TEST:
      longest = max(c.tested) * c.window
      chats = self.folder / f"seed{seed}" / f"long_{recipes.chats_of(facts)}"
      long = (words.dialogue(seed, i, longest, words.TEST, facts) for i in range(48))
      write_lines(chats, ({"messages": m} for m in long))
      found["misalignment"] = needles.misaligned(subject, chats, longest // 2, 32)
      found["loss"] = needles.loss_by_position(subject, seed, c, 32)
    return found


def slug(row: str) -> str:
  """A row's name as a folder."""
  return re.sub(r"[^a-z0-9.]+", "_", row.lower())


def form_of(row: str) -> str:
  """The format of a row's needles: the base only knows texts."""
  return "text" if row.startswith(recipes.BASE) else "chat"


def accuracy(scores: dict[str, Any]) -> float:
  """Share of the questions that were hits; of the result of `needles.find`."""
  hits = "".join(scores["hits"])
  return hits.count("1") / len(hits)


def questions(scores: dict[str, Any]) -> int:
  """Number of questions; of the result of `needles.find`."""
  return sum(map(len, scores["hits"]))


def write_lines(path: pathlib.Path, records: Iterator[Any]) -> None:
  """Writes JSON lines, unless the file exists."""
  if path.exists():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path, shared=True) as new:
    new.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def run_train(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains in this process, if not already done; returns the last metrics."""
  done = (workdir / "checkpoints" / str(config.steps)).is_dir()
  if not done and (status := run_lib.run(config, workdir, SILENT)):
    raise Stopped(status)
  records = metrics.read(workdir / "metrics.jsonl")
  last = [record["loss"] for record in records if "loss" in record][-20:]
  held_out = [record["eval_loss"] for record in records if "eval_loss" in record]
  return {"loss": float(np.mean(last)), "held_out_loss": held_out[-1:]}


def run(study: Study, console: terminal.Console) -> bool:
  """Makes the missing pieces; True if all are finished.

  Several processes may do this at the same time: a piece belongs to the process that
  has its lock, and the lock ends with the process.
  """
  while True:
    made = 0
    waiting = 0
    for piece in study.pieces():
      if piece.result.exists():
        continue
      if not all(path.exists() for path in piece.needs):
        waiting += 1
        continue
      piece.result.parent.mkdir(parents=True, exist_ok=True)
      with piece.result.with_suffix(".lock").open("w") as lock:
        try:
          fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
          waiting += 1
          continue
        if piece.result.exists():
          continue
        began = time.monotonic()
        content = piece.make()
        seconds = round(time.monotonic() - began, 1)
        files.write_json(piece.result, content | {"seconds": seconds})
        made += 1
        name = piece.result.relative_to(study.folder / "results")
        console.print(f"{seconds:6.1f} s  {name}")
        break  # start again: an earlier piece may be possible now
    if not made:
      return not waiting

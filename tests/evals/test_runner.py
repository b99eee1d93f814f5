"""Evaluations: batches, records, resuming after a kill, folders that are refused."""

import dataclasses
import errno
import io
import json
import types
from unittest import mock

import jax
import other_process
import pytest
import tiny_subject
from rich import console as rich_console

from skipalign_jax.evals import intervals, items, needle, runner
from skipalign_jax.model import inference
from skipalign_jax.runtime import errors

SUBJECT = tiny_subject.make(batch_tokens=1024, window=256)
OPTIONS = needle.Options(lengths="300,400,500", depths="2", max_new_tokens=3)


class KilledError(Exception):
  pass


def quiet():
  return rich_console.Console(file=io.StringIO())


def run(folder, task=needle, options=OPTIONS, subject=SUBJECT, **more):
  return runner.run("needle", task, options, subject, folder, quiet(), **more)


def killed_after(batches):
  """The needle task, whose process dies after so many batches."""
  left = [batches]

  def measure(*args):
    if not left[0]:
      raise KilledError
    left[0] -= 1
    return needle.measure(*args)

  return types.SimpleNamespace(
    items=needle.items,
    measure=measure,
    summarize=needle.summarize,
    draw=needle.draw,
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("evals") / "whole"
  return run(folder), folder


def test_results_are_complete(whole):
  results, folder = whole
  assert results == json.loads((folder / "results.json").read_text())
  assert (folder / "needle.png").exists()
  protocol = results["protocol"]
  assert protocol["options"] == dataclasses.asdict(OPTIONS)
  assert protocol["parameters"] == tiny_subject.CONFIG.num_params()
  assert protocol["window"] == 256 and protocol["rope"]["kind"] == "none"
  made = results["made_with"]
  assert {"commit", "versions", "hardware"} == made.keys() and made["versions"]["jax"]
  assert [r["id"] for r in results["items"]] == [
    f"{n}/{d}/0" for n in (300, 400, 500) for d in (0.25, 0.75)
  ]
  assert all(
    {"tokens", "depth", "answer", "reply", "score"} <= record.keys()
    for record in results["items"]
  )
  assert results["notes"] == [
    "6 of 6 items need more than the model's window of 256 positions; they were "
    "evaluated whole, at positions beyond it"
  ]


def test_killed_twice_equals_an_uninterrupted_run(whole, tmp_path):
  folder = tmp_path / "killed"
  with pytest.raises(KilledError):
    run(folder, killed_after(0))
  with pytest.raises(KilledError):
    run(folder, killed_after(1))
  assert not (folder / "results.json").exists()
  records = folder / "records.jsonl"
  one = records.read_text()
  assert len(one.splitlines()) == 1
  records.write_text(one + one[:40])  # a kill in the middle of writing
  assert run(folder) == whole[0]
  assert len(records.read_text().splitlines()) > 1
  before = records.read_text()
  assert run(folder, killed_after(0)) == whole[0]  # nothing is measured again
  assert records.read_text() == before
  records.write_text("{}\n" + before)
  with pytest.raises(errors.UserError, match=r"records.jsonl, line 1, is damaged"):
    run(folder)


def test_a_folder_of_something_else_is_refused(whole, tmp_path):
  _, folder = whole
  other = dataclasses.replace(OPTIONS, seed=1)
  with pytest.raises(errors.UserError, match="holds another evaluation") as caught:
    run(folder, options=other)
  assert "'seed': 1" in str(caught.value)
  with pytest.raises(errors.UserError, match="limit"):
    run(folder, limit=2)
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(errors.UserError, match="no evaluation in it"):
    run(tmp_path)
  with pytest.raises(errors.UserError, match="cannot be used"):
    run(tmp_path / "notes.txt" / "sub")


def test_a_folder_that_another_process_writes_is_refused(whole, tmp_path):
  folder = tmp_path / "shared"
  with pytest.raises(KilledError):
    run(folder, killed_after(1))
  records = (folder / "records.jsonl").read_text()
  with other_process.holding(folder) as number:
    written = f"--out={folder} is being written by process {number} on"
    with pytest.raises(errors.UserError, match=written):
      run(folder)
  assert (folder / "records.jsonl").read_text() == records
  assert run(folder) == whole[0]
  with other_process.holding(folder):
    pass  # an evaluation that has ended holds nothing


def test_what_a_killed_start_leaves_is_no_evaluation(tmp_path):
  options = dataclasses.replace(OPTIONS, lengths="300", depths="1")
  for name in (".lock", ".protocol.json.new"):
    (tmp_path / name).write_text("{")
  assert run(tmp_path, options=options)["items"]
  assert not (tmp_path / ".protocol.json.new").exists()


def test_other_weights_of_the_same_name_are_refused(whole):
  params = jax.tree.map(lambda x: 2 * x, tiny_subject.PARAMS)
  engine = inference.Engine(params, SUBJECT.engine.config, "float32")
  other = dataclasses.replace(SUBJECT, engine=engine)
  with pytest.raises(errors.UserError, match="holds another evaluation:\n  weights: "):
    run(whole[1], subject=other)


def test_counts_that_select_nothing_meant_are_refused(tmp_path):
  for limit in (-1, -100):
    with pytest.raises(errors.UserError, match=f"--limit={limit} must be at least 0"):
      run(tmp_path / "out", limit=limit)
  subject = dataclasses.replace(SUBJECT, batch_tokens=0)
  with pytest.raises(errors.UserError, match="--batch_tokens=0 must be at least 1"):
    run(tmp_path / "out", subject=subject)
  assert not (tmp_path / "out").exists()


def test_other_texts_are_another_evaluation(tmp_path):
  text = tmp_path / "text.txt"
  text.write_text("One thing. " * 100)
  options = dataclasses.replace(OPTIONS, haystack=str(text), lengths="300", depths="1")
  run(tmp_path / "out", options=options)
  text.write_text("Other thing. " * 100)
  with pytest.raises(errors.UserError, match="items_sha256"):
    run(tmp_path / "out", options=options)


def test_full_disk_loses_nothing(tmp_path, monkeypatch):
  folder = tmp_path / "full"
  real = runner.os.fsync
  calls = []

  def fsync(file):
    calls.append(file)
    if len(calls) > 1:
      raise OSError(errno.ENOSPC, "No space left on device")
    real(file)

  monkeypatch.setattr(runner.os, "fsync", fsync)
  with pytest.raises(errors.UserError, match=r"No space left.*items are saved"):
    run(folder)
  monkeypatch.undo()
  assert run(folder)["summary"]["interval"]["n"] == 6


def test_without_its_picture_an_evaluation_is_not_finished(tmp_path, monkeypatch):
  """A sweep evaluates again where there is no results.json."""
  failing = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
  monkeypatch.setattr(needle, "draw", failing)
  with pytest.raises(errors.UserError, match=r"No space left.*items are saved"):
    run(tmp_path / "full")
  assert not (tmp_path / "full" / "results.json").exists()


def test_limit_and_no_items(tmp_path):
  assert len(run(tmp_path / "two", limit=2)["items"]) == 2
  empty = types.SimpleNamespace(items=lambda *_: [], measure=needle.measure)
  with pytest.raises(errors.UserError, match="select no items"):
    run(tmp_path / "none", empty)


def test_batches_have_items_of_similar_length_and_one_group():
  prompt = lambda n, stop: items.Prompt((1,) * n, 4, (stop,))
  given = [
    items.of_prompt(f"{n}/{stop}/{i}", prompt(n, stop))
    for n in (30, 500)
    for stop in (2, 3)
    for i in range(3)
  ]
  found = list(items.batches(SUBJECT, given))
  assert sorted(i.id for batch in found for i in batch) == sorted(i.id for i in given)
  rooms = [{SUBJECT.engine.room(i.places) for i in batch} for batch in found]
  assert all(len(room) == 1 for room in rooms)
  assert [max(room) for room in rooms] == sorted(map(max, rooms), reverse=True)
  assert all(len({i.group for i in batch}) == 1 for batch in found)
  assert all(
    len(batch) * max(room) <= SUBJECT.batch_tokens
    for batch, room in zip(found, rooms, strict=True)
  )
  assert max(map(len, found)) > 1


def test_replies_stop_at_the_limit_of_each_prompt():
  prompts = [
    items.Prompt(tuple(range(4, 4 + n)), new, ()) for n, new in ((9, 2), (5, 6))
  ]
  batch = [items.of_prompt(str(i), prompt) for i, prompt in enumerate(prompts)]
  together = items.replies(SUBJECT, batch)
  alone = [items.replies(SUBJECT, [item])[0] for item in batch]
  assert together == alone
  tokens = [t for (t,) in SUBJECT.engine.generate([prompts[0].tokens], 6, ())]
  assert together[0] == SUBJECT.decode(tokens[:2]) != SUBJECT.decode(tokens)


def test_intervals():
  sure = intervals.of_scores([1.0] * 5)
  assert sure["mean"] == 1 and sure["high"] == pytest.approx(1)
  assert sure["low"] == pytest.approx(5 / (5 + 1.959964**2))  # not a certainty
  values = intervals.of_values([1.0, 2.0, 3.0])
  assert values["mean"] == 2
  assert values["high"] - 2 == pytest.approx(4.302653 / 3**0.5)  # Student's, 2 degrees
  assert values["low"] == 2 * 2 - values["high"]
  assert intervals.of_values([4.0])["low"] is None
  assert intervals.of_shares([0.0] * 8) == intervals.of_scores([0.0] * 8)
  assert intervals.of_shares([0.0] * 8)["high"] > 0.3  # no text with a hit, of eight
  assert intervals.of_shares([0.25, 0.75])["low"] == 0

import io
import json
import logging
import math
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich import console as rich_console
from saved_states import arrays, restore, save_all, state

from skipalign_jax.hf import native
from skipalign_jax.runtime import errors
from skipalign_jax.training import checkpoint
from skipalign_jax.training import state as state_lib


def test_keeps_the_latest_and_the_best(tmp_path):
  losses = {1: 1.0, 2: 0.5, 3: None, 4: 0.9, 5: 0.8}
  assert save_all(tmp_path, losses, keep=1, keep_best=True) == [2, 5]


def test_of_equal_losses_the_latest_is_the_best(tmp_path):
  losses = {1: 0.5, 2: 0.5, 3: 0.9}
  assert save_all(tmp_path, losses, keep=1, keep_best=True) == [2, 3]


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path):
  """Nothing is below NaN, so that it would stay the lowest of those after it."""
  losses = {1: math.nan, 2: 0.5, 3: 0.9}
  assert save_all(tmp_path / "new", losses, keep=1, keep_best=True) == [2, 3]
  assert save_all(tmp_path, losses, keep=3, keep_best=True) == [1, 2, 3]
  records = [json.dumps({"step": at, "eval_loss": x}) for at, x in losses.items()]
  (tmp_path / "metrics.jsonl").write_text("\n".join(records) + "\n")
  assert save_all(tmp_path, {4: 0.8}, keep=1, keep_best=True) == [2, 4]


def test_keeps_the_latest_only(tmp_path):
  losses = {1: 0.1, 2: 0.5, 3: 0.9}
  assert save_all(tmp_path, losses, keep=2, keep_best=False) == [2, 3]


def test_a_run_that_is_resumed_still_has_its_best_checkpoint(tmp_path):
  losses = {1: 1.0, 2: 0.5, 3: math.nan}
  assert save_all(tmp_path, losses, keep=1, keep_best=True) == [2, 3]
  records = [json.dumps({"step": at, "eval_loss": x}) for at, x in losses.items()]
  records.append('{"step": 4, "eval_loss": 0.1}')  # it was not saved
  (tmp_path / "metrics.jsonl").write_text("\n".join(records) + "\n")
  later = {4: None, 5: 0.9, 6: 0.8}
  assert save_all(tmp_path, later, keep=1, keep_best=True) == [2, 6]


def test_restores_state_and_iterator(tmp_path):
  save_all(tmp_path, {7: None}, keep=1, keep_best=True)
  found, iterator = restore(tmp_path, 7)
  assert iterator == {"next": 7}
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(state(7.0)), strict=True
  ):
    np.testing.assert_array_equal(one, other)
    assert one.dtype == other.dtype


@pytest.mark.parametrize(
  "name", ["lr[1e-4]", "a*b", "a?b", "[a]/b", "gs:", "gs://a", "logs:/a", "a\\b"]
)
def test_paths_that_libraries_take_for_something_else_are_refused(tmp_path, name):
  with pytest.raises(errors.UserError, match="give a path without"):
    checkpoint.check_path(tmp_path / name)
  (tmp_path / "real" / name).mkdir(parents=True)
  link = tmp_path / "link"
  link.symlink_to(tmp_path / "real" / name)
  checkpoint.check_path(link)
  save_all(link, {7: None}, keep=1, keep_best=False)
  assert restore(link, 7)[1] == {"next": 7}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_save_is_not_awaited_where_another_process_has_ended(
  processes, tmp_path, monkeypatch
):
  """Until heartbeats miss it, it would wait for that process."""
  saved, closed = checkpoint.Checkpoints(tmp_path, 1, False), []
  monkeypatch.setattr(saved, "close", lambda: closed.append(True))
  monkeypatch.setattr(checkpoint.distributed.jax, "process_count", lambda: processes)
  for error in (jax.errors.JaxRuntimeError("closed by peer"), OSError("full")):
    with pytest.raises(type(error)), saved:
      raise error
  assert len(closed) == 3 - processes
  expected = errors.UserError if processes == 1 else jax.errors.JaxRuntimeError
  with pytest.raises(expected), saved._reporting():
    raise jax.errors.JaxRuntimeError("closed by peer")


def test_a_missing_step_is_reported(tmp_path):
  save_all(tmp_path, {7: None}, keep=1, keep_best=True)
  with pytest.raises(errors.UserError, match="8 cannot be read"):
    restore(tmp_path, 8)


def set_aside(folder):
  file = io.StringIO()
  console = rich_console.Console(file=file, soft_wrap=True)
  checkpoint.set_damaged_aside(folder, console)
  return file.getvalue()


def test_a_flipped_bit_or_a_cut_file_is_set_aside(tmp_path):
  save_all(tmp_path, {1: None, 2: None, 3: None}, keep=3, keep_best=False)
  assert set_aside(tmp_path) == ""
  path = arrays(tmp_path, 3)
  damaged = bytearray(path.read_bytes())
  damaged[len(damaged) // 2] ^= 1
  path.write_bytes(damaged)
  path = arrays(tmp_path, 2)
  path.write_bytes(path.read_bytes()[:-1])
  printed = set_aside(tmp_path)
  assert "checkpoint 3 is damaged" in printed and "its checksum" in printed
  assert "checkpoint 2 is damaged" in printed and " bytes" in printed
  assert {p.name for p in (tmp_path / "damaged").iterdir()} == {"2", "3"}
  found, iterator = restore(tmp_path, 1)
  assert iterator == {"next": 1} and float(found.step) == 1


def test_a_step_that_is_damaged_again_is_kept_next_to_the_first(tmp_path):
  for i in (1, 2):
    save_all(tmp_path, {6: None, 7: None}, keep=2, keep_best=False)
    arrays(tmp_path, 7).unlink()
    assert f"now in {tmp_path}/damaged/7{'_' * (i - 1)}: " in set_aside(tmp_path)
  assert {p.name for p in (tmp_path / "damaged").iterdir()} == {"7", "7_"}


def test_without_a_whole_checkpoint_the_run_does_not_start_silently(tmp_path):
  save_all(tmp_path, {1: None}, keep=1, keep_best=False)
  arrays(tmp_path, 1).unlink()
  with pytest.raises(errors.UserError, match="no undamaged checkpoint") as raised:
    set_aside(tmp_path)
  assert "new --workdir to begin again" in str(raised.value)  # this one is refused now


def test_saved_is_said_when_the_checkpoint_was_opened_again(tmp_path, monkeypatch):
  """And training continues meanwhile."""
  wait, opened = threading.Event(), []
  open_stores = native.open_stores

  def slowly(folder, *args):
    assert wait.wait(20)
    opened.append(folder.name)
    return open_stores(folder, *args)

  monkeypatch.setattr(native, "open_stores", slowly)
  saved = checkpoint.Checkpoints(tmp_path, 1, False)
  assert saved.newly_saved() is None
  saved.save(state(5.0), 5, {"next": 5}, None)  # returns
  assert saved.newly_saved() is None and not opened
  wait.set()
  saved.wait()
  assert opened == ["params", "opt"]
  assert [saved.newly_saved(), saved.newly_saved()] == [5, None]
  saved.close()


@pytest.mark.parametrize(
  "lost", ["params/manifest.ocdbt", "opt/_METADATA", "data/metadata", "params/.zarray"]
)
def test_a_checkpoint_that_cannot_be_opened_replaces_no_other(
  tmp_path, monkeypatch, capsys, lost
):
  """Storage that loses what was written: the one before stays, although keep is 1."""
  save_all(tmp_path, {1: None}, keep=1, keep_best=False)
  write = checkpoint.checksums.write

  def lose(folder):
    path = folder / lost
    if path.name == ".zarray":  # all data files of the parameters
      shutil.rmtree(folder / "params" / "d")
      shutil.rmtree(folder / "params" / "ocdbt.process_0")
    else:
      path.unlink()
    write(folder)

  monkeypatch.setattr(checkpoint.checksums, "write", lose)
  saved = checkpoint.Checkpoints(tmp_path, 1, False)
  saved.save(state(2.0), 2, {"next": 2}, None)
  with pytest.raises(errors.UserError, match=r"step 2 .* is not written"):
    saved.close()
  assert saved.newly_saved() is None and not capsys.readouterr().err
  assert native.find_step(tmp_path, None) == 1
  assert restore(tmp_path, 1)[1] == {"next": 1}


def test_the_names_of_all_arrays_are_those_of_the_files(tmp_path):
  """Of an optimizer's state too, which has tuples and named tuples."""
  update = optax.adamw(lambda step: 0.1, weight_decay=0.1)
  params = {"a": {"weight": jnp.ones((3, 2))}, "b": {"weight": jnp.ones(4)}}
  one = state_lib.TrainState(jnp.int32(3), params, update.init(params))
  saved = checkpoint.Checkpoints(tmp_path, 1, False)
  saved.save(one, 3, {}, None)
  saved.close()
  assert saved.newly_saved() == 3


def test_a_save_that_fails_is_reported_and_leaves_the_others(tmp_path, monkeypatch):
  save_all(tmp_path, {1: None}, keep=2, keep_best=False)

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpoint.checksums, "write", full)
  saved = checkpoint.Checkpoints(tmp_path, 2, False)
  saved.save(state(2.0), 2, {"next": 2}, None)
  with pytest.raises(errors.UserError, match=r"step 2 .* is not written: .*No space"):
    saved.close()
  assert [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if
          p.name.isdecimal()] == [1]  # fmt: skip
  assert restore(tmp_path, 1)[1] == {"next": 1}


TASK = "Task exception was never retrieved\nfuture: <Task coro=<x() at {}.py:1>>"


@pytest.mark.parametrize(
  ("path", "text", "failed", "shown"),
  [
    ("/lib/asyncio/events.py", TASK.format("/lib/orbax/a"), True, False),
    ("/lib/asyncio/events.py", TASK.format("/lib/other/a"), True, True),
    ("/lib/orbax/a.py", "it failed", True, False),
    ("/lib/orbax/a.py", "Metadata file does not exist: /x", False, False),
    ("/lib/orbax/a.py", "the disk is slow", False, True),
    ("/lib/other/a.py", "it failed", True, True),
  ],
)
def test_what_orbax_raises_is_not_logged_too(path, text, failed, shown):
  error = ValueError("full")
  raised = (ValueError, error, None) if failed else None
  record = logging.LogRecord("x", logging.ERROR, path, 1, text, (), raised)
  assert checkpoint._is_not_raised(record) == shown

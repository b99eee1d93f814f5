"""A folder has one writer."""

import gc

import other_process
import pytest
from rich import console as rich_console

from skipalign_jax.runtime import errors, locks

SILENT = rich_console.Console(quiet=True)


def test_a_second_process_is_refused_until_the_first_has_died(tmp_path):
  with other_process.holding(tmp_path) as number:
    written = f"--out={tmp_path} is being written by process {number} on"
    with pytest.raises(errors.UserError, match=written) as refused:
      locks.take(tmp_path, "--out", SILENT)
  held = locks.take(tmp_path, "--out", SILENT)
  del refused  # with all that its frames have; a file that is closed ends the lock
  gc.collect()
  assert other_process.is_refused(tmp_path)
  locks.release(held)
  assert not other_process.is_refused(tmp_path)


def test_the_lock_of_a_machine_that_is_gone_can_be_deleted(tmp_path, monkeypatch):
  """NFS may keep it."""
  with other_process.holding(tmp_path):
    with pytest.raises(errors.UserError) as here:
      locks.take(tmp_path, "--out", SILENT)
    monkeypatch.setattr(locks.socket, "gethostname", lambda: "another-host")
    with pytest.raises(errors.UserError) as elsewhere:
      locks.take(tmp_path, "--out", SILENT)
  assert "delete" not in str(here.value)
  assert str(elsewhere.value).endswith(f"is gone, delete {tmp_path / locks.NAME}")

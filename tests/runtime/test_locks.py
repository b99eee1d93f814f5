"""A folder has one writer."""

import other_process
import pytest
from rich import console as rich_console

from skipalign_jax.runtime import errors, locks

SILENT = rich_console.Console(quiet=True)


def test_a_second_process_is_refused_until_the_first_has_died(tmp_path):
  with other_process.holding(tmp_path) as number:
    written = f"--out={tmp_path} is being written by process {number} on"
    with pytest.raises(errors.UserError, match=written):
      locks.take(tmp_path, "--out", SILENT)
  locks.release(locks.take(tmp_path, "--out", SILENT))

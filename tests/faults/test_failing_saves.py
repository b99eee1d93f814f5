"""Storage that fails at any call of a save: one message, and the next save works."""

import collections
import json
import subprocess
import sys

import failing_saves
import pytest
import tiny

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("once", [[], ["once"]])
@pytest.mark.parametrize("number", ["ENOSPC", "EIO"])
def test_every_call_of_a_save(number, once, tmp_path):
  if (library := failing_saves.build(tmp_path)) is None:
    pytest.skip("there is no C compiler")
  done = subprocess.run(
    [sys.executable, failing_saves.__file__, number, *once],
    env=tiny.environment(1) | {"LD_PRELOAD": str(library)},
    capture_output=True,
    text=True,
    check=True,
  )
  found = [json.loads(line) for line in done.stdout.splitlines()]
  counts = collections.Counter(outcome for _, outcome in found)
  print(number, *once, dict(counts))
  assert len(found) > 90
  assert counts.keys() <= {"message", "saved", "not reached"}, counts
  assert counts["message"] > 50

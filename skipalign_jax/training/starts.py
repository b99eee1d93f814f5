"""The starts of a run: starts.jsonl has one line for each.

A run that is resumed on other hardware, with other libraries or another commit, reports
it; one whose data has changed is refused, because it would be another run.
"""

import datetime
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import ml_collections

from skipalign_jax.hf import environment
from skipalign_jax.runtime import distributed, errors, files
from skipalign_jax.training import same_run

FILE = "starts.jsonl"
MAX_DIFFERENCES = 20  # that are listed
_CODE = "code and data"


def describe(
  config: ml_collections.ConfigDict, data_fingerprint: str, step: int
) -> dict[str, Any]:
  """This start; `step` is the one after which it continues."""
  made_with = environment.describe()
  made_with["hardware"]["host"] = platform.node()  # not in results, which are published
  return {
    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "step": step,
    **made_with,
    "data": data_fingerprint,
    "config": config.to_dict(),
  }


def check_processes(
  config: ml_collections.ConfigDict,
  data_fingerprint: str,
  model: Mapping[str, Any],
) -> None:
  """Raises UserError in all processes unless all train the same on the same data.

  Args:
    config: the resolved config of this process.
    data_fingerprint: of its data.
    model: what model.init_from means here, JSON. Hosts may have other copies of it, and
      the latest checkpoint of a workdir in which another run trains may not be the
      same for all.
  """
  code = {
    "data fingerprint": data_fingerprint,
    "commit": environment.commit(),
    "model": model,
  }
  this = {"config": config.to_dict(), _CODE: code}
  first, *others = map(json.loads, distributed.exchange(json.dumps(this)))
  different = []
  for index, other in enumerate(others, 1):
    names = "process 0 has", f"process {index} has"
    free = same_run.OF_A_PROCESS
    if None in (first[_CODE]["commit"], other[_CODE]["commit"]):  # git did not answer
      free += ("commit",)
    for part in this:
      different += same_run.differences(first[part], other[part], free, names)
  if different:
    raise errors.UserError(
      "the processes of this run do not train the same:\n"
      + "\n".join(different[:MAX_DIFFERENCES])
      + "\nStart all of them with the same command, code, data and model."
    )


def add(workdir: pathlib.Path, start: dict[str, Any]) -> list[str]:
  """Writes a line for this start; returns what changed since the one before.

  Raises:
    UserError: the data changed, or the file is damaged.
  """
  path = workdir / FILE
  before = _last(path)
  changes = []
  if before is not None:
    if before["data"] != start["data"]:
      raise errors.UserError(
        f"--workdir={workdir}: the data differs from that of the first start "
        f"(fingerprint {before['data']}, now {start['data']}). "
        "Restore the data, or start a new --workdir with model.init_from on this one."
      )
    # Edited config.json: it is compared with the command, and here with what ran.
    different = same_run.differences(
      before["config"], start["config"], same_run.FREE, ("the last start had", "now")
    )
    if different:
      raise errors.UserError(
        f"--workdir={workdir}: this is another config than that of the last start:\n"
        + "\n".join(different)
        + "\nGive a new --workdir, or the same values to resume that run."
      )
    changes = _differences(before, start)
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps(start) + "\n")
  return changes


def _last(path: pathlib.Path) -> dict[str, Any] | None:
  """The start before this one; half a line that a kill left is removed."""
  if not path.exists():
    return None
  files.cut_half_line(path)
  starts = read(path)
  return starts[-1] if starts else None


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """All starts of a run; UserError where the file is damaged."""
  return files.read_json_lines(path, _check)


def _check(start: Any) -> None:
  """Raises what `files.read_json_lines` reports where a start is not whole."""
  start["data"], start["commit"], start["step"], start["config"].items()
  start["versions"].items(), start["hardware"].items()


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
  flat = lambda start: {
    "commit": start["commit"],
    **{f"{name} version": value for name, value in start["versions"].items()},
    **{name: value for name, value in start["hardware"].items() if name != "host"},
  }
  old, new = flat(before), flat(now)
  return [
    f"{name} was {old.get(name)}, now {new.get(name)}"
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  ]

"""Runs programs with their tests; replaces the metric `code_eval` of `evaluate`.

That metric must be downloaded, and it forks, which can deadlock in a process with JAX's
threads. Here each program runs in `program_child`, in an empty folder, with limits of
time, memory, files and processes, and no environment variables. Whatever it does costs
it its own score, and nothing else. docs/security.md lists what it can still reach.
"""

import collections
import contextlib
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any

from skipalign_jax.evals.lm_eval import folders, program_child
from skipalign_jax.runtime import errors, interpreter

OUTCOMES = ("passed", "failed", "timed out")
LIMITS = {
  "memory": 4 << 30,  # bytes, that a process may map and that all may fill
  "files": 64 << 20,  # bytes of a file; in namespaces of all files
  "processes": 64,
  "threads": 512,  # and processes; root has no limit
}
_GRACE = 30.0  # seconds more than the limit, in which all must have ended
_TRIES = 3  # where the system refuses a process, perhaps because of another program
_NAMES = {
  "processes": "PID namespaces of their own",
  "network": "no network",
  "files": "read-only files but for an empty folder",
}
_noted: set[str] = set()


class CodeEval:
  """A metric with the interface of `evaluate`."""

  def compute(
    self,
    references: Sequence[str],
    predictions: Sequence[Sequence[str]],
    k: Sequence[int] = (1, 10, 100),
    timeout: float = 3.0,
    **_: Any,
  ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
    """Runs each prediction with its reference after it.

    Args:
      references: one test per problem: program text that fails with an exception.
      predictions: programs of each problem.
      k: for pass@k; values are left out if a problem has fewer programs.
      timeout: seconds per program.

    Returns:
      {"pass@k": mean over problems}, and the outcome of each program.
    """
    runs = [
      (problem, number, f"{program}\n{test}")
      for problem, (programs, test) in enumerate(
        zip(predictions, references, strict=True)
      )
      for number, program in enumerate(programs)
    ]
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      outcomes = list(pool.map(lambda run: outcome(run[2], timeout), runs))
    results = collections.defaultdict(list)
    for (problem, number, _), found in zip(runs, outcomes, strict=True):
      passed = found == "passed"
      results[problem].append((number, {"passed": passed, "result": found}))
    counts = [
      (len(tries), sum(found["passed"] for _, found in tries))
      for tries in results.values()
    ]
    fewest = min((n for n, _ in counts), default=0)
    return {
      f"pass@{n}": sum(pass_at(n, *count) for count in counts) / len(counts)
      for n in k
      if n <= fewest
    }, dict(results)


def pass_at(k: int, n: int, correct: int) -> float:
  """Probability that at least one of k programs passes (2107.03374).

  The k programs are drawn from n, of which `correct` pass.
  """
  return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def outcome(program: str, timeout: float) -> str:
  """The outcome of a program: "passed", "failed" or "timed out".

  A program has passed when it comes to its end. It is believed only with a number in a
  pipe that is written there, which a program does not know that only exits.

  Raises:
    UserError: no program can be run here.
  """
  for tries in range(_TRIES):
    try:
      found = _attempt(program, timeout)
    except OSError as error:
      if tries == _TRIES - 1:
        raise errors.UserError(
          f"programs of --unsafe_code cannot be run: {error}; free disk, memory or "
          "processes, and run the same command again to resume"
        ) from error
      found = None
    if found:
      if found["contained"] is not None:  # None: its watcher does not answer
        _note(found["contained"])
      return found["outcome"]
    time.sleep(tries)
  return "failed"  # it ends the process that watches it, each time


def _attempt(program: str, timeout: float) -> dict[str, Any] | None:
  """The result of `program_child.run`; None if there is none."""
  folder = tempfile.mkdtemp(prefix="program_")
  request = {
    **{"program": program, "folder": folder, "seconds": timeout, **LIMITS},
    "proof": secrets.token_hex(16),
  }
  try:
    return _ask(request, timeout + _GRACE)
  finally:
    if not folders.remove(folder):
      _noted.add(f"{folder}, a program's folder, could not be removed")


def _ask(request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
  with subprocess.Popen(
    [sys.executable, "-I", program_child.__file__, str(os.getpid())],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    env=interpreter.environment(),
    start_new_session=True,
  ) as child:
    try:
      reply, _ = child.communicate(json.dumps(request).encode(), seconds)
      return _checked(reply)
    except subprocess.TimeoutExpired:
      return {"outcome": "timed out", "contained": None}
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _checked(reply: bytes) -> dict[str, Any] | None:
  """The result in a reply; None if it is not one, as when its writer was ended."""
  try:
    found = json.loads(reply)
    known = found["outcome"] in OUTCOMES and set(found["contained"]) <= set(_NAMES)
  except (ValueError, TypeError, LookupError):
    return None
  return found if known else None


def _note(contained: Sequence[str]) -> None:
  """Keeps what programs could not reach, for `notes`."""
  held = ", ".join(_NAMES[name] for name in contained)
  if held:
    _noted.add(f"programs of the model ran with {held}")
  else:
    _noted.add(
      "programs of the model ran as this user, without namespaces, which this system "
      "does not allow; run unknown models in a container"
    )


def notes() -> list[str]:
  """How programs were run since the last call, for the results."""
  found = sorted(_noted)
  _noted.clear()
  return found

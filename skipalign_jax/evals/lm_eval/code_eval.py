"""Runs programs with their tests; replaces the metric `code_eval` of `evaluate`.

That metric must be downloaded, and it forks, which can deadlock in a process with JAX's
threads. Here each program has its own Python process, an empty folder, limits of time
and memory, and no environment variables. This is not a sandbox: a program can read
files and use the network. Run unknown models in a container.
"""

import collections
import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent import futures
from typing import Any

MEMORY = 4 << 30  # bytes a program may map
REACHED_END = 87  # exit status; a program that exits by itself has another one
CHILD = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
exec(sys.stdin.buffer.read(), {{}})
os._exit({REACHED_END})
"""


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
  """The outcome of a program: "passed", "failed" or "timed out"."""
  with (
    tempfile.TemporaryDirectory() as folder,
    subprocess.Popen(
      [sys.executable, "-I", "-c", CHILD],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      cwd=folder,
      env={},
      start_new_session=True,
    ) as child,
  ):
    try:
      child.communicate(program.encode(errors="replace"), timeout)
    except subprocess.TimeoutExpired:
      return "timed out"
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # and all that it started
  return "passed" if child.returncode == REACHED_END else "failed"

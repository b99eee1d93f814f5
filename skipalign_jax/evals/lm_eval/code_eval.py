"""Whether programs pass their tests: the `code_eval` that tasks take from `evaluate`.

That one must be downloaded, and it forks the process it runs in, which a process with
JAX's threads may not survive. Here each program has a Python of its own, an empty
folder, limits of time and memory, and no environment. This is no sandbox: a program can
read files and use the network. Run unknown models in a container.
"""

import collections
import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any
from unittest import mock

MEMORY = 4 << 30  # bytes a program may map
REACHED_END = 87  # exit status; a program that leaves by itself has another
CHILD = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
exec(sys.stdin.buffer.read(), {{}})
os._exit({REACHED_END})
"""


class CodeEval:
  """Takes the calls that tasks make to the metric of `evaluate`."""

  def compute(
    self,
    references: Sequence[str],
    predictions: Sequence[Sequence[str]],
    k: Sequence[int] = (1, 10, 100),
    timeout: float = 3.0,
    **_: Any,
  ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
    """Runs each prediction with its reference behind it.

    Args:
      references: a test a problem: program text that fails by an exception.
      predictions: programs of each problem.
      k: for pass@k; left out where a problem has fewer programs.
      timeout: seconds a program.

    Returns:
      {"pass@k": mean over problems}, and what became of each program.
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
  """Chance that one of k of n programs passes, if `correct` of n do (2107.03374)."""
  return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def outcome(program: str, timeout: float) -> str:
  """What became of a program: "passed", "failed" or "timed out"."""
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
        os.killpg(child.pid, signal.SIGKILL)  # with all that it started
  return "passed" if child.returncode == REACHED_END else "failed"


@contextlib.contextmanager
def installed() -> Iterator[None]:
  """While this lasts, tasks that load code_eval get the one above."""
  import evaluate  # slow to load

  original = evaluate.load

  def load(path: str, *args: Any, **kwargs: Any) -> Any:
    return CodeEval() if path == "code_eval" else original(path, *args, **kwargs)

  with mock.patch.object(evaluate, "load", load):
    yield

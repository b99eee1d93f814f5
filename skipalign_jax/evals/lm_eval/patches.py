"""What is replaced in lm_eval and `evaluate` while tasks run; no option switches it."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from skipalign_jax.evals.lm_eval import code_eval


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Switches off the harness's progress bars, advice and forks."""
  from lm_eval.api import task

  # Its bootstrap forks, which can deadlock in a process with JAX's threads.
  os.environ["DISABLE_MULTIPROC"] = "1"
  logger = logging.getLogger("lm_eval")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    # private: lm_eval.api.task.tqdm
    with _replaced(task, "tqdm", lambda values, **_: values):
      yield
  finally:
    logger.setLevel(level)


@contextlib.contextmanager
def own_code_eval() -> Iterator[None]:
  """Tasks that load the metric code_eval get `code_eval.CodeEval`."""
  import evaluate  # slow to load

  original = evaluate.load

  def load(path: str, *args: Any, **kwargs: Any) -> Any:
    if path == "code_eval":
      return code_eval.CodeEval()
    return original(path, *args, **kwargs)

  # private: evaluate.load, which task modules call when they are imported
  with _replaced(evaluate, "load", load):
    yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
  """An attribute has another value inside the block."""
  original = getattr(owner, name)
  setattr(owner, name, value)
  try:
    yield
  finally:
    setattr(owner, name, original)

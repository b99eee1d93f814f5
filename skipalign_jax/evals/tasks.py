"""All tasks by name; the module of a task is imported when it is needed.

Each module has Options; items, measure and summarize, or run; and maybe draw.
"""

import dataclasses
import importlib
import inspect
import re
from types import ModuleType
from typing import Any

from skipalign_jax.runtime import errors

TASKS = {
  "needle": "skipalign_jax.evals.needle",
  "keys": "skipalign_jax.evals.keys",
  "facts": "skipalign_jax.evals.facts",
  "longbench": "skipalign_jax.evals.longbench.task",
  "longbench_v2": "skipalign_jax.evals.longbench_v2",
  "ruler": "skipalign_jax.evals.ruler.task",
  "babilong": "skipalign_jax.evals.babilong",
  "mrcr": "skipalign_jax.evals.mrcr",
  "misalignment": "skipalign_jax.evals.misalignment",
  "perplexity": "skipalign_jax.evals.perplexity",
  "lm_eval": "skipalign_jax.evals.lm_eval.task",
}


def module(name: str) -> ModuleType:
  """The module of a task.

  Raises:
    UserError: unknown task.
  """
  if name not in TASKS:
    raise errors.UserError(f"there is no task {name!r}; known: {', '.join(TASKS)}")
  return importlib.import_module(TASKS[name])


def comments(kind: type) -> dict[str, str]:
  """Option of a class of options → the comment after it, which is its help text."""
  source = inspect.getsource(kind)
  return dict(re.findall(r"^ +(\w+): .*?  # (.*)$", source, re.MULTILINE))


def options(name: str, given: dict[str, Any]) -> Any:
  """The options of a task; those that are not given have their defaults.

  Raises:
    UserError: unknown task or option.
  """
  kind = module(name).Options
  known = [field.name for field in dataclasses.fields(kind)]
  unknown = sorted(given.keys() - set(known))
  if unknown:
    raise errors.UserError(
      f"{name} has no option {unknown[0]!r}; it has {', '.join(known)}"
    )
  return kind(**given)

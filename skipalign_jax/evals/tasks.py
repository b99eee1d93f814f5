"""All tasks by name.

Each module has Options; items, measure and summarize, or run; and maybe draw.
"""

import dataclasses
import inspect
import re
from typing import Any

from skipalign_jax.evals import keys, misalignment, needle, perplexity
from skipalign_jax.evals.lm_eval import task as lm_eval_task
from skipalign_jax.evals.longbench import task as longbench_task
from skipalign_jax.evals.ruler import task as ruler_task
from skipalign_jax.runtime import errors

TASKS = {
  "needle": needle,
  "keys": keys,
  "longbench": longbench_task,
  "ruler": ruler_task,
  "misalignment": misalignment,
  "perplexity": perplexity,
  "lm_eval": lm_eval_task,
}


def comments(name: str) -> dict[str, str]:
  """Option → the comment behind it, which is its help."""
  source = inspect.getsource(TASKS[name].Options)
  return dict(re.findall(r"^ +(\w+): .*?  # (.*)$", source, re.MULTILINE))


def options(name: str, given: dict[str, Any]) -> Any:
  """The options of a task, those not given at their defaults.

  Raises:
    UserError: unknown task or option.
  """
  if name not in TASKS:
    raise errors.UserError(f"there is no task {name!r}; known: {', '.join(TASKS)}")
  kind = TASKS[name].Options
  known = [field.name for field in dataclasses.fields(kind)]
  unknown = sorted(given.keys() - set(known))
  if unknown:
    raise errors.UserError(
      f"{name} has no option {unknown[0]!r}; it has {', '.join(known)}"
    )
  return kind(**given)

"""All tasks by name; the module of a task is imported when it is needed.

Each module has Options; items, measure and summarize, or run; and maybe draw.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Mapping
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

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_NAMES = {
  bool: "True or False", int: "a whole number", float: "a number", str: "text",
}  # fmt: skip


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


def options(name: str, given: Mapping[str, Any]) -> Any:
  """The options of a task; those that are not given have their defaults.

  Args:
    name: of the task.
    given: option → its value, or the text that `evaluate` takes for it; lists of
      numbers or names as "a,b" or as a list.

  Raises:
    UserError: unknown task or option, or a value of another type.
  """
  kind = module(name).Options
  defaults = {field.name: field.default for field in dataclasses.fields(kind)}
  unknown = sorted(given.keys() - set(defaults))
  if unknown:
    raise errors.UserError(
      f"{name} has no option {unknown[0]!r}; it has {', '.join(defaults)}"
    )
  return kind(**{key: typed(key, v, defaults[key]) for key, v in given.items()})


def typed(name: str, value: Any, default: Any) -> Any:
  """A value of an option in the type of its default.

  Raises:
    UserError: it is not of that type and not a text for it.
  """
  kind = type(default)
  if kind is str and isinstance(value, list | tuple):
    return ",".join(map(str, value))
  if kind is str and type(value) in (int, float):
    return str(value)
  if kind is float and type(value) is int:
    return float(value)
  if kind is not str and isinstance(value, str):
    try:
      return _BOOLEANS[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
      pass  # it is reported next
  if type(value) is not kind:
    raise errors.UserError(
      f"{name}={value!r} is not {_NAMES[kind]}; its default is {default!r}"
    )
  return value

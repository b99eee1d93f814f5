"""The harness's tasks by name, with data from the hub or from files.

Prompts, metrics and filters are those of the installed package; only the source of the
documents is replaced. Tasks of a group that have no files are left out, with a note.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from lm_eval.api import group as group_lib
from lm_eval.api import task as task_lib
from lm_eval.config import group as group_config
from lm_eval.tasks import _index as index_lib  # private: Entry, Kind and task files
from lm_eval.tasks import manager as manager_lib

from skipalign_jax.evals.lm_eval import local_data as local_data_lib
from skipalign_jax.runtime import errors

OURS = pathlib.Path(__file__).parent / "task_files"
FEWSHOT_SEED = 1234  # the harness's own


def load(
  names: Sequence[str],
  local_data: str,
  unsafe_code: bool,
  num_fewshot: int,
  note: Callable[[str], None],
) -> manager_lib.TaskDict:
  """Tasks and groups, ready for `lm_eval.evaluator.evaluate`.

  Args:
    names: of tasks, groups or tags, or paths of task files.
    local_data: folder as in `local_data.py`; "" loads from the hub.
    unsafe_code: whether tasks may run programs that the model writes.
    num_fewshot: examples per prompt; negative: each task's own number.
    note: receives what a reader of the results has to know.

  Raises:
    UserError: an unknown name, data that cannot be loaded, or code that is not allowed.
  """
  index = Index(names)
  try:
    if not unsafe_code:
      _check_safe(index, names)
    if local_data:
      built = [_from_files(index, name, local_data, note) for name in names]
      loaded = index.manager.load([item for items in built for item in items])
    else:
      loaded = index.manager.load(list(names))
  except errors.UserError:
    raise
  # What is missing in a task file ends in any of these.
  except (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ImportError),
    *(AssertionError, NotImplementedError, yaml.YAMLError),
  ) as error:
    problem = str(error) if isinstance(error, OSError | ValueError) else repr(error)
    raise errors.UserError(
      f"{', '.join(names)} or its data cannot be loaded: {problem}\nWithout access to "
      "the hub, name a folder of benchmarks with --local_data."
    ) from error
  for name, task in loaded["tasks"].items():
    _set_examples(name, task, num_fewshot)
  return loaded


def _check_safe(index: Index, names: Sequence[str]) -> None:
  for name in names:
    for task, config in index.tasks(name):
      if config.get("unsafe_code"):
        raise errors.UserError(
          f"task {task} runs programs that the model writes, on this machine and "
          "without a sandbox; allow it with --unsafe_code=True"
        )


class Index:
  """The tasks, groups and tags of the harness and of this package, by name.

  Attributes:
    manager: of the harness.
  """

  def __init__(self, names: Sequence[str]):
    """Reads all task files, unless every name is a path.

    Raises:
      UserError: an unknown name.
    """
    defaults = not all(pathlib.Path(name).is_file() for name in names)
    self.manager = _manager(defaults)
    for name in names:
      self.entry(name)

  def entry(self, name: str) -> index_lib.Entry:
    """Kind and config of a task, group or tag."""
    found = self.manager.task_index.get(name)
    if found is None and pathlib.Path(name).is_file():
      found = _of_file(name)
    if found is None:
      raise errors.UserError(
        f"lm_eval has no task, group or tag {name!r}, and there is no such task file; "
        "`lm_eval ls tasks` lists them"
      )
    return found

  def tasks(self, name: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and configs of the tasks of a name; functions are strings."""
    entry = self.entry(name)
    if entry.kind is index_lib.Kind.TAG:
      children: Sequence[Any] = sorted(entry.tags)
    elif entry.kind is index_lib.Kind.GROUP:
      children = entry.cfg["task"]
    else:
      return [(entry.name, entry.cfg)]
    found = []
    for child in children:
      if isinstance(child, str):
        found += self.tasks(child)
      elif (known := child.get("task") or child.get("group")) in (
        self.manager.task_index
      ):
        found += [(task, config | child) for task, config in self.tasks(known)]
      elif isinstance(child.get("task"), str):
        found.append((child["task"], child))
    return found


def _of_file(name: str) -> index_lib.Entry:
  """The entry of a task file; UserError for other files."""
  try:
    found = index_lib.TaskIndex.entry_from_path(pathlib.Path(name))
    if found is None or not isinstance(found.name, str):
      raise ValueError("its task or group has no name")
    found.cfg = index_lib.load_yaml(found.yaml_path, resolve_func=False)
  except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
    raise errors.UserError(
      f"--tasks: {name} is not a task file of lm_eval, which is YAML with the key task "
      f"({errors.first_line(error)[:200]})"
    ) from error
  return found


@functools.cache
def _manager(defaults: bool) -> manager_lib.TaskManager:
  return manager_lib.TaskManager(include_path=OURS, include_defaults=defaults)


def _from_files(
  index: Index, name: str, folder: str, note: Callable[[str], None]
) -> list[task_lib.Task | group_lib.Group]:
  """A task or group, or the tasks of a tag, those that have files."""
  known = [task for task, _ in index.tasks(name)]
  built = _build(index, name, folder)
  found = [task.task_name for item in built for task in _leaves(item)]
  if not found:
    raise errors.UserError(f"--local_data={folder} has no files for {name}")
  if len(found) < len(known):
    note(f"{name}: {len(found)} of {len(known)} tasks have files: {', '.join(found)}")
  return built


def _leaves(item: task_lib.Task | group_lib.Group) -> list[task_lib.Task]:
  return item.get_all_tasks() if isinstance(item, group_lib.Group) else [item]


def _build(
  index: Index, name: str, folder: str
) -> list[task_lib.Task | group_lib.Group]:
  entry = index.entry(name)
  if entry.kind is index_lib.Kind.TAG:
    return [
      item for child in sorted(entry.tags) for item in _build(index, child, folder)
    ]
  if entry.kind is index_lib.Kind.GROUP:
    if not all(isinstance(child, str) for child in entry.cfg["task"]):
      raise errors.UserError(
        f"--local_data: group {name} changes its tasks; name tasks instead"
      )
    fields = {field.name for field in dataclasses.fields(group_config.GroupConfig)}
    config = {key: value for key, value in entry.cfg.items() if key in fields}
    group = group_lib.Group.from_config(copy.deepcopy(config))
    for child in entry.cfg["task"]:
      for item in _build(index, child, folder):
        group.add(item)
    return [group] if len(group) else []
  data = local_data_lib.read(
    folder,
    entry.cfg.get("dataset_path", ""),
    entry.cfg.get("dataset_name") or "",
    (entry.cfg.get("metadata") or {}).get("language", ""),
    entry.cfg.get("test_split") or "",
  )
  if data is None:
    return []
  # Inside a group, because only there a dict can change a task that has a name.
  spec = {"task": entry.name, "custom_dataset": lambda **_: data}
  loaded = index.manager.load({"group": "from_files", "task": [spec]})
  return [loaded["tasks"][entry.name]]


def _set_examples(name: str, task: task_lib.Task, num_fewshot: int) -> None:
  """Sets the examples per prompt by the harness's rule: a task's own 0 stays."""
  own = task.get_config("num_fewshot")
  if num_fewshot >= 0 and own != 0:
    task.set_config(key="num_fewshot", value=num_fewshot)
  elif own is None:
    task.set_config(key="num_fewshot", value=0)
  wanted = task.get_config("num_fewshot")
  task.set_fewshot_seed(seed=FEWSHOT_SEED)
  if not wanted:
    return
  examples = len(task.sampler.df) if hasattr(task, "sampler") else 0
  if wanted > examples:
    raise errors.UserError(
      f"{name} has {examples} examples to show, not {wanted}; give --num_fewshot"
    )

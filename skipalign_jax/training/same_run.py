"""Whether two configs make the same run, key by key."""

import json
from collections.abc import Mapping
from typing import Any

from skipalign_jax import config as config_lib

# Keys that may change when a run is resumed; all others change its numbers.
FREE = (
  "log_every",
  "log.",
  "profile",
  "eval.",
  "evals.",
  "checkpoint.",
  "mesh.",
  "data.cache_dir",
  "data.workers",
  # Whether these changed the samples, the fingerprint of the data says.
  "data.date",
  "data.ignore_keys",
  "data.rewritten",
  "data.template_kwargs",
)
# Keys that may differ between the processes of a run.
OF_A_PROCESS = ("data.cache_dir", "data.workers")


def differences(
  one: Mapping[str, Any],
  other: Mapping[str, Any],
  free: tuple[str, ...],
  names: tuple[str, str],
) -> list[str]:
  """Lines on the keys that differ.

  Args:
    one, other: configs as nested dicts, or as JSON made them.
    free: beginnings of the keys that do not count.
    names: what has the values of `one` and of `other`, for the lines.
  """
  flat = lambda tree: config_lib.flatten(
    config_lib.ConfigDict(json.loads(json.dumps(tree)))  # without tuples
  )
  one, other = flat(one), flat(other)
  # A key that is new since a config was written has a default that changes nothing.
  known = flat(config_lib.default().to_dict())

  def shown(tree: Mapping[str, Any], key: str) -> str:
    found = known | tree
    return repr(found[key]) if key in found else "no such key"

  return [
    f"  {key}: {names[0]} {shown(one, key)}, {names[1]} {shown(other, key)}"
    for key in sorted(one.keys() | other.keys())
    if shown(one, key) != shown(other, key) and not key.startswith(free)
  ]

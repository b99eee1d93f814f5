"""The end-of-sequence ids that a model's files name.

`eos_token_id` is one id or a list of ids, in generation_config.json, in config.json or
in both. Every one of them ends a reply.
"""

from collections.abc import Callable, Mapping
from typing import Any

from skipalign_jax.runtime import errors

KEY = "eos_token_id"


def named(
  generation: Mapping[str, Any] | None,
  hf: Mapping[str, Any] | None,
  vocab_size: int,
  where: str,
) -> tuple[int, ...]:
  """The ids of generation_config.json, then those that only config.json has.

  Ids outside of the vocabulary (-1 stands for "no id" in some files) are left out: no
  reply has them.

  Args:
    generation: a parsed generation_config.json, None without one.
    hf: a parsed config.json, None without one.
    vocab_size: rows of the embedding.
    where: of the model, for messages.

  Raises:
    UserError: a value is neither an integer nor a list of integers.
  """
  found: dict[int, None] = {}
  for file, values in (("generation_config.json", generation), ("config.json", hf)):
    value = (values or {}).get(KEY)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for one in ids:
      if type(one) is not int:
        raise errors.UserError(
          f"{where}: {KEY} of {file} is {value!r}; expected an integer or a list of "
          "integers"
        )
      found.setdefault(one)
  return tuple(one for one in found if 0 <= one < vocab_size)


def restricted(
  values: Mapping[str, Any] | None, keep: Callable[[int], bool]
) -> dict[str, Any] | None:
  """A config whose `eos_token_id` has only the ids that `keep` accepts."""
  if values is None or values.get(KEY) is None:
    return values if values is None else dict(values)
  value = values[KEY]
  ids = [one for one in (value if isinstance(value, list) else [value]) if keep(one)]
  return {**values, KEY: ids or None}

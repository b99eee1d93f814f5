"""Values for the variables of a chat template (transformers' chat_template_kwargs).

They become the first lines of the template itself, as defaults. So training, samples in
the cache, evaluations and the exported tokenizer all have the same ones.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from skipalign_jax.runtime import errors, untrusted

if TYPE_CHECKING:
  import transformers

_WORDS = {"True": True, "False": False, "None": None}
# What the renderer itself passes to every template.
_RESERVED = ("add_generation_prompt", "documents", "messages", "tools")


def parse(text: str, setting: str = "data.template_kwargs") -> dict[str, Any]:
  """The values in a JSON object, or in a list such as "a=true,b=some text".

  Args:
    text: "" has no values.
    setting: the key or flag that has the text, for messages.

  Raises:
    UserError: neither of them, or a name that is not one of a variable.
  """
  text = text.strip()
  where = f"{setting}={text}"
  if text.startswith("{"):
    try:
      values = untrusted.parse_json(text)
      json.dumps(values, allow_nan=False)
    except ValueError as error:
      raise _error(where, f"not valid JSON ({error})") from error
  else:
    values = {}
    for part in filter(None, text.split(",")):
      name, equals, value = part.partition("=")
      if not equals or name.strip() in values:
        raise _error(where, f"{part!r} is not a new name=value")
      values[name.strip()] = _value(value.strip())
  for name in values:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in _RESERVED:
      raise _error(where, f"{name!r} is not the name of a variable that can be set")
  return values


def set_values(
  tokenizer: transformers.PreTrainedTokenizerFast,
  text: str,
  setting: str = "data.template_kwargs",
) -> None:
  """Puts the values into the tokenizer's chat template, in place.

  Args:
    tokenizer: has a chat template.
    text: as `parse` reads it; "" changes nothing.
    setting: as in `parse`.

  Raises:
    UserError: `text` cannot be read, or names what the template does not use.
  """
  values = parse(text, setting)
  where, template = f"{setting}={text}", tokenizer.chat_template
  if not values:
    return
  if not isinstance(template, str):
    raise _error(where, "the tokenizer has no chat template, or several")
  for name in values:
    if not re.search(rf"\b{name}\b", template):
      raise _error(where, f"the chat template has no variable {name}")
  lines = (
    f"{{% if {name} is not defined %}}{{% set {name} = {value!a} %}}{{% endif %}}\n"
    for name, value in values.items()
  )
  tokenizer.chat_template = "".join(lines) + template


def _value(text: str) -> Any:
  """A JSON value, Python's True, False or None, or the text itself."""
  if text in _WORDS:
    return _WORDS[text]
  try:
    return json.loads(text, parse_constant=str)
  except ValueError:
    return text


def _error(where: str, problem: str) -> errors.UserError:
  return errors.UserError(
    f"{where}: {problem}; give a JSON object, or values such as "
    "enable_thinking=false,date_string=26 Jul 2024"
  )

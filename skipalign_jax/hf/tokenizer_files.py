"""Sizes of a tokenizer's files, which libraries read without limits.

transformers and tokenizers make up to 600 bytes of each value of such a file. Large
vocabularies have two million values.
"""

import pathlib
import re
from typing import Any

from skipalign_jax.runtime import errors, escape, json_limits, untrusted

MAX_VALUES = {  # of each JSON file that is read
  "tokenizer.json": 4_000_000,
  "tokenizer_config.json": 500_000,
  "special_tokens_map.json": 500_000,
  "added_tokens.json": 500_000,
}
MAX_OBJECTS = 100_000  # of tokenizer.json: added tokens, and steps of its pipeline
MAX_TEMPLATE_BYTES = 1 << 20  # of a chat template; the longest usual ones have 30 KiB
_TEMPLATE_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # becomes a file's name
_TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja")


def check(folder: pathlib.Path) -> None:
  """Raises UserError if a file of the folder is larger than any tokenizer's."""
  for name, max_values in MAX_VALUES.items():
    path = folder / name
    if path.is_file():
      _check_json(path, max_values)
  for pattern in _TEMPLATES:
    for path in folder.glob(pattern):
      check_template(path.stat().st_size, str(path))


def check_template(size: int, where: str) -> None:
  """Raises UserError if a chat template of `size` bytes or characters is too long."""
  if size > MAX_TEMPLATE_BYTES:
    raise errors.UserError(
      f"{where}: a chat template of {size:,} characters; no model has more than "
      f"{MAX_TEMPLATE_BYTES >> 20} MiB. Take another tokenizer, or remove it and set "
      "data.template=tulu"
    )


def check_templates(found: Any) -> None:
  """Raises TypeError if a tokenizer's `chat_template` is not of its types.

  Args:
    found: a text, None, or the texts by their names, which are plain.
  """
  several = found if isinstance(found, dict) else {"default": found or ""}
  for name, template in several.items():
    if not isinstance(template, str):
      raise TypeError(f"a chat template is {type(template).__name__}, not text")
    if not (isinstance(name, str) and _TEMPLATE_NAME.fullmatch(name)):
      raise TypeError(f"a chat template has the name {str(name)[:100]!a}")


def _check_json(path: pathlib.Path, max_values: int) -> None:
  try:
    text = untrusted.read(path, untrusted.MAX_JSON_BYTES)
    json_limits.check(text, max_values)
    if (objects := text.count(b"{")) > MAX_OBJECTS:
      raise ValueError(f"it has {objects:,} objects; the limit is {MAX_OBJECTS:,}")
  except untrusted.BROKEN as error:
    raise errors.UserError(
      f"{path}: unreadable tokenizer ({escape.line(error)}); take another one"
    ) from error

"""The chat template of a run: the tokenizer's own one, or Tülu's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipalign_jax import config as config_lib
from skipalign_jax.data import template_values
from skipalign_jax.hf import chat_template
from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import transformers

# The bos line is added by `set_template` where the tokenizer puts one in front.
TULU = (
  "{% for message in messages %}"
  "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
  "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
  "{{ '\n' }}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def set_template(
  tokenizer: transformers.PreTrainedTokenizerFast, name: str, values: str = ""
) -> None:
  """Puts the chat template of `data.template` on the tokenizer, in place.

  So training, generation and the exported tokenizer all render through it.

  Args:
    tokenizer: is changed.
    name: `data.template`.
    values: `data.template_kwargs`, see `template_values.set_values`.

  Raises:
    UserError: unknown name, the tokenizer lacks what the template needs, or the values
      do not fit it.
  """
  _set_named(tokenizer, name)
  template_values.set_values(tokenizer, values)


def _set_named(tokenizer: transformers.PreTrainedTokenizerFast, name: str) -> None:
  config_lib.check_section("data", {"template": name})
  if name == "model":
    if not tokenizer.chat_template:
      raise errors.UserError(
        "data.template=model: the tokenizer has no chat template (it belongs to a "
        "base model); set data.template=tulu"
      )
    return
  if tokenizer.eos_token is None:
    raise errors.UserError(
      "data.template=tulu ends replies with the eos token, which the tokenizer lacks; "
      "use data.template=model or another data.tokenizer"
    )
  bos = "{{ bos_token }}" if adds_bos(tokenizer) else ""
  tokenizer.chat_template = chat_template.trust(bos + TULU)


def adds_bos(tokenizer: transformers.PreTrainedTokenizerFast) -> bool:
  """Whether the tokenizer itself puts its bos token in front of a text."""
  return tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id

"""The model under evaluation: its engine, its tokenizer and its identity."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from skipalign_jax.data import prompts, template_text, tokenization
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import chat_template, template_dates
from skipalign_jax.runtime import errors, escape

if TYPE_CHECKING:  # transformers and jax are slow to load
  import transformers

  from skipalign_jax.model import inference, model_config

_MARK = "\ue000"  # private use: not in any template or text


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model under evaluation.

  Attributes:
    engine: generates and scores.
    tokenizer: of the model, with its chat template.
    identity: the part of a protocol that describes the model; JSON.
    batch_tokens: places of the KV cache that a batch may take.
    eos_ids: those that the model's files name (`reference.Model.eos_ids`).
    described: what results.json has of the model besides; JSON. It makes no two
      evaluations different.
  """

  engine: inference.Engine
  tokenizer: transformers.PreTrainedTokenizerFast
  identity: dict[str, Any]
  batch_tokens: int
  eos_ids: tuple[int, ...]
  described: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def window(self) -> int:
    """Positions that the model was built for, or that its rope was scaled to."""
    return self.engine.config.window

  @functools.cached_property
  def stop_ids(self) -> tuple[int, ...]:
    """Tokens that end a reply."""
    return tokenizer_lib.stop_token_ids(self.tokenizer, self.eos_ids)

  def chat(self, content: str) -> str:
    """The prompt for a reply to one user message.

    Raises:
      UserError: the tokenizer has no chat template, or it refuses the message.
    """
    message = {"role": "user", "content": content}
    return self.render([message], add_generation_prompt=True)

  def render(self, messages: Sequence[dict[str, Any]], **options: Any) -> str:
    """Messages as text, by the chat template.

    Args:
      messages: dicts with role and content.
      **options: of `chat_template.render`.

    Raises:
      UserError: the tokenizer has no chat template, or it refuses the messages.
    """
    if not self.tokenizer.chat_template:
      raise errors.UserError(
        "the tokenizer has no chat template (it belongs to a base model); use "
        "--chat=False to evaluate without one"
      )
    try:
      return chat_template.render(self.tokenizer, messages, **options)
    except jinja2.TemplateError as error:
      roles = ", ".join(message["role"] for message in messages)
      raise errors.UserError(
        f"the chat template refuses messages of {roles} ({escape.line(error)}); use "
        "--chat=False"
      ) from error

  def around(self, chat: bool, reply: str = "") -> tuple[str, str]:
    """Texts before and after the content of a user message.

    Args:
      chat: by the chat template; otherwise there is nothing around the content.
      reply: the beginning of the reply, which ends the text.
    """
    if not chat:
      return "", reply
    before, after = self._framed
    return before, after + (self._before_reply + reply if reply else "")

  @functools.cached_property
  def _before_reply(self) -> str:
    """White space that the chat template has before a reply, as in "[/INST] Yes"."""
    question = {"role": "user", "content": "a"}
    prompt = self.render([question], add_generation_prompt=True)
    try:
      whole = self.render([question, {"role": "assistant", "content": _MARK}])
    except errors.UserError:  # it has no rule for replies
      return ""
    space = whole.removeprefix(prompt).partition(_MARK)[0]
    return space if whole.startswith(prompt) and space.isspace() else ""

  def encode_prompt(self, text: str, chat: bool) -> tuple[list[int], list[int]]:
    """The tokens of a whole prompt.

    Text that is encoded in pieces has other tokens: SentencePiece puts a space before
    each piece, and characters of two pieces cannot be one token. Names of special
    tokens are text, except those that the chat template writes.

    Args:
      text: of the prompt, with all that the chat template writes.
      chat: whether the template wrote it; otherwise it begins with what
        the tokenizer puts before every text.

    Returns:
      Token ids, and for each the index in `text` at which it ends.

    Raises:
      UserError: the text has a name that cannot be encoded as text.
    """
    if chat:
      before, after = self._framed
      end = text.rfind(after, len(before))
      return prompts.of_text(self.tokenizer, text, len(before), max(end, len(before)))
    self._check_text(text)
    (found,) = tokenization.of_texts(self.tokenizer, [text], literal=True)
    ids = [*self._front, *found.ids.tolist()]
    return ids, [*[0] * len(self._front), *found.places[:, 1].tolist()]

  @functools.cached_property
  def _framed(self) -> tuple[str, str]:
    """What the chat template writes before and after a question."""
    before, after = self.chat(_MARK).split(_MARK)
    return before, after

  def encode(
    self, text: str, special: bool = False, literal: bool = False
  ) -> list[int]:
    """Token ids.

    Args:
      text: to encode.
      special: begin with what the tokenizer puts before every text.
      literal: names of special tokens in the text are text.

    Raises:
      UserError: with `literal`, the text has a name that cannot be encoded as text.
    """
    return self.tokens(text, special, literal).tolist()

  def tokens(
    self, text: str, special: bool = False, literal: bool = False
  ) -> np.ndarray:
    """int32 [L] token ids of a text of any length; arguments as of `encode`.

    Raises:
      UncutError: as `tokenization.parts`.
      UserError: with `literal`, the text has a name that cannot be encoded as text.
    """
    if literal:
      self._check_text(text)
    (found,) = tokenization.of_texts(self.tokenizer, [text], literal)
    if not special:
      return found.ids
    return np.concatenate([np.array(self._front, np.int32), found.ids])

  @functools.cached_property
  def _front(self) -> list[int]:
    return prompts.front(self.tokenizer)

  @functools.cached_property
  def _markup(self) -> tuple[str, ...]:
    return tuple(template_text.markup_tokens(self.tokenizer))

  def _check_text(self, text: str) -> None:
    if any(name in text for name in self._markup):
      raise prompts.refused(prompts.NOT_TEXT)

  def decode(self, tokens: list[int]) -> str:
    """Text without special tokens."""
    return self.tokenizer.decode(tokens, skip_special_tokens=True)


def identity(
  name: str,
  config: model_config.ModelConfig,
  tokenizer: transformers.PreTrainedTokenizerFast,
  compute_dtype: str,
) -> dict[str, Any]:
  """The part of a protocol that describes a model.

  Args:
    name: its reference, or its run and step.
    config: as evaluated, rope included.
    tokenizer: is hashed, with its chat template; the date that this prints is part of
      the description.
    compute_dtype: of the products.
  """
  text = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
  date = template_dates.date_of(tokenizer)
  return {
    "model": name,
    "parameters": config.num_params(),
    "rope": dataclasses.asdict(config.rope),
    "window": config.window,
    "compute_dtype": compute_dtype,
    "tokenizer_sha256": hashlib.sha256(text.encode()).hexdigest()[:16],
    **({} if date is None else {"date": date}),
  }

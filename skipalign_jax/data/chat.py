"""One dialogue to one tokenized sample: blocks, replies and loss targets.

Shapes: L tokens of one sample, C blocks of one sample.

Messages (see schemas.py) become text through the tokenizer's chat template, and the
spans of that text come from rendering prefixes of the dialogue, never from searching
it: nothing that a user wrote can be mistaken for a reply. Each instruction and each
response is one block. A role header belongs to the block of its message, whitespace
after a message to the block before it, and the system prompt, also one that the
template inserts by itself, to the first block. Targets are a reply and the special
token that ends it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import schemas
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

_PLAIN = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
NO_TARGET = "no target left after truncation"


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A dialogue as text, with character offsets.

  Attributes:
    text: the whole dialogue.
    block_starts: first character of each block, C; the first is 0.
    replies: (first character of the reply, end of its stop token) per response
      block, i.e. of blocks 1, 3, 5, …
  """

  text: str
  block_starts: tuple[int, ...]
  replies: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Sample:
  """A tokenized dialogue, or a piece of a text (see text.py).

  Attributes:
    tokens: int32 [L] ids.
    block_ids: int32 [L] block of each token, 0 … C−1.
    is_response: bool [L], the token's block is a response (header included).
    targets: bool [L], *predicting this token* is trained.
    sample_id: uint32, the same wherever the same messages appear.
    turns: number of replies that have a target; of a text, of its blocks.
    truncated: tokens beyond seq_len were cut off.
  """

  tokens: np.ndarray
  block_ids: np.ndarray
  is_response: np.ndarray
  targets: np.ndarray
  sample_id: int
  turns: int
  truncated: bool


def set_template(tokenizer: transformers.PreTrainedTokenizerFast, name: str) -> None:
  """Puts the chat template of `data.template` on the tokenizer, in place.

  So training, generation and the exported tokenizer all render through it.

  Raises:
    UserError: unknown name, or the tokenizer lacks what the template needs.
  """
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
  tokenizer.chat_template = bos + TULU


def adds_bos(tokenizer: transformers.PreTrainedTokenizerFast) -> bool:
  """Whether the tokenizer itself puts its bos token in front of a text."""
  return tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def control_tokens(
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> re.Pattern[str]:
  """Matches every special token: the tokenizer finds them anywhere in a text."""
  added = tokenizer.added_tokens_decoder.values()
  contents = sorted((t.content for t in added if t.special), key=len, reverse=True)
  return re.compile("|".join(map(re.escape, contents)) or r"(?!)")


def render(
  tokenizer: transformers.PreTrainedTokenizerFast, messages: Sequence[schemas.Message]
) -> Rendered:
  """The dialogue's text and where its blocks and replies are in it.

  Args:
    tokenizer: carries the chat template.
    messages: as `schemas.messages_of` returns them.

  Raises:
    BadSample: the template refuses this dialogue.
    UserError: a prefix of the dialogue does not render to the beginning of the
      dialogue's text, or the template has no generation prompt, so spans cannot be
      found.
  """
  text = _render(tokenizer, messages)
  system = int(messages[0][0] == "system")
  starts, replies = [0], []
  # A system prompt alone is never rendered: many templates cannot.
  for i in range(system + 1, len(messages)):
    starts.append(_prefix(text, _render(tokenizer, messages[:i])))
    role, content = messages[i]
    if role == "assistant":
      prompt = _render(tokenizer, messages[:i], add_generation_prompt=True)
      begin = _prefix(text, prompt)
      replies.append((begin, 0))
      if not text[begin:].lstrip().startswith(content.strip()):
        raise _unusable("does not put a reply right after its generation prompt")
  ends = [*starts[2::2], len(text)]
  spans = [
    (begin, begin + len(text[begin:end].rstrip()))
    for (begin, _), end in zip(replies, ends, strict=True)
  ]
  return Rendered(text, tuple(starts), tuple(spans))


def _render(
  tokenizer: transformers.PreTrainedTokenizerFast,
  messages: Sequence[schemas.Message],
  add_generation_prompt: bool = False,
) -> str:
  turns = [{"role": role, "content": content} for role, content in messages]
  try:
    return chat_template.render(
      tokenizer, turns, add_generation_prompt=add_generation_prompt
    )
  except jinja2.TemplateError as error:
    raise schemas.BadSample("refused by the chat template") from error


def _prefix(text: str, prefix: str) -> int:
  if not text.startswith(prefix):
    raise _unusable("renders a message differently when more messages follow")
  return len(prefix)


class _Unusable(errors.UserError):
  """A template in whose text spans cannot be found."""


def _unusable(problem: str) -> _Unusable:
  return _Unusable(
    f"the tokenizer's chat template {problem}, so replies cannot be separated from "
    "the rest; set data.template=tulu"
  )


class Encoder:
  """Rendered dialogues to samples, many at a time.

  Args:
    tokenizer: a fast tokenizer with a chat template.
    seq_len: tokens kept of a sample.
    system_prompt: added to dialogues without one; "" for no prompt.
  """

  def __init__(
    self,
    tokenizer: transformers.PreTrainedTokenizerFast,
    seq_len: int,
    system_prompt: str = "",
  ):
    self._tokenizer = tokenizer
    self._seq_len = seq_len
    self._system_prompt = system_prompt
    added = tokenizer.added_tokens_decoder
    self._special = frozenset(id_ for id_, token in added.items() if token.special)
    self._control = control_tokens(tokenizer)

  def __call__(
    self, dialogues: Sequence[list[schemas.Message]]
  ) -> list[Sample | schemas.BadSample]:
    """One sample per dialogue, or a BadSample where it cannot be trained on.

    Raises:
      UserError: the chat template is unusable (see `render`) or does not end a reply
        with a special token.
    """
    results: list[Any] = [self._try_render(messages) for messages in dialogues]
    good = [i for i, result in enumerate(results) if isinstance(result, Rendered)]
    if not good:
      return results
    # The template has already written the special tokens.
    encoded = self._tokenizer(
      [results[i].text for i in good],
      add_special_tokens=False,
      return_attention_mask=False,
      return_offsets_mapping=True,
      verbose=False,
    )
    for i, ids, offsets in zip(
      good, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
      tokens_L = np.array(ids, np.int32)
      starts_L = np.array(offsets, np.int64)[:, 0]
      results[i] = self._sample(results[i], tokens_L, starts_L, dialogues[i])
    return results

  def _try_render(
    self, messages: list[schemas.Message]
  ) -> Rendered | schemas.BadSample:
    if any(self._control.search(content) for _, content in messages):
      return schemas.BadSample("control token in content")
    if self._system_prompt and messages[0][0] != "system":
      messages = [("system", self._system_prompt), *messages]
    try:
      return render(self._tokenizer, messages)
    except schemas.BadSample as bad:
      return bad
    except _Unusable:
      # Some templates remove parts of earlier messages, such as thoughts. If a plain
      # dialogue renders, the template is usable and only this dialogue is bad.
      render(self._tokenizer, _PLAIN)
      return schemas.BadSample("changed by the chat template")

  def _sample(
    self,
    rendered: Rendered,
    tokens_L: np.ndarray,
    starts_L: np.ndarray,
    messages: list[schemas.Message],
  ) -> Sample | schemas.BadSample:
    # A token that is in two spans belongs to the one where it starts.
    block_starts_C = np.array(rendered.block_starts)
    block_L = np.searchsorted(block_starts_C, starts_L, side="right") - 1
    is_response_L = block_L % 2 == 1
    begin_R, end_R = np.array(rendered.replies).T
    reply_L = block_L // 2
    target_L = is_response_L & (starts_L >= begin_R[reply_L])
    target_L &= starts_L < end_R[reply_L]

    for block in range(1, len(block_starts_C), 2):
      at = np.flatnonzero(target_L & (block_L == block))
      if len(at) and int(tokens_L[at[-1]]) in self._special:
        continue
      raise errors.UserError(
        "the tokenizer's chat template does not end every reply with a special token, "
        "so the model would never learn to stop; set data.template=tulu"
      )
    kept = slice(0, self._seq_len)
    if not target_L[kept].any():
      return schemas.BadSample(NO_TARGET)
    return Sample(
      tokens=tokens_L[kept],
      block_ids=block_L[kept].astype(np.int32),
      is_response=is_response_L[kept],
      targets=target_L[kept],
      sample_id=schemas.sample_id(messages),
      turns=len(np.unique(block_L[kept][target_L[kept]])),
      truncated=len(tokens_L) > self._seq_len,
    )

"""One dialogue to one tokenized sample: blocks, replies and loss targets.

Shapes: L tokens of one sample, C blocks of one sample.

Messages (see schemas.py) become text through the tokenizer's chat template; spans.py
finds their spans in it, so that nothing that a user wrote is mistaken for a reply.
Each instruction and each response is one block. A role header belongs to the block of
its message, whitespace after a message to the block before it, and the system prompt,
also one that the template inserts by itself, to the first block. Targets are a reply
and the special token that ends it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import chat_tokens, schemas, spans, template_values
from skipalign_jax.data import literals as literals_lib
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
class Sample:
  """A tokenized dialogue, or a piece of a text (see text.py).

  Attributes:
    tokens: int32 [L] ids.
    block_ids: int32 [L] block of each token, 0 … C−1.
    is_response: bool [L], the token's block is a response (header included).
    targets: bool [L], *predicting this token* is trained.
    sample_id: uint32, the same wherever the same messages appear.
    turns: number of replies that are learned, or not because the template rewrites
      them; of a text, of its blocks.
    truncated: tokens beyond seq_len were cut off.
    rewritten: number of replies that are not learned because the template rewrites
      them when more messages follow.
    split: number of replies whose first characters would share a token with their
      header, and are encoded apart from it.
  """

  tokens: np.ndarray
  block_ids: np.ndarray
  is_response: np.ndarray
  targets: np.ndarray
  sample_id: int
  turns: int
  truncated: bool
  rewritten: int = 0
  split: int = 0


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


class Encoder:
  """Dialogues to samples, many at a time.

  Args:
    tokenizer: a fast tokenizer with a chat template.
    seq_len: tokens kept of a sample.
    system_prompt: added to dialogues without one; "" for no prompt.
    rewritten: "last" or "each", see `data.rewritten`.
  """

  def __init__(
    self,
    tokenizer: transformers.PreTrainedTokenizerFast,
    seq_len: int,
    system_prompt: str = "",
    rewritten: str = "last",
  ):
    self._tokenizer = tokenizer
    self._seq_len = seq_len
    self._system_prompt = system_prompt
    self._each = rewritten == "each"
    self._find = spans.Finder(tokenizer)
    self._special = list(spans.special_tokens(tokenizer).values())
    self._control = spans.control_tokens(tokenizer)
    self._tokens = chat_tokens.Encoder(tokenizer)

  def samples(
    self, dialogues: Sequence[list[schemas.Message]]
  ) -> list[list[Sample | schemas.BadSample]]:
    """The samples of each dialogue; several only with rewritten="each".

    Raises:
      UserError: as `__call__`.
    """
    self._render_ahead(dialogues)
    rendered = [self._try_render(messages) for messages in dialogues]
    parts, counts = [], []
    for messages, whole in zip(dialogues, rendered, strict=True):
      pairs = [(messages, whole)]
      if self._each and not _is_bad(whole) and not all(whole.learned):
        pairs = self._alone(messages)
      parts += pairs
      counts.append(len(pairs))
    found = iter(self._encode(*zip(*parts, strict=True)) if parts else ())
    return [list(itertools.islice(found, count)) for count in counts]

  def _alone(
    self, messages: list[schemas.Message]
  ) -> list[tuple[list[schemas.Message], spans.Rendered | schemas.BadSample]]:
    """For each reply the dialogue up to it, of which only this reply is learned."""
    pairs = []
    for end, (role, _) in enumerate(messages, 1):
      if role != "assistant":
        continue
      rendered = self._try_render(messages[:end])
      if isinstance(rendered, spans.Rendered):
        rendered = rendered.with_last_only()
      pairs.append((messages[:end], rendered))
    return pairs

  def __call__(
    self, dialogues: Sequence[list[schemas.Message]]
  ) -> list[Sample | schemas.BadSample]:
    """One sample per dialogue, or a BadSample where it cannot be trained on.

    Raises:
      UserError: the chat template is unusable (see `spans.Finder`) or does not end a
        reply with a special token.
    """
    return self._encode(dialogues, [self._try_render(one) for one in dialogues])

  def _encode(
    self,
    dialogues: Sequence[list[schemas.Message]],
    rendered: Sequence[spans.Rendered | schemas.BadSample],
  ) -> list[Sample | schemas.BadSample]:
    results: list[Any] = list(rendered)
    good = [i for i, result in enumerate(results) if not _is_bad(result)]
    if not good:
      return results
    found = self._tokens.of_texts([results[i].text for i in good])
    for i, (tokens_L, places_L2) in zip(good, found, strict=True):
      replies = zip(results[i].replies, results[i].learned, strict=True)
      begins = [begin for (begin, _), learned in replies if learned]
      text, literals = results[i].text, results[i].literals
      if literals:
        tokens_L, places_L2 = self._tokens.of_parts(text, (), literals)
      split = self._tokens.shared(places_L2, begins)
      if split:
        tokens_L, places_L2 = self._tokens.of_parts(text, split, literals)
      results[i] = self._sample(
        results[i], tokens_L, places_L2[:, 0], dialogues[i], len(split)
      )
    return results

  def _render_ahead(self, dialogues: Sequence[list[schemas.Message]]) -> None:
    """Many at a time, for which a template of a model takes less time."""
    usable = []
    for messages in dialogues:
      with contextlib.suppress(schemas.BadSample):
        usable.append(self._hide(self._with_system(messages))[0])
    self._find.render_ahead(usable)

  def _with_system(self, messages: list[schemas.Message]) -> list[schemas.Message]:
    if not self._system_prompt or messages[0][0] == "system":
      return messages
    return [("system", self._system_prompt), *messages]

  def _hide(
    self, messages: list[schemas.Message]
  ) -> tuple[list[schemas.Message], list[str]]:
    template = str(self._tokenizer.chat_template)
    return literals_lib.hide(messages, self._control, template)

  def _try_render(
    self, messages: list[schemas.Message]
  ) -> spans.Rendered | schemas.BadSample:
    try:
      return self._render(self._with_system(messages))
    except schemas.BadSample as bad:
      return bad
    except spans.UnusableError:
      # Some templates change some contents. If a plain dialogue can be read, the
      # template is usable and only this dialogue is bad.
      self._find(_PLAIN)
      return schemas.BadSample("changed by the chat template")

  def _render(self, messages: list[schemas.Message]) -> spans.Rendered:
    """The dialogue with its spans; names of special tokens in it are text.

    Raises:
      BadSample: as `spans.Finder`, or the template itself reads such a name.
      UnusableError: as `spans.Finder`.
    """
    hidden, names = self._hide(messages)
    rendered = self._find(hidden)
    if not names:
      return rendered
    if literals_lib.spelled(rendered.text, names) != spans.render(
      self._tokenizer, messages
    ):
      raise schemas.BadSample("control token in content")
    places = literals_lib.places(rendered.text, names)
    return dataclasses.replace(rendered, literals=places)

  def _sample(
    self,
    rendered: spans.Rendered,
    tokens_L: np.ndarray,
    starts_L: np.ndarray,
    messages: list[schemas.Message],
    split: int,
  ) -> Sample | schemas.BadSample:
    # A token that is in two spans belongs to the one where it starts.
    block_starts_C = np.array(rendered.block_starts)
    block_L = np.searchsorted(block_starts_C, starts_L, side="right") - 1
    is_response_L = block_L % 2 == 1
    begin_R, end_R = np.array(rendered.replies).T
    reply_L = block_L // 2
    target_L = is_response_L & (starts_L >= begin_R[reply_L])
    target_L &= starts_L < end_R[reply_L]
    turns = len(np.unique(block_L[: self._seq_len][target_L[: self._seq_len]]))
    target_L &= np.array(rendered.learned)[reply_L]

    ends = np.flatnonzero(target_L & ~np.append(target_L[1:], False))
    stopped = ends[np.isin(tokens_L[ends], self._special)]
    if len(np.unique(reply_L[stopped])) < sum(rendered.learned):
      raise spans.NoStopError()
    kept = slice(0, self._seq_len)
    if not target_L[kept].any():
      return schemas.BadSample(NO_TARGET)
    return Sample(
      tokens=tokens_L[kept],
      block_ids=block_L[kept].astype(np.int32),
      is_response=is_response_L[kept],
      targets=target_L[kept],
      sample_id=schemas.sample_id(messages),
      turns=turns,
      truncated=len(tokens_L) > self._seq_len,
      rewritten=0 if self._each else len(rendered.learned) - sum(rendered.learned),
      split=split,
    )


def _is_bad(result: Any) -> bool:
  return isinstance(result, schemas.BadSample)

"""Tokens that a chat template writes: special ones, and the one that ends a reply."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from skipalign_jax.data import dialogues, rendering

if TYPE_CHECKING:
  import transformers

MARK = "\ue000{}\ue001"  # private use: not in any template or usual text


def special_tokens(
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> dict[str, int]:
  """Every special token and its id, also those without a role such as eos."""
  added = tokenizer.added_tokens_decoder
  return {token.content: id_ for id_, token in added.items() if token.special}


def markup_tokens(
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> dict[str, int]:
  """Tokens that frame messages though they are not special; {} in most tokenizers.

  A base model may have got "<|im_start|>" and "<|im_end|>" as usual tokens. Then a
  tokenizer finds them in any text, and cannot encode their names as text.
  """
  added = tokenizer.added_tokens_decoder
  usual = {
    token.content: id_
    for id_, token in added.items()
    if not token.special and token.content.strip()
  }
  framed = _framed(tokenizer) if usual else None
  if framed is None or any(one in framed[-1] for one in special_tokens(tokenizer)):
    return {}
  if not any(name in framed[-1] for name in usual):
    return {}
  return {k: id_ for k, id_ in usual.items() if any(k in part for part in framed)}


def control_tokens(
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> re.Pattern[str]:
  """Matches every special and markup token, which the tokenizer finds in any text."""
  names = {**special_tokens(tokenizer), **markup_tokens(tokenizer)}
  contents = sorted(names, key=len, reverse=True)
  return re.compile("|".join(map(re.escape, contents)) or r"(?!)")


def stop_token(tokenizer: transformers.PreTrainedTokenizerFast) -> str | None:
  """The special or markup token that ends a reply in the tokenizer's chat template.

  Returns:
    None if the template refuses a short dialogue, or no such token follows its reply.
  """
  framed = _framed(tokenizer)
  found = control_tokens(tokenizer).search(framed[-1]) if framed else None
  return found[0] if found else None


def _framed(tokenizer: transformers.PreTrainedTokenizerFast) -> list[str] | None:
  """The template's text before, between and after a question and its reply."""
  marks = MARK.format(0), MARK.format(1)
  pairs = zip(("user", "assistant"), marks, strict=True)
  try:
    text = rendering.render(tokenizer, dialogues.plain(list(pairs)))
  except dialogues.BadSample:
    return None
  before, first, rest = text.partition(marks[0])
  between, last, after = rest.rpartition(marks[1])
  return [before, between, after] if first and last else None


def opened(tokenizer: transformers.PreTrainedTokenizerFast) -> str:
  """What the generation prompt has and the text of a plain reply has not.

  Such as a thought that is opened (DeepSeek-R1); "" in most templates.
  """
  asked, mark = dialogues.plain([("user", "a")]), MARK.format(0)
  answered = dialogues.plain([("user", "a"), ("assistant", mark)])
  try:
    prompt = rendering.render(tokenizer, asked, add_generation_prompt=True)
    before, found, _ = rendering.render(tokenizer, answered).partition(mark)
  except dialogues.BadSample:
    return ""
  return prompt.removeprefix(before) if found and prompt.startswith(before) else ""

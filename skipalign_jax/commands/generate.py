"""Generates replies to prompts, or in a conversation, and prints them."""

import argparse
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import transformers

from skipalign_jax.commands import chat, text_stream
from skipalign_jax.data import dialogues, template_values
from skipalign_jax.data import prompts as prompts_lib
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import reference
from skipalign_jax.model import inference
from skipalign_jax.runtime import compile_cache, errors, escape, terminal

# Keys of generation_config.json that are not applied, and the values with which they
# change nothing, in addition to null, 0 and empty ones.
_OF_EVERY_REPLY = {"repetition_penalty": 1, "num_beams": 1, "guidance_scale": 1}
_OF_EVERY_REPLY |= dict.fromkeys(
  """
  no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens
  sequence_bias forced_bos_token_id forced_eos_token_id stop_strings min_length
  min_new_tokens exponential_decay_length_penalty penalty_alpha
  """.split()
)
_OF_SAMPLES = {"typical_p": 1, "top_h": 1}
_OF_SAMPLES |= dict.fromkeys(("top_k", "min_p", "epsilon_cutoff", "eta_cutoff"))


def run(args: argparse.Namespace) -> int:
  """Prints the reply to each prompt, or holds a conversation; returns the exit status.

  Args:
    args: the flags of `skipalign_jax.generate`.

  Raises:
    UserError: the model cannot be read, prompts and flags do not fit it, or its output
      is NaN or infinite.
  """
  compile_cache.enable()
  opened = reference.open_model(args.model)
  tokenizer = reference.load_tokenizer(args.model)
  template_values.set_values(tokenizer, args.template_kwargs, "--template_kwargs")
  reference.check_vocabulary(tokenizer, opened.config)
  stops = tokenizer_lib.stop_token_ids(tokenizer, opened.eos_ids)
  _note_not_applied(opened.generation_config or {}, bool(args.temperature))
  if args.chat:
    _check_template(tokenizer)
    prompts = []
  else:
    prompts = [encode(tokenizer, p, args.raw, args.system) for p in args.prompt]
    _note_window(prompts, args.max_new_tokens, opened.config.window)
  engine = inference.Engine(  # no name for the weights: it casts them
    reference.load_params(opened, args.dtype), opened.config, args.dtype
  )

  seeds = itertools.count(args.seed)  # a conversation draws each reply anew

  def reply(prompts: Sequence[Sequence[int]]) -> Iterable[Sequence[int | None]]:
    seed = next(seeds) % 2**32
    return engine.generate(
      prompts, args.max_new_tokens, stops, args.temperature, args.top_p, seed
    )

  try:
    if args.chat:
      lines = chat.typed(sys.stdin)
      chat.hold(lines, reply, tokenizer, args.system, opened.config.window)
    else:
      streams = [text_stream.TextStream(tokenizer) for _ in prompts]
      print_replies(args.prompt, reply(prompts), streams)
  except errors.NotFiniteError as error:
    what = "in the conversation"
    if not args.chat:
      what = f"for the prompt {args.prompt[error.row][:40]!r}"
    raise errors.UserError(
      f"{args.model}: its output {what} is NaN or infinite; {errors.NOT_FINITE}"
    ) from error
  return 0


def _note_not_applied(given: Mapping[str, Any], samples: bool) -> None:
  """Notes what a generation_config.json asks for that the flags cannot say."""
  keys = _OF_EVERY_REPLY | (_OF_SAMPLES if samples else {})
  found = [
    f"{key} {escape.line(given[key])[:40]}"
    for key, neutral in keys.items()
    if given.get(key) and given[key] != neutral
  ]
  if found:
    terminal.print_to_stderr(
      f"note: the model's generation_config.json asks for {', '.join(found)}; this is "
      "not applied here, so replies may differ from those of transformers"
    )


def _note_window(prompts: Sequence[Sequence[int]], new: int, window: int) -> None:
  longest = max(map(len, prompts)) + new
  if longest > window:
    terminal.print_to_stderr(
      f"note: {longest} tokens are more than the model's window of {window}"
    )


def print_replies(
  prompts: Sequence[str],
  steps: Iterable[Sequence[int | None]],
  streams: Sequence[text_stream.TextStream],
) -> None:
  """Prints a single reply while it is generated, several ones after the last token.

  Args:
    prompts: their texts.
    steps: the next token of each reply, None after its end; see `Engine.generate`.
    streams: an empty one per prompt.
  """
  for tokens in steps:
    for stream, token in zip(streams, tokens, strict=True):
      new = "" if token is None else stream.add(token)
      if len(streams) == 1:
        terminal.write(new)
  if len(streams) == 1:
    terminal.write("\n")
    return
  for prompt, stream in zip(prompts, streams, strict=True):
    terminal.write(f"> {prompt}\n{stream.text}\n\n")


def encode(
  tokenizer: transformers.PreTrainedTokenizerBase, prompt: str, raw: bool, system: str
) -> list[int]:
  """Token ids of a prompt, as a user turn of the chat template unless `raw`.

  In a turn names of special tokens are text. In a raw prompt they are the tokens, as
  the tokenizer reads any text: who uses `raw` writes a template by hand.
  """
  if raw:
    # Not verbose: the window is noted in other words.
    tokens = tokenizer.encode(prompt, add_special_tokens=False, verbose=False)
    return [*prompts_lib.front(tokenizer), *tokens]
  _check_template(tokenizer)
  messages = [("system", system)] if system else []
  asked = dialogues.plain([*messages, ("user", prompt)])
  try:
    return prompts_lib.of_dialogue(tokenizer, asked)
  except dialogues.BadSample as bad:
    raise errors.UserError(f"the prompt is {bad.reason}; use --raw") from bad


def _check_template(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
  if not tokenizer.chat_template:
    raise errors.UserError("this tokenizer has no chat template; use --prompt --raw")

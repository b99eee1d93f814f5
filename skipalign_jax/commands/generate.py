"""Generates replies to prompts and prints them."""

import argparse
from collections.abc import Iterable, Sequence

import transformers

from skipalign_jax.data import dialogues, template_values
from skipalign_jax.data import prompts as prompts_lib
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import reference
from skipalign_jax.model import inference
from skipalign_jax.runtime import compile_cache, errors, terminal


def run(args: argparse.Namespace) -> int:
  """Prints the reply to each prompt; returns the exit status.

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
  prompts = [encode(tokenizer, p, args.raw, args.system) for p in args.prompt]
  longest = max(map(len, prompts)) + args.max_new_tokens
  if longest > opened.config.window:
    terminal.print_to_stderr(
      f"note: {longest} tokens are more than the model's window of "
      f"{opened.config.window}"
    )
  params = reference.load_params(opened, args.dtype)
  steps = inference.Engine(params, opened.config, args.dtype).generate(
    prompts,
    args.max_new_tokens,
    tokenizer_lib.stop_token_ids(tokenizer, opened.eos_ids),
    args.temperature,
    args.top_p,
    args.seed,
  )
  try:
    print_replies(args.prompt, steps, [TextStream(tokenizer) for _ in prompts])
  except errors.NotFiniteError as error:
    prompt = args.prompt[error.row]
    raise errors.UserError(
      f"{args.model}: its output for the prompt {prompt[:40]!r} is NaN or infinite; "
      f"{errors.NOT_FINITE}"
    ) from error
  return 0


def print_replies(
  prompts: Sequence[str],
  steps: Iterable[Sequence[int | None]],
  streams: Sequence["TextStream"],
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
    return tokenizer.encode(prompt)
  if not tokenizer.chat_template:
    raise errors.UserError("this tokenizer has no chat template; use --raw")
  messages = [("system", system)] if system else []
  asked = dialogues.plain([*messages, ("user", prompt)])
  try:
    return prompts_lib.of_dialogue(tokenizer, asked)
  except dialogues.BadSample as bad:
    raise errors.UserError(f"the prompt is {bad.reason}; use --raw") from bad


class TextStream:
  """Turns growing token lists into growing text, never half a character.

  Attributes:
    text: what is certain so far.
  """

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
    self._tokenizer = tokenizer
    self._ids: list[int] = []
    self.text = ""

  def add(self, token: int) -> str:
    """The text that became certain with this token."""
    self._ids.append(token)
    text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
    if text.endswith("\ufffd"):  # bytes of a character are still missing
      return ""
    new, self.text = text[len(self.text) :], text
    return new

"""Text from a model: python -m skipalign_jax.generate --model=REF --prompt=TEXT."""

import argparse

import jinja2
import transformers

from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import chat_template, reference
from skipalign_jax.model import inference
from skipalign_jax.runtime import compile_cache, errors, terminal


def encode(
  tokenizer: transformers.PreTrainedTokenizerBase, prompt: str, raw: bool, system: str
) -> list[int]:
  """Token ids of a prompt, as a user turn of the chat template unless `raw`."""
  if raw:
    return tokenizer.encode(prompt)
  if not tokenizer.chat_template:
    raise errors.UserError("this tokenizer has no chat template; use --raw")
  messages = [{"role": "user", "content": prompt}]
  if system:
    messages.insert(0, {"role": "system", "content": system})
  try:
    text = chat_template.render(tokenizer, messages, add_generation_prompt=True)
  except jinja2.TemplateError as error:
    raise errors.UserError(
      f"the chat template refuses the prompt ({error}); use --raw"
    ) from error
  return tokenizer.encode(text, add_special_tokens=False)


class TextStream:
  """Turns growing token lists into growing text, never half a character."""

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
    self._tokenizer = tokenizer
    self._ids: list[int] = []
    self._shown = ""

  def add(self, token: int) -> str:
    """The text that became certain with this token."""
    self._ids.append(token)
    text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
    if text.endswith("\ufffd"):  # bytes of a character are still missing
      return ""
    new, self._shown = text[len(self._shown) :], text
    return new


def main() -> int:
  parser = argparse.ArgumentParser(
    prog="python -m skipalign_jax.generate",
    description=__doc__,
    formatter_class=terminal.HelpFormatter,
  )
  parser.add_argument("--model", required=True, help="hub id, folder, .gguf or workdir")
  parser.add_argument("--prompt", required=True, action="append", help="repeatable")
  parser.add_argument(
    "--max_new_tokens", type=int, default=64, help="the longest reply"
  )
  parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
  parser.add_argument("--top_p", type=float, default=1.0, help="of sampling")
  parser.add_argument("--seed", type=int, default=0, help="of sampling")
  parser.add_argument("--system", default="", help="system prompt")
  parser.add_argument("--raw", action="store_true", help="no chat template")
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16"), help="of weights"
  )
  args = parser.parse_args()
  if args.max_new_tokens < 1:
    raise errors.UserError("--max_new_tokens must be at least 1")

  compile_cache.enable()
  opened = reference.open_model(args.model)
  tokenizer = reference.load_tokenizer(args.model)
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
    tokenizer_lib.stop_token_ids(tokenizer),
    args.temperature,
    args.top_p,
    args.seed,
  )
  streams = [TextStream(tokenizer) for _ in prompts]
  replies = [""] * len(prompts)
  for tokens in steps:
    for row, token in enumerate(tokens):
      if token is not None:
        text = streams[row].add(token)
        replies[row] += text
        if len(prompts) == 1:
          print(text, end="", flush=True)
  if len(prompts) == 1:
    print()
  else:
    for prompt, reply in zip(args.prompt, replies, strict=True):
      print(f"> {prompt}\n{reply}\n")
  return 0


if __name__ == "__main__":
  errors.run_command(main)

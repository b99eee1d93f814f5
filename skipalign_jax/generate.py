"""Text from a model: python -m skipalign_jax.generate --model=REF --prompt=TEXT.

With --chat in place of --prompt it replies to each line that is typed, after all that
was said before; /new begins again, Ctrl-C ends a reply, Ctrl-D the conversation.
"""

import argparse
import math

from skipalign_jax.runtime import arguments, errors, escape


def main() -> int:
  """Prints the replies; returns the exit status."""
  args = _parse()
  # Imported once the command line is understood: JAX takes a second to load.
  from skipalign_jax.commands import generate

  return generate.run(args)


def _parse() -> argparse.Namespace:
  parser = arguments.Parser(
    prog="python -m skipalign_jax.generate", description=__doc__
  )
  add = parser.add_argument
  add(
    "--model",
    required=True,
    help="hub id, folder, .gguf, workdir[@step], adapter[@base]",
  )
  add("--prompt", action="append", help="repeatable")
  add("--chat", action="store_true", help="hold a conversation")
  add("--max_new_tokens", type=int, default=64, help="the longest reply")
  add("--temperature", type=float, default=0.0, help="0: always the likeliest token")
  add("--top_p", type=float, default=1.0, help="of sampling, temperature above 0")
  add("--seed", type=int, default=0, help="of sampling; of the first reply with --chat")
  add("--system", default="", help="system prompt")
  add("--template_kwargs", default="", help="for the chat template: a=true,b=text")
  add(
    "--raw",
    action="store_true",
    help="no chat template; names of special tokens in a prompt are the tokens",
  )
  add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of weights")
  args = parser.parse_args()
  if bool(args.prompt) == args.chat:
    parser.error("one of --prompt=TEXT and --chat is needed")
  if args.chat and args.raw:
    raise errors.UserError("--chat needs the chat template; leave out --raw")
  if args.raw and (args.system or args.template_kwargs):
    raise errors.UserError(
      "--raw uses no chat template, so --system and --template_kwargs have no effect; "
      "write them into --prompt, or leave out --raw"
    )
  if any(map(escape.is_broken, (*(args.prompt or ()), args.system))):
    raise errors.UserError("--prompt and --system must be UTF-8")
  if args.max_new_tokens < 1:
    raise errors.UserError("--max_new_tokens must be at least 1")
  if not 0 <= args.seed < 2**32:
    raise errors.UserError(f"--seed={args.seed} must be from 0 to 2^32 - 1")
  if not 0 <= args.temperature < math.inf:
    raise errors.UserError(f"--temperature={args.temperature} must be 0 or more")
  if not 0 < args.top_p <= 1:
    raise errors.UserError(f"--top_p={args.top_p} must be above 0 and at most 1")
  if args.top_p < 1 and not args.temperature:
    raise errors.UserError(
      f"--top_p={args.top_p} has no effect with --temperature=0, which takes the "
      "likeliest token; set --temperature above 0"
    )
  return args


if __name__ == "__main__":
  errors.run_command(main)

"""Evaluates a model: python -m skipalign_jax.evaluate TASK --model=REF [--out=DIR] …

Writes results.json and pictures to DIR. The same command resumes an evaluation that was
stopped. `evaluate TASK --help` lists a task's options; `evaluate suite` runs a set of
tasks; `evaluate compare DIR DIR …` shows results side by side.
"""

import argparse
import dataclasses

from skipalign_jax.evals import compare, suite, tasks
from skipalign_jax.runtime import arguments, errors, terminal

DTYPES = ("bfloat16", "float32")
SUITE = ("suite", suite)


def main(argv: list[str] | None = None) -> int:
  """Runs one task, or compares; returns the exit status."""
  args = _parser().parse_args(argv)
  if args.task == "compare":
    compare.run(args.folders, args.out, terminal.Console())
    return 0
  # Imported once the command line is understood: JAX takes a second to load.
  from skipalign_jax.commands import evaluate
  from skipalign_jax.runtime import distributed

  run = evaluate.run_suite if args.task == "suite" else evaluate.run
  return distributed.run(lambda: run(args))


def _parser() -> arguments.Parser:
  parser = arguments.Parser(
    prog="python -m skipalign_jax.evaluate", description=__doc__
  )
  commands = parser.add_subparsers(dest="task", required=True, metavar="TASK")
  for name, module in (*((name, tasks.module(name)) for name in tasks.TASKS), SUITE):
    command = commands.add_parser(
      name,
      help=module.__doc__.splitlines()[0],
      description=module.__doc__,
      usage=f"python -m skipalign_jax.evaluate {name} --model=REF [options]",
    )
    _add_common(command)
    _add_options(command, module.Options)
  command = commands.add_parser("compare", help="tables and maps of several folders")
  command.add_argument("folders", nargs="+", help="with a results.json each")
  command.add_argument(
    "--out", default="", help="folder for compare.html, .md, .json, needle.png"
  )
  return parser


def _add_options(command: arguments.Parser, kind: type) -> None:
  """Adds a flag for each field of a class of options."""
  comments = tasks.comments(kind)
  for field in dataclasses.fields(kind):
    command.add_argument(
      f"--{field.name}",
      type=_boolean if field.type in (bool, "bool") else type(field.default),
      default=field.default,
      help=comments[field.name],
    )


def _add_common(command: arguments.Parser) -> None:
  """Adds the flags that all tasks have."""
  add = command.add_argument
  add(
    "--model",
    required=True,
    help="hub id, folder, .gguf, workdir[@step], adapter[@base]",
  )
  add("--out", default="", help="folder; by default runs/evals/TASK-MODEL")
  add("--tokenizer", default="", help="reference; by default that of the model")
  add("--template", default="model", help="chat template: model or tulu")
  add(
    "--template_kwargs",
    default="",
    help="its variables, as in enable_thinking=false,date_string=today",
  )
  add("--date", default="", help="YYYY-MM-DD, which chat templates print as today")
  add("--dtype", default="bfloat16", choices=DTYPES, help="of weights and products")
  add("--batch_tokens", type=int, default=16_384, help="tokens of a batch's KV cache")
  add("--limit", type=int, default=0, help="only the first N items; 0: all")
  add("--rope.kind", default="model", help="model, none, linear, ntk, yarn or llama3")
  add("--rope.target_length", type=int, default=None, help="positions to scale to")
  add("--mesh", default="fsdp=-1", help="devices per axis: data, fsdp, tensor, context")
  add("--distributed", default="auto", help="auto, off or HOST:PORT,COUNT,INDEX")


def _boolean(text: str) -> bool:
  if text.lower() not in ("true", "false", "1", "0"):
    raise argparse.ArgumentTypeError(f"{text!r} is not True or False")
  return text.lower() in ("true", "1")


if __name__ == "__main__":
  errors.run_command(main)

"""Evaluates a model: python -m skipalign_jax.evaluate TASK --model=REF [--out=DIR] …

Writes results.json and pictures to DIR. The same command goes on where it was stopped.
`evaluate TASK --help` lists a task's options, `evaluate compare DIR DIR …` sets results
side by side.
"""

import argparse
import dataclasses
import pathlib
import re
from typing import Any

from skipalign_jax import config as config_lib
from skipalign_jax.data import chat
from skipalign_jax.evals import compare, runner, tasks
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.hf import reference
from skipalign_jax.model import decoder, inference, model_config, sharding
from skipalign_jax.runtime import compile_cache, distributed, errors, terminal
from skipalign_jax.training import resolve

DTYPES = ("bfloat16", "float32")


def main(argv: list[str] | None = None) -> int:
  """Runs one task, or compares; returns the exit status."""
  args = _parser().parse_args(argv)
  if args.task == "compare":
    compare.run(args.folders, args.out, terminal.Console())
    return 0
  return distributed.run(lambda: _evaluate(args))


def _evaluate(args: argparse.Namespace) -> int:
  console = terminal.Console()
  given = {
    field.name: getattr(args, field.name)
    for field in dataclasses.fields(tasks.module(args.task).Options)
  }
  options = tasks.options(args.task, given)
  distributed.initialize(args.distributed)
  compile_cache.enable()
  console.quiet = not distributed.is_first()
  subject = open_subject(args)
  folder = pathlib.Path(args.out or default_folder(args.task, args.model))
  results = runner.run(
    args.task, tasks.module(args.task), options, subject, folder, console, args.limit
  )
  for note in results["notes"]:
    console.print(f"note: {note}")
  items = f", {len(results['items'])} items" if results["items"] else ""
  console.print(f"{args.task} of {args.model}{items}; 95 % intervals in brackets")
  for line in report(results["summary"], "  "):
    console.print(line)
  console.print(f"written to {folder / 'results.json'}")
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m skipalign_jax.evaluate",
    description=__doc__,
    formatter_class=terminal.HelpFormatter,
  )
  commands = parser.add_subparsers(dest="task", required=True, metavar="TASK")
  for name in tasks.TASKS:
    task = tasks.module(name)
    command = commands.add_parser(
      name,
      help=task.__doc__.splitlines()[0],
      description=task.__doc__,
      formatter_class=terminal.HelpFormatter,
      usage=f"python -m skipalign_jax.evaluate {name} --model=REF [options]",
    )
    add = command.add_argument
    add("--model", required=True, help="hub id, folder, .gguf or workdir[@step]")
    add("--out", default="", help="folder; by default runs/evals/TASK-MODEL")
    add("--tokenizer", default="", help="reference; by default that of the model")
    add("--template", default="model", help="chat template: model or tulu")
    add("--dtype", default="bfloat16", choices=DTYPES, help="of weights and products")
    add("--batch_tokens", type=int, default=16_384, help="KV cache places of a batch")
    add("--limit", type=int, default=0, help="only the first so many items")
    add("--rope.kind", default="model", help="or none, linear, ntk, yarn, llama3")
    add("--rope.target_length", type=int, default=None, help="positions to scale to")
    add(
      "--mesh", default="fsdp=-1", help="devices an axis: data, fsdp, tensor, context"
    )
    add("--distributed", default="auto", help="auto, off or HOST:PORT,COUNT,INDEX")
    comments = tasks.comments(name)
    for field in dataclasses.fields(task.Options):
      kind = _boolean if field.type in (bool, "bool") else type(field.default)
      add(
        f"--{field.name}",
        type=kind,
        default=field.default,
        help=comments[field.name],
      )
  command = commands.add_parser("compare", help="tables and maps of several folders")
  command.add_argument("folders", nargs="+", help="with a results.json each")
  command.add_argument("--out", default="", help="folder for compare.md, .json, .png")
  return parser


def _boolean(text: str) -> bool:
  if text.lower() not in ("true", "false", "1", "0"):
    raise argparse.ArgumentTypeError(f"{text!r} is not True or False")
  return text.lower() in ("true", "1")


def default_folder(task: str, model: str) -> str:
  """Where results go if nobody says."""
  return f"runs/evals/{task}-{re.sub(r'[^A-Za-z0-9.@_-]+', '_', model).strip('_.')}"


def open_subject(args: argparse.Namespace) -> subject_lib.Subject:
  """Loads the model that the command names.

  Raises:
    UserError: a reference, rope or mesh that cannot be.
  """
  opened = reference.open_model(args.model)
  tokenizer = reference.load_tokenizer(args.tokenizer or args.model)
  if args.template != "model":
    chat.set_template(tokenizer, args.template)
  config = with_rope(opened, vars(args)["rope.kind"], vars(args)["rope.target_length"])
  reference.check_vocabulary(tokenizer, config)
  mesh = sharding.make_mesh(mesh_sizes(args.mesh))
  resolve.check_heads(config, mesh.shape)
  if mesh.size == 1:
    params = reference.load_params(opened, args.dtype)
    engine = inference.Engine(params, config, args.dtype)
  else:
    at = sharding.params_shardings(mesh, decoder.definition(config)[1])
    params = reference.load_params(opened, args.dtype, sharding.placer(at))
    engine = inference.Engine(params, config, args.dtype, mesh)
  step = opened.location.step
  name = (
    args.model
    if step is None
    else f"{args.model.rpartition('@')[0] or args.model}@{step}"
  )
  return subject_lib.Subject(
    engine,
    tokenizer,
    subject_lib.identity(name, config, tokenizer, args.dtype),
    args.batch_tokens,
  )


def with_rope(
  opened: reference.Model, kind: str, target_length: int | None
) -> model_config.ModelConfig:
  """The model's shape with its rope scaled as training would scale it."""
  if kind not in ("model", "none") and target_length is None:
    raise errors.UserError(f"--rope.kind={kind} needs --rope.target_length=N")
  config = config_lib.default()
  config.model.init_from = opened.reference
  config.rope.kind, config.rope.target_length = kind, target_length
  return resolve.model_from(config, opened.config, opened.config.vocab_size)


def mesh_sizes(text: str) -> dict[str, int]:
  """ "fsdp=2,context=4" → the size of each axis; 1 for those not named."""
  sizes = dict.fromkeys(sharding.AXES, 1)
  for part in text.split(","):
    axis, _, size = part.partition("=")
    if axis not in sizes or not re.fullmatch(r"-?\d+", size):
      raise errors.UserError(
        f"--mesh={text}: give sizes like fsdp=2,context=4 of {', '.join(sizes)}"
      )
    sizes[axis] = int(size)
  return sizes


def report(summary: dict[str, Any], indent: str = "") -> list[str]:
  """A summary in lines."""
  lines = []
  for name, value in summary.items():
    if isinstance(value, dict) and {"mean", "low", "high", "n"} <= value.keys():
      lines.append(f"{indent}{name}: {interval(value)}")
    elif isinstance(value, dict):
      lines += [f"{indent}{name}", *report(value, indent + "  ")]
    else:
      shown = f"{value:.4f}" if isinstance(value, float) else value
      lines.append(f"{indent}{name}: {shown}")
  return lines


def interval(value: dict[str, Any]) -> str:
  """ "0.4000 (0.1176 to 0.7693, n 5)"."""
  if value["low"] is None:
    return f"{value['mean']:.4f} (n {value['n']})"
  return (
    f"{value['mean']:.4f} ({value['low']:.4f} to {value['high']:.4f}, n {value['n']})"
  )


if __name__ == "__main__":
  errors.run_command(main)

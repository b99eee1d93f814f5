"""Evaluates a model on a task and prints the summary."""

import argparse
import dataclasses
import json
import pathlib
import re
from typing import Any

import jax

from skipalign_jax import config as config_lib
from skipalign_jax.data import template_values, templates
from skipalign_jax.evals import runner, suite, tasks
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.hf import native, reference, template_dates, weights
from skipalign_jax.model import decoder, inference, model_config, sharding
from skipalign_jax.runtime import (
  compile_cache,
  distributed,
  errors,
  files,
  paths,
  storage,
  terminal,
)
from skipalign_jax.training import resolve


def run(args: argparse.Namespace) -> int:
  """Evaluates and prints the summary; returns the exit status.

  Args:
    args: the flags of `skipalign_jax.evaluate` for one task.

  Raises:
    UserError: the model cannot be read or does not fit the flags; or the folder
      cannot be used.
  """
  task = tasks.module(args.task)
  options = _options(args, task.Options)
  _check_template(args, options)
  folder, console = _start(args)
  args.date = args.date or runner.date_of(folder)
  subject = open_subject(args)
  results = runner.run(args.task, task, options, subject, folder, console, args.limit)
  for note in results["notes"]:
    console.print(f"note: {note}")
  items = f", {len(results['items'])} items" if results["items"] else ""
  console.print(f"{args.task} of {args.model}{items}; 95 % intervals in brackets")
  for line in report(results["summary"], "  "):
    console.print(line)
  console.print(f"written to {folder / 'results.json'}")
  return 0


def run_suite(args: argparse.Namespace) -> int:
  """Evaluates all tasks of a suite and prints one table; returns the exit status.

  Args:
    args: the flags of `skipalign_jax.evaluate suite`.

  Raises:
    UserError: as `run`, for any of the tasks. The items of earlier ones are saved.
  """
  options = _options(args, suite.Options)
  _check_template(args, options)
  parts, skipped = suite.parts(options)
  folder, console = _start(args)
  args.date = args.date or runner.date_of(folder / parts[0].task)
  subject = open_subject(args)
  summaries, notes = {}, {}
  for part in parts:
    results = runner.run(
      part.task,
      tasks.module(part.task),
      part.options,
      subject,
      folder / part.task,
      console,
      args.limit,
    )
    summaries[part.task] = results["summary"]
    notes[part.task] = results["notes"]
  model = subject.identity["model"]
  text = suite.table(model, summaries, skipped)
  content = {"model": model, "tasks": summaries, "left_out": skipped, "notes": notes}
  with distributed.together():
    if distributed.is_first():
      _write_suite(folder, content, text)
  for task, lines in notes.items():
    for line in lines:
      console.print(f"note: {task}: {line}")
  console.print_markdown(text)
  console.print(f"written to {folder}: suite.md, suite.json")
  return 0


def _write_suite(folder: pathlib.Path, content: dict[str, Any], text: str) -> None:
  try:
    files.write_json(folder / "suite.json", content)
    files.write_text(folder / "suite.md", text + "\n")
  except OSError as error:
    raise errors.UserError(
      f"the table cannot be written to {folder} ({storage.explain(error)}). All items "
      "are saved; run the same command again."
    ) from error


def _options(args: argparse.Namespace, kind: type) -> Any:
  """The flags of a task as its options."""
  return kind(
    **{field.name: getattr(args, field.name) for field in dataclasses.fields(kind)}
  )


def _check_template(args: argparse.Namespace, options: Any) -> None:
  """Raises UserError for flags of a chat template that the task does not use."""
  if getattr(options, "chat", args.task == "misalignment"):
    return
  remedy = " add --chat=True, or" if hasattr(options, "chat") else ""
  for name, default in (("template", "model"), ("template_kwargs", ""), ("date", "")):
    if getattr(args, name) != default:
      raise errors.UserError(
        f"--{name}={getattr(args, name)} has no effect, because {args.task} uses no "
        f"chat template here;{remedy} leave it out"
      )


def _start(args: argparse.Namespace) -> tuple[pathlib.Path, terminal.Console]:
  """The folder of results, and where progress is printed."""
  out = args.out or default_folder(args.task, args.model)
  folder = paths.output(out, f"--out={out}")
  distributed.initialize(args.distributed, f"{args.task} --out={folder.absolute()}")
  compile_cache.enable()
  return folder, terminal.Console(quiet=not distributed.is_first())


def default_folder(task: str, model: str) -> str:
  """Where results are written without --out."""
  return f"runs/evals/{task}-{re.sub(r'[^A-Za-z0-9.@_-]+', '_', model).strip('_.')}"


def open_subject(args: argparse.Namespace) -> subject_lib.Subject:
  """Loads the model that the command names.

  Raises:
    UserError: the reference cannot be read, or rope or mesh do not fit the model.
  """
  opened = reference.open_model(args.model)
  _check_step(args.model, opened.location.step)
  if jax.process_count() > 1:
    _check_copies(args.model, repr(opened.config), weights.sample(opened.weights))
  tokenizer = reference.load_tokenizer(args.tokenizer or args.model)
  if args.tokenizer:
    opened = reference.with_tokenizer(opened, tokenizer)
  if args.template != "model":
    templates.set_template(tokenizer, args.template)
  template_values.set_values(tokenizer, args.template_kwargs, "--template_kwargs")
  template_dates.set_date(tokenizer, args.date, "--date")
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
    opened.eos_ids,
    _describe(args, opened),
  )


def _describe(args: argparse.Namespace, opened: reference.Model) -> dict[str, Any]:
  """What a sweep compares of results and their protocol does not have."""
  flags = {key: vars(args)[key] for key in ("tokenizer", "template", "template_kwargs")}
  if opened.kind != "workdir":
    return flags
  return flags | {"config": native.read_config(opened.location.path).config}


def _check_step(model: str, step: int | None) -> None:
  """Raises UserError in all processes unless the model is the same checkpoint for all.

  Args:
    model: its reference.
    step: of the latest checkpoint, as this process found it.
  """
  found = list(dict.fromkeys(distributed.exchange(str(step))))
  if len(found) > 1:
    raise errors.UserError(
      f"--model={model}: its latest checkpoint is step {' or '.join(found)}, depending "
      f"on the process; a run saves there: name one, as {model}@{found[0]}"
    )


def _check_copies(model: str, *of_this: str) -> None:
  """Raises UserError in all processes unless they have the same copy of the model.

  Args:
    model: its reference.
    of_this: what copies have alike, of that of this process.
  """
  if len(set(distributed.exchange(json.dumps(of_this)))) > 1:
    raise errors.UserError(
      f"--model={model}: the processes have copies of it that differ; give all hosts "
      "the same config.json and weights"
    )


def with_rope(
  opened: reference.Model, kind: str, target_length: int | None
) -> model_config.ModelConfig:
  """The model's config with its rope scaled as training would scale it.

  Raises:
    UserError: the scaling is unknown, or its length is missing or too short.
  """
  if kind not in ("model", "none") and target_length is None:
    raise errors.UserError(f"--rope.kind={kind} needs --rope.target_length=N")
  if kind == "none" and target_length is not None:
    raise errors.UserError(
      f"--rope.target_length={target_length} has no effect with --rope.kind=none; "
      "choose ntk, linear, yarn or llama3, or leave it out"
    )
  config = config_lib.default()
  config.model.init_from = opened.reference
  config.rope.kind, config.rope.target_length = kind, target_length
  return resolve.model_from(config, opened.config, opened.config.vocab_size)


def mesh_sizes(text: str) -> dict[str, int]:
  """ "fsdp=2,context=4" → the size of each axis; 1 for those that are not named.

  Raises:
    UserError: an unknown axis or a size that is not a number.
  """
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
      if isinstance(value, list):
        shown = "; ".join(map(str, value)) or "nothing"
      lines.append(f"{indent}{name}: {shown}")
  return lines


def interval(value: dict[str, Any]) -> str:
  """ "0.4000 (0.1176 to 0.7693, n 5)"."""
  if value["low"] is None:
    return f"{value['mean']:.4f} (n {value['n']})"
  return (
    f"{value['mean']:.4f} ({value['low']:.4f} to {value['high']:.4f}, n {value['n']})"
  )

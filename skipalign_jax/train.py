"""Fine-tunes a model: python -m skipalign_jax.train --config=FILE --workdir=DIR.

The same command continues a run that was stopped: the workdir holds the state,
the data iterator and the resolved config. On several hosts it is the same command in
every process: all compute, process 0 writes and speaks.
"""

import contextlib
import dataclasses
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from rich import console as rich_console

from skipalign_jax import (
  checkpoint,
  cli,
  compile_cache,
  distributed,
  errors,
  lora,
  lora_trees,
  metrics,
  model,
  model_config,
  optimizer,
  positions,
  preview,
  resolve,
  sharding,
  signals,
  workdir,
)
from skipalign_jax import config as config_lib
from skipalign_jax import step as step_lib
from skipalign_jax.data import pipeline
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.evals import during
from skipalign_jax.hf import adapters, reference

USAGE = (
  "python -m skipalign_jax.train --config=FILE[:variant] --workdir=DIR "
  "[--config.some.key=value …] [--distributed=auto|off|HOST:PORT,COUNT,INDEX]"
)


def main() -> int:
  config, flags = cli.parse(sys.argv, USAGE, workdir="", distributed="auto")
  if not flags["workdir"]:
    raise errors.UserError(f"--workdir=DIR is missing\nusage: {USAGE}")
  distributed.initialize(flags["distributed"])
  compile_cache.enable()
  console = rich_console.Console(
    highlight=False, soft_wrap=True, quiet=not distributed.is_first()
  )
  return run(config, pathlib.Path(flags["workdir"]), console)


def run(
  config: config_lib.ConfigDict, folder: pathlib.Path, console: rich_console.Console
) -> int:
  """Trains to the end, or until a signal; returns the exit status."""
  # What is to be trained, on what.
  with distributed.together():
    position_recipe = resolve.check(config)
    evaluations = during.schedule(config)
    opened = None
    if config.model.init_from:
      opened = reference.open_model(config.model.init_from)
    tokenizer = tokenizer_lib.resolve(config)
    shape = resolve.model_from(config, opened and opened.config, len(tokenizer))
    reference.check_vocabulary(tokenizer, shape)
    mesh = sharding.make_mesh(dict(config.mesh))
    resolve.check_mesh(config, shape, mesh.shape)
    platform = mesh.devices.flat[0].platform
    recipe = step_lib.recipe_from(config, shape, position_recipe, platform)
    share = sharding.process_share(mesh)
    data = pipeline.build(config, tokenizer, *share, console)

  # The program.
  schedule = optimizer.schedule(config.optim, data.steps)
  update = optimizer.make(config.optim, data.steps)
  train_step, eval_step = step_lib.compile_steps(recipe, update, schedule, mesh)

  # The state: this folder's own latest checkpoint, or the given weights.
  first = distributed.is_first()
  with distributed.together():
    if first:
      workdir.claim(folder, config, shape, opened, tokenizer)
      workdir.write_steps(folder, data.steps)
  claimed = distributed.exchange(workdir.identity(folder))[0]
  with distributed.together():
    workdir.check_shared(folder, claimed)
  saved = checkpoint.Checkpoints(
    folder, config.checkpoint.keep, config.checkpoint.keep_best
  )
  start = saved.latest() or 0
  console.print(describe(config, recipe, data, mesh, start, folder))
  abstract, shardings = step_lib.state_shardings(mesh, update, shape, recipe.adapters)
  iterator_state, base = None, frozen_base(recipe, opened, shardings.base)
  if start:
    state, iterator_state = saved.restore(abstract, shardings, start)
    state = dataclasses.replace(state, base=base)
  else:
    if recipe.adapters:
      params = initial_adapters(recipe, shardings.params)
    else:
      params = initial_params(opened, shape, config.seed, shardings.params)
    state = step_lib.init_state(params, update, shardings, base)
    if first:
      rows = data.first_rows(min(config.batch_size, preview.ROWS))
      show_first_batch(rows, position_recipe, config.seed, folder, console)
  iterator = data.train_iterator(iterator_state)

  def place(batch: dict[str, np.ndarray]) -> step_lib.Batch:
    rows = sharding.batch_sharding(mesh)
    return {
      name: jax.make_array_from_process_local_data(rows, x) for name, x in batch.items()
    }

  def held_out_loss() -> float:
    used = step_lib.full_params(recipe, state)
    sums = [eval_step(used, place(batch)) for batch in data.eval_batches]
    total, weight = np.sum(np.array(jax.device_get(sums)), axis=0)
    return float(total / weight)

  def evaluate(step: int, last: bool) -> None:
    asked = [t for t in evaluations if last or step == 0 or due(step, t.every)]
    params = plain_params(recipe, state, mesh) if asked else None
    for task in asked:
      numbers = during.run(
        task,
        step,
        params,
        shape,
        recipe.compute_dtype,
        tokenizer,
        mesh,
        folder,
        console,
      )
      log.evaluated(step, numbers)

  # The loop: dispatch step t, then read the numbers of step t−1.
  due = lambda step, every: every and step % every == 0
  log = Log(config, folder, console, start, data.steps)
  votes, status = distributed.Votes(), 0
  with jax.set_mesh(mesh), contextlib.closing(saved), signals.Stop(first) as stop, log:
    if not start:
      if data.eval_batches:
        log.held_out(0, held_out_loss())
      evaluate(0, last=False)
    for step in range(start + 1, data.steps + 1):
      state, numbers = train_step(state, place(next(iterator)))
      log.read_pending()
      log.pending = (step, numbers)
      last = step == data.steps
      if data.eval_batches and (due(step, config.eval.every) or last):
        log.held_out(step, held_out_loss())
      evaluate(step, last)
      status = votes.cast(stop.status)
      if due(step, config.checkpoint.every) or last or status:
        log.flush()  # the records of a saved step are on disk before the state
        saved.save(state, step, iterator.get_state(), log.eval_losses.get(step))
      if status:
        break
  console.print(log.summary())
  return status


def initial_params(
  opened: reference.Model | None,
  shape: model_config.ModelConfig,
  seed: int,
  shardings: Any,
) -> model.Params:
  """fp32 weights on their devices: from the reference, or random."""
  if opened is None:
    return jax.jit(lambda: model.init(shape, seed), out_shardings=shardings)()
  return reference.load_params(opened, np.float32, sharding.placer(shardings))


def initial_adapters(recipe: step_lib.Recipe, shardings: Any) -> model.Params:
  """fp32 adapters on their devices, with which the model is its base."""
  _, like = model.definition(recipe.model)
  draw = lambda: lora_trees.init(recipe.adapters, like, recipe.seed)
  return jax.jit(draw, out_shardings=shardings)()


def frozen_base(
  recipe: step_lib.Recipe, opened: reference.Model | None, shardings: Any
) -> model.Params | None:
  """The base under adapters as it is stored, on its devices; None without adapters."""
  if not recipe.adapters:
    return None
  if opened is None:
    found = adapters.random_base(recipe.model, recipe.seed)
  else:
    found = opened.weights
  place = lora_trees.placer(recipe.adapters, shardings)
  return reference.build_params(found, np.float32, place)


def plain_params(
  recipe: step_lib.Recipe, state: step_lib.TrainState, mesh: jax.sharding.Mesh
) -> model.Params:
  """What evaluations ask: the weights, adapters merged into their base."""
  if not recipe.adapters:
    return state.params
  at = sharding.params_shardings(mesh, model.definition(recipe.model)[1])
  merge = jax.jit(lora.merge, static_argnums=1, out_shardings=at)
  return merge(step_lib.full_params(recipe, state), recipe.compute_dtype)


def show_first_batch(
  batch: dict[str, np.ndarray],
  recipe: positions.PositionConfig,
  seed: int,
  folder: pathlib.Path,
  console: rich_console.Console,
) -> None:
  """Prints and draws where the tokens of the first batch sit."""
  positions_BL = np.asarray(positions.synthesize(recipe, seed, batch))
  found = preview.samples(batch, positions_BL)
  found.sort(key=len, reverse=True)  # long dialogues show most
  title = f"Positions of the first batch: {recipe.strategy}"
  limit = max(recipe.max_position, int(positions_BL.max()) + 1)
  if recipe.strategy == "contiguous":
    limit = int(positions_BL.max()) + 1
  picture = folder / "positions.png"
  preview.draw(found, limit, title, picture)
  console.print(f"positions  drawn in {picture}; the longest dialogue of this batch:")
  console.print(f"           {preview.describe(found[0])}")


def describe(
  config: config_lib.ConfigDict,
  recipe: step_lib.Recipe,
  data: pipeline.Data,
  mesh: jax.sharding.Mesh,
  start: int,
  folder: pathlib.Path,
) -> str:
  """What is about to be trained, in lines of `name  value`."""
  shape = recipe.model
  trained, base_bytes, scope = shape.num_params(), 0, []
  if recipe.adapters:
    trained, base_bytes = lora_trees.sizes(recipe.adapters, model.definition(shape)[1])
    told = lora.describe(recipe.adapters)
    scope = [f"adapters   {trained / 1e6:,.1f}M parameters: {told}"]
  p = config.positions
  told = p.strategy
  if p.strategy != "contiguous":
    told += f" up to {p.max_position:,}, p={p.skip_prob} a {p.prob_per}, {p.gaps} gaps"
  if p.strategy == "skip_outer" and not data.several_turns:
    told += (
      "\n           NOTE: no sample has a second instruction, so nothing will skip"
    )
  scaled = f"{shape.rope.kind}, theta {shape.rope.theta:g}"
  if shape.rope.factor != 1:
    scaled += f", {shape.rope.factor:.3g}x to {shape.window:,} positions"
  state, kind = 12 * trained + base_bytes, jax.devices()[0].device_kind
  hosts = f" of {n} processes" if (n := jax.process_count()) > 1 else ""
  axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  return "\n".join(
    [
      f"model      {shape.num_params() / 1e6:,.1f}M parameters, {shape.num_layers} "
      f"layers, from {config.model.init_from or 'scratch'}",
      *scope,
      f"rope       {scaled}",
      f"positions  {told}",
      *(f"data       {line}" for line in data.report.splitlines()),
      f"batch      {config.batch_size} rows x {config.data.seq_len} tokens"
      f"{', packed' if config.data.packing else ''}"
      f"{'' if config.data.packing_mask else ' without a mask'}, "
      f"{config.grad_accum} microbatch(es), {data.steps} steps",
      f"memory     {state / 2**30:.2f} GiB weights and Adam state, "
      f"{4 * trained / 2**30:.2f} GiB gradients, over {mesh.devices.size} {kind} "
      f"device(s){hosts} ({axes})",
      f"workdir    {folder}"
      + (f": continuing after step {start}" if start else ": a new run"),
    ]
  )


class Log:
  """Reads the numbers of finished steps; writes, shows and checks them."""

  def __init__(
    self,
    config: config_lib.ConfigDict,
    folder: pathlib.Path,
    console: rich_console.Console,
    start: int,
    steps: int,
  ):
    self.pending: tuple[int, step_lib.Metrics] | None = None
    self.eval_losses: dict[int, float] = {}
    self._config, self._folder, self._console = config, folder, console
    self._start, self._steps, self._done = start, steps, start
    self._writer = metrics.NoWriter()
    if distributed.is_first():
      self._writer = metrics.Writer(folder, start or -1)
    self._bar = metrics.Progress(console, start, steps)
    self._read_at = time.monotonic()
    self._losses: list[float] = []
    self._rates: list[float] = []
    self._nonfinite = 0

  def __enter__(self) -> "Log":
    self._bar.__enter__()
    return self

  def __exit__(self, *raised) -> None:
    self._bar.__exit__(*raised)
    self._writer.close()

  def read_pending(self) -> None:
    """Waits for the pending step's numbers and records them."""
    if self.pending is None:
      return
    step, numbers = self.pending
    self.pending = None
    record = {"step": step} | {
      name: value.item() for name, value in jax.device_get(numbers).items()
    }
    now = time.monotonic()
    record["tokens_per_second"] = record["tokens"] / (now - self._read_at)
    self._read_at = now
    self._done = step
    self._losses.append(record["loss"])
    self._rates.append(record["tokens_per_second"])
    if step % self._config.log_every == 0 or step == self._steps:
      self._writer.write(record)
    self._bar.update(record)
    self._check_finite(record)

  def _check_finite(self, record: metrics.Record) -> None:
    self._nonfinite = 0 if record["finite"] else self._nonfinite + 1
    if self._nonfinite:
      self._console.print(
        f"step {record['step']}: loss {record['loss']}, gradient norm "
        f"{record['grad_norm']}: not finite, so the update was skipped"
      )
    if self._nonfinite >= self._config.optim.max_nonfinite_steps:
      raise errors.UserError(
        f"{self._nonfinite} steps in a row without a finite loss, the last one "
        f"{record['step']}. Lower optim.learning_rate, or look at the data; "
        f"checkpoints in {self._folder} are untouched."
      )

  def held_out(self, step: int, loss: float) -> None:
    """Records a held-out loss."""
    self.read_pending()
    self.eval_losses[step] = loss
    self._writer.write({"step": step, "eval_loss": loss})
    self._console.print(f"step {step}: held-out loss {loss:.4f}")
    self._read_at = time.monotonic()

  def evaluated(self, step: int, numbers: metrics.Record) -> None:
    """Records what a task found."""
    self.read_pending()
    self._writer.write({"step": step} | numbers)
    told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    self._console.print(f"step {step}: {told}")
    self._read_at = time.monotonic()

  def flush(self) -> None:
    """Puts all records so far on disk."""
    self.read_pending()
    self._writer.flush()

  def summary(self) -> str:
    """The last words of a run."""
    lines = []
    if self._losses:
      rate = float(np.median(self._rates))
      lines.append(
        f"trained    steps {self._start + 1}-{self._done} of {self._steps}, loss "
        f"{self._losses[0]:.4f} -> {self._losses[-1]:.4f}, median {rate:,.0f} tok/s"
      )
    if len(self.eval_losses) > 1:
      first, *_, last = self.eval_losses.values()
      lines.append(f"held out   loss {first:.4f} -> {last:.4f}")
    if self._done < self._steps:
      lines.append("stopped    saved; the same command goes on from here")
    else:
      lines.append(
        f"done       {self._folder}: metrics.jsonl, checkpoints/, tensorboard/"
      )
      lines.append(
        f"next       python -m skipalign_jax.generate --model={self._folder} "
        "--prompt='Hello'"
      )
    return "\n".join(lines)


if __name__ == "__main__":
  distributed.run_command(main)

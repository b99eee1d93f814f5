"""Fine-tunes a model: python -m skipalign_jax.train --config=FILE --workdir=DIR.

The same command continues a run that was stopped: the workdir holds the state,
the data iterator and the resolved config. On several hosts it is the same command in
every process: all compute, process 0 writes and speaks.
"""

import contextlib
import dataclasses
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from rich import console as rich_console

from skipalign_jax import cli
from skipalign_jax import config as config_lib
from skipalign_jax.data import pipeline
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.evals import scheduled
from skipalign_jax.hf import adapters, reference
from skipalign_jax.method import positions
from skipalign_jax.model import decoder, lora, lora_state, model_config, sharding
from skipalign_jax.runtime import compile_cache, distributed, errors, signals, terminal
from skipalign_jax.training import (
  checkpoint,
  optimizer,
  preview,
  report,
  resolve,
  starts,
  workdir,
)
from skipalign_jax.training import step as step_lib

USAGE = """python -m skipalign_jax.train --config=FILE[:variant] --workdir=DIR
    [--config.some.key=value …] [--distributed=auto|off|HOST:PORT,COUNT,INDEX]"""


def main() -> int:
  config, flags = cli.parse(sys.argv, USAGE, workdir="", distributed="auto")
  if not flags["workdir"]:
    raise errors.UserError(f"--workdir=DIR is missing\nusage: {USAGE}")

  def work() -> int:
    distributed.initialize(flags["distributed"])
    compile_cache.enable()
    console = terminal.Console(quiet=not distributed.is_first())
    return run(config, pathlib.Path(flags["workdir"]), console)

  return distributed.run(work)


def run(
  config: config_lib.ConfigDict, folder: pathlib.Path, console: rich_console.Console
) -> int:
  """Trains to the end, or until a signal; returns the exit status."""
  # What is to be trained, on what.
  with distributed.together():
    position_recipe = resolve.check(config)
    evaluations = scheduled.schedule(config)
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
      lock = workdir.claim(folder, config, shape, opened, tokenizer, console)
      workdir.write_steps(folder, data.steps)
      checkpoint.set_damaged_aside(folder, console)
  claimed = distributed.exchange(workdir.identity(folder))[0]
  with distributed.together():
    workdir.check_shared(folder, claimed)
  saved = checkpoint.Checkpoints(
    folder, config.checkpoint.keep, config.checkpoint.keep_best
  )
  start = saved.latest() or 0
  console.print(report.describe(config, recipe, data, mesh, start, folder))
  with distributed.together():
    if first:
      for change in starts.add(
        folder, starts.describe(config, data.fingerprint, start)
      ):
        console.print(f"NOTE       since the last start, {change}")
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
      numbers = scheduled.run(
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
  log = report.Log(config, folder, console, start, data.steps)
  votes, status = distributed.Votes(), 0
  with (
    signals.Stop(first) as stop,
    workdir.writing(folder),
    jax.set_mesh(mesh),
    contextlib.closing(saved),
    contextlib.closing(iterator),
    log,
  ):
    if not start:
      if data.eval_batches:
        log.held_out(0, held_out_loss())
      evaluate(0, last=False)
    for step in range(start + 1, data.steps + 1):
      batch = next(iterator)
      state, numbers = train_step(state, place(batch))
      log.read_pending()
      log.pending = (step, numbers, batch)
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
  if first:
    lock.close()
  return status


def initial_params(
  opened: reference.Model | None,
  shape: model_config.ModelConfig,
  seed: int,
  shardings: Any,
) -> decoder.Params:
  """fp32 weights on their devices: from the reference, or random."""
  if opened is None:
    return jax.jit(lambda: decoder.init(shape, seed), out_shardings=shardings)()
  return reference.load_params(opened, np.float32, sharding.placer(shardings))


def initial_adapters(recipe: step_lib.Recipe, shardings: Any) -> decoder.Params:
  """fp32 adapters on their devices, with which the model is its base."""
  _, like = decoder.definition(recipe.model)
  draw = lambda: lora_state.init(recipe.adapters, like, recipe.seed)
  return jax.jit(draw, out_shardings=shardings)()


def frozen_base(
  recipe: step_lib.Recipe, opened: reference.Model | None, shardings: Any
) -> decoder.Params | None:
  """The base under adapters as it is stored, on its devices; None without adapters."""
  if not recipe.adapters:
    return None
  if opened is None:
    found = adapters.random_base(recipe.model, recipe.seed)
  else:
    found = opened.weights
  place = lora_state.placer(recipe.adapters, shardings)
  return reference.build_params(found, np.float32, place)


def plain_params(
  recipe: step_lib.Recipe, state: step_lib.TrainState, mesh: jax.sharding.Mesh
) -> decoder.Params:
  """What evaluations ask: the weights, adapters merged into their base."""
  if not recipe.adapters:
    return state.params
  at = sharding.params_shardings(mesh, decoder.definition(recipe.model)[1])
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


if __name__ == "__main__":
  errors.run_command(main)

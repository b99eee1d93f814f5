"""What a run says of itself: at its start, while it trains, at its end."""

import pathlib
import time

import jax
import numpy as np
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax.data import pipeline
from skipalign_jax.method import long_short, positions
from skipalign_jax.model import decoder, lora, lora_state
from skipalign_jax.runtime import distributed, terminal
from skipalign_jax.training import health, metrics
from skipalign_jax.training import step as step_lib


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
    trained, base_bytes = lora_state.sizes(
      recipe.adapters, decoder.definition(shape)[1]
    )
    told = lora.describe(recipe.adapters)
    scope = [f"adapters   {trained / 1e6:,.1f}M parameters: {told}"]
  told = describe_positions(recipe.positions)
  if recipe.positions.strategy == "skip_outer" and not data.several_turns:
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
      *describe_long_short(recipe.long_short),
      *(f"data       {line}" for line in data.report.splitlines()),
      f"batch      {config.batch_size} rows x {config.data.seq_len} tokens"
      f"{', packed' if config.data.packing else ''}"
      f"{'' if config.data.packing_mask else ' without a mask'}, "
      f"{config.grad_accum} microbatch(es), {data.steps} steps",
      f"memory     {terminal.size(state)} weights and Adam state, "
      f"{terminal.size(4 * trained)} gradients, over {mesh.devices.size} {kind} "
      f"device(s){hosts} ({axes})",
      f"workdir    {folder}"
      + (f": continuing after step {start}" if start else ": a new run"),
    ]
  )


def describe_positions(p: positions.PositionConfig) -> str:
  """The strategy, and of its parameters those that it has."""
  if p.strategy == "contiguous":
    return p.strategy
  told = f"{p.strategy} up to {p.max_position:,}"
  if p.strategy in positions.DO_SKIP:
    told += f", p={p.skip_prob} a {p.prob_per}, {p.gaps} gaps"
    if p.skip_below:
      told += f", samples of {p.skip_below:,} tokens or more stay contiguous"
  elif p.strategy == "pose":
    told += f", {p.chunks} chunks"
  return told + ("" if p.resample == "never" else ", drawn anew each epoch")


def describe_long_short(regulariser: long_short.LongShortConfig) -> list[str]:
  """Lines on its weight; none without one."""
  if not regulariser.alpha:
    return []
  lines = [f"long-short alpha {regulariser.alpha:g}"]
  if regulariser.alpha >= long_short.TOO_STRONG:
    lines.append(
      f"           NOTE: from alpha {long_short.TOO_STRONG:g} on the paper saw worse "
      "long-context scores"
    )
  return lines


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
    # A step whose numbers are not read yet, and what it was fed.
    self.pending: tuple[int, step_lib.Metrics, pipeline.Batch] | None = None
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
    self._nonfinite = health.Nonfinite(
      folder, config.optim.max_nonfinite_steps, jax.process_index()
    )
    # The writer has dropped what will be made again.
    self._spikes = health.Spikes(folder / "metrics.jsonl")

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
    step, numbers, batch = self.pending
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
      self._watch(record)
    self._bar.update(record)
    self._nonfinite.check(record, batch, self._console.print)

  def _watch(self, record: metrics.Record) -> None:
    """Writes a spike beside its record."""
    if (sigmas := self._spikes.sigmas(record["loss"])) is None:
      return
    self._writer.write({"step": record["step"], "loss_spike": sigmas})
    self._console.print(
      f"step {record['step']}: loss {record['loss']:.4f} is {sigmas:.1f} standard "
      "deviations above the recent ones"
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
    if self._nonfinite.total:
      lines.append(f"skipped    {self._nonfinite.total} steps that were not finite")
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

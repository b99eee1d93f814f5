"""The numbers of a run while it trains: read, written, shown and checked."""

import collections
import json
import pathlib
import shlex

import jax
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import pipeline
from skipalign_jax.runtime import distributed, progress, terminal
from skipalign_jax.training import health, loggers, metrics, throughput
from skipalign_jax.training import recipe as recipe_lib
from skipalign_jax.training import state as state_lib

OF_SUMMARY = {
  "loss",
  "tokens_per_second",
  "tokens_per_second_per_device",
  "mfu",
  "step_seconds",
  "data_seconds",
  "host_seconds",
  "peak_memory_gib",
}


class Log:
  """Reads the numbers of finished steps; writes, shows and checks them.

  Reading a step's numbers waits for the device; so those of step t are read after step
  t + 1 was dispatched.

  Attributes:
    eval_losses: step → held-out loss.
    clock: of the steps; the loop reports to it what it waits for.
  """

  def __init__(
    self,
    config: config_lib.ConfigDict,
    recipe: recipe_lib.Recipe,
    folder: pathlib.Path,
    console: terminal.Console,
    start: int,
    steps: int,
  ):
    self._pending: tuple[int, state_lib.Metrics, pipeline.Batch] | None = None
    self.eval_losses: dict[int, float] = {}
    self._config, self._folder, self._console = config, folder, console
    self._start, self._steps, self._done = start, steps, start
    self._writer = metrics.NoWriter()
    if distributed.is_first():
      others = loggers.Loggers(config, folder, console.print)
      self._writer = metrics.Writer(folder, start or -1, others)
    self._bar = progress.Progress(console, "training", steps, start, both_ends=True)
    self.clock = throughput.Clock()
    self._throughput = throughput.Throughput(recipe)
    self._crop = recipe.crop  # a step computes so much of a row
    self._history: dict[str, list[float]] = collections.defaultdict(list)
    self._nonfinite = health.Nonfinite(
      folder, config.optim.max_nonfinite_steps, jax.process_index()
    )
    # The writer has dropped the records of steps that will run again.
    self._spikes = health.Spikes(folder / "metrics.jsonl")

  def __enter__(self) -> "Log":
    self._bar.__enter__()
    return self

  def __exit__(self, *raised) -> None:
    self._bar.__exit__(*raised)
    self._writer.close(failed=raised[0] is not None)

  def dispatched(
    self, step: int, numbers: state_lib.Metrics, batch: pipeline.Batch
  ) -> None:
    """Records the step before, and takes the numbers of this one, to be read later.

    Args:
      step: that was dispatched.
      numbers: its metrics, on the devices.
      batch: this process' rows of it.
    """
    self.read()
    self._pending = (step, numbers, batch)

  def read(self) -> None:
    """Waits for the numbers of the pending step, if there is one, and records them."""
    if self._pending is None:
      return
    step, numbers, batch = self._pending
    self._pending = None
    with self.clock.waiting("device"):
      found = jax.device_get(numbers)
    record = {"step": step} | {name: value.item() for name, value in found.items()}
    times, length = self.clock.lap(), self._crop or batch["tokens"].shape[1]
    record |= self._throughput.of(record["tokens"], length, times["step_seconds"])
    record |= times | {"peak_memory_gib": throughput.peak_memory()}
    self._done = step
    for name in OF_SUMMARY & record.keys():
      self._history[name].append(record[name])
    if step % self._config.log_every == 0 or step == self._steps:
      self._writer.write(record)
      self._check_spike(record)
    self._show(record)
    self._nonfinite.check(record, batch, self._console.print)

  def _show(self, record: metrics.Record) -> None:
    """Moves the progress bar, or prints a line from time to time."""
    loss = f"loss {record['loss']:.4f}"
    rate = f"{record['tokens_per_second']:,.0f} tok/s"
    if "mfu" in record:
      rate += f"  MFU {record['mfu']:.1%}"
    line = (
      f"step {record['step']}/{self._steps}  {loss}  "
      f"lr {record['learning_rate']:.2e}  {rate}"
    )
    self._bar.update(int(record["step"]), line, f"{loss} {rate}")

  def _check_spike(self, record: metrics.Record) -> None:
    """Writes a loss spike after its record."""
    if (sigmas := self._spikes.sigmas(record["loss"])) is None:
      return
    self._writer.write({"step": record["step"], "loss_spike": sigmas})
    self._console.print(
      f"step {record['step']}: loss {record['loss']:.4f} is {sigmas:.1f} standard "
      "deviations above the recent ones"
    )

  def held_out(self, step: int, loss: float) -> None:
    """Records a held-out loss."""
    self.read()
    self.eval_losses[step] = loss
    self._writer.write({"step": step, "eval_loss": loss})
    self._console.print(f"step {step}: held-out loss {loss:.4f}")
    self.clock.restart()

  def evaluated(self, step: int, numbers: metrics.Record) -> None:
    """Records the scores of a task."""
    self.read()
    self._writer.write({"step": step} | numbers)
    scores = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    self._console.print(f"step {step}: {scores}")
    self.clock.restart()

  def evaluated_tasks(self, step: int) -> set[str]:
    """Names of the tasks whose scores at a step are recorded; same in all processes."""
    names, path = set(), self._folder / "metrics.jsonl"
    with distributed.together():
      if distributed.is_first() and path.exists():
        found = [record for record in metrics.read(path) if record["step"] == step]
        keys = {key for record in found for key in record}
        names = {key.partition("/")[0] for key in keys if "/" in key}
    return set(json.loads(distributed.exchange(json.dumps(sorted(names)))[0]))

  def flush(self) -> None:
    """Puts all records so far on disk."""
    self.read()
    self._writer.flush()

  def _speed(self) -> str:
    """Medians over the steps after the first, which compiles, and the peak memory."""
    peak = f"peak memory {self._history['peak_memory_gib'][-1]:.2f} GiB"
    if len(self._history["loss"]) == 1:
      return f"not known from one step, which compiles; {peak}"
    median = {name: np.median(x[1:]) for name, x in self._history.items()}
    whole = median["step_seconds"]
    parts = [f"{median['tokens_per_second_per_device']:,.0f} tok/s per device"]
    if "mfu" in median:
      parts.append(f"MFU {median['mfu']:.1%}")
    parts += [
      f"{median['data_seconds'] / whole:.0%} of a step waits for data",
      f"{median['host_seconds'] / whole:.0%} is host work",
      peak,
    ]
    return ", ".join(parts)

  def summary(self) -> str:
    """What a run reports at its end."""
    lines = []
    if losses := self._history["loss"]:
      rate = np.median(self._history["tokens_per_second"])
      lines += [
        f"trained    steps {self._start + 1}-{self._done} of {self._steps}, loss "
        f"{losses[0]:.4f} -> {losses[-1]:.4f}, median {rate:,.0f} tok/s",
        f"speed      {self._speed()}",
      ]
    if self._nonfinite.total:
      lines.append(f"skipped    {self._nonfinite.total} steps that were not finite")
    if losses := list(self.eval_losses.values()):
      first = f"{losses[0]:.4f} -> " if len(losses) > 1 else ""
      lines.append(f"held out   loss {first}{losses[-1]:.4f}")
    if self._done < self._steps:
      lines.append("stopped    saved; run the same command again to resume")
    else:
      lines.append(
        f"done       {self._folder}: metrics.jsonl, checkpoints/, tensorboard/"
      )
      # Random weights have not learned to reply after a few steps.
      folder = shlex.quote(str(self._folder))
      command = f"analyze training {folder}"
      if self._config.model.init_from:
        command = f"generate --model={folder} --prompt='Hello'"
      lines.append(f"next       python -m skipalign_jax.{command}")
    return "\n".join(lines)

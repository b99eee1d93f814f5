"""Records of a run in Weights & Biases, trackio and MLflow, which are extras.

Where each of them keeps its data, and whether it is offline, its own environment
variables say. A logger that fails is reported once and left out from then on.
"""

import dataclasses
import pathlib
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from skipalign_jax import config as config_lib
from skipalign_jax.runtime import errors, extras, files

FILE = "loggers.json"  # of a workdir: name of a logger → its id of the run


@dataclasses.dataclass(frozen=True)
class Run:
  """What a logger shows of a run.

  Attributes:
    project: that it belongs to.
    folder: its workdir; the last part is its name.
    config: every key and its value.
    id: that the logger gave it at its first start; None at that one.
  """

  project: str
  folder: pathlib.Path
  config: dict[str, Any]
  id: str | None

  @property
  def name(self) -> str:
    """Of the workdir."""
    return self.folder.absolute().name


class Wandb:
  """Weights & Biases; its files are in the workdir."""

  def __init__(self, run: Run):
    import wandb

    self.id = run.id or uuid.uuid4().hex
    self._run = wandb.init(
      project=run.project,
      name=run.name,
      id=self.id,
      resume="allow",
      dir=str(run.folder),
      config=run.config,
      settings=wandb.Settings(console="off"),  # the terminal is left as it is
    )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds the values of a step."""
    self._run.log(values, step=step)

  def close(self, failed: bool) -> None:
    """Sends what is left."""
    self._run.finish(exit_code=int(failed))


class Trackio:
  """trackio, which knows runs by their names."""

  def __init__(self, run: Run):
    import trackio

    self.id = run.id or f"{run.name}-{uuid.uuid4().hex[:8]}"
    self._run = trackio.init(
      project=run.project, name=self.id, resume="allow", config=run.config
    )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds the values of a step."""
    self._run.log(values, step=step)

  def close(self, failed: bool) -> None:
    """Sends what is left; it has no state for a run that failed."""
    self._run.finish()


class Mlflow:
  """MLflow; a project is an experiment."""

  def __init__(self, run: Run):
    import mlflow

    self._mlflow = mlflow
    mlflow.set_experiment(run.project)
    self.id = mlflow.start_run(run_id=run.id, run_name=run.name).info.run_id
    if run.id is None:  # they cannot be changed later
      mlflow.log_params(run.config)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds the values of a step."""
    self._mlflow.log_metrics(values, step=step)

  def close(self, failed: bool) -> None:
    """Marks the run as finished or failed."""
    self._mlflow.end_run("FAILED" if failed else "FINISHED")


# Each is called as its package and its extra.
LOGGERS: dict[str, Callable[[Run], Any]] = {
  "wandb": Wandb,
  "trackio": Trackio,
  "mlflow": Mlflow,
}


def names(to: str) -> tuple[str, ...]:
  """The loggers of config.log.to.

  Raises:
    UserError: an unknown one, or one twice.
  """
  found = tuple(name for name in re.split(r"[,\s]+", to) if name)
  unknown = [name for name in found if name not in LOGGERS]
  if unknown or len(set(found)) < len(found):
    wrong = f"{', '.join(unknown)} unknown" if unknown else "each once"
    raise errors.UserError(
      f"log.to={to!r}: {wrong}; a comma list of {', '.join(LOGGERS)}, or empty"
    )
  return found


def check_installed(to: str) -> None:
  """Raises UserError for a logger of config.log.to whose package is not installed."""
  for name in names(to):
    extras.need(name, f"log.to={to}", "leave it out of log.to")


class Loggers:
  """The loggers of a run, each as long as it works."""

  def __init__(
    self,
    config: config_lib.ConfigDict,
    folder: pathlib.Path,
    report: Callable[[str], None],
  ):
    """Starts them, or continues the same runs as before.

    Args:
      config: of the run.
      folder: the workdir.
      report: takes a line for the terminal.
    """
    self._report, self._loggers = report, {}
    path, chosen = folder / FILE, names(config.log.to)
    ids = files.read_json(path) if chosen and path.exists() else {}
    values = config_lib.flatten(config)
    for name in chosen:
      run = Run(config.log.project, folder, values, ids.get(name))

      def start(name=name, run=run):
        self._loggers[name] = LOGGERS[name](run)
        ids[name] = self._loggers[name].id
        files.write_json(path, ids)

      self._guarded(name, start)

  def write(self, record: Mapping[str, float | int | bool]) -> None:
    """Passes a record on; `step` is its key."""
    values = {name: float(x) for name, x in record.items() if name != "step"}
    for name, logger in list(self._loggers.items()):
      self._guarded(name, logger.write, record["step"], values)

  def close(self, failed: bool) -> None:
    """Ends them; what they have not sent is sent. `failed`: an error ends the run."""
    for name, logger in list(self._loggers.items()):
      self._guarded(name, logger.close, failed)

  def _guarded(self, name: str, call: Callable[..., None], *arguments: Any) -> None:
    try:
      call(*arguments)
    except Exception as error:  # of any kind: training does not end for it
      self._loggers.pop(name, None)
      self._report(
        f"NOTE       {name} failed and gets no more records of this start: "
        f"{type(error).__name__}: {error}"
      )

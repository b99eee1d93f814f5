"""W&B, trackio and MLflow: the same run after a resume; failures end nothing.

The packages are extras; without one, its test is skipped.
"""

import pathlib
import sys

import pytest
import tiny_train

from skipalign_jax import config as config_lib
from skipalign_jax.runtime import errors, files
from skipalign_jax.training import loggers, loop, metrics, resolve

RECORDS = [
  {"step": 1, "loss": 2.0, "finite": True},
  {"step": 2, "loss": float("nan"), "finite": False},
  {"step": 2, "eval_loss": 3.0},
]


def config_of(to):
  config = config_lib.default()
  config.epochs, config.log.to, config.log.project = 1, to, "stretched"
  return config


def write(folder, to, records, resume_step, report):
  """One start of a run: its writer with loggers."""
  others = loggers.Loggers(config_of(to), folder, report)
  writer = metrics.Writer(folder, resume_step, others)
  for record in records:
    writer.write(record)
  writer.close()


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "mine").mkdir()
  return tmp_path / "mine"


@pytest.fixture
def fake(monkeypatch):
  """A logger "fake"; attributes of the class say what it got, and where it fails."""

  class Fake:
    runs, seen, fails, closed = [], [], "", 0

    def __init__(self, run):
      Fake.fail("start")
      Fake.runs.append(run)
      self.id = run.id or "first"

    def write(self, step, values):
      Fake.fail("write")
      Fake.seen.append((step, values))

    def close(self, failed):
      Fake.fail("close")
      Fake.closed += 1
      Fake.failed = failed

    @staticmethod
    def fail(where):
      if Fake.fails == where:
        raise ConnectionError("no network")

  monkeypatch.setitem(loggers.LOGGERS, "fake", Fake)
  return Fake


def test_a_resumed_run_continues_and_each_record_comes_once(folder, fake):
  reported = []
  write(folder, "fake", RECORDS, -1, reported.append)
  again = [*RECORDS[1:], {"step": 3, "loss": 1.0}]  # step 2 was not saved
  write(folder, "fake", again, 1, reported.append)
  assert [run.id for run in fake.runs] == [None, "first"]
  assert fake.runs[0].name == "mine" and fake.runs[0].project == "stretched"
  assert fake.runs[0].config["optim.kind"] == "adamw"
  assert [step for step, _ in fake.seen] == [1, 2, 2, 3] and fake.closed == 2
  assert fake.seen[0] == (1, {"loss": 2.0, "finite": 1.0})
  assert len(metrics.read(folder / "metrics.jsonl")) == 4 and not reported
  assert files.read_json(folder / loggers.FILE) == {"fake": "first"}


@pytest.mark.parametrize(("where", "seen"), [("start", 0), ("write", 0), ("close", 3)])
def test_a_failure_is_reported_once_and_ends_nothing(folder, fake, where, seen):
  fake.fails, reported = where, []
  write(folder, "fake", RECORDS, -1, reported.append)
  assert len(metrics.read(folder / "metrics.jsonl")) == 3 and len(fake.seen) == seen
  assert len(reported) == 1
  assert all(word in reported[0] for word in ("NOTE", "fake", "no network"))


def test_nothing_is_logged_by_default(folder):
  assert config_lib.default().log.to == ""
  write(folder, "", RECORDS, -1, print)
  assert not (folder / loggers.FILE).exists()


@pytest.mark.parametrize("to", ["wandb,tensorboard", "wandb wandb"])
def test_unknown_loggers_are_refused(to):
  with pytest.raises(errors.UserError, match=r"log.to=.* wandb, trackio, mlflow"):
    resolve.check(config_of(to))


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
  for name in loggers.LOGGERS:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(errors.UserError, match=rf"pip install -e '.\[{name}\]'"):
      loggers.check_installed(name)
  loggers.check_installed("")


def test_a_run_is_refused_before_its_folder_is_made(folder, monkeypatch, cache_dir):
  monkeypatch.setitem(sys.modules, "wandb", None)
  c = tiny_train.load("llama2_ntk")
  c.data.cache_dir, c.log.to = cache_dir, "wandb"
  with pytest.raises(errors.UserError, match=r"log\.to=wandb needs wandb"):
    tiny_train.run(c, folder / "run")
  assert not (folder / "run").exists()


def test_the_records_of_a_run_are_passed_on(folder, fake, monkeypatch, cache_dir):
  monkeypatch.setattr(loggers, "check_installed", lambda to: None)
  c = tiny_train.load("llama2_ntk")
  c.data.cache_dir, c.data.eval, c.data.seq_len = cache_dir, "", 256
  c.steps, c.batch_size, c.log.to, c.log.project = 1, 2, "fake", "stretched"
  assert tiny_train.run(c, folder / "run") == 0
  assert [step for step, _ in fake.seen] == [1] and fake.closed == 1
  assert fake.runs[0].name == "run" and fake.runs[0].project == "stretched"
  assert not fake.failed


def test_a_run_that_an_error_ends_is_shown_as_failed(
  folder, fake, monkeypatch, cache_dir
):
  monkeypatch.setattr(loggers, "check_installed", lambda to: None)
  monkeypatch.setattr(loop.Loop, "_save", lambda *_: 1 / 0)
  c = tiny_train.load("llama2_ntk")
  c.data.cache_dir, c.data.eval, c.data.seq_len = cache_dir, "", 256
  c.steps, c.batch_size, c.log.to = 1, 2, "fake"
  with pytest.raises(ZeroDivisionError):
    tiny_train.run(c, folder / "run")
  assert fake.closed == 1 and fake.failed


def start_twice(folder, name):
  """Two starts, of which the second repeats step 2; the id of the run."""
  reported = []
  write(folder, name, RECORDS, -1, reported.append)
  first = files.read_json(folder / loggers.FILE)
  again = [*RECORDS[1:], {"step": 3, "loss": 1.0}]
  write(folder, name, again, 1, reported.append)
  assert files.read_json(folder / loggers.FILE) == first
  assert not reported
  return first[name]


def test_wandb_offline(folder, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  found = start_twice(folder, "wandb")
  kept = sorted((folder / "wandb").glob("offline-run-*"))
  assert kept and all(path.name.endswith(found) for path in kept)
  assert all(list(path.glob("*.wandb")) for path in kept)


def test_trackio_in_a_local_folder(folder, monkeypatch, tmp_path):
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at the import
  pytest.importorskip("trackio")
  from trackio import sqlite_storage

  name = start_twice(folder, "trackio")
  assert name.startswith("mine-")
  rows = sqlite_storage.SQLiteStorage.get_logs("stretched", name)
  losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
  assert losses[0] == (1, 2.0) and losses[-1] == (3, 1.0) and len(losses) == 3


def test_mlflow_in_a_local_database(folder, monkeypatch, tmp_path):
  mlflow = pytest.importorskip("mlflow")
  monkeypatch.chdir(tmp_path)
  mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
  found = start_twice(folder, "mlflow")
  client = mlflow.MlflowClient()
  run = client.get_run(found)
  assert run.info.run_name == "mine" and run.info.status == "FINISHED"
  assert run.data.params["optim.kind"] == "adamw"
  losses = [(m.step, m.value) for m in client.get_metric_history(found, "loss")]
  assert losses[0] == (1, 2.0) and losses[-1] == (3, 1.0) and len(losses) == 3
  assert not list(pathlib.Path(tmp_path).glob("mlruns/*/*/artifacts/*"))

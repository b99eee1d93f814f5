"""A workdir has one writer, and reports what its storage does."""

import contextlib
import dataclasses
import errno
import io
import json
import types

import pytest
import tiny
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax.data import tokenizer
from skipalign_jax.hf import native
from skipalign_jax.model import rope
from skipalign_jax.runtime import errors, locks
from skipalign_jax.training import run, starts, workdir

SILENT = rich_console.Console(quiet=True)


def described(config):
  return native.Description(tiny.config(), config=config.to_dict())


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EIO"])
def test_a_filesystem_without_locks_is_reported(name, tmp_path, monkeypatch):
  number, file = getattr(errno, name), io.StringIO()

  def lockf(*_):
    raise OSError(number, errno.errorcode[number])

  monkeypatch.setattr(locks.fcntl, "lockf", lockf)
  console = rich_console.Console(file=file, soft_wrap=True)
  claim = lambda: workdir.claim(
    tmp_path / "run",
    config_lib.default(),
    tiny.config(),
    None,
    tokenizer.byte_tokenizer(),
    console,
  )
  if name == "EIO":  # another failure is none of a missing service
    with pytest.raises(errors.UserError, match=r"run cannot be used: .*fails; look"):
      claim()
    return
  claim().close()
  claim().close()  # a run that is resumed
  reported = file.getvalue().splitlines()
  assert len(reported) == 2 and reported[0].startswith("NOTE ")
  assert f"{tmp_path / 'run'} has no locks" in reported[0]


def test_keys_that_are_new_since_a_run_began_have_their_defaults(tmp_path):
  config = config_lib.default()
  older = described(config)
  del older.config["long_short"], older.config["positions"]["schedule"]
  native.write_config(tmp_path, older)
  words = tokenizer.byte_tokenizer()
  claim = lambda: workdir.claim(tmp_path, config, tiny.config(), None, words, SILENT)
  claim().close()
  config.long_short.alpha = 0.5
  with pytest.raises(errors.UserError, match=r"long_short.alpha: the run has 0.0, now"):
    claim()


def test_a_model_that_is_another_one_since_a_run_began(tmp_path):
  config, words, shape = config_lib.default(), tokenizer.byte_tokenizer(), tiny.config()
  claim = lambda shape: workdir.claim(tmp_path, config, shape, None, words, SILENT)
  claim(shape).close()
  ntk = rope.RopeConfig("ntk", shape.rope.theta, 4.0, shape.window)
  for changes in ({"rope": ntk}, {"norm_eps": 1e-6}, {"window": 128}):
    (name,) = changes
    with pytest.raises(errors.UserError, match=rf"  {name}: the run has .*, now"):
      claim(dataclasses.replace(shape, **changes))
  known = dataclasses.replace(shape, rope=ntk)
  native.write_config(tmp_path, native.Description(known, config=config.to_dict()))
  theta = rope.ntk_theta(ntk.theta, ntk.factor, shape.head_dim)
  claim(dataclasses.replace(shape, rope=rope.RopeConfig("none", theta))).close()


def test_keys_that_an_older_version_had_are_named(tmp_path):
  config = config_lib.default()
  older = described(config)
  older.config["positions"]["speed"] = 3
  native.write_config(tmp_path, older)
  with pytest.raises(errors.UserError, match=r"speed: the run has 3, now no such key"):
    workdir.claim(tmp_path, config, tiny.config(), None, None, SILENT)


def test_storage_errors_are_reported_and_others_not_hidden(tmp_path):
  with (
    pytest.raises(errors.UserError, match=r"full; free some space\.\nCheckpoints"),
    workdir.writing(tmp_path),
  ):
    raise OSError(errno.ENOSPC, "No space left on device")
  with pytest.raises(FileNotFoundError), workdir.writing(tmp_path):
    raise FileNotFoundError(errno.ENOENT, "no such file")
  with (
    pytest.raises(errors.UserError, match="it has gone; is a disk missing"),
    workdir.writing(tmp_path / "unmounted"),
  ):
    raise FileNotFoundError(errno.ENOENT, "no such file")


def test_checkpoints_that_are_gone_end_the_run(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  records = tmp_path / "metrics.jsonl"
  check = lambda start=0: workdir.check_start(tmp_path, start, 20)
  started = lambda every: starts.add(
    tmp_path, start_line(tmp_path, **{"checkpoint.every": every})
  )
  check()  # a new run
  started(5)
  records.write_text('{"step": 10, "loss": 1.0}\n')
  check()  # killed while its first checkpoint was written
  records.write_text('{"step": 11, "loss": 1.0}\n')
  with pytest.raises(errors.UserError, match="Bring that folder back"):
    check()
  assert records.read_text()  # not emptied
  check(start=10)
  check(start=20)  # complete
  with pytest.raises(errors.UserError, match="has step 25, but the run has 20 steps"):
    check(start=25)
  started(0)
  check()  # that start saved at its end only, and did not come there
  (tmp_path / workdir.DAMAGED).mkdir()
  with pytest.raises(errors.UserError, match="Bring that folder back"):
    check()
  (tmp_path / workdir.DAMAGED).rmdir()
  records.unlink()
  starts.add(tmp_path, start_line(tmp_path, step=5))
  with pytest.raises(errors.UserError, match="Bring that folder back"):
    check()


def test_a_folder_that_a_run_has_lost_ends_it(tmp_path):
  config = config_lib.default()
  native.write_config(tmp_path, described(config))
  workdir.check_there(tmp_path, config)
  with pytest.raises(errors.UserError, match="with another config:\n  seed: the run"):
    config.seed = 5  # another run took its place
    workdir.check_there(tmp_path, config)
  (tmp_path / "config.json").unlink()
  with pytest.raises(errors.UserError, match="was moved or emptied while"):
    workdir.check_there(tmp_path, config)


def test_a_run_keeps_its_number_of_steps(tmp_path):
  """The learning rate depends on it."""
  check = lambda steps: workdir.check_start(tmp_path, 0, steps)
  workdir.write_steps(tmp_path, 12)
  check(12)
  with pytest.raises(errors.UserError, match=r"12 steps, .* now make 13.*init_from"):
    check(13)
  (tmp_path / workdir.STEPS).write_text("{")
  check(13)  # damaged: the start writes it again


def start_line(folder, step=0, **changes):
  c = config_lib.tiny(config_lib.default())
  c.update_from_flattened_dict(changes)
  return starts.describe(c, "the same data", step)


def test_an_edited_config_is_compared_with_the_last_start(tmp_path):
  starts.add(tmp_path, start_line(tmp_path))
  starts.add(tmp_path, start_line(tmp_path, log_every=7))
  with pytest.raises(errors.UserError, match=r"optim\.learning_rate: the last start"):
    starts.add(tmp_path, start_line(tmp_path, **{"optim.learning_rate": 0.5}))


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("seed", 1), ("optim.learning_rate", 0.5), ("steps", 9), ("data.train", "other"),
    ("positions.strategy", "pose"), ("mesh.fsdp", 1), ("checkpoint.every", 3),
  ],
)  # fmt: skip
def test_processes_with_other_configs_are_named(key, value, monkeypatch):
  config = config_lib.tiny(config_lib.default())
  other = config.copy_and_resolve_references()
  other.update_from_flattened_dict({key: value, "data.workers": 3})
  said = []
  monkeypatch.setattr(starts.distributed, "exchange", lambda t: said.append(t) or [t])
  starts.check_processes(other, "data", {})
  monkeypatch.setattr(starts.distributed, "exchange", lambda t: [t, *said])
  with pytest.raises(errors.UserError) as caught:
    starts.check_processes(config, "data", {})
  lines = str(caught.value).splitlines()
  assert len(lines) == 3 and lines[1].startswith(f"  {key}: process 0 has ")
  with pytest.raises(errors.UserError, match="data fingerprint: process 0 has 'new'"):
    starts.check_processes(other, "new", {})
  with pytest.raises(errors.UserError, match=r"model\.step: process 0 has 20"):
    starts.check_processes(other, "data", {"step": 20})


def test_a_process_without_git_is_not_one_of_other_code(monkeypatch):
  """Git may also take too long where many processes ask it on a network disk."""
  config = config_lib.tiny(config_lib.default())
  said, commits = [], ["1234", None, "5678"]
  monkeypatch.setattr(starts.environment, "commit", lambda: commits[len(said)])
  monkeypatch.setattr(starts.distributed, "exchange", lambda t: said.append(t) or said)
  starts.check_processes(config, "data", {})
  starts.check_processes(config, "data", {})
  with pytest.raises(errors.UserError, match="commit: process 0 has '1234'"):
    starts.check_processes(config, "data", {})


def test_a_new_workdir_may_be_seen_late(monkeypatch, tmp_path):
  """For a minute, where a client of NFS has asked for it before it was there."""
  waited = []

  def sleep(seconds):
    waited.append(seconds)
    if sum(waited) > 60:
      (tmp_path / "config.json").write_text("{}")

  monkeypatch.setattr(workdir.time, "sleep", sleep)
  (tmp_path / "config.json").write_text("{}")
  claimed = workdir.identity(tmp_path)
  (tmp_path / "config.json").unlink()
  workdir.check_shared(tmp_path, claimed)
  assert 60 < sum(waited) < 62
  with pytest.raises(errors.UserError, match="not the folder that process 0 writes"):
    workdir.check_shared(tmp_path, "another")
  assert sum(waited) < 150


def test_only_the_first_process_asks_for_a_new_workdir(monkeypatch, tmp_path):
  """What another host asks for too early, it may not see for a minute."""
  monkeypatch.setattr(run.distributed, "is_first", lambda: False)
  monkeypatch.setattr(run.distributed, "exchange", lambda text: ["2026-01-02", text])
  monkeypatch.setattr(run.distributed, "together", contextlib.nullcontext)
  monkeypatch.setattr(run.workdir, "date_of", lambda *_: pytest.fail("it asked"))
  assert run.date_of(tmp_path / "new", "") == "2026-01-02"


def test_all_processes_continue_from_the_checkpoint_of_the_first(monkeypatch, tmp_path):
  """A network filesystem may show the others an older one as the latest."""

  def check(folder, start, steps):
    raise errors.UserError(f"starts after {start}")

  saved = types.SimpleNamespace(latest=lambda: 2)
  monkeypatch.setattr(run.checkpoint, "Checkpoints", lambda *_: saved)
  monkeypatch.setattr(run.distributed, "exchange", lambda text: ["4", text])
  monkeypatch.setattr(run.distributed, "together", contextlib.nullcontext)
  monkeypatch.setattr(run.workdir, "check_start", check)
  data = types.SimpleNamespace(steps=6)
  config = config_lib.default()
  setup = types.SimpleNamespace(config=config, folder=tmp_path, data=data)
  with pytest.raises(errors.UserError, match="starts after 4"):
    run.train(setup)


def test_starts_report_what_changed_and_refuse_other_data(tmp_path):
  first = starts.describe(config_lib.default(), "a", 0)
  assert {"jax", "python"} <= first["versions"].keys()
  assert first["config"]["positions"]["max_position"] == 100_000
  assert starts.add(tmp_path, first) == []
  with (tmp_path / starts.FILE).open("a") as file:
    file.write('{"half')  # a kill
  versions = first["versions"] | {"jax": "0.0"}
  hardware = first["hardware"] | {"devices": 64, "host": "elsewhere"}
  later = first | {"versions": versions, "hardware": hardware, "step": 5}
  was = first["versions"]["jax"]
  assert starts.add(tmp_path, later) == [
    f"devices was {first['hardware']['devices']}, now 64",
    f"jax version was {was}, now 0.0",
  ]
  with pytest.raises(errors.UserError, match="fingerprint a, now b"):
    starts.add(tmp_path, later | {"data": "b"})
  lines = (tmp_path / starts.FILE).read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [0, 5]

"""The command as a user runs it: tiny models, real files, kills and mistakes."""

import io
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
from rich import console as rich_console
from tiny_train import load, run

from skipalign_jax import config as config_lib
from skipalign_jax.hf import reference
from skipalign_jax.runtime import checksums, errors, terminal
from skipalign_jax.training import log, optimizer, resolve
from skipalign_jax.training import run as run_lib

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(  # the others are sweeps over these
  path.stem
  for path in (ROOT / "configs").glob("*.py")
  if "def get_config(" in path.read_text(encoding="utf-8")
)


def params(folder):
  return reference.load_params(reference.open_model(str(folder)))


OVERRIDES = {
  "batch_size": 2,
  "data.seq_len": 256,
  "data.packing": True,
  "positions.resample": "epoch",
  "steps": 30,
  "eval.every": 10,
  "checkpoint.every": 7,
}


@pytest.fixture
def config(cache_dir):
  c = load("llama2_ntk")
  c.update_from_flattened_dict(OVERRIDES | {"data.cache_dir": cache_dir})
  return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_dir):
  """One uninterrupted run, shared by the tests below."""
  folder = tmp_path_factory.mktemp("runs") / "whole"
  c = load("llama2_ntk")
  c.update_from_flattened_dict(OVERRIDES | {"data.cache_dir": cache_dir})
  assert run(c, folder) == 0
  return folder


def start(folder, cache_dir):
  """The same run as a command of its own."""
  command = [sys.executable, "-m", "skipalign_jax.train"]
  command += ["--config=configs/llama2_ntk.py:tiny", f"--workdir={folder}"]
  command += [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
  command += [f"--config.data.cache_dir={cache_dir}"]
  return subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def wait_for_step(folder, step, process):
  path = folder / "metrics.jsonl"
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    lines = path.read_text().splitlines() if path.exists() else []
    if lines and f'"step": {step},' in "".join(lines):
      return
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.005)
  raise AssertionError(f"no step {step} in time")


def test_run_leaves_what_it_promises(finished):
  found = tiny.records(finished)
  steps = [r for r in found if "loss" in r]
  assert [r["step"] for r in steps] == list(range(1, 31))
  assert {"loss", "learning_rate", "grad_norm", "target_fraction"} <= steps[0].keys()
  assert {"largest_position", "skipped_fraction", "tokens"} <= steps[0].keys()
  assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
  assert max(r["largest_position"] for r in steps) > 10_000  # skips really happened
  held_out = {r["step"]: r["eval_loss"] for r in found if "eval_loss" in r}
  assert list(held_out) == [0, 10, 20, 30]
  assert held_out[30] < held_out[0] - 0.5
  for name in ("positions.png", "training.png"):
    assert (finished / name).read_bytes().startswith(b"\x89PNG"), name
  assert list((finished / "tensorboard").iterdir())
  assert (finished / "tokenizer" / "tokenizer.json").exists()
  kept = sorted(int(p.name) for p in (finished / "checkpoints").iterdir())
  assert kept == [28, 30]


def test_kill_and_rerun_equals_an_uninterrupted_run(
  finished, config, cache_dir, tmp_path
):
  """SIGKILL, then the same command again: the same records, the same weights."""
  folder = tmp_path / "killed"
  process = start(folder, cache_dir)
  wait_for_step(folder, 12, process)
  process.kill()
  process.wait()
  assert len(tiny.records(folder)) < len(tiny.records(finished))
  assert run(config, folder) == 0
  assert tiny.records(folder) == tiny.records(finished)
  jax.tree.map(np.testing.assert_array_equal, params(folder), params(finished))


def test_an_interrupted_run_saves_and_resumes(finished, config, monkeypatch, tmp_path):
  folder = tmp_path / "interrupted"
  dispatched = log.Log.dispatched

  def interrupted(self, step, *rest):
    dispatched(self, step, *rest)
    if step == 3:
      signal.raise_signal(signal.SIGINT)

  printed = io.StringIO()
  with monkeypatch.context() as patched:
    patched.setattr(log.Log, "dispatched", interrupted)
    assert run_lib.run(config, folder, terminal.Console(file=printed)) == 130
  assert "run the same command again" in printed.getvalue()
  assert tiny.records(folder)[-1]["step"] == 3
  assert run(config, folder) == 0
  assert tiny.records(folder) == tiny.records(finished)


def test_a_run_whose_folder_is_moved_ends_and_makes_no_other(
  config, monkeypatch, tmp_path
):
  folder, dispatched = tmp_path / "run", log.Log.dispatched

  def moved(self, step, *rest):
    dispatched(self, step, *rest)
    if step == 3:
      folder.rename(tmp_path / "elsewhere")

  monkeypatch.setattr(log.Log, "dispatched", moved)
  with pytest.raises(errors.UserError, match="was moved or emptied while"):
    run(config, folder)
  assert not folder.exists()


def test_slow_saves_are_all_reported(config, monkeypatch, tmp_path):
  """Each ends while the next one waits for it."""
  write, printed = checksums.write, io.StringIO()
  monkeypatch.setattr(checksums, "write", lambda x: (time.sleep(0.5), write(x)))
  config.update_from_flattened_dict({"steps": 6, "checkpoint.every": 2})
  config.data.eval = ""
  assert run_lib.run(config, tmp_path, terminal.Console(file=printed)) == 0
  saved = re.findall(r"step (\d): saved", printed.getvalue())
  assert saved == ["2", "4", "6"]


def test_more_limits_than_steps_are_refused(config, tmp_path):
  changes = {"positions.schedule": "500,1000,1500,2000", "positions.max_position": 2000}
  config.update_from_flattened_dict(changes | {"data.eval": "", "steps": 3})
  with pytest.raises(errors.UserError, match="has 4 limits and the run 3 steps"):
    run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_limits_rise_over_a_run_that_resumes_in_a_stage(config, tmp_path):
  """Randomized YaRN."""
  changes = {"positions.strategy": "randpos", "positions.schedule": "500,1000,2000"}
  changes |= {"positions.max_position": 2000, "rope.kind": "yarn", "data.eval": ""}
  changes |= {"steps": 6, "checkpoint.every": 3}
  config.update_from_flattened_dict(changes)
  assert run(config, tmp_path) == 0
  whole = tiny.records(tmp_path)
  far = [record["largest_position"] for record in whole]
  assert [sum(at >= limit for limit in (500, 1000)) for at in far] == [0, 0, 1, 1, 2, 2]
  shutil.rmtree(tmp_path / "checkpoints" / "6")
  assert run(config, tmp_path) == 0
  assert tiny.records(tmp_path) == whole


def test_finished_run_does_nothing_more(finished, config):
  before = (finished / "metrics.jsonl").read_text()
  assert run(config, finished) == 0
  assert (finished / "metrics.jsonl").read_text() == before


def test_killed_before_the_first_checkpoint_starts_again(finished, config, tmp_path):
  folder = tmp_path / "copy"
  shutil.copytree(finished, folder)
  shutil.rmtree(folder / "checkpoints")
  for name, lines in (("metrics.jsonl", 6), ("starts.jsonl", 1)):
    whole = (folder / name).read_text().splitlines(keepends=True)
    (folder / name).write_text("".join(whole[:lines]))
  assert run(config, folder) == 0
  assert tiny.records(folder) == tiny.records(finished)


def test_a_run_whose_checkpoints_are_gone_is_refused(finished, config, tmp_path):
  folder = tmp_path / "copy"
  shutil.copytree(finished, folder)
  shutil.rmtree(folder / "checkpoints")
  with pytest.raises(errors.UserError, match="Bring that folder back"):
    run(config, folder)
  assert tiny.records(folder) == tiny.records(finished)


def test_skip_outer_on_single_turns_is_reported(config, tmp_path):
  turn = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
  lines = [json.dumps({"id": i, "messages": turn}) for i in range(80)]
  (tmp_path / "chats.jsonl").write_text("\n".join(lines))
  config.data.train = str(tmp_path / "chats.jsonl")
  config.data.eval = ""  # the rest as `finished`, whose program is compiled
  file = io.StringIO()
  run_lib.run(config, tmp_path / "run", terminal.Console(file=file))
  assert "nothing will skip" in file.getvalue() and tiny.is_plain(file.getvalue())
  assert tiny.records(tmp_path / "run")[0]["skipped_fraction"] == 0


def test_half_a_line_of_metrics_is_dropped(finished, config, tmp_path):
  folder = tmp_path / "copy"
  shutil.copytree(finished, folder)
  shutil.rmtree(folder / "checkpoints" / "30")
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": 31, "lo')
  assert run(config, folder) == 0
  assert tiny.records(folder) == tiny.records(finished)


def test_workdir_of_another_config_is_refused(finished, config):
  before = (finished / "config.json").read_bytes()
  config.positions.skip_prob = 0.7
  config.log_every = 5  # free to change
  with pytest.raises(
    errors.UserError, match=r"positions.skip_prob: .* 0.5, now 0.7"
  ) as e:
    run(config, finished)
  assert "log_every" not in str(e.value)
  assert (finished / "config.json").read_bytes() == before


def test_workdir_with_foreign_files_is_refused(config, tmp_path):
  (tmp_path / "thesis.tex").write_text("dear")
  with pytest.raises(errors.UserError, match="has files but no run"):
    run(config, tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint_is_set_aside_and_the_run_is_the_same(
  finished, config, tmp_path
):
  folder = tmp_path / "copy"
  shutil.copytree(finished, folder)
  for path in (folder / "checkpoints" / "30" / "params").rglob("*"):
    if path.is_file() and path.stat().st_size > 1000:
      path.write_bytes(path.read_bytes()[:100])
  file = io.StringIO()
  assert run_lib.run(config, folder, rich_console.Console(file=file)) == 0
  assert "checkpoint 30 is damaged" in file.getvalue()
  assert "continuing after step 28" in file.getvalue()
  assert tiny.records(folder) == tiny.records(finished)
  jax.tree.map(np.testing.assert_array_equal, params(folder), params(finished))


def test_nan_steps_are_skipped_then_stop_the_run(config, tmp_path, monkeypatch):
  config.steps, config.optim.max_nonfinite_steps = 6, 2
  real = optimizer.schedule
  monkeypatch.setattr(  # the second step ruins the weights
    optimizer,
    "schedule",
    lambda c, steps: (
      lambda step: jax.numpy.where(step == 1, 1e38, real(c, steps)(step))
    ),
  )
  with pytest.raises(errors.UserError, match="2 consecutive steps"):
    run(config, tmp_path / "nan")
  last = tiny.records(tmp_path / "nan")[-1]
  assert not last["finite"]
  with np.load(tmp_path / f"nan/nonfinite/step_{last['step']}_process_0.npz") as kept:
    assert kept["step"] == last["step"]
    assert kept["tokens"].shape == (config.batch_size, config.data.seq_len)


def test_training_continues_from_weights_of_a_run(finished, config, tmp_path):
  """model.init_from takes a workdir; its rope is kept, its loss is where it was."""
  config.model = config_lib.default().model
  config.model.init_from, config.model.compute_dtype = str(finished), "float32"
  config.rope = config_lib.default().rope
  config.steps = 1
  assert run(config, tmp_path / "next") == 0
  held_out = lambda folder: [r for r in tiny.records(folder) if "eval_loss" in r]
  assert held_out(tmp_path / "next")[0]["eval_loss"] == pytest.approx(
    held_out(finished)[-1]["eval_loss"], abs=1e-5
  )


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_resolves_and_its_tiny_variant_keeps_the_recipe(name):
  full, c = load(name, ""), load(name)
  resolve.check(full)
  resolve.check(c)
  assert c.positions == full.positions
  assert c.rope.kind == full.rope.kind


# A program unlike that of llama2_ntk, which `finished` trains; test_lora.py trains
# adapters.
STEPS_OF_THEIR_OWN = {"smollm2_text"}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name in STEPS_OF_THEIR_OWN else pytest.mark.slow)
    for name in CONFIGS
  ],
)
def test_tiny_variants_train(name, cache_dir, tmp_path):
  c = load(name)
  c.data.cache_dir, c.data.eval, c.steps = cache_dir, "", 2
  assert run(c, tmp_path / name) == 0
  steps = [r for r in tiny.records(tmp_path / name) if "loss" in r]
  assert len(steps) == 2 and all(np.isfinite(r["loss"]) for r in steps)
  skips = steps[0]["largest_position"] > c.data.seq_len
  assert skips == (c.positions.strategy != "contiguous")


def test_paper_recipe():
  """Appendix A and section 4, value by value."""
  c = load("llama2_ntk", "")
  p, o = c.positions, c.optim
  assert (p.strategy, p.max_position, p.skip_prob) == ("skip_outer", 100_000, 0.5)
  assert (p.gaps, p.prob_per, p.resample) == ("sequential", "block", "never")
  assert (o.learning_rate, o.weight_decay, o.warmup_fraction) == (1e-5, 0.0, 0.03)
  assert (c.epochs, c.steps, c.batch_size, c.data.seq_len) == (2, None, 128, 4096)
  assert c.data.template == "tulu" and not c.data.packing
  assert c.rope.kind == "ntk"

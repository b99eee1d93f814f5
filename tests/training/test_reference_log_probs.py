"""DPO from a file of pairs to a workdir: reference, resuming, adapters."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tiny
import tiny_train

from skipalign_jax.hf import adapters, reference
from skipalign_jax.runtime import errors
from skipalign_jax.training import reference_log_probs
from skipalign_jax.training import setup as setup_lib


def config_of(folder, cache_dir, **changes):
  c = tiny_train.load("smollm2_ntk")
  c.update_from_flattened_dict(
    {
      "data.train": str(folder / "pairs.jsonl"),
      "data.cache_dir": cache_dir,
      "data.seq_len": 256,
      "data.eval": "holdout:4",
      "positions.max_position": 512,
      "batch_size": 4,
      "steps": 4,
      "checkpoint.every": 2,
      "checkpoint.keep": 9,
      "loss.kind": "dpo",
      "loss.beta": 0.1,
    }
    | changes
  )
  return c


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder, lines = tmp_path_factory.mktemp("pairs"), []
  for i in range(16):
    turns = [("user", f"{i}?"), ("assistant", "Yes."), ("user", "More?")]
    prompt = [dict(role=role, content=text) for role, text in turns]
    lines.append(
      {"prompt": prompt, "chosen": "a" * (i % 3 + 1), "rejected": "b" * (i % 5 + 2)}
    )
  (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return folder


@pytest.fixture(scope="module")
def finished(data, cache_dir):
  """A run of four steps."""
  config, folder = config_of(data, cache_dir), data / "finished"
  assert tiny_train.run(config, folder) == 0
  return config, folder


def training(folder):
  return [record for record in tiny.records(folder) if "loss" in record]


def stored(folder):
  return safetensors.numpy.load_file(folder / reference_log_probs.FILE)["source_0"]


def test_a_run_starts_at_log_two_and_learns(finished):
  records = training(finished[1])
  np.testing.assert_allclose(records[0]["loss"], np.log(2), rtol=1e-5)
  np.testing.assert_allclose(records[0]["rewards/margin"], 0, atol=1e-4)
  assert records[-1]["loss"] < records[0]["loss"]
  assert records[-1]["rewards/margin"] > 0 < records[-1]["rewards/accuracy"]
  assert records[0]["largest_position"] > 256  # pairs skip
  log_p_R2 = stored(finished[1])
  assert log_p_R2.shape == (16, 2) and (log_p_R2 <= 0).all()
  assert (log_p_R2 < 0).all(axis=1).sum() == 12  # all but those held out


def test_what_is_stored_is_what_is_computed_packed_or_not(finished, data, cache_dir):
  config, folder = finished
  for packing in (True, False):
    config = config_of(data, cache_dir, **{"data.packing": packing})
    setup = setup_lib.prepare(config, folder, tiny_train.quiet())
    (found_R2,) = reference_log_probs.compute(setup)
    np.testing.assert_allclose(found_R2, stored(folder), rtol=1e-5)


def test_a_contiguous_reference_reads_without_skips(finished, data, cache_dir):
  """As a run with contiguous positions has it, also where each epoch draws anew."""
  found = {}
  for name, changes in {
    "reference": {"loss.reference": "contiguous", "positions.resample": "epoch"},
    "run": {"positions.strategy": "contiguous"},
  }.items():
    config = config_of(data, cache_dir, **changes)
    setup = setup_lib.prepare(config, finished[1], tiny_train.quiet())
    (found[name],) = reference_log_probs.compute(setup)
  np.testing.assert_allclose(found["reference"], found["run"], rtol=1e-5)
  assert np.abs(found["reference"] - stored(finished[1])).max() > 1e-3


def test_resumed_runs_are_exact(finished, tmp_path, monkeypatch):
  """With the file, which is not computed again, and without it."""
  config, done = finished
  for name in ("with", "without"):
    folder = shutil.copytree(done, tmp_path / name)
    shutil.rmtree(folder / "checkpoints" / "4")
    with monkeypatch.context() as patched:
      if name == "without":
        (folder / reference_log_probs.FILE).unlink()
      else:
        patched.setattr(reference_log_probs, "compute", None)
      assert tiny_train.run(config, folder) == 0
    assert tiny.records(folder) == tiny.records(done)
    np.testing.assert_array_equal(stored(folder), stored(done))


def test_a_reference_that_is_not_the_runs_is_refused(finished, tmp_path):
  config, done = finished
  folder = shutil.copytree(done, tmp_path / "run")
  path = folder / reference_log_probs.FILE
  whole = path.read_bytes()
  flipped = bytearray(whole)
  flipped[-3] ^= 1
  for damaged in (b"", whole[: len(whole) // 2], bytes(flipped)):
    path.write_bytes(damaged)
    with pytest.raises(errors.UserError, match=r"safetensors is damaged.*delete it"):
      tiny_train.run(config, folder)
  path.write_bytes(whole.replace(b"float32", b"float64"))  # in the key
  with pytest.raises(errors.UserError, match="another model or other data"):
    tiny_train.run(config, folder)


def test_a_reference_of_other_weights_is_refused(finished, data, cache_dir, tmp_path):
  """Also where only the last layer differs; files of earlier versions know less."""
  start = {"model.init_from": str(finished[1]), "model.window": None}
  config = config_of(data, cache_dir, **start)
  setup = setup_lib.prepare(config, tmp_path, tiny_train.quiet())
  parameters, path = setup.opened.weights, "layers/mlp/down/weight"
  array = parameters[path].read().copy()
  array[-1, -1, -1] += 1e-3
  read = lambda index, dtype: array[index].astype(dtype)
  changed = parameters | {path: dataclasses.replace(parameters[path], read_block=read)}
  opened = dataclasses.replace(setup.opened, weights=changed)
  other = dataclasses.replace(setup, opened=opened)

  numbers, file = np.zeros((16, 2), np.float32), tmp_path / reference_log_probs.FILE
  key = reference_log_probs._key(setup)
  for known, is_refused in ((key, True), (old_key(setup), False)):
    about = {"key": known, "checksum": reference_log_probs._checksum([numbers])}
    safetensors.numpy.save_file({"source_0": numbers}, file, about)
    assert len(reference_log_probs.of_start(setup)) == 1
    if is_refused:
      with pytest.raises(errors.UserError, match="another model or other data"):
        reference_log_probs.of_start(other)
    else:
      reference_log_probs.of_start(other)


@pytest.mark.parametrize("what", ["data", "recipe", "loss", "adapters"])
def test_a_reference_of_other_data_positions_or_adapters_is_refused(
  finished, tmp_path, what
):
  setup = setup_lib.prepare(finished[0], tmp_path, tiny_train.quiet())
  shutil.copy(finished[1] / reference_log_probs.FILE, tmp_path)
  assert len(reference_log_probs.of_start(setup)) == 1
  positions = dataclasses.replace(setup.recipe.positions, skip_prob=0.25)
  loss = dataclasses.replace(setup.recipe.loss, reference="contiguous")
  other = {
    "data": lambda: dataclasses.replace(setup.data, fingerprint="of other chats"),
    "recipe": lambda: dataclasses.replace(setup.recipe, positions=positions),
    "loss": lambda: dataclasses.replace(setup.recipe, loss=loss),
    "adapters": lambda: reference.open_model(str(finished[1])).weights,
  }[what]()
  with pytest.raises(errors.UserError, match="another model or other data"):
    changed = {"recipe" if what == "loss" else what: other}
    reference_log_probs.of_start(dataclasses.replace(setup, **changed))


def old_key(setup):
  return reference_log_probs._key(setup, adapters.digest_of("7d1a"))


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {"lora.rank": 2, "lora.base": "int8"},
    {"loss.kind": "simpo", "loss.beta": 2.0, "loss.margin": 0.3},
    {"loss.reference": "contiguous", "positions.resample": "epoch"},
    {"positions.strategy": "pose", "grad_accum": 2, "data.packing": False},
  ],
  ids=lambda changes: next(iter(changes.values())),
)
def test_other_runs(changes, data, cache_dir, tmp_path):
  folder = tmp_path / "run"
  changes = {"steps": 12, "optim.learning_rate": 0.01} | changes
  config = config_of(data, cache_dir, **changes)
  assert tiny_train.run(config, folder) == 0
  records = training(folder)
  assert records[-1]["loss"] < records[0]["loss"]
  assert records[-1]["rewards/margin"] > records[0]["rewards/margin"]
  if "lora.rank" in changes:  # the reference is the base without its adapters
    np.testing.assert_allclose(records[0]["loss"], np.log(2), rtol=1e-5)
  if config.loss.kind == "simpo":
    assert not (folder / reference_log_probs.FILE).exists()

"""Damaged files of this project end in one message: which file, why, what to do."""

import json
import shutil

import pytest
import tiny

from skipalign_jax import config
from skipalign_jax.analysis import training
from skipalign_jax.commands import analyze
from skipalign_jax.runtime import errors
from skipalign_jax.training import health, metrics, starts, workdir
from studies.length import __main__ as command

DAMAGED = (b"", b"{", b"\xff\xfe{}", b"[1]", b"3", b"null", b"[" * 100_000)
GOOD = b'{"step": 1, "loss": 2.0}\n'
READERS = {
  "read": metrics.read,
  "resume": lambda path: metrics.Writer(path.parent, 1),
  "spikes": health.Spikes,
  "analyze training": lambda path: training.read([str(path.parent)]),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("bad", [*DAMAGED[1:], b'{"loss": 1}', b'{"step": "1"}'])
def test_metrics(tmp_path, read, bad):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(GOOD + bad.replace(b"\n", b"") + b"\n" + GOOD)
  with pytest.raises(errors.UserError, match=r"metrics.jsonl, line 2, is damaged"):
    read(path)


def test_half_a_last_line_of_metrics_is_of_a_killed_run(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(GOOD + GOOD[:9])
  assert metrics.read(path) == [{"step": 1, "loss": 2.0}]
  metrics.Writer(tmp_path, 1).close()
  assert path.read_bytes() == GOOD


@pytest.mark.parametrize(
  "bad", [*DAMAGED, b'{"kind": "rope"}', b'{"kind": "rope", "lines": 1}']
)
def test_records_of_analyze(tmp_path, bad):
  path = tmp_path / "rope.json"
  path.write_bytes(bad)
  with pytest.raises(errors.UserError, match=r"rope\.json cannot be drawn"):
    analyze.redraw(path)


def without(key):
  def change(content):
    del content[key]

  return change


def emptied(content):
  content["cells"][3]["mse"] = None


@pytest.mark.parametrize(
  "change", [*map(without, ("cells", "tested", "claims")), emptied]
)
def test_results_of_the_length_study(tmp_path, change):
  path = tmp_path / "results.json"
  shutil.copy(tiny.ROOT / "studies/length/results/results.json", path)
  content = json.loads(path.read_text(encoding="utf-8"))
  change(content)
  path.write_text(json.dumps(content))
  with pytest.raises(errors.UserError, match=r"results\.json is damaged .* delete it"):
    command.main([f"--out={tmp_path}"])


@pytest.mark.parametrize("bad", DAMAGED)
def test_results_of_the_length_study_that_are_not_json(tmp_path, bad):
  (tmp_path / "results.json").write_bytes(bad)
  with pytest.raises(errors.UserError, match=r"results\.json.*delete it"):
    command.main([f"--out={tmp_path}"])


@pytest.mark.parametrize("bad", [*DAMAGED[1:], b"{}", b'{"data": 1}'])
def test_manifests(tmp_path, bad):
  start = starts.describe(config.default(), "a", 0)
  (tmp_path / starts.FILE).write_bytes(bad + b"\n")
  with pytest.raises(errors.UserError, match="line 1, is damaged"):
    starts.add(tmp_path, start)


@pytest.mark.parametrize("bad", [*DAMAGED, b"{}", b'{"steps": "many"}'])
def test_steps_of_a_workdir(tmp_path, bad):
  (tmp_path / workdir.STEPS).write_bytes(bad)
  with pytest.raises(errors.UserError, match=workdir.STEPS):
    workdir.read_steps(tmp_path)

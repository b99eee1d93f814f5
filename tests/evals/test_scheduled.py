"""Tasks during training: when they run, what they write, what is refused."""

import json
import signal

import pytest
import tiny
import tiny_train

from skipalign_jax import config
from skipalign_jax.evals import needle, runner, scheduled, tasks
from skipalign_jax.hf import native
from skipalign_jax.runtime import errors

NEEDLE = dict(task="needle", lengths="320", depths="2", max_new_tokens=2)


def configured(cache_dir, **entries):
  c = tiny_train.load("llama2_ntk")
  c.update_from_flattened_dict(
    {
      "batch_size": 2,
      "data.seq_len": 128,
      "steps": 4,
      "eval.every": 2,
      "checkpoint.every": 4,
      "data.cache_dir": cache_dir,
    }
  )
  c.evals = config.ConfigDict(entries)
  return c


@pytest.fixture(scope="module")
def evaluated(cache_dir, tmp_path_factory):
  """(config, workdir) of a run with two tasks."""
  folder = tmp_path_factory.mktemp("scheduled") / "run"
  c = configured(
    cache_dir,
    passkey=NEEDLE | dict(every=3),
    sandwich=NEEDLE | dict(every=0, variant="sandwich", limit=1),
  )
  assert tiny_train.run(c, folder) == 0
  return c, folder


def test_training_is_the_same_with_and_without(evaluated, cache_dir, tmp_path):
  c = configured(cache_dir)
  c.eval.at_start = False
  tiny_train.run(c, tmp_path)
  held_out = [r["step"] for r in tiny.records(tmp_path) if "eval_loss" in r]
  assert held_out == [2, 4]
  losses = [
    [record["loss"] for record in tiny.records(folder) if "loss" in record]
    for folder in (evaluated[1], tmp_path)
  ]
  assert losses[0] == losses[1] and len(losses[0]) == 4


def test_tasks_run_before_when_due_and_at_the_end(evaluated):
  c, folder = evaluated
  found = {
    (record["step"], name): value
    for record in tiny.records(folder)
    for name, value in record.items()
    if "/" in name
  }
  assert {step for step, name in found if name == "passkey/average"} == {0, 3, 4}
  assert {step for step, name in found if name == "sandwich/average"} == {0, 4}
  results = json.loads((folder / "evals/passkey/3/results.json").read_text())
  assert results["summary"]["average"] == found[3, "passkey/average"]
  assert results["protocol"]["model"] == f"{folder}@3"
  assert len(results["items"]) == 2
  # Held-out losses are recorded too, and evals may change on resume.
  assert sum("eval_loss" in r for r in tiny.records(folder)) == 3
  c.evals = config.ConfigDict({})
  assert tiny_train.run(c, folder) == 0


@pytest.mark.parametrize(
  ("every", "interval", "step"), [(0, 4, 4), (3, 100, 3), (3, 0, None)]
)
def test_a_task_that_fails_loses_no_step(
  evaluated, cache_dir, tmp_path, monkeypatch, every, interval, step
):
  """With checkpoint.every=0 no step is saved before the last one."""
  c = configured(cache_dir, passkey=NEEDLE | dict(every=every))
  c.eval.at_start, c.checkpoint.every = False, interval
  original = runner.run

  def fail(*args):
    raise errors.UserError("the haystack has gone")

  monkeypatch.setattr(runner, "run", fail)
  with pytest.raises(errors.UserError, match="the haystack has gone"):
    tiny_train.run(c, tmp_path)
  assert native.steps(tmp_path) == ([step] if step else [])
  monkeypatch.setattr(runner, "run", original)
  for _ in range(2):  # the second time, nothing is left to do
    assert tiny_train.run(c, tmp_path) == 0
    scores = [r for r in tiny.records(tmp_path) if "passkey/average" in r]
    assert [record["step"] for record in scores] == ([3, 4] if every else [4])
  of_other = [r for r in tiny.records(evaluated[1]) if r["step"] == 4]
  assert scores[-1] in of_other  # as in a run that nothing stopped


def test_a_step_that_is_evaluated_again_replaces_what_is_there(tmp_path, monkeypatch):
  """Its weights may differ. Of the summary, numbers are recorded."""
  summary = {"average": 0.5, "tokens": 7, "by_length": {}, "score": "exact"}
  left = tmp_path / "evals/one/3/protocol.json"
  left.parent.mkdir(parents=True)
  left.write_text("{}")
  monkeypatch.setattr(scheduled.Evaluator, "_subject", lambda *_: None)
  monkeypatch.setattr(runner, "run", lambda *_: {"summary": summary})
  evaluator = scheduled.Evaluator(None, "float32", None, (), None, tmp_path, None)
  one = scheduled.Scheduled("one", "needle", 0, 0, 1, None)
  assert evaluator.run(one, 3, {}) == {"one/average": 0.5, "one/tokens": 7}
  assert not left.exists()


def test_a_signal_leaves_the_other_tasks_to_the_next_start(
  cache_dir, tmp_path, monkeypatch
):
  called = []

  def run(self, task, step, params):
    called.append((task.name, step))
    if called in (first, more):
      signal.raise_signal(signal.SIGTERM)
    return {f"{task.name}/x": 1.0}

  monkeypatch.setattr(scheduled.Evaluator, "run", run)
  c = configured(cache_dir, one=NEEDLE | dict(every=0), two=NEEDLE | dict(every=0))
  c.steps, c.checkpoint.every, c.data.eval = 2, 0, ""
  first = [("one", 0)]
  more = [*first, ("one", 0), ("two", 0), ("one", 2)]
  for status, until in ((143, first), (143, more), (0, [*more, ("two", 2)])):
    assert tiny_train.run(c, tmp_path) == status
    assert called == until


def test_a_task_that_cannot_run_ends_the_run_before_its_first_step(cache_dir, tmp_path):
  c = configured(cache_dir, passkey=NEEDLE | dict(every=0, lengths="20"))
  c.eval.at_start = False
  with pytest.raises(errors.UserError, match="--lengths=20"):
    tiny_train.run(c, tmp_path)
  assert not tiny.records(tmp_path)


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    (dict(task="needles", every=1), "evals.x: there is no task 'needles'"),
    (dict(task="needle", every=1, length=5), "no option 'length'"),
    (dict(task="needle"), "evals.x.every must be"),
    (dict(task="needle", every=-1), "evals.x.every must be"),
    (dict(every=5), "there is no task 'x'"),
    (dict(task="needle", every=2.0), "evals.x.every must be"),
    (dict(task="needle", every=2, samples=1.0), "samples=1.0 is not a whole number"),
    (dict(task="needle", every=2, chat="no"), "chat='no' is not True or False"),
    (dict(task="needle", every=2, haystack=True), "haystack=True is not text"),
    (dict(task="needle", every=2, limit=-1), "limit=-1 must be at least 0"),
    (dict(task="needle", every=2, batch_tokens=0), "batch_tokens=0 must be at least 1"),
    (dict(task="needle", every=2, limit="all"), "limit='all' is not a whole number"),
  ],
)
def test_mistakes_are_reported_before_the_start(cache_dir, tmp_path, entry, message):
  c = configured(cache_dir, x=entry)
  with pytest.raises(errors.UserError) as caught:
    tiny_train.run(c, tmp_path / "run")
  assert message in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_defaults_of_a_configured_task():
  c = config.default()
  c.evals = config.ConfigDict({"needle": dict(every=5)})
  (task,) = scheduled.schedule(c)
  assert (task.name, task.task, task.every) == ("needle", "needle", 5)
  assert (task.limit, task.batch_tokens) == (0, 16_384)


def test_values_of_options_are_typed():
  given = dict(lengths=(600, 800), depths=2, samples="3", chat="False")
  assert tasks.options("needle", given) == needle.Options(
    lengths="600,800", depths="2", samples=3, chat=False
  )
  assert tasks.options("perplexity", dict(alpha=3, beta="-1")).alpha == 3.0

"""A model whose output is NaN or infinite ends an evaluation; scores stay in range."""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_subject
from rich import console as rich_console

from skipalign_jax.commands import generate
from skipalign_jax.evals import intervals, perplexity, runner, tasks
from skipalign_jax.evals.lm_eval import queries
from skipalign_jax.model import inference
from skipalign_jax.runtime import errors

QUIET = rich_console.Console(quiet=True)


def damaged(part, value, at):
  """Parameters with one weight that is `value`."""
  params = jax.tree.map(lambda x: x, tiny_subject.PARAMS)
  weight = params[part] if part != "layers" else params["layers"]["attn"]["q"]
  weight["weight"] = jnp.asarray(weight["weight"]).at[at].set(value)
  return params


def subject_of(params, window=4096):
  made = tiny_subject.make(window=window)
  engine = inference.Engine(params, made.engine.config, "float32")
  return dataclasses.replace(made, engine=engine)


NAN = subject_of(damaged("layers", np.nan, (1, 3, 2)))
INFINITE = subject_of(damaged("lm_head", 3e38, (7, slice(None))))


@pytest.fixture
def source(tmp_path):
  path = tmp_path / "text.txt"
  path.write_text(
    "One thing comes after another, and then there are always more. " * 90
  )
  return str(path)


@pytest.mark.parametrize(
  ("task", "options", "subject"),
  [
    ("needle", dict(lengths="300", depths="2", max_new_tokens=3), NAN),
    ("needle", dict(lengths="300", depths="2", max_new_tokens=3), INFINITE),
    ("keys", dict(lengths="900", depths="2", samples=2), NAN),
    ("ruler", dict(tasks="vt", lengths="2500", samples=1), NAN),
    ("babilong", dict(tasks="qa1", lengths="0", samples=1), NAN),
    ("mrcr", dict(needles="1", lengths="2500", samples=1), NAN),
    ("misalignment", dict(lengths="16", samples=2), NAN),
    ("perplexity", dict(length=64, documents=2), NAN),
    ("perplexity", dict(length=64, documents=2), INFINITE),
  ],
)
def test_an_evaluation_ends_and_names_model_and_item(
  task, options, subject, source, tmp_path
):
  of_files = {"misalignment": "source", "perplexity": "files"}
  of_files |= dict.fromkeys(("babilong", "mrcr"), "haystack")
  if task in of_files:
    options = options | {of_files[task]: source}
  module, folder = tasks.module(task), tmp_path / "out"
  given = tasks.options(task, options)
  ids = [item.id for item in module.items(given, subject)]
  with pytest.raises(errors.UserError, match=r"tiny: .*--dtype=float32") as caught:
    runner.run(task, module, given, subject, folder, QUIET)
  assert any(f"item {id} is NaN or infinite" in str(caught.value) for id in ids)
  assert not (folder / "results.json").exists()
  assert not (folder / "records.jsonl").exists()


def test_the_first_bad_row_is_named():
  """A token whose embedding is NaN: only rows that read it are bad."""
  engine = subject_of(damaged("embed", np.nan, (70, 5))).engine
  good, bad = [40, 41, 42, 43], [40, 70, 42, 43]
  scored = {
    "score": lambda rows: engine.score(rows, [2] * len(rows)),
    "score_next": lambda rows: engine.score_next(rows, [[5, 6]] * len(rows)),
    "generate": lambda rows: list(engine.generate(rows, 3, ())),
  }
  for run in scored.values():
    run([good, good])
    with pytest.raises(errors.NotFiniteError, match="row 1 ") as caught:
      run([good, bad, bad])
    assert caught.value.row == 1
  with pytest.raises(errors.NotFiniteError):
    engine.score_after(good, [good, bad], [3, 3])
  # A reply that has ended is not continued: its NaN does not count.
  (first,) = next(engine.generate([good], 1, ()))
  list(engine.generate([good], 3, (first,)))


def test_one_logit_of_minus_infinity_is_found():
  params = damaged("lm_head", 0.0, (7, slice(None)))
  row = jnp.full_like(params["lm_head"]["weight"][7], -3e38)
  params["norm"]["weight"] = jnp.abs(params["norm"]["weight"]) * 100
  for sign in (1, -1):  # the logit is +∞ for one of these, −∞ for the other
    params["lm_head"]["weight"] = params["lm_head"]["weight"].at[7].set(sign * row)
    engine = subject_of(params).engine
    with pytest.raises(errors.NotFiniteError):
      engine.score([[40, 41, 42]], [2])
    with pytest.raises(errors.NotFiniteError):
      engine.score_next([[40, 41]], [[5, 6]])


def test_keys_and_perplexity_name_the_item_of_a_batch(source):
  """Inner passes have rows of their own; the item is that of the whole batch."""
  keys = tasks.module("keys")
  options = tasks.options("keys", dict(lengths="900", depths="2", samples=2))
  items = keys.items(options, tiny_subject.make())
  calls = []

  def score_after(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
      raise errors.NotFiniteError(0)
    return tiny_subject.make().engine.score_after(*arguments)

  subject = tiny_subject.make()
  subject.engine.score_after = score_after
  with pytest.raises(errors.NotFiniteError) as caught:
    keys.measure(options, subject, items)
  assert caught.value.row == 1


def test_lm_eval_queries_end_too():
  for query in (
    queries.Next((40, 41), (42, 43)),
    queries.Score((40, 41, 42), 1),
    queries.Reply((40, 41), 3, (0,), ("x",)),
  ):
    with pytest.raises(errors.NotFiniteError):
      queries.measure(NAN, [queries.item("a", query)])


def test_generate_names_model_and_prompt(tmp_path, capsys):
  folder = tiny_subject.folder(tmp_path / "hf")
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  tensors["model.layers.1.self_attn.q_proj.weight"][3, 2] = np.nan
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  options = dict(
    raw=False, chat=False, system="", max_new_tokens=3, temperature=0.0, top_p=1.0
  )
  options["template_kwargs"] = ""
  for prompts in (["first"], ["first", "second"]):
    args = argparse.Namespace(
      model=str(folder), prompt=prompts, dtype="float32", seed=0, **options
    )
    with pytest.raises(errors.UserError, match=r"hf: .*prompt 'first' is NaN"):
      generate.run(args)
    assert capsys.readouterr().out == ""


def test_sampling_checks_the_logits_and_not_what_top_p_removes():
  logits = jnp.array([[0.0, 1.0, 2.0], [0.0, jnp.nan, 2.0], [0.0, jnp.inf, 2.0]])
  for temperature in (0.0, 0.7):
    tokens, finite = inference.choose(
      logits, jax.random.key(0), temperature, 0.5, banned=(0,)
    )
    assert tokens.shape == (3,) and finite.tolist() == [True, False, False]


def test_a_measure_without_finite_numbers_is_not_saved(tmp_path):
  needle = tasks.module("needle")
  options = tasks.options("needle", dict(lengths="300", depths="1"))
  task = type(
    "task",
    (),
    dict(
      items=needle.items,
      measure=lambda options, subject, batch: [{"score": float("nan")} for _ in batch],
    ),
  )
  with pytest.raises(errors.UserError, match=r"item 300/0\.5/0"):
    runner.run("needle", task, options, tiny_subject.make(), tmp_path / "out", QUIET)


def test_a_perplexity_beyond_all_numbers_is_refused():
  records = [dict(file="a", nll=9e5, tokens=100, buckets={"1": [9e5, 100]})]
  with pytest.raises(errors.UserError, match=r"exp\(9000\)"):
    perplexity.summarize(perplexity.Options(), records)


def test_intervals_of_shares_stay_in_range():
  found = intervals.of_shares([0.0, 0.0, 0.1, 0.9])
  assert found["low"] == 0.0 and found["mean"] == 0.25 and found["high"] < 1
  assert intervals.of_shares([1.0, 1.0, 0.9])["high"] == 1.0
  assert intervals.of_shares([0.3])["low"] is None

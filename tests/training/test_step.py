"""The step: one denominator, one compile, NaN steps skipped, and a naive run."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from skipalign_jax import config
from skipalign_jax.data import packing
from skipalign_jax.method import distillation, long_short, positions
from skipalign_jax.training import loop, step
from skipalign_jax.training import recipe as recipe_lib
from skipalign_jax.training import state as state_lib

OPTIM = tiny.optim(weight_decay=0.05)


@pytest.fixture(scope="module")
def run():
  return tiny.Run(optim=OPTIM)


@pytest.fixture(scope="module")
def naive_sums():
  """(Σ loss, Σ weight) as one compiled function of (params, batch, positions)."""
  return jax.jit(
    lambda params, batch, positions_BL: tiny.naive_sums(
      params, tiny.config(), batch, positions_BL
    )
  )


def leaves(tree):
  return [np.array(x) for x in jax.tree.leaves(tree)]


def test_microbatches_equal_one_batch(run):
  batch = tiny.batch()
  per_row = batch["loss_weight"].sum(1)
  assert per_row.min() == 0 and per_row.max() > 5 * np.median(per_row)
  run.reset()
  whole = run.step(batch)
  expected = leaves(run.state)
  assert whole["largest_position"] > tiny.SEQ_LEN
  other = tiny.Run(optim=OPTIM, grad_accum=4)
  metrics = other.step(batch)
  for name in whole:
    np.testing.assert_allclose(metrics[name], whole[name], rtol=1e-5, err_msg=name)
  for one, two in zip(leaves(other.state), expected, strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_a_microbatch_has_rows_of_every_device():
  """Neighbouring rows are on one device; they are parts of different microbatches."""
  rows = {"x": jnp.arange(8)}
  sums = step.accumulate(lambda _, micro: micro["x"], None, rows, 2)
  assert sums.tolist() == [0 + 1, 2 + 3, 4 + 5, 6 + 7]


def test_loss_is_the_mean_over_all_targets(run, naive_sums):
  batch = tiny.batch()
  start = tiny.params(run.recipe.model)
  run.reset(start)
  contiguous_BL = positions.contiguous(batch["segment_ids"])
  with jax.set_mesh(run.mesh):
    total, weight = run.eval_step(run.state.params, batch)
  expected, expected_weight = naive_sums(start, batch, contiguous_BL)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert weight == expected_weight == batch["loss_weight"].sum()
  # Training reads skipped positions, and only those.
  expected, _ = naive_sums(start, batch, tiny.drawn(batch))
  loss = run.step(batch)["loss"]
  np.testing.assert_allclose(loss, expected / weight, rtol=1e-5)
  assert abs(loss - total / weight) > 1e-3


def rowwise(function, batch):
  """`function` of packing, for each row of a batch."""
  rows = [
    function({name: x[i] for name, x in batch.items()})
    for i in range(len(batch["tokens"]))
  ]
  return {name: np.stack([row[name] for row in rows]) for name in batch}


def unpacked(batch):
  """Each sample in a row of its own, and empty rows up to the same number."""
  rows = []
  for i, segment_L in enumerate(batch["segment_ids"]):
    for segment in range(1, segment_L.max() + 1):
      at_L = segment_L == segment
      pad = lambda x: np.pad(x, (0, tiny.SEQ_LEN - len(x)))
      row = {name: pad(x[i][at_L]) for name, x in batch.items()}
      rows.append(row | {"segment_ids": pad(segment_L[at_L] > 0).astype(np.int32)})
  blank = {name: np.zeros_like(x) for name, x in rows[0].items()}
  rows += [blank] * (len(batch["tokens"]) - len(rows))
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_sequence_mean_is_the_same_packed_and_unpacked(run, naive_sums):
  """loss.reduction=sequence: LongAlign's loss, also over microbatches."""
  batch = tiny.batch()
  batch = {name: x * (np.arange(8) < 4)[:, None] for name, x in batch.items()}
  batch = {name: x.astype(packing.DTYPES[name]) for name, x in batch.items()}
  start = tiny.params(run.recipe.model)
  means = []  # of the targets of each sample that has one
  for row in range(len(batch["tokens"])):
    for segment in range(1, batch["segment_ids"][row].max() + 1):
      inside_BL = np.zeros_like(batch["segment_ids"], bool)
      inside_BL[row] = batch["segment_ids"][row] == segment
      one = batch | {"loss_weight": batch["loss_weight"] * inside_BL}
      total, weight = naive_sums(start, one, tiny.drawn(batch))
      means += [total / weight] if weight else []
  assert len(means) == 4
  run.reset(start)
  packed = run.step(rowwise(packing.weigh_samples_equally, batch))
  np.testing.assert_allclose(packed["loss"], np.mean(means), rtol=1e-5)
  run.reset(start)
  assert abs(packed["loss"] - run.step(batch)["loss"]) > 1e-3
  alone = tiny.Run(optim=OPTIM, grad_accum=4)
  alone_batch = rowwise(packing.weigh_samples_equally, unpacked(batch))
  assert alone_batch["segment_ids"].max() == 1 < batch["segment_ids"].max()
  metrics = alone.step(alone_batch)
  np.testing.assert_allclose(metrics["loss"], packed["loss"], rtol=1e-6)
  np.testing.assert_allclose(metrics["grad_norm"], packed["grad_norm"], rtol=1e-5)


def test_without_mask_a_row_is_one_long_sample(run, naive_sums):
  batch = tiny.batch()
  start = tiny.params(run.recipe.model)
  weighed = rowwise(packing.weigh_samples_equally, batch)
  for one in (batch, weighed):
    joined = rowwise(packing.without_mask, one)
    total, weight = naive_sums(start, joined, tiny.drawn(joined))
    np.testing.assert_allclose(weight, one["loss_weight"].sum(), rtol=1e-6)
    run.reset(start)
    metrics = run.step(joined)
    np.testing.assert_allclose(metrics["loss"], total / weight, rtol=1e-5)
    run.reset(start)
    assert abs(metrics["loss"] - run.step(one)["loss"]) > 1e-3
  rising = np.diff(np.asarray(tiny.drawn(joined)), axis=1) > 0
  assert (rising | (joined["segment_ids"][:, 1:] == 0)).all()


def test_metrics_by_hand():
  batch = {
    "segment_ids": jnp.array([[1, 1, 1, 2, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1, 0, 0]]),
    "positions": jnp.array([[0, 2, 3, 0, 1, 2, 0, 0], [0, 1, 5, 6, 90, 91, 0, 0]]),
  }
  weight_BL = jnp.array([[1.0, 0, 0, 1, 0.5, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]])
  metrics = step.describe(batch, weight_BL)
  assert metrics == {
    "tokens": 13,
    "target_fraction": pytest.approx(4 / 13),
    "largest_position": 91,
    "skipped_fraction": 0.5,  # samples 1 and 4 of 4
  }
  # Of two reads, those of the second one.
  twice = batch | {"positions_2": batch["positions"].at[0, 5].set(92)}
  metrics |= {"largest_position": 92, "skipped_fraction": 0.75}
  assert step.describe(twice, weight_BL) == metrics


def test_metrics_of_a_real_batch(run):
  run.reset()
  batch = tiny.batch()
  metrics = run.step(batch)
  assert metrics["tokens"] == np.sum(batch["segment_ids"] > 0)
  drawn_BL = np.asarray(tiny.drawn(batch))
  assert metrics["largest_position"] == drawn_BL.max() > tiny.SEQ_LEN
  assert metrics["skipped_fraction"] == 1  # p = 1 and all have a second instruction
  assert metrics["finite"] and metrics["learning_rate"] == pytest.approx(0.01)


def test_a_batch_without_targets_does_not_divide_by_zero(run):
  run.reset()
  batch = tiny.batch()
  metrics = run.step(batch | {"loss_weight": 0 * batch["loss_weight"]})
  assert metrics["loss"] == metrics["grad_norm"] == 0 and metrics["finite"]


def as_long_as(rows, batch):
  """A batch with empty rows after its own."""
  pad = lambda x: np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])
  return {name: pad(x) for name, x in batch.items()}


@pytest.mark.parametrize(
  "changes",
  [
    {"grad_accum": 4},  # two microbatches have empty rows only
    pytest.param(
      {"long_short": long_short.LongShortConfig(0.2, "none", 1)}, marks=pytest.mark.slow
    ),
    pytest.param(
      {"distill": distillation.DistillConfig(0.5, places="all")}, marks=pytest.mark.slow
    ),
  ],
)
def test_empty_rows_change_neither_gradients_nor_numbers(changes):
  small = tiny.batch(rows=2)
  run = tiny.Run(optim=OPTIM, **changes | {"grad_accum": 1})
  expected = run.step(small)
  other = tiny.Run(optim=OPTIM, **changes)
  found = other.step(as_long_as(8, small))
  assert expected["loss"] > 0 and expected["skipped_fraction"] == 1
  assert found.keys() == expected.keys()
  for name in found:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
  for one, two in zip(leaves(other.state), leaves(run.state), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def broken_by_inf(params):
  params["embed"]["weight"][7, 3] = np.inf  # loss and gradients are NaN


def broken_by_size(params):
  params["norm"]["weight"] *= 1e25  # a finite loss with a gradient norm beyond fp32


@pytest.mark.parametrize("break_it", [broken_by_inf, broken_by_size])
def test_a_nonfinite_step_is_skipped(run, break_it):
  start = tiny.params(run.recipe.model)
  break_it(start)
  run.reset(start)
  before = leaves((run.state.params, run.state.opt))
  metrics = run.step(tiny.batch())
  assert not metrics["finite"]
  assert np.isfinite(metrics["loss"]) == (break_it is broken_by_size)
  assert run.state.step == 0  # the schedule has not moved either
  after = leaves((run.state.params, run.state.opt))
  for one, other in zip(after, before, strict=True):
    np.testing.assert_array_equal(one, other)


def test_one_compile_for_all_batches(run):
  run.reset()
  for seed in range(3):
    run.step(tiny.batch(seed=seed, epoch=seed))
  assert run.train_step._cache_size() == 1
  assert run.state.step == 3


def test_limits_of_a_schedule_rise_with_the_step():
  """One program; a state that is put back draws as before, in the middle of a stage."""
  scheduled = dataclasses.replace(tiny.SKIPS, schedule="60,400,2000")
  run = tiny.Run(optim=OPTIM, positions=scheduled, steps=6)
  assert run.recipe.steps == 6
  greatest = []
  for t in range(6):
    batch = tiny.batch(seed=t)
    greatest.append(int(run.step(batch)["largest_position"]))
    limit = (60, 400, 2000)[t // 2]
    alone = dataclasses.replace(tiny.SKIPS, max_position=limit)
    assert greatest[-1] == positions.synthesize(alone, 0, batch).max() < limit
  assert greatest[-1] > 400 and run.train_step._cache_size() == 1


def test_jumps_of_self_distillation_stay_below_the_limits_of_a_schedule():
  scheduled = dataclasses.replace(tiny.SKIPS, schedule="200,2000")
  distill = distillation.DistillConfig(weight=1.0, reach="limit", places="all")
  run = tiny.Run(optim=OPTIM, positions=scheduled, steps=4, distill=distill)
  greatest = [int(run.step(tiny.batch(seed=t))["largest_position"]) for t in range(4)]
  assert max(greatest[:2]) < 200 < min(greatest[2:])


def test_ten_steps_equal_a_naive_run(run, naive_sums):
  """Against full attention, full logits, clipping and Adam written out."""
  run.reset()
  params = jax.tree.map(jnp.asarray, tiny.params(run.recipe.model))
  m = v = jax.tree.map(jnp.zeros_like, params)
  rates = [0.01, 0.02, *(0.02 * (10 - t) / 8 for t in range(2, 10))]

  @jax.jit
  def naive_step(params, m, v, t, lr, batch, positions_BL):
    def loss(params):
      total, weight = naive_sums(params, batch, positions_BL)
      return total / weight

    value, g = jax.value_and_grad(loss)(params)
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(g)))
    g = jax.tree.map(lambda g: g / jnp.maximum(norm, 1), g)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g**2, v, g)
    adam = lambda m, v: m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.99**t)) + 1e-3)
    params = jax.tree.map(
      lambda w, m, v: w - lr * (adam(m, v) + 0.05 * w), params, m, v
    )
    return params, m, v, value, norm

  losses, norms, expected, expected_norms = [], [], [], []
  for t, lr in enumerate(rates, 1):
    batch = tiny.batch(seed=t % 2, epoch=t)
    drawn_BL = tiny.drawn(batch)
    params, m, v, value, norm = naive_step(params, m, v, t, lr, batch, drawn_BL)
    expected.append(value)
    expected_norms.append(norm)
    metrics = run.step(batch)
    assert metrics["largest_position"] > tiny.SEQ_LEN
    losses.append(metrics["loss"])
    norms.append(metrics["grad_norm"])
  np.testing.assert_allclose(losses, expected, rtol=2e-5)
  np.testing.assert_allclose(norms, expected_norms, rtol=1e-4)
  assert max(norms) > 1 and losses[-1] < 0.9 * losses[0]  # it clips and it learns
  for one, other in zip(leaves(run.state.params), leaves(params), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_windows_of_text_are_cropped_in_the_step():
  recipe = positions.PositionConfig("pose", 2000, 1.0, "block", "never", "sequential")
  run = tiny.Run(crop=12, positions=recipe)
  batch = tiny.batch(max_samples=1)
  metrics = run.step(batch)
  lengths = (batch["segment_ids"] > 0).sum(1)
  assert lengths.max() > 12
  assert metrics["tokens"] == np.minimum(lengths, 12).sum()
  assert metrics["largest_position"] > tiny.SEQ_LEN
  assert np.isfinite(metrics["loss"])


def test_the_config_says_what_is_cropped():
  c = config.default()
  for window, crop in ((0, 0), (8192, 4096)):
    c.data.text_window = window
    recipe = recipe_lib.from_config(c, tiny.config(), tiny.SKIPS, "cpu")
    assert recipe.crop == crop


def test_the_held_out_loss_of_many_batches_is_not_rounded(monkeypatch):
  """In float32 each batch that is added to a large sum would be rounded."""
  rows, loss, targets = 100_000, np.float32(5000), np.float32(3001)
  data = types.SimpleNamespace(eval_batches=[{}] * rows)
  one = object.__new__(loop.Loop)
  one.setup = types.SimpleNamespace(recipe=tiny.recipe(), data=data)
  one.state = state_lib.TrainState(0, {}, None)
  one._eval_step = lambda params, batch: (loss, targets)
  monkeypatch.setattr(one, "_place", lambda batch: batch)
  assert one._held_out_loss() == pytest.approx(5000 / 3001, rel=1e-9)

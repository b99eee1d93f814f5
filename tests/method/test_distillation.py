"""Self-distillation: the two views, their pairs, and gradients by naive full logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from skipalign_jax import config as config_lib
from skipalign_jax.method import distillation, positions, two_reads
from skipalign_jax.runtime import errors
from skipalign_jax.training import objective, report, resolve

LIMIT = tiny.SKIPS.max_position
drawn_views = jax.jit(distillation.views, static_argnums=(0, 1, 2))


def views(batch, step=0, **changes):
  config = distillation.DistillConfig(1.0, **changes)
  batch = batch | {"positions": tiny.drawn(batch)}
  found = drawn_views(config, LIMIT, 0, step, batch, batch["loss_weight"])
  return {name: np.asarray(x) for name, x in found.items()}


def samples(batch):
  for row, segment_L in enumerate(batch["segment_ids"]):
    for segment in range(1, segment_L.max() + 1):
      yield row, np.flatnonzero(segment_L == segment)


@pytest.mark.parametrize("reach", ["sample", "limit"])
@pytest.mark.parametrize("split", ["block", "token"])
def test_the_student_jumps_once_and_stays_below_the_limit(split, reach):
  batch, seen, far = tiny.batch(), set(), 0
  for step in range(12):
    found = views(batch, step, split=split, reach=reach, places="all")
    for row, at in samples(batch):
      jump = (found["positions_2"] - found["positions"])[row, at]
      first = int(np.argmax(jump > 0))
      y = jump[-1]
      assert (
        y >= 1
        and first >= 1
        and (jump == np.where(np.arange(len(at)) < first, 0, y)).all()
      )
      assert found["positions_2"][row, at].max() < LIMIT
      assert y <= len(at) or reach == "limit"
      starts = np.flatnonzero(np.diff(batch["block_ids"][row, at])) + 1
      assert first in starts or split == "token"
      np.testing.assert_array_equal(found["pair_weight"][row, at], jump > 0)
      seen.add((row, int(at[0]), first))
      far += y > len(at)
    assert not found["pair_weight"][batch["segment_ids"] == 0].any()
  assert len(seen) > len(list(samples(batch))) and (far > 0) == (reach == "limit")


@pytest.mark.parametrize(
  ("split", "reach", "firsts", "largest"),
  [("block", "sample", [2, 3], 6), ("token", "limit", [1, 2, 3, 4, 5], 3)],
)
def test_all_jumps_are_equally_likely(split, reach, firsts, largest):
  """s is a place or the start of a block, y ~ U{1 … Y}, both for themselves."""
  count, m = 6000, 6
  like = lambda x_L: np.tile(np.array(x_L, np.int32), (count, 1))
  batch = {
    "segment_ids": like([1] * m),
    "block_ids": like([0, 0, 1, 2, 2, 2]),
    "sample_ids": np.repeat(np.arange(count, dtype=np.uint32)[:, None], m, 1),
    "positions": like(range(m)),
  }
  config = distillation.DistillConfig(1.0, split=split, reach=reach)
  limit = 100 if reach == "sample" else m + 3
  found = drawn_views(config, limit, 0, 0, batch, np.zeros((count, m)))
  jump_BL = np.asarray(found["positions_2"] - found["positions"])
  drawn = np.argmax(jump_BL > 0, axis=1), jump_BL[:, -1]
  seen, counts = np.unique(np.stack(drawn), axis=1, return_counts=True)
  expected = [(first, y) for first in firsts for y in range(1, largest + 1)]
  assert list(map(tuple, seen.T.tolist())) == expected
  assert np.abs(counts / count * len(expected) - 1).max() < 0.2


def test_strategy_compares_with_contiguous_positions():
  batch = tiny.batch()
  found = views(batch, view="strategy")
  contiguous_BL = positions.contiguous(batch["segment_ids"])
  np.testing.assert_array_equal(found["positions"], contiguous_BL)
  np.testing.assert_array_equal(found["positions_2"], tiny.drawn(batch))
  differs = found["positions"] != found["positions_2"]
  np.testing.assert_array_equal(found["pair_weight"], batch["loss_weight"] * differs)


@pytest.mark.parametrize("strategy", ["randpos", "skip_all", "logo"])
def test_pairs_are_the_places_that_see_other_distances(strategy):
  """RandPos moves the first token too, which changes no distance."""
  recipe = dataclasses.replace(tiny.SKIPS, strategy=strategy, max_position=100)
  batch = tiny.batch()
  batch["positions"] = positions.synthesize(recipe, 0, batch)
  config = distillation.DistillConfig(1.0, "strategy", places="all")
  found = distillation.views(config, 100, 0, 0, batch, batch["loss_weight"])
  expected = np.zeros_like(batch["loss_weight"])
  for row, at in samples(batch):
    one, other = (
      np.array(found[name])[row, at] for name in ("positions", "positions_2")
    )
    apart = np.subtract.outer(one, one) != np.subtract.outer(other, other)
    expected[row, at] = np.tril(apart).any(axis=1)
  np.testing.assert_array_equal(found["pair_weight"], expected)
  assert expected.any() and (found["positions_2"] != found["positions"]).any()


@pytest.mark.parametrize("reach", ["sample", "limit"])
def test_a_sample_draws_the_same_packed_and_alone(reach):
  batch = tiny.batch()
  found = views(batch, reach=reach)
  for row, at in samples(batch):
    m = len(at)
    pad = lambda x: np.pad(x, (0, tiny.SEQ_LEN - len(x)))[None]
    alone = {name: pad(x[row, at]) for name, x in batch.items()}
    alone["segment_ids"] = pad(np.ones(m, np.int32))
    np.testing.assert_array_equal(
      views(alone, reach=reach)["positions_2"][0, :m], found["positions_2"][row, at]
    )


def test_samples_without_room_or_a_second_block_have_no_pair():
  batch = tiny.batch()
  full = batch | {"positions": tiny.drawn(batch)}
  config = distillation.DistillConfig(1.0, places="all")
  limit = int(full["positions"].max()) + 1
  found = drawn_views(config, limit, 0, 0, full, batch["loss_weight"])
  assert found["positions_2"].max() < limit
  one_block = batch | {"block_ids": np.zeros_like(batch["block_ids"])}
  assert not views(one_block, places="all")["pair_weight"].any()
  assert views(one_block, places="all", split="token")["pair_weight"].any()


def naive_sums(params, batch, teacher_BL, student_BL, weight_BL, pair_BL):
  """Σ weight · CE + Σ pair · KL(student ‖ teacher), by full logits and autodiff."""
  segment_BL = batch["segment_ids"]
  mask_BLL = (segment_BL[:, :, None] == segment_BL[:, None, :]) & np.tri(
    tiny.SEQ_LEN, dtype=bool
  )
  read = lambda places_BL: jax.nn.log_softmax(
    jax.vmap(tiny.naive_logits, (None, None, 0, 0, 0))(
      params, tiny.config(), batch["tokens"], places_BL, mask_BLL
    )
  )
  log_p, log_q = read(teacher_BL), read(student_BL)
  loss, _ = tiny.weighed_sums(log_p, batch)
  log_p = jax.lax.stop_gradient(log_p)
  kl_BL = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
  return loss + jnp.sum(pair_BL * kl_BL), (loss, jnp.sum(pair_BL * kl_BL))


def test_loss_and_gradients_are_the_naive_ones():
  """Both views by one program of ours and one naive one; a shift changes nothing."""
  recipe = tiny.recipe(distill=distillation.DistillConfig(0.7))
  batch, params = tiny.batch(), tiny.params(recipe.model)
  ours = jax.jit(
    jax.value_and_grad(
      lambda params, batch: objective.loss_sum(recipe, params, batch), has_aux=True
    )
  )
  naive = jax.jit(jax.value_and_grad(naive_sums, has_aux=True))
  drawn_BL = tiny.drawn(batch)
  for view in ("jump", "strategy"):
    config = distillation.DistillConfig(0.7, view=view)
    one = tiny.recipe(distill=config)
    full, weight_BL, total = objective.prepare(
      one, batch | {"positions": drawn_BL}, jnp.int32(3)
    )
    np.testing.assert_allclose(full["pair_weight"].sum(), 0.7 * total, rtol=1e-5)
    (found, metrics), grads = ours(params, full)
    (expected, (loss, kl)), expected_grads = naive(
      params, batch, full["positions"], full["positions_2"], weight_BL,
      full["pair_weight"],
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], kl / 0.7, rtol=1e-3)
    assert kl > 0 and 0 < metrics["agreement"] < total
    for got, want in zip(
      jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True
    ):
      np.testing.assert_allclose(got, want, rtol=2e-3, atol=3e-5)
    shifted = full | {"positions_2": full["positions_2"] + 1000}
    np.testing.assert_allclose(ours(params, shifted)[0][0], found, rtol=1e-4)


def test_equal_reads_have_no_divergence():
  rng = np.random.default_rng(0)
  log_p = jax.nn.log_softmax(rng.standard_normal((2, 3, 9)).astype(np.float32))
  kl_BC, same_BC, d_p, d_q = two_reads.kl_of_student(log_p, log_p)
  assert (same_BC == 1).all()
  for zero in (kl_BC, d_p, d_q):
    np.testing.assert_allclose(zero, 0, atol=1e-6)


@pytest.mark.parametrize(
  ("changes", "key"),
  [
    ({"long_short.alpha": 0.1}, "long_short.alpha"),
    ({"distill.view": "strategy", "positions.strategy": "contiguous"}, "distill.view"),
    ({"distill.weight": -1.0}, "distill.weight"),
    ({"distill.split": "sentence"}, "distill.split"),
    (
      {"positions.strategy": "contiguous", "positions.max_position": 4000},
      "increase positions.max_position",
    ),
  ],
)
def test_settings_that_do_not_fit_are_refused(changes, key):
  c = config_lib.default()
  c.steps = 1
  c.update_from_flattened_dict({"distill.weight": 1.0} | changes)
  with pytest.raises(errors.UserError, match=key):
    resolve.check(c)


@pytest.mark.parametrize(
  ("changes", "room"),
  [
    (dict(strategy="skip_outer"), True),
    (dict(strategy="pose"), True),
    (dict(strategy="randpos"), True),
    (dict(strategy="cream"), False),
    (dict(strategy="logo", terminal="response"), False),
    (dict(strategy="endprompt", terminal="response"), False),
    (dict(strategy="endprompt", terminal="response", terminal_at="random"), True),
  ],
)
def test_strategies_that_end_at_the_limit_leave_no_jump(changes, room):
  recipe = dataclasses.replace(tiny.SKIPS, **changes)
  batch = tiny.batch()
  batch["positions"] = positions.synthesize(recipe, 0, batch)
  config = distillation.DistillConfig(1.0, reach="limit", places="all")
  found = distillation.views(config, recipe.max_position, 0, 0, batch, None)
  assert bool((found["pair_weight"] > 0).any()) == room
  assert distillation.leaves_room(recipe) == room
  text = "".join(report.describe_distillation(config, recipe))
  assert ("no jump has room" in text) == (not room)
  other = dataclasses.replace(config, view="strategy")
  assert "NOTE" not in "".join(report.describe_distillation(other, recipe))

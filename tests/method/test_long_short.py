"""The regulariser: windows, gradients by naive full logits, the paper's two windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jaxprs import sizes

from skipalign_jax.data import packing
from skipalign_jax.method import long_short, positions, two_reads
from skipalign_jax.model import losses
from skipalign_jax.runtime import errors
from skipalign_jax.training import objective

CONFIG = long_short.LongShortConfig(0.3, "none", 0)
B, L, D, V = 2, 13, 6, 11
CONSTANT = {"none": "none", "long": "first", "short": "second"}
drawn_windows = jax.jit(long_short.windows, static_argnums=(0, 1))


def windows(batch, step=0, config=CONFIG):
  _, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  found = drawn_windows(config, 0, jnp.int32(step), batch, weight_BL)
  return {name: np.asarray(x) for name, x in found.items()}, np.asarray(weight_BL)


def segments(batch):
  """(row, first place, tokens) of each sample."""
  for row, ids_L in enumerate(batch["segment_ids"]):
    for segment in range(1, ids_L.max() + 1):
      at = np.flatnonzero(ids_L == segment)
      yield row, at[0], len(at)


def hidden_tokens(found, row, start, m):
  """l_extra of a sample, counted in its short window."""
  short_m = found["segment_ids_2"][row, start : start + m]
  extra = int(np.sum(short_m == short_m[0]))
  np.testing.assert_array_equal(
    short_m, [short_m[0]] * extra + [short_m[0] + 1] * (m - extra)
  )
  assert short_m[0] % 2 == 1
  return extra


def test_a_short_window_lacks_the_first_tokens_of_each_sample():
  batch = tiny.batch()
  seen = set()
  for step in range(6):
    found, weight_BL = windows(batch, step)
    np.testing.assert_array_equal(
      found["segment_ids_2"] == 0, batch["segment_ids"] == 0
    )
    expected_BL = np.zeros_like(weight_BL)
    for row, start, m in segments(batch):
      extra = hidden_tokens(found, row, start, m)
      assert 1 <= extra <= m // 2
      seen.add((row, start, extra))
      used = slice(start + extra, start + m)
      expected_BL[row, used] = weight_BL[row, used]
    np.testing.assert_array_equal(found["pair_weight"], expected_BL)
  assert len(seen) > 1.5 * len(list(segments(batch)))  # each step draws its own


def test_all_numbers_of_hidden_tokens_are_equally_likely():
  """l_extra ~ U{1 … ⌊m/2⌋}, here of m = 9."""
  count = 4000
  ids_BL = np.repeat(np.arange(count, dtype=np.uint32)[:, None], 10, 1)
  batch = {
    "segment_ids": np.tile(1 * (np.arange(10) < 9), (count, 1)),
    "sample_ids": ids_BL,
  }
  found = drawn_windows(CONFIG, 0, jnp.int32(0), batch, np.zeros((count, 10)))
  extra, counts = np.unique(
    np.sum(found["segment_ids_2"] == 1, axis=1), return_counts=True
  )
  assert extra.tolist() == [1, 2, 3, 4]
  assert np.abs(counts / count - 0.25).max() < 0.03


def test_pairs_weigh_alpha_where_weights_are_fractions():
  """As with loss.reduction=sequence: all pairs together may weigh less than 1."""
  row = packing.weigh_samples_equally({name: x[1] for name, x in tiny.batch().items()})
  batch = {name: x[None] for name, x in row.items()}
  config = long_short.LongShortConfig(0.3, "none", 5)
  prepare = jax.jit(objective.prepare, static_argnums=0)
  found, _, total = prepare(tiny.recipe(long_short=config), batch, jnp.int32(0))
  assert total == pytest.approx(2)  # samples
  assert 0 < windows(batch, config=config)[0]["pair_weight"].sum() < 1
  np.testing.assert_allclose(found["pair_weight"].sum(), 0.3 * total, rtol=1e-6)


def test_min_context():
  batch = tiny.batch()
  found, weight_BL = windows(batch, config=long_short.LongShortConfig(0.3, "none", 4))
  for row, start, m in segments(batch):
    extra = hidden_tokens(found, row, start, m)
    pair_m = found["pair_weight"][row, start : start + m]
    assert not pair_m[: extra + 3].any()
    np.testing.assert_array_equal(
      pair_m[extra + 3 :], weight_BL[row, start + extra + 3 : start + m]
    )


def naive_regularised(
  long_BLD, short_BLD, head_VD, targets_BL, weight_BL, pair_BL, stop
):
  log_p, log_q = (jax.nn.log_softmax(x @ head_VD.T) for x in (long_BLD, short_BLD))
  loss_BL = -jnp.take_along_axis(log_p, targets_BL[..., None], -1)[..., 0]
  if stop == "long":
    log_p = jax.lax.stop_gradient(log_p)
  if stop == "short":
    log_q = jax.lax.stop_gradient(log_q)
  sce_BL = -jnp.sum(jnp.exp(log_p) * log_q + jnp.exp(log_q) * log_p, axis=-1)
  return jnp.sum(weight_BL * loss_BL) + jnp.sum(pair_BL * sce_BL)


@pytest.mark.parametrize(("stop", "chunk"), [("none", 5), ("long", 13), ("short", 4)])
def test_value_and_gradients_equal_full_logits(stop, chunk):
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  inputs = normal(B, L, D), normal(B, L, D), normal(V, D)
  targets_BL = rng.integers(0, V, (B, L))
  weight_BL, pair_BL = (rng.random((B, L)).astype(np.float32) for _ in range(2))
  pair_BL[0, :5] = 0

  def ours(*inputs):
    total, parts = two_reads.regularised(
      *inputs, targets_BL, weight_BL, pair_BL, chunk, "sce", CONSTANT[stop]
    )
    return 3 * total, parts

  naive = lambda *inputs: (
    3 * naive_regularised(*inputs, targets_BL, weight_BL, pair_BL, stop)
  )
  (found, parts), grads = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(
    *inputs
  )
  expected, expected_grads = jax.jit(jax.value_and_grad(naive, (0, 1, 2)))(*inputs)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(parts[0] + parts[1], expected / 3, rtol=1e-5)
  sce_BL, symmetric_kl_BL = losses.long_short_terms(*inputs, 4)
  np.testing.assert_allclose(parts[1], np.sum(pair_BL * sce_BL), rtol=1e-5)
  np.testing.assert_allclose(parts[2], np.sum(pair_BL * symmetric_kl_BL), rtol=1e-4)
  for one, two in zip(grads, expected_grads, strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
  assert np.any(grads[1]) == (stop != "short")


def test_all_logits_never_exist():
  rows, length, dim, vocab = 2, 64, 3, 50

  def largest(chunk):
    def loss(*arrays):
      return two_reads.regularised(*arrays, chunk, "sce", "none")[0]

    floats = jax.ShapeDtypeStruct((rows, length), "float32")
    shapes = [(rows, length, dim), (rows, length, dim), (vocab, dim)]
    structs = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    targets = jax.ShapeDtypeStruct((rows, length), "int32")
    program = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1, 2)))
    return max(sizes(program(*structs, targets, floats, floats).jaxpr))

  # Both windows' logits for a quarter of the places that cross entropy would take.
  assert largest(16) == 2 * rows * 4 * vocab
  assert largest(64) == 2 * rows * 16 * vocab


@pytest.fixture(scope="module")
def run():
  return tiny.Run(long_short=CONFIG)


@pytest.fixture(scope="module")
def naive():
  """((objective, (loss, sce)), gradients) from full logits of two windows."""

  def objective(params, batch, positions_BL, short_positions_BL, short_BL, pair_BL):
    causal_LL = np.tri(tiny.SEQ_LEN, dtype=bool)

    def log_probs(positions_BL, segments_BL):
      same_BLL = segments_BL[:, :, None] == segments_BL[:, None, :]
      logits = jax.vmap(tiny.naive_logits, (None, None, 0, 0, 0))
      return jax.nn.log_softmax(
        logits(
          params, tiny.config(), batch["tokens"], positions_BL, same_BLL & causal_LL
        )
      )

    log_p = log_probs(positions_BL, batch["segment_ids"])
    log_q = log_probs(short_positions_BL, short_BL)
    sce_BL = -jnp.sum(jnp.exp(log_p) * log_q + jnp.exp(log_q) * log_p, axis=-1)
    total, weight = tiny.weighed_sums(log_p, batch)
    loss, sce = total / weight, jnp.sum(pair_BL * sce_BL) / jnp.sum(pair_BL)
    return loss + CONFIG.alpha * sce, (loss, sce)

  return jax.jit(jax.value_and_grad(objective, has_aux=True))


def test_a_step_is_the_naive_one(run, naive):
  """With skipped positions; a constant added to the short window's changes nothing."""
  batch, start = tiny.batch(), tiny.params(run.recipe.model)
  run.reset(start)
  metrics = run.step(batch)
  found, _ = windows(batch)
  others = found["segment_ids_2"], found["pair_weight"]
  places_BL = np.asarray(tiny.drawn(batch))
  assert places_BL.max() > tiny.SEQ_LEN  # so positions skip
  for shift in (0, 1000):
    (_, (loss, sce)), _ = naive(start, batch, places_BL, places_BL + shift, *others)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["sce"], sce, rtol=2e-4)
  contiguous_BL = np.asarray(positions.contiguous(batch["segment_ids"]))
  (_, (_, sce)), _ = naive(start, batch, contiguous_BL, contiguous_BL, *others)
  assert abs(sce - metrics["sce"]) > 1e-3


def test_gradients_are_the_naive_ones(run, naive):
  batch, start = tiny.batch(), tiny.params(run.recipe.model)
  found, _ = windows(batch)
  places_BL = np.asarray(tiny.drawn(batch))
  prepared, _, weight = objective.prepare(run.recipe, batch, jnp.int32(0))
  prepared["positions"] = places_BL

  def ours(params):
    total, _ = objective.loss_sum(run.recipe, params, prepared)
    return total / weight

  others = found["segment_ids_2"], found["pair_weight"]
  _, expected = naive(start, batch, places_BL, places_BL, *others)
  found = jax.tree.leaves(jax.jit(jax.grad(ours))(start))
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  for got, (path, want) in zip(found, leaves, strict=True):
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-5, err_msg=str(path))


def test_the_papers_two_windows(run, naive):
  """A[l_extra:] with B[: l_train − l_extra], each read by itself from place 0 on."""
  params, config = tiny.params(run.recipe.model), tiny.config()
  batch = tiny.batch(max_samples=1)
  found, _ = windows(batch)
  m = int((batch["segment_ids"][1] > 0).sum())
  extra = hidden_tokens(found, 1, 0, m)
  tokens_m = batch["tokens"][1, :m]

  @jax.jit
  def read(params, tokens):
    mask, places = np.tri(len(tokens), dtype=bool), np.arange(len(tokens))
    return jax.nn.softmax(tiny.naive_logits(params, config, tokens, places, mask))

  p, q = read(params, tokens_m)[extra:], read(params, tokens_m[extra:])
  sce_pairs = -np.sum(p * np.log(q) + q * np.log(p), axis=-1)
  pairs = found["pair_weight"][1, extra:m]
  assert pairs.sum() >= 2
  only_BL = np.zeros_like(found["pair_weight"])
  only_BL[1, extra:m] = pairs
  contiguous_BL = np.asarray(positions.contiguous(batch["segment_ids"]))
  (_, (_, sce)), _ = naive(
    params, batch, contiguous_BL, contiguous_BL, found["segment_ids_2"], only_BL
  )
  np.testing.assert_allclose(sce, np.sum(pairs * sce_pairs) / pairs.sum(), rtol=2e-4)


def test_a_model_that_ignores_context_has_no_misalignment(run):
  start = tiny.params(run.recipe.model)
  start["layers"]["attn"]["o"]["weight"] *= 0
  run.reset(start)
  metrics = run.step(tiny.batch())
  assert abs(metrics["symmetric_kl"]) < 1e-5 and metrics["sce"] > 0.1
  run.reset()
  assert run.step(tiny.batch())["symmetric_kl"] > 1e-3


@pytest.mark.parametrize(
  ("stop", "grad_accum"),
  [("none", 4), pytest.param("long", 1, marks=pytest.mark.slow)],
)
def test_microbatches_and_stopped_sides(run, stop, grad_accum):
  batch = tiny.batch()
  run.reset()
  whole = run.step(batch)
  config = long_short.LongShortConfig(0.3, stop, 0)
  other = tiny.Run(long_short=config, grad_accum=grad_accum)
  metrics = other.step(batch)
  for name in ("loss", "sce", "symmetric_kl"):
    np.testing.assert_allclose(metrics[name], whole[name], rtol=1e-5, err_msg=name)
  states = (jax.tree.leaves(each.state.params) for each in (other, run))
  same = [
    np.allclose(one, two, rtol=1e-4, atol=1e-5)
    for one, two in zip(*states, strict=True)
  ]
  assert all(same) == (stop == "none")


@pytest.mark.parametrize(
  ("fields", "key"),
  [
    ((-1.0, "none", 0), "alpha"),
    ((0.1, "both", 0), "stop_gradient"),
    ((0.1, "none", -1), "min_context"),
  ],
)
def test_bad_settings_are_refused(fields, key):
  with pytest.raises(errors.UserError, match=key):
    long_short.LongShortConfig(*fields)

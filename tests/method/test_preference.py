"""DPO and SimPO: TRL's formulas, naive gradients, packing, and positions of pairs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from skipalign_jax import config as config_lib
from skipalign_jax.data import packing, preferences
from skipalign_jax.method import positions, preference
from skipalign_jax.runtime import errors
from skipalign_jax.training import objective, resolve

KINDS = {
  "dpo": preference.PreferenceConfig("dpo", 0.3),
  "simpo": preference.PreferenceConfig("simpo", 2.5, 0.4),
}
PER_REPLY = ("log_p", "targets", "reference")


def softplus(x):
  return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def trl(config, log_p, targets, reference):
  """TRL's DPOTrainer (sigmoid) and CPOTrainer (simpo); arrays [pairs, 2], float64.

  Returns:
    The mean loss, and the rewards [pairs, 2].
  """
  if config.kind == "dpo":
    log_ratios = log_p - reference
    delta = log_ratios[:, 0] - log_ratios[:, 1]
    return softplus(-config.beta * delta).mean(), config.beta * log_ratios
  average = log_p / targets
  simpo_gamma = config.beta * config.margin
  logits = average[:, 0] - average[:, 1] - simpo_gamma / config.beta
  return softplus(-config.beta * logits).mean(), config.beta * average


def pairs_of(batch, log_p_BL):
  """The arrays of `trl`, segment by segment; log_p_BL of place t's own token."""
  found = {name: [] for name in PER_REPLY}
  for row, segment_L in enumerate(batch["segment_ids"]):
    for segment in range(1, segment_L.max() + 1):
      inside_L = segment_L == segment
      is_target_L = inside_L & (batch["loss_weight"][row] > 0)
      found["log_p"].append(np.float64(log_p_BL[row][is_target_L]).sum())
      found["targets"].append(is_target_L.sum())
      found["reference"].append(np.float64(batch["reference"][row][inside_L]).sum())
  return {name: np.array(x).reshape(-1, 2) for name, x in found.items()}


def naive_log_p(params, batch, positions_BL):
  """log p of each place's own token [B, L], from full logits; 0 at the first one."""
  segment_BL = batch["segment_ids"]
  mask_BLL = (segment_BL[:, :, None] == segment_BL[:, None, :]) & np.tri(
    tiny.SEQ_LEN, dtype=bool
  )
  logits_BLV = jax.vmap(tiny.naive_logits, (None, None, 0, 0, 0))(
    params, tiny.config(), batch["tokens"], positions_BL, mask_BLL
  )
  log_p_BLV = jax.nn.log_softmax(logits_BLV)[:, :-1]
  log_p_BL = jnp.take_along_axis(log_p_BLV, batch["tokens"][:, 1:, None], 2)[..., 0]
  return jnp.pad(log_p_BL, [(0, 0), (1, 0)])


def naive_loss(config, params, batch, positions_BL):
  """The mean loss by autodiff, with a Python loop over the pairs."""
  log_p_BL, losses = naive_log_p(params, batch, positions_BL), []
  for row, segment_L in enumerate(batch["segment_ids"]):
    for chosen in range(1, segment_L.max() + 1, 2):
      rewards = []
      for segment in (chosen, chosen + 1):
        at = np.flatnonzero((segment_L == segment) & (batch["loss_weight"][row] > 0))
        reward = jnp.sum(log_p_BL[row, at])
        if config.kind == "dpo":
          first = int(np.argmax(segment_L == segment))
          reward -= batch["reference"][row, first]
        else:
          reward /= len(at)
        rewards.append(config.beta * reward)
      gamma = config.beta * config.margin if config.kind == "simpo" else 0
      losses.append(jax.nn.softplus(rewards[1] - rewards[0] + gamma))
  return jnp.mean(jnp.stack(losses))


@functools.cache
def ours(config, chunk=7):
  recipe = tiny.recipe(loss=config, loss_chunk=chunk)

  def loss(params, batch):
    full, _, total = objective.prepare(recipe, batch, jnp.int32(0))
    sums = objective.loss_sum(recipe, params, full)
    return jax.tree.map(lambda x: x / total, sums)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def batch():
  made = tiny.pair_batch(rows=4)
  return made | {"positions": np.asarray(tiny.drawn(made))}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_target_counts_for_nothing(batch, kind):
  """Such as a prompt, of whose tokens log p may be NaN."""
  weight_BL, segment_BL = batch["loss_weight"], batch["segment_ids"]
  log_p_BL = -np.random.default_rng(0).uniform(1, 9, weight_BL.shape)
  of_loss = jax.jit(
    jax.value_and_grad(
      lambda log_p_BL, weight_BL: preference.loss_sum(
        KINDS[kind], log_p_BL, weight_BL, segment_BL, batch["reference"]
      )[0]
    )
  )
  (want, want_BL), (got, got_BL) = (
    of_loss(np.where(weight_BL > 0, log_p_BL, other), weight_BL)
    for other in (-1.0, np.nan)
  )
  assert got == want
  np.testing.assert_array_equal(got_BL, want_BL)
  # A reply without a target: its pair is none.
  cut_BL = np.where((segment_BL == 2) & (np.arange(4) == 0)[:, None], 0, weight_BL)
  count = lambda weight_BL: int(preference.count(weight_BL, segment_BL))
  assert count(cut_BL) == count(weight_BL) - 1
  empty = batch | {"loss_weight": 0 * weight_BL}
  *_, total = objective.prepare(tiny.recipe(loss=KINDS[kind]), empty, jnp.int32(0))
  assert total == 1  # nothing is divided by zero
  less, less_BL = of_loss(log_p_BL, cut_BL)
  assert less < want and not less_BL[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_loss_rewards_and_gradients(batch, kind):
  """Against TRL's formulas, and against float64 autodiff through full logits."""
  config, params = KINDS[kind], tiny.params(tiny.config())
  (loss, metrics), grads = ours(config)(params, batch)
  log_p_BL = np.asarray(jax.jit(naive_log_p)(params, batch, batch["positions"]))
  expected, rewards = trl(config, **pairs_of(batch, log_p_BL))
  assert len(rewards) == 6
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  gaps = rewards[:, 0] - rewards[:, 1]
  for name, value in {
    "loss": expected,
    "rewards/chosen": rewards[:, 0].mean(),
    "rewards/rejected": rewards[:, 1].mean(),
    "rewards/margin": gaps.mean(),
    "rewards/accuracy": (gaps > 0).mean(),
  }.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  assert 0 < metrics["rewards/accuracy"] < 1
  with jax.enable_x64():
    wide = jax.tree.map(np.float64, params)
    naive = jax.jit(
      jax.value_and_grad(
        lambda params: naive_loss(config, params, batch, batch["positions"])
      )
    )
    expected, expected_grads = naive(wide)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for got, want in zip(
    jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-5 * np.abs(want).max())


def test_equal_policies_start_at_log_two(batch):
  """DPO's first step: the reference is the model itself."""
  recipe = tiny.recipe(loss=KINDS["dpo"])
  params = tiny.params(recipe.model)
  read = jax.jit(functools.partial(objective.reply_log_probs, recipe))
  log_p_BP2 = np.asarray(read(params, batch))
  reference_BL = np.zeros_like(batch["reference"])
  for row, segment_L in enumerate(batch["segment_ids"]):
    firsts = np.flatnonzero(np.diff(segment_L, prepend=0) > 0)
    reference_BL[row, firsts] = log_p_BP2[row].ravel()[: len(firsts)]
  (loss, metrics), _ = ours(KINDS["dpo"])(params, batch | {"reference": reference_BL})
  np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
  np.testing.assert_allclose(metrics["rewards/margin"], 0, atol=1e-4)


def unpacked(batch):
  """Each pair in a row of its own."""
  rows = []
  for i, segment_L in enumerate(batch["segment_ids"]):
    for chosen in range(1, segment_L.max() + 1, 2):
      at_L = (segment_L == chosen) | (segment_L == chosen + 1)
      pad = lambda x: np.pad(x, (0, tiny.SEQ_LEN - len(x)))
      row = {name: pad(x[i][at_L]) for name, x in batch.items()}
      row["segment_ids"] = pad(segment_L[at_L] - chosen + 1)
      rows.append(row)
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_a_packed_step_equals_microbatches_of_unpacked_pairs():
  """One denominator, the pairs of the whole batch."""
  batch, config = tiny.pair_batch(rows=4), KINDS["dpo"]
  blank = {name: np.zeros((2, *x.shape[1:]), x.dtype) for name, x in batch.items()}
  alone = unpacked(batch)
  assert alone["segment_ids"].max() == 2 < batch["segment_ids"].max()
  alone = {name: np.concatenate([x, blank[name]]) for name, x in alone.items()}
  whole = tiny.Run(loss=config)
  expected = whole.step(batch)
  parts = tiny.Run(loss=config, grad_accum=2)
  metrics = parts.step(alone)
  for name in ("loss", "grad_norm", "tokens", "largest_position", "rewards/margin"):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
  assert expected["largest_position"] > tiny.SEQ_LEN
  states = (jax.tree.leaves(run.state.params) for run in (parts, whole))
  for got, want in zip(*states, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


SETTINGS = [
  {"strategy": "skip_all"},
  {"strategy": "skip_outer", "gaps": "uniform"},
  {"strategy": "skip_inner", "prob_per": "sample", "skip_prob": 0.5},
  {"strategy": "pose"},
  {"strategy": "randpos"},
  {"strategy": "cream"},
  {"strategy": "endprompt"},
  {"strategy": "endprompt", "terminal": "response", "terminal_at": "random"},
  {"strategy": "logo", "terminal": "response"},
  {"strategy": "skip_outer", "skip_below": 10},
]


@pytest.mark.parametrize(
  "changes", SETTINGS, ids=lambda c: "-".join(map(str, c.values()))
)
def test_both_prompts_have_the_same_positions(changes):
  """And one reply continues where the other does, as far as both go."""
  config = dataclasses.replace(tiny.SKIPS, **changes)
  batch, moved, differ = tiny.pair_batch(), 0, 0
  draw = jax.jit(functools.partial(positions.synthesize, config, 0))
  alone = {k: v for k, v in batch.items() if k != "sample_sizes"}
  for given, counts in ((batch, True), (alone, False)):
    drawn_BL = np.asarray(draw(given))
    for row, segment_L in enumerate(batch["segment_ids"]):
      for chosen in range(1, segment_L.max() + 1, 2):
        one, other = (drawn_BL[row][segment_L == s] for s in (chosen, chosen + 1))
        shared = min(len(one), len(other))
        same = (one[:shared] == other[:shared]).all()
        assert same or not counts
        differ += not same
        moved += counts and max(one[-1], other[-1]) > tiny.SEQ_LEN
        assert max(one[-1], other[-1]) < config.max_position
  assert moved and differ  # without sample_sizes a draw depends on the reply


@pytest.mark.parametrize(
  ("changes", "key"),
  [
    ({"loss.kind": "dpo"}, "loss.beta"),
    ({"loss.kind": "ipo"}, "loss.kind"),
    ({"loss.beta": 0.1}, "loss.beta=0.1 has no effect with loss.kind=sft"),
    ({"loss.kind": "dpo", "loss.beta": 0.0}, "loss.beta"),
    ({"loss.kind": "dpo", "loss.beta": 0.1, "loss.margin": 0.5}, "loss.kind=simpo"),
    (
      {"loss.kind": "simpo", "loss.beta": 2.0, "loss.reference": "contiguous"},
      "loss.kind=dpo",
    ),
    (
      {"loss.kind": "dpo", "loss.beta": 0.1, "loss.reduction": "sequence"},
      "loss.reduction",
    ),
    (
      {"loss.kind": "dpo", "loss.beta": 0.1, "positions.resample": "epoch"},
      "loss.reference=contiguous",
    ),
    (
      {"loss.kind": "dpo", "loss.beta": 0.1, "positions.schedule": "9000,100000"},
      "loss.reference=contiguous",
    ),
    ({"loss.kind": "dpo", "loss.beta": 0.1, "distill.weight": 1.0}, "distill.weight"),
    (
      {"loss.kind": "dpo", "loss.beta": 0.1, "long_short.alpha": 0.1},
      "long_short.alpha",
    ),
    (
      {"loss.kind": "simpo", "loss.beta": 2.0, "data.rewritten": "each"},
      "data.rewritten=last",
    ),
    ({"loss.kind": "simpo", "loss.beta": 2.0, "data.overlong": "split"}, "or drop"),
    (
      {"loss.kind": "simpo", "loss.beta": 2.0, "positions.strategy": "endprompt"}
      | {"positions.terminal": "cue"},
      "positions.terminal=turn",
    ),
    (
      {"loss.kind": "simpo", "loss.beta": 2.0, "data.packing": True}
      | {"data.packing_mask": False},
      "data.packing_mask=True",
    ),
    (
      {"loss.kind": "dpo", "loss.beta": 0.1, "positions.strategy": "pose"}
      | {"data.text_window": 9000},
      "data.text_window=0",
    ),
  ],
)
def test_settings_that_do_not_fit_are_refused(changes, key):
  c = config_lib.default()
  c.steps = 1
  c.update_from_flattened_dict(changes)
  with pytest.raises(errors.UserError, match=key):
    resolve.check(c)


def test_settings_that_fit():
  for changes in (
    {"loss.kind": "dpo", "loss.beta": 0.1, "lora.rank": 4},
    {"loss.kind": "simpo", "loss.beta": 2.0, "positions.resample": "epoch"},
    {"loss.kind": "dpo", "loss.beta": 0.1, "positions.resample": "epoch"}
    | {"loss.reference": "contiguous"},
  ):
    c = config_lib.default()
    c.steps = 1
    c.update_from_flattened_dict(changes)
    resolve.check(c)


def test_rows_of_pairs():
  rng = np.random.default_rng(0)
  samples = [
    dict(
      tokens=rng.integers(1, 9, n),
      block_starts=np.array([0, 2]),
      target_spans=np.array([3, n]),
      sample_id=np.uint32(5),
      is_text=False,
    )
    for n in (4, 6, 5, 4)
  ]
  row = packing.assemble_row(samples, 20, 0)
  row = preferences.with_pairs(row, [np.array([-1.0, -2.0]), np.array([-3.0, -4.0])])
  assert row["sample_sizes"].tolist() == [6] * 10 + [5] * 9 + [0]
  assert row["reference"][[0, 4, 10, 15]].tolist() == [-1, -2, -3, -4]
  assert np.count_nonzero(row["reference"]) == 4
  for name, dtype in packing.PAIR_DTYPES.items():
    assert row[name].dtype == dtype
  empty = preferences.with_pairs(packing.assemble_row([], 4, 0), [])
  assert not empty["sample_sizes"].any() and not empty["reference"].any()

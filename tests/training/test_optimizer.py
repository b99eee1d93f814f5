"""The schedule by hand, and AdamW against a transcription of the paper."""

import jax
import numpy as np
import pytest
import tiny

from skipalign_jax.training import optimizer


def rates(steps, warmup_fraction):
  config = tiny.optim(learning_rate=2.0, warmup_fraction=warmup_fraction)
  schedule = optimizer.schedule(config, steps)
  return [float(schedule(step)) for step in range(steps + 1)]


def test_schedule_by_hand():
  expected = [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25, 0.0]
  assert rates(10, 0.15) == pytest.approx(expected)  # 1.5 steps become 2


@pytest.mark.parametrize(("steps", "warmup"), [(100, 3), (101, 4), (500, 15)])
def test_warmup_is_rounded_up(steps, warmup):
  got = rates(steps, 0.03)
  assert got[0] == pytest.approx(2 / warmup)
  assert got.index(max(got)) == warmup - 1 and max(got) == 2
  assert got[-1] == 0
  assert np.all(np.diff(got[warmup:]) < 0)


def test_every_step_moves_whatever_its_number():
  for steps in (1, 2, 3, 50):
    for fraction in (0.0, 0.03, 1.0):
      assert all(rate > 0 for rate in rates(steps, fraction)[:-1]), (steps, fraction)


def adamw(w, grads, config, learning_rates):
  """Loshchilov & Hutter (1711.05101), algorithm 2, with PyTorch's decay."""
  m = v = 0.0
  for t, (g, lr) in enumerate(zip(grads, learning_rates, strict=True), 1):
    m = config.beta1 * m + (1 - config.beta1) * g
    v = config.beta2 * v + (1 - config.beta2) * g**2
    m_hat, v_hat = m / (1 - config.beta1**t), v / (1 - config.beta2**t)
    step = m_hat / (np.sqrt(v_hat) + config.eps) + config.weight_decay * w
    w = w - lr * step
  return w


def updated(config, w, grads, steps=10):
  """Weights after the optimizer has seen `grads`."""
  update = optimizer.make(config, steps)
  params = {"w": w}
  state = update.init(params)
  for g in grads:
    change, state = update.update({"w": g}, state, params)
    params = jax.tree.map(np.add, params, jax.device_get(change))
  return params["w"]


def test_adamw_equals_a_transcription():
  rng = np.random.default_rng(0)
  w, *grads = rng.standard_normal((4, 6)).astype(np.float32)
  config = tiny.optim(weight_decay=0.1, eps=0.05, clip_norm=0.0)
  expected = adamw(w, grads, config, [0.01, 0.02, 0.02])
  np.testing.assert_allclose(updated(config, w, grads), expected, rtol=1e-5)


def test_clipping_scales_long_gradients_only():
  w = np.zeros(2, np.float32)
  config = tiny.optim(eps=1.0)  # so that the length of a gradient shows
  long, unit = np.array([30.0, 40.0], np.float32), np.array([0.6, 0.8], np.float32)
  np.testing.assert_allclose(updated(config, w, [long]), updated(config, w, [unit]))
  short = unit / 2
  expected = adamw(w, [short], config, [0.01])
  np.testing.assert_allclose(updated(config, w, [short]), expected, rtol=1e-5)
  unclipped = tiny.optim(eps=1.0, clip_norm=0.0)
  expected = adamw(w, [long], unclipped, [0.01])
  np.testing.assert_allclose(updated(unclipped, w, [long]), expected, rtol=1e-5)

"""Schedules by closed formulas, and optimizers against transcriptions of the papers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from optax import contrib

from skipalign_jax import config as config_lib
from skipalign_jax.model import known_models, lora, quantized, sharding
from skipalign_jax.runtime import errors
from skipalign_jax.training import layerwise, optimizer
from skipalign_jax.training import state as state_lib


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


@pytest.mark.parametrize(
  ("steps", "fraction", "warmup"), [(100, 0.07, 7), (25, 0.28, 7)]
)
def test_a_whole_number_of_steps_stays(steps, fraction, warmup):
  """The product is 7.000000000000001."""
  got = rates(steps, fraction)
  assert got.index(max(got)) == warmup - 1


def test_every_step_moves_whatever_its_number():
  for steps in (1, 2, 3, 50):
    for fraction in (0.0, 0.03, 1.0):
      assert all(rate > 0 for rate in rates(steps, fraction)[:-1]), (steps, fraction)


def closed(name, step, steps, warmup, decay, final):
  """Learning rate by its definition: the highest is 1."""
  if step < warmup:
    return (step + 1) / warmup
  if name == "constant":
    return 1.0
  if name == "linear":
    left = (steps - step) / (steps - warmup)
  elif name == "cosine":
    left = math.cos(math.pi / 2 * (step - warmup) / (steps - warmup)) ** 2
  else:
    left = 1.0 if step <= steps - decay else (steps - step) / decay
  return final + (1 - final) * left


@pytest.mark.parametrize("name", ["linear", "constant", "cosine", "wsd"])
@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize(
  ("steps", "warmup_fraction", "warmup"), [(50, 0.03, 2), (40, 0.25, 10), (3, 0, 1)]
)
def test_schedules_at_all_steps(name, final, steps, warmup_fraction, warmup):
  config = tiny.optim(
    learning_rate=1.0,
    schedule=name,
    warmup_fraction=warmup_fraction,
    decay_fraction=0.31,
    final_fraction=final,
  )
  decay = math.ceil(0.31 * steps)
  schedule = jax.jit(optimizer.schedule(config, steps))
  got = [schedule(jnp.int32(step)) for step in range(steps)]
  expected = [closed(name, at, steps, warmup, decay, final) for at in range(steps)]
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  assert min(got) > 0 and max(got) == 1


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


def updated(config, params, grads, steps=10):
  """Weights after the optimizer has seen `grads`."""
  update = optimizer.make(config, steps)
  state = update.init(params)
  step = jax.jit(update.update)
  for g in grads:
    change, state = step(g, state, params)
    params = jax.tree.map(np.add, params, jax.device_get(change))
  return params


RATES = [0.01, 0.02, 0.02]  # of the first steps


def test_adamw_equals_a_transcription():
  rng = np.random.default_rng(0)
  w, *grads = rng.standard_normal((4, 6)).astype(np.float32)
  config = tiny.optim(weight_decay=0.1, eps=0.05, clip_norm=0.0)
  expected = adamw(w, grads, config, RATES)
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


def lion(w, grads, config, learning_rates):
  """Chen et al. (2302.06675), algorithm 2."""
  m = 0.0
  for g, lr in zip(grads, learning_rates, strict=True):
    sign = np.sign(config.beta1 * m + (1 - config.beta1) * g)
    w = w - lr * (sign + config.weight_decay * w)
    m = config.beta2 * m + (1 - config.beta2) * g
  return w


def adafactor(w, grads, config, learning_rates):
  """Shazeer & Stern (1804.04235), algorithm 4, of one matrix or vector."""
  rows = columns = v = 0.0
  factored = w.ndim == 2 and min(w.shape) >= 128
  for t, (g, lr) in enumerate(zip(grads, learning_rates, strict=True), 1):
    beta2, square = 1 - t**-0.8, g**2 + 1e-30
    if factored:
      rows = beta2 * rows + (1 - beta2) * square.mean(1)
      columns = beta2 * columns + (1 - beta2) * square.mean(0)
      v = np.outer(rows, columns) / rows.mean()
    else:
      v = beta2 * v + (1 - beta2) * square
    step = g / np.sqrt(v)
    step = step / max(1, np.sqrt((step**2).mean()))
    w = w - lr * (step + config.weight_decay * w)
  return w


def muon(w, grads, config, learning_rates):
  """Jordan's Muon with the size of updates of 2502.16982, of one matrix."""
  buffer = 0.0
  for g, lr in zip(grads, learning_rates, strict=True):
    buffer = config.momentum * buffer + g
    u, s, vt = np.linalg.svd(g + config.momentum * buffer, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
      s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    step = 0.2 * max(w.shape) ** 0.5 * (u * s) @ vt
    w = w - lr * (step + config.weight_decay * w)
  return w


def a_model(seed=0):
  """Parameters of all kinds; q is square, up high, down wide, k has no side of 128."""
  draw = np.random.default_rng(seed).standard_normal
  matrix = lambda *shape: {"weight": draw(shape).astype(np.float32)}
  return {
    "embed": matrix(300, 130),
    "layers": {
      "q": matrix(3, 130, 130) | {"bias": draw((3, 130)).astype(np.float32)},
      "k": matrix(3, 5, 130),
      "up": matrix(3, 200, 130),
      "down": matrix(3, 130, 200),
      "norm": matrix(3, 130),
    },
  }


@pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor", "muon"])
def test_each_matrix_of_each_layer_is_updated_as_its_paper_has_it(kind):
  config = tiny.optim(kind=kind, weight_decay=0.1, clip_norm=0.0)
  params, grads = a_model(), [a_model(seed) for seed in (1, 2, 3)]
  rule = dict(adamw=adamw, lion=lion, adafactor=adafactor, muon=muon)[kind]

  def expected(path, w, *grads):
    name = sharding.path_of(path)
    own = adamw if kind == "muon" and w.ndim < 3 else rule
    if not name.startswith("layers"):
      return own(w, grads, config, RATES)
    layers = zip(w, *grads, strict=True)
    return np.stack([own(one, rest, config, RATES) for one, *rest in layers])

  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-5),
    updated(config, params, grads),
    jax.tree_util.tree_map_with_path(expected, params, *grads),
  )


def test_orthogonal_matrices_are_those_of_optax():
  """One after the other: optax takes matrices, not stacks of them."""
  x_nOI = a_model()["layers"]["up"]["weight"]
  got_nOI = layerwise.newton_schulz(x_nOI)
  reference = contrib.scale_by_muon(
    beta=0.0, nesterov=False, weight_dimension_numbers=contrib.MuonDimensionNumbers()
  )
  for got_OI, x_OI in zip(got_nOI, x_nOI, strict=True):
    want_OI, _ = reference.update(x_OI, reference.init(x_OI))
    np.testing.assert_allclose(got_OI, want_OI, rtol=1e-3, atol=1e-5)
    values = np.linalg.svd(got_OI, compute_uv=False)
    assert 0.5 < values.min() and values.max() < 1.3
  assert not np.any(layerwise.newton_schulz(np.zeros((1, 2, 3), np.float32)))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      dict(kind="adafactor", beta1=0.5),
      "use optim.kind=adamw or lion or muon",
    ),
    (dict(kind="lion", eps=1e-5), "optim.eps=1e-05 has no effect"),
    (dict(kind="lion", momentum=0.9), "optim.momentum=0.9 .* use optim.kind=muon"),
    (dict(momentum=0.9), "optim.kind=adamw; leave it at 0.95"),
    (dict(schedule="constant", final_fraction=0.1), "optim.final_fraction=0.1 has no"),
    (dict(schedule="cosine", decay_fraction=0.1), "use optim.schedule=wsd"),
    (
      dict(schedule="wsd", warmup_fraction=0.6, decay_fraction=0.5),
      "together more than the whole run",
    ),
  ],
)
def test_keys_that_nothing_reads_are_refused(changes, message):
  config = config_lib.default().optim
  optimizer.check(config)
  config.update(changes)
  with pytest.raises(errors.UserError, match=message):
    optimizer.check(config)


LLAMA = known_models.KNOWN["meta-llama/Llama-2-7b-hf"]
EIGHT = sharding.abstract_mesh(dict(data=1, fsdp=2, tensor=2, context=2))


def layout(kind, adapters=None):
  """The state of Llama-2-7B and its shardings on eight devices."""
  update = optimizer.make(tiny.optim(kind=kind), 10)
  return state_lib.shardings(EIGHT, update, LLAMA, adapters)


def arrays(tree, at):
  """(path, shape, spec) of each array; the path has the names of parameters only."""
  with_path = jax.tree_util.tree_leaves_with_path
  names = lambda path: [key.key for key in path if hasattr(key, "key")]
  return [
    ("/".join(names(path)), x.shape, tuple(where.spec))
    for (path, x), where in zip(with_path(tree), jax.tree.leaves(at), strict=True)
  ]


SPLIT = ("fsdp", "context")


@pytest.mark.parametrize(
  ("kind", "moments"), [("adamw", 2), ("lion", 1), ("adafactor", 1), ("muon", 1)]
)
@pytest.mark.parametrize("rank", [0, 16])
def test_states_are_split_as_their_parameters(kind, moments, rank):
  adapters = lora.Config(rank, 16.0, ("q", "down"), "bfloat16") if rank else None
  state, at = layout(kind, adapters)
  expected = {}
  for path, shape, spec in arrays(state.params, at.params):
    both = moments + (kind == "muon" and len(shape) < 3)  # by AdamW
    factored = kind == "adafactor" and min(shape[-2:]) >= 128 and "norm" not in path
    expected[path] = [(shape, spec)] * (0 if factored else both)
  found = {path: [] for path in expected}
  for path, shape, spec in arrays(state.opt, at.opt):
    owner = path.removeprefix("adamw/").removeprefix("muon/")
    if expected.get(owner) and math.prod(shape) > 32:
      found[owner].append((shape, spec))
  assert found == expected


def test_sums_over_rows_and_columns_are_split_as_what_is_left():
  state, at = layout("adafactor")
  sums = {}
  for path, shape, spec in arrays(state.opt, at.opt):
    sums.setdefault(path, set()).add((shape, spec))
  one = ((32, 1), (None, None))  # where no whole moment is kept
  rows, columns = ((32, 4096), (None, SPLIT)), ((32, 11_008), (None, "tensor"))
  assert sums["layers/mlp/up/weight"] == {rows, columns, one}
  assert sums["layers/mlp/down/weight"] == {rows, columns, one}
  rows, columns = ((32_000,), ("tensor",)), ((4096,), (SPLIT,))
  assert sums["embed/weight"] == {rows, columns, ((1,), (None,))}


@pytest.mark.parametrize(
  ("kind", "each"), [("adamw", 8), ("lion", 4), ("adafactor", 0), ("muon", 4)]
)
def test_bytes_of_a_state(kind, each):
  """So many for each parameter; muon has Adam's for what is in no layer."""
  state, at = layout(kind)
  kept = quantized.num_bytes(state.opt)
  others = 2 * 32_000 * 4096 if kind == "muon" else 0
  assert kept == pytest.approx(each * LLAMA.num_params() + 4 * others, abs=2e7)
  assert state_lib.device_bytes(state, at) == pytest.approx(
    (4 * LLAMA.num_params() + kept) / 8, rel=1e-3
  )

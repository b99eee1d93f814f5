"""Each optimizer in the training step: it learns, resumes exactly, skips NaN."""

import jax
import numpy as np
import pytest
import tiny

from skipalign_jax.model import lora
from skipalign_jax.training import checkpoint
from skipalign_jax.training import state as state_lib

ADAPTERS = lora.Config(3, 6.0, tuple(lora.MATRICES), "bfloat16")
RATES = {"lion": 0.003, "adafactor": 0.02, "muon": 0.02}


@pytest.fixture(
  scope="module",
  params=[pytest.param(("lion", {}), marks=pytest.mark.slow),
          ("adafactor", {}),
          pytest.param(("muon", dict(grad_accum=2)), marks=pytest.mark.slow),
          pytest.param(("muon", dict(adapters=ADAPTERS)), marks=pytest.mark.slow)],
  ids=["lion", "adafactor", "muon", "muon on adapters"],
)  # fmt: skip
def run(request):
  kind, changes = request.param
  optim = tiny.optim(kind=kind, learning_rate=RATES[kind], weight_decay=0.05)
  return tiny.Run(optim=optim, **changes)


def trained(run, batches):
  return [float(run.step(batch)["loss"]) for batch in batches]


def resumed(run, folder, at):
  """The state of the run, saved and read again."""
  saved = checkpoint.Checkpoints(folder, 1, False)
  saved.save(run.state, at, {"next": at}, None)
  saved.close()
  saved = checkpoint.Checkpoints(folder, 1, False)
  abstract, shardings = state_lib.shardings(
    run.mesh, run.update, run.recipe.model, run.recipe.adapters
  )
  found, _ = saved.restore(abstract, shardings, at)
  found.base = run.state.base
  return found


def test_it_learns_and_resumes_exactly(run, tmp_path):
  run.reset()
  batches = [tiny.batch(epoch=epoch) for epoch in range(8)]
  losses = trained(run, batches[:4])
  run.state = resumed(run, tmp_path, 4)
  parts = losses + trained(run, batches[4:])
  after = run.state
  run.reset()
  whole = trained(run, batches)
  assert parts == whole and whole[-1] < 0.9 * whole[0]
  jax.tree.map(np.testing.assert_array_equal, after, run.state)
  assert run.train_step._cache_size() == 1


def test_a_step_that_is_not_finite_changes_nothing(run):
  start = tiny.params(run.recipe.model)
  start["embed"]["weight"][7, 3] = np.inf
  run.reset(start)
  before = jax.device_get((run.state.params, run.state.opt))
  assert not run.step(tiny.batch())["finite"]
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get((run.state.params, run.state.opt)),
    before,
  )
  assert run.state.step == 0

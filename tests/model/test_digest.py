"""Weights are identified by each of their values and its place."""

import jax
import pytest
import tiny

from skipalign_jax.model import digest, inference

CONFIG = tiny.config()
PARAMS = tiny.params(CONFIG)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_digest_notices_each_weight_and_its_place(dtype):
  digest_of = lambda params: digest.of(inference.Engine(params, CONFIG, dtype).params)

  def changed(change):
    params = jax.tree.map(lambda x: x, PARAMS)
    gate = params["layers"]["mlp"]["gate"]
    gate["weight"] = change(jax.numpy.asarray(gate["weight"]))
    return digest_of(params)

  one_more = lambda w: w.at[1, 2, 3].multiply(1.1)
  negated = lambda w: w.at[1, 2, 3:5].multiply(-1)
  orders = (lambda w: w[::-1], lambda w: w[:, ::-1], lambda w: w[..., ::-1])
  changes = (lambda w: w, one_more, negated, *orders)
  found = [changed(change) for change in changes]
  assert found[0] == digest_of(PARAMS) and len(set(found)) == len(changes)

"""Keys without an effect are named, and no others."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from skipalign_jax import config as config_lib
from skipalign_jax.method import positions
from skipalign_jax.training import resolve, unread


@pytest.fixture
def config():
  c = config_lib.default()
  c.model.init_from = "some/llama"
  c.epochs = 2
  return c


@pytest.mark.parametrize(
  ("changes", "keys"),
  [
    ({}, []),
    ({"positions.gaps": "uniform", "positions.skip_below": 9}, []),
    (
      {
        "positions.strategy": "pose",
        "positions.chunks": 4,
        "positions.gaps": "uniform",
      },
      ["positions.gaps"],
    ),
    (
      {"positions.chunks": 4, "positions.terminal": "cue", "positions.cue": "x"},
      ["positions.chunks", "positions.terminal", "positions.cue"],
    ),
    (
      {"positions.strategy": "randpos", "positions.skip_prob": 1.0},
      ["positions.skip_prob"],
    ),
    (
      {"positions.strategy": "endprompt", "positions.cue_weight": 1.0},
      ["positions.cue_weight"],
    ),
    (
      {
        "positions.strategy": "endprompt",
        "positions.terminal": "cue",
        "positions.cue_weight": 1.0,
      },
      [],
    ),
    (
      {"positions.strategy": "logo", "positions.terminal_at": "random"},
      ["positions.terminal_at"],
    ),
    (
      {
        "positions.strategy": "contiguous",
        "positions.resample": "epoch",
        "positions.skip_below": 9,
        "positions.schedule": "9000,100000",
      },
      ["positions.resample", "positions.skip_below", "positions.schedule"],
    ),
    (
      {
        "positions.strategy": "contiguous",
        "positions.schedule": "9000,100000",
        "distill.weight": 1.0,
        "distill.reach": "limit",
      },
      [],
    ),
    ({"distill.reach": "limit"}, ["distill.reach"]),
    ({"data.text_blocks": "sentences"}, []),
    (
      {"data.text_blocks": "sentences", "positions.strategy": "cream"},
      ["data.text_blocks"],
    ),
    (
      {
        "data.text_blocks": "sentences",
        "positions.strategy": "cream",
        "distill.weight": 1.0,
      },
      [],
    ),
    (
      {"distill.weight": 1.0, "distill.view": "strategy", "distill.split": "token"},
      ["distill.split"],
    ),
    ({"long_short.min_context": 5}, ["long_short.min_context"]),
    ({"log.project": "mine"}, ["log.project"]),
    ({"rope.kind": "none", "rope.target_length": 9}, ["rope.target_length"]),
  ],
)
def test_keys_without_an_effect_are_named(config, changes, keys):
  config.update_from_flattened_dict(changes)
  resolve.check(config)
  found = unread.keys(config)
  assert [line.partition(" has no effect ")[0] for line in found] == keys


def test_each_key_of_the_positions_changes_them_where_it_is_read():
  """`unread.of_positions` is compared with the programs that draw."""
  other = {
    "skip_prob": 0.1, "prob_per": "sample", "resample": "epoch", "gaps": "uniform",
    "chunks": 3, "skip_below": 5, "terminal": "response", "terminal_at": "random",
  }  # fmt: skip
  batch = tiny.batch() | {"epochs": np.ones_like(tiny.batch()["epochs"])}
  draws = lambda recipe: lambda batch: positions.synthesize(recipe, 0, batch)
  program = lambda recipe: str(jax.make_jaxpr(draws(recipe))(batch))
  for strategy in config_lib.KEYS["positions.strategy"].choices:
    base = positions.PositionConfig(
      **config_lib.default().positions.to_dict() | {"strategy": strategy}
    )
    assert unread.of_positions(base) == []
    before = program(base)
    for name, value in other.items():
      changed = dataclasses.replace(base, **{name: value})
      is_same = program(changed) == before
      if unread.of_positions(changed) and not is_same:  # draws what it does not use
        drawn = [jax.jit(draws(recipe))(batch) for recipe in (base, changed)]
        is_same = bool((drawn[0] == drawn[1]).all())
      assert (unread.of_positions(changed) == [name]) == is_same, (strategy, name)

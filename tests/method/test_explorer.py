"""The explorer's page draws what positions.py draws."""

import functools
import importlib.util
import json
import pathlib
import re

import jax
import numpy as np
import py_mini_racer
import pytest

from skipalign_jax.analysis import dialogues, distances
from skipalign_jax.method import positions
from skipalign_jax.training import preview

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "explorer.html").read_text(encoding="utf-8")
SEQ_LEN, SEED = 64, 3


@pytest.fixture(scope="module")
def js():
  (script,) = re.findall(r'<script id="positions">\n(.*?)</script>', PAGE, re.DOTALL)
  engine = py_mini_racer.MiniRacer()
  engine.eval(script.replace("const skipalign", "var skipalign"))
  return lambda name, *args: json.loads(
    engine.eval(f"JSON.stringify(skipalign.{name}(...{json.dumps(args)}))")
  )


def dialogue_batches():
  """Rows of dialogues of 1 … 8 blocks."""
  rng = np.random.default_rng(5)
  sizes = [rng.integers(1, 9, n) for n in np.tile(np.arange(1, 9), 5)]
  some = dialogues.Dialogues(
    length=np.array([x.sum() for x in sizes]),
    blocks=np.array([len(x) for x in sizes]),
    size=np.concatenate(sizes),
    sample_id=rng.integers(0, 2**32, len(sizes), np.uint32),
    is_text=np.zeros(len(sizes), bool),
  )
  return list(dialogues.batches(some, SEQ_LEN, 8))


def samples(batch, positions_BL):
  """(sample id, blocks as the page has them, positions) of each sample."""
  for row, segment_L in enumerate(batch["segment_ids"]):
    for segment in range(1, segment_L.max() + 1):
      at = np.flatnonzero(segment_L == segment)
      _, sizes = np.unique(batch["block_ids"][row, at], return_counts=True)
      blocks = [
        {"tokens": int(size), "response": i % 2 == 1} for i, size in enumerate(sizes)
      ]
      yield int(batch["sample_ids"][row, at[0]]), blocks, positions_BL[row, at].tolist()


def expand(runs):
  return [run["first"] + i for run in runs for i in range(run["size"])]


def test_the_page_is_built_from_its_parts():
  path = DOCS / "make_explorer.py"
  spec = importlib.util.spec_from_file_location("make_explorer", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert module.build() == PAGE, "run docs/make_explorer.py"
  for outside in ("src=", "@import", "url(", "fetch(", "<link"):
    assert outside not in PAGE


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_random_numbers_are_those_of_jax(js, seed):
  key = jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 5))
  mine = js("foldIn", js("key", seed), 2**32 - 5)
  assert mine == jax.random.key_data(key).tolist()
  assert js("uniform", mine) == float(jax.random.uniform(key))
  # Spans around 2^16, where the product of the halves wraps; none; the largest.
  for low, high in ((0, 7), (1, 65_536), (0, 65_537), (5, 100_000), (3, 3), (0, 2**30)):
    assert js("randint", mine, low, high) == int(jax.random.randint(key, (), low, high))


@pytest.mark.parametrize(
  ("strategy", "L", "prob_per", "gaps"),
  [
    ("skip_outer", 300, "block", "sequential"),
    ("skip_all", 300, "block", "uniform"),
    ("skip_inner", 40, "sample", "uniform"),  # little room, or none
    ("pose", 100_000, "block", "sequential"),
    ("randpos", 300, "block", "sequential"),
    ("cream", 3000, "block", "sequential"),
    ("endprompt", 3000, "block", "sequential"),
    ("logo", 3000, "block", "sequential"),
  ],
)
def test_positions_are_those_of_training(js, strategy, L, prob_per, gaps):
  recipe = positions.PositionConfig(strategy, L, 0.7, prob_per, "never", gaps)
  config = dict(
    strategy=strategy, L=L, p=0.7, probPer=prob_per, gaps=gaps, chunks=2, seed=SEED
  )
  draw = jax.jit(functools.partial(positions.synthesize, recipe))
  moved = left = 0
  for batch in dialogue_batches():
    arrays = {name: x_BL for name, x_BL in batch.items() if name != "is_text"}
    drawn_BL = np.asarray(draw(SEED, arrays))
    for sample_id, blocks, wanted in samples(batch, drawn_BL):
      runs = js("synthesize", blocks, config | {"sampleId": sample_id})
      assert expand(runs) == wanted
      assert {run["block"] for run in runs} == set(range(len(blocks)))
      moved += wanted[-1] > len(wanted) - 1
      left += wanted[-1] == len(wanted) - 1
  assert moved and (left or strategy in ("pose", "randpos", "cream"))


@pytest.mark.parametrize("terminal", ["turn", "response"])
@pytest.mark.parametrize("place", ["end", "random"])
def test_endprompt_is_that_of_training(js, terminal, place):
  recipe = positions.PositionConfig(
    "endprompt", 3000, 1, "block", "never", "uniform", terminal=terminal,
    terminal_at=place,
  )  # fmt: skip
  config = dict(
    strategy="endprompt", L=3000, p=1, seed=SEED, terminal=terminal, terminalAt=place
  )
  batch = next(iter(dialogue_batches()))
  arrays = {name: x_BL for name, x_BL in batch.items() if name != "is_text"}
  drawn_BL = np.asarray(preview.draw_positions(recipe, SEED, arrays))
  for sample_id, blocks, wanted in samples(batch, drawn_BL):
    runs = js("synthesize", blocks, config | {"sampleId": sample_id})
    assert expand(runs) == wanted


@pytest.mark.parametrize("terminal", ["turn", "response"])
@pytest.mark.parametrize(("L", "chunks"), [(3000, 3), (3000, 7), (300, 4)])
def test_logo_is_that_of_training(js, terminal, L, chunks):
  recipe = positions.PositionConfig(
    "logo", L, 1, "block", "never", "uniform", terminal=terminal, chunks=chunks
  )
  config = dict(strategy="logo", L=L, p=1, seed=SEED, terminal=terminal, chunks=chunks)
  batch = next(iter(dialogue_batches()))
  arrays = {name: x_BL for name, x_BL in batch.items() if name != "is_text"}
  drawn_BL = np.asarray(preview.draw_positions(recipe, SEED, arrays))
  for sample_id, blocks, wanted in samples(batch, drawn_BL):
    runs = js("synthesize", blocks, config | {"sampleId": sample_id})
    assert expand(runs) == wanted


def test_pairs_are_those_of_the_counter(js):
  runs = [
    dict(block=0, response=False, first=0, size=7),
    dict(block=1, response=True, first=7, size=4),
    dict(block=2, response=False, first=60, size=3),
    dict(block=3, response=True, first=90, size=9),
  ]
  counter = distances.Counter(100)
  column = lambda name: np.array([run[name] for run in runs])
  counter.add(
    distances.Runs(
      sample=np.ones(4, int),
      first=column("first"),
      size=column("size"),
      is_query=column("response"),
    )
  )
  counts = js("counted", runs, 100)
  assert counts == counter.pairs().tolist()
  assert sum(counts) == 10 + 28 + 45 + 9 * 14  # own triangles, then rectangles

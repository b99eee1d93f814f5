"""Counts of distances against counting token pairs one by one."""

import collections
import functools
import io
import itertools

import jax
import numpy as np
import pytest
from rich import console as rich_console

from skipalign_jax import config
from skipalign_jax.analysis import dialogues, distances, measure
from skipalign_jax.data import packing, prepare, sources, tokenizer
from skipalign_jax.method import positions
from skipalign_jax.runtime import errors

L, SEQ_LEN, SEED = 300, 64, 2**32 - 3


def piece(count=32, seed=0):
  """Dialogues of 1 … 7 blocks, and some texts."""
  rng = np.random.default_rng(seed)
  sizes = [rng.integers(1, 10, rng.integers(1, 8)) for _ in range(count)]
  return dialogues.Dialogues(
    length=np.array([x.sum() for x in sizes]),
    blocks=np.array([len(x) for x in sizes]),
    size=np.concatenate(sizes),
    sample_id=rng.integers(0, 2**32, count, np.uint32),
    is_text=rng.random(count) < 0.2,
  )


def samples_of(some):
  """The same as rows of `prepare`."""
  ends = np.cumsum(some.blocks)
  for i, end in enumerate(ends):
    size = some.size[end - some.blocks[i] : end]
    yield dict(
      tokens=np.ones(size.sum(), np.int32),
      block_starts=np.cumsum(size) - size,
      target_spans=np.zeros(0, np.int64),
      sample_id=some.sample_id[i],
      is_text=some.is_text[i],
    )


def recipe(strategy, gaps="sequential"):
  return positions.PositionConfig(strategy, L, 0.7, "block", "never", gaps)


def naive(some, chosen):
  """Counters of everything, token by token, one sample per row."""
  found = collections.defaultdict(collections.Counter)
  row_of = lambda sample: packing.assemble_row([sample], SEQ_LEN, 0)
  rows = [row_of(sample) for sample in samples_of(some)]
  names = ("segment_ids", "block_ids", "is_response", "sample_ids", "epochs")
  batch = {name: np.stack([row[name] for row in rows]) for name in names}
  draw = jax.jit(functools.partial(positions.synthesize, chosen))
  drawn = [  # as many rows as `measure` takes: one program for both
    np.asarray(
      draw(
        np.uint32(SEED),
        {name: x_BL[i : i + measure.ROWS] for name, x_BL in batch.items()},
      )
    )
    for i in range(0, len(rows), measure.ROWS)
  ]
  drawn_BL = np.concatenate(drawn)
  for i, m in enumerate(some.length):
    at = drawn_BL[i, :m].tolist()
    query = batch["is_response"][i, :m] | some.is_text[i]
    pairs = [at[q] - at[k] for q in range(m) if query[q] for k in range(q + 1)]
    found["pairs"].update(pairs)
    found["sets"].update(set(pairs))
    found["positions"].update(at)
    gaps = [b - a - 1 for a, b in itertools.pairwise(at) if b - a > 1]
    found["gaps"].update(gaps)
    found["gaps_in_sample"][len(gaps)] += 1
    found["last"][at[-1]] += 1
  return found


@pytest.mark.parametrize(
  ("strategy", "gaps"),
  [
    ("skip_outer", "sequential"),
    ("skip_all", "uniform"),
    ("randpos", "sequential"),
  ],
)
def test_counts_are_those_of_token_pairs(strategy, gaps, monkeypatch):
  monkeypatch.setattr(distances, "_PAIRS", 50)  # several parts
  chosen, some = recipe(strategy, gaps), piece()
  (counter,) = measure.count([some], {"": chosen}, SEED, SEQ_LEN).values()
  wanted = naive(some, chosen)
  assert max(wanted["pairs"]) > SEQ_LEN  # a real skip
  for name in ("pairs", "sets", "positions", "gaps", "gaps_in_sample", "last"):
    found = getattr(counter, name)
    found = found() if callable(found) else found
    assert {i: n for i, n in enumerate(found.tolist()) if n} == dict(wanted[name]), name
  assert counter.samples == len(some.length)
  assert counter.tokens == some.length.sum()
  assert counter.unmoved == wanted["gaps_in_sample"][0]


def test_the_longest_distance_of_a_sample_does_not_hide_the_shortest_of_the_next():
  counter, ends = distances.Counter(10), np.array([0, 9, 0, 9])
  is_query = np.array([False, True, False, True])
  counter.add(distances.Runs(np.array([0, 0, 1, 1]), ends, np.ones(4, int), is_query))
  assert counter.sets().tolist() == [2, *[0] * 8, 2]


def test_batches_are_rows_of_training():
  some = piece()
  plan = packing.plan_rows(some.length, SEQ_LEN, SEQ_LEN)
  all_samples = list(samples_of(some))
  rows = [
    packing.assemble_row([all_samples[i] for i in members], SEQ_LEN, 0)
    for members in plan
  ]
  found = list(dialogues.batches(some, SEQ_LEN, 3))
  assert all(len(batch["segment_ids"]) == 3 for batch in found)
  for name in ("segment_ids", "block_ids", "is_response", "sample_ids", "epochs"):
    joined = np.concatenate([batch[name] for batch in found])
    np.testing.assert_array_equal(joined[: len(rows)], [row[name] for row in rows])
    assert not joined[len(rows) :].any()
    assert joined.dtype == packing.DTYPES[name]


def test_dialogues_are_read_from_the_cache(cache_dir, monkeypatch):
  monkeypatch.setattr(dialogues, "PIECE", 5)
  c = config.tiny(config.default())
  c.data.cache_dir = cache_dir
  prepared = [
    prepare.prepare(
      sources.Source(name), c.data, tokenizer.byte_tokenizer(),
      rich_console.Console(file=io.StringIO()),
    )
    for name in ("builtin:recall:12", "builtin:text:3")
  ]  # fmt: skip
  for limit in (0, 13):
    pieces = list(dialogues.read(prepared, limit))
    found = [sample for some in pieces for sample in samples_of(some)]
    wanted = [p.sample(int(i)) for p in prepared for i in p.usable]
    wanted = wanted[:limit] if limit else wanted
    assert len(found) == len(wanted) and len(pieces) > 2
    for one, two in zip(found, wanted, strict=True):
      assert len(one["tokens"]) == len(two["tokens"])
      np.testing.assert_array_equal(one["block_starts"], two["block_starts"])
      assert one["sample_id"] == two["sample_id"] and one["is_text"] == two["is_text"]


def test_departure_from_uniform():
  flat = measure.departure(np.full(1000, 7), 0)
  assert flat["ks"] < 1e-9 and flat["tv"] < 1e-9 and set(flat["parts"]) == {0.1}
  half = measure.departure(np.r_[np.ones(40), np.ones(50), np.zeros(50)], 40)
  assert half["share"] == 50 / 90
  assert half["ks"] == 0.5 and half["tv"] == 0.5
  assert half["parts"] == [0.2] * 5 + [0.0] * 5
  assert measure.departure(np.r_[np.ones(9), np.zeros(9)], 9) is None
  few = measure.departure(np.ones(4), 0)  # fewer distances than parts
  assert few["parts"] == [0, 0, 0.25, 0, 0.25, 0, 0, 0.25, 0, 0.25]


def test_coverage_reports_what_never_occurs():
  counter = distances.Counter(100)
  counter.add(
    distances.Runs(
      sample=np.array([1, 1]),
      first=np.array([0, 50]),
      size=np.array([10, 5]),
      is_query=np.array([False, True]),
    )
  )
  found = measure.coverage(counter)
  # The response meets itself at 0 … 4 and the instruction at 41 … 54.
  assert found["distances"] == dict(share=0.19, longest=54, longest_unmet_stretch=45)
  assert found["positions"] == dict(share=0.15, longest=54, longest_unmet_stretch=45)
  assert found["gap_quantiles"] == [40] * 3 and found["last_quantiles"] == [54] * 3
  assert found["unmoved"] == 0 and found["gaps_per_sample"] == [0, 1]
  assert measure._met(np.array([0, 0, 0, 1, 0, 0]))["longest_unmet_stretch"] == 3


def test_recipes():
  base = recipe("skip_outer")
  assert list(measure.recipes(base, "")) == ["contiguous", "skip_outer"]
  found = measure.recipes(base, "pose,skip_all/uniform")
  assert found["pose"].gaps == "sequential"
  assert found["skip_all/uniform"] == recipe("skip_all", "uniform")
  with pytest.raises(errors.UserError, match=r"strategy='skip_al'.*skip_all"):
    measure.recipes(base, "skip_al")
  for spec in ("contiguous/uniform", "pose/sequential"):
    with pytest.raises(errors.UserError, match=f"{spec}: .* no law of gaps"):
      measure.recipes(base, spec)
  with pytest.raises(errors.UserError, match="gaps=''"):
    measure.recipes(base, "skip_outer/")

"""The engine: log-probabilities, hidden states, parts, minimum lengths, meshes."""

import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from skipalign_jax.model import backends, decoder, digest, inference, sharding
from skipalign_jax.runtime import errors

CONFIG = tiny.config(num_heads=8)
PARAMS = tiny.params(CONFIG)
RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(1, 40, n).tolist() for n in (21, 9, 14, 2)]
STARTS = [1, 4, 13, 1]
ALL_AXES = dict(data=2, fsdp=2, tensor=2, context=2)
# Tokens that are read at once (0: all), and the mesh.
QUICK = [(0, ALL_AXES), (8, ALL_AXES)]
OTHERS = [
  (part, sizes)
  for sizes in (dict(fsdp=4, context=2), dict(data=2, tensor=4), dict(context=8))
  for part in (0, 8)
]


def expected(sequence, start):
  """log p and whether likeliest, by full logits of the sequence alone."""
  logits_LV = tiny.alone_logits(PARAMS, CONFIG, sequence)
  log_p_LV = np.asarray(jax.nn.log_softmax(logits_LV))[start - 1 : -1]
  targets = sequence[start:]
  log_p = np.take_along_axis(log_p_LV, np.array(targets)[:, None], 1)[:, 0]
  return log_p, log_p_LV.argmax(-1) == targets


@pytest.fixture(autouse=True)
def small_lengths(monkeypatch):
  monkeypatch.setattr(backends, "TILE", 4)
  monkeypatch.setattr(backends, "CPU_BLOCK", 8)


@pytest.mark.parametrize("part", [0, 8, 256])
def test_scores_are_those_of_each_sequence_alone(part):
  engine = inference.Engine(PARAMS, CONFIG, "float32", part=part)
  scored = engine.score(SEQUENCES, STARTS)
  likeliest = 0
  for (log_p, is_likeliest), sequence, start in zip(
    scored, SEQUENCES, STARTS, strict=True
  ):
    want, want_likeliest = expected(sequence, start)
    assert log_p.shape == (len(sequence) - start,)
    np.testing.assert_allclose(log_p, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(is_likeliest, want_likeliest)
    likeliest += is_likeliest.sum()
  greedy = [token for (token,) in engine.generate([SEQUENCES[1]], 4, ())]
  ((_, is_likeliest),) = engine.score([SEQUENCES[1] + greedy], [len(SEQUENCES[1])])
  assert is_likeliest.all() and likeliest < 30  # both kinds were seen


@pytest.mark.parametrize("part", [0, 8])
def test_a_beginning_in_common_is_read_once_and_changes_nothing(part):
  engine = inference.Engine(PARAMS, CONFIG, "float32", part=part)
  shared, tails = SEQUENCES[0], [SEQUENCES[2], SEQUENCES[1], SEQUENCES[3]]
  starts = [5, 8, 1]  # the long tail first: what it wrote must not be read
  whole = engine.score(
    [shared + tail for tail in tails], [len(shared) + start for start in starts]
  )
  for (log_p, likeliest), (want, want_likeliest) in zip(
    engine.score_after(shared, tails, starts), whole, strict=True
  ):
    np.testing.assert_allclose(log_p, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(likeliest, want_likeliest)


def test_a_question_and_its_answers_are_read_once(monkeypatch):
  engine = inference.Engine(PARAMS, CONFIG, "float32", part=8)
  shared, question = SEQUENCES[0], SEQUENCES[1]
  answers = [[7], [3, 9, 4, 4, 8], [7, 2]]
  tails = [[*question, *answer] for answer in answers]
  tails.insert(1, SEQUENCES[2])  # another question in between
  starts = [len(question), 5, len(question), len(question)]
  whole = engine.score(
    [[*shared, *tail] for tail in tails], [len(shared) + start for start in starts]
  )
  read, lengths = engine._programs.read, []

  def count(params, tokens_BL, *rest, **options):
    lengths.append(tokens_BL.shape[1])
    return read(params, tokens_BL, *rest, **options)

  monkeypatch.setattr(engine, "_programs", engine._programs._replace(read=count))
  scored = engine.score_after(shared, tails, starts)
  for (log_p, likeliest), (want, want_likeliest) in zip(scored, whole, strict=True):
    np.testing.assert_allclose(log_p, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(likeliest, want_likeliest)
  parts = -(-len(shared) // 8)
  assert len(lengths) == parts + 2 + 2  # of the text, two questions, their answers


def test_hidden_states_end_at_the_right():
  engine = inference.Engine(PARAMS, CONFIG, "float32", part=8)
  hidden_BLD = engine.hidden(SEQUENCES)
  assert hidden_BLD.shape[:2] == (4, 24)
  head_VD = np.asarray(PARAMS["lm_head"]["weight"])
  for row, sequence in enumerate(SEQUENCES):
    n = len(sequence)
    want_LV = tiny.alone_logits(PARAMS, CONFIG, sequence)
    got_LV = np.asarray(hidden_BLD[row, -n:]) @ head_VD.T
    np.testing.assert_allclose(got_LV, want_LV, rtol=1e-3, atol=1e-3)


def test_what_follows_the_end_of_a_reply_may_be_anything(monkeypatch):
  """Its row is computed until the others have ended."""
  finite = [[True, True], [False, True], [False, False]]
  steps = iter(zip([[9, 7], [3, 7], [3, 7]], finite, strict=True))
  chosen = lambda *_: tuple(map(np.array, next(steps)))
  engine = inference.Engine(PARAMS, CONFIG, "float32")
  monkeypatch.setattr(inference, "choose", chosen)
  replies = engine.generate(SEQUENCES[:2], 4, (9,))
  assert [next(replies), next(replies)] == [[None, 7], [None, 7]]
  with pytest.raises(errors.NotFiniteError):
    next(replies)


def test_min_new_tokens_delays_the_stop():
  engine = inference.Engine(PARAMS, CONFIG, "float32")
  prompt = SEQUENCES[0]
  (first,), *_ = engine.generate([prompt], 3, ())
  assert list(engine.generate([prompt], 3, (first,))) == []
  reply = [
    token for (token,) in engine.generate([prompt], 3, (first,), min_new_tokens=1)
  ]
  assert reply and first not in reply
  ban_all_but = [t for t in range(CONFIG.vocab_size) if t != 7]
  (only,), *_ = engine.generate([prompt], 3, ban_all_but, min_new_tokens=3)
  assert only == 7


def test_bfloat16_weights_are_kept_as_bits_on_a_cpu_and_mean_the_same():
  rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), PARAMS)
  narrow = inference.Engine(PARAMS, CONFIG, "bfloat16", part=8)
  assert narrow.params["layers"]["mlp"]["up"]["weight"].dtype == np.uint16
  wide = inference.Engine(rounded, CONFIG, "float32", part=8)
  close = lambda engine: np.concatenate([x for x, _ in engine.score(SEQUENCES, STARTS)])
  np.testing.assert_allclose(close(narrow), close(wide), atol=0.15)
  # One row and several go through different products.
  alone = np.concatenate(
    [narrow.score([x], [s])[0][0] for x, s in zip(SEQUENCES, STARTS, strict=True)]
  )
  np.testing.assert_allclose(alone, close(narrow), atol=0.15)


def test_lengths_are_rounded_to_few():
  lengths = {inference.bucket(n, 8) for n in range(1, 1025)}
  assert len(lengths) <= 24 and max(lengths) == 1024
  assert all(n <= inference.bucket(n, 1) <= 1.25 * n + 1 for n in range(1, 5000))


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_divide_among_devices(rows, monkeypatch):
  """Rows that are added repeat the last one: no row is without a token."""
  monkeypatch.setattr(inference.Engine, "row_shards", 3)
  batch = inference.Engine(PARAMS, CONFIG, "float32")._batch(SEQUENCES[:rows])
  assert len(batch["tokens"]) == 3 * -(-rows // 3)
  np.testing.assert_array_equal(batch["tokens"][rows - 1], batch["tokens"][-1])
  assert batch["segment_ids"].any(axis=1).all()


def test_empty_prompts_are_refused():
  with pytest.raises(errors.UserError, match="no tokens"):
    inference.Engine(PARAMS, CONFIG, "float32").hidden([[1], []])


def on_meshes(cases):
  """What the process of many devices does: replies and scores per case, as JSON."""
  found = {}
  for part, sizes in cases:
    axes = dict.fromkeys(sharding.AXES, 1) | sizes
    mesh = sharding.make_mesh(axes, jax.devices()[: math.prod(sizes.values())])
    at = sharding.params_shardings(mesh, decoder.definition(CONFIG)[1])
    params = jax.device_put(PARAMS, at)
    engine = inference.Engine(params, CONFIG, "float32", mesh, part)
    replies = [list(row) for row in engine.generate(SEQUENCES, 5, ())]
    scores = [x.tolist() for x, _ in engine.score(SEQUENCES, STARTS)]
    found[f"{part} {sizes}"] = (replies, scores, digest.of(engine.params))
  print(json.dumps(found))


@pytest.mark.multidevice
@pytest.mark.parametrize(
  "cases", [QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["all", "others"]
)
def test_many_devices_answer_as_one(cases):
  done = subprocess.run(
    [sys.executable, __file__, json.dumps(cases)],
    env=tiny.environment(devices=16),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  engine = inference.Engine(PARAMS, CONFIG, "float32", part=8)
  replies = [list(row) for row in engine.generate(SEQUENCES, 5, ())]
  scores = np.concatenate([x for x, _ in engine.score(SEQUENCES, STARTS)])
  found = json.loads(done.stdout.splitlines()[-1])
  assert len(found) == len(cases)
  for name, (theirs, their_scores, identity) in found.items():
    assert theirs == replies, name
    assert identity == digest.of(engine.params), name
    np.testing.assert_allclose(
      np.concatenate(their_scores), scores, rtol=1e-4, atol=1e-4, err_msg=name
    )


if __name__ == "__main__":
  backends.TILE, backends.CPU_BLOCK = 4, 8
  on_meshes(json.loads(sys.argv[1]))

"""All models of the study, trained and tested together in one program.

Shapes: S seeds, C cells (kinds of models), E encodings, B strings, L places, T tested
lengths.

The model is the project's decoder with a linear head, which reads a number from the
last place. All cells of a seed start from the same weights and see the same strings, so
differences between cells are paired.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from skipalign_jax import config as config_lib
from skipalign_jax.method import positions
from skipalign_jax.model import backends, decoder, model_config, rope
from skipalign_jax.training import optimizer
from studies.length import tasks

# Sizes and rates are choices.
MODEL = model_config.ModelConfig(
  vocab_size=tasks.VOCAB,
  num_layers=2,
  embed_dim=32,
  ffn_dim=64,
  num_heads=2,
  num_kv_heads=2,
  head_dim=16,
  norm_eps=1e-5,
  tie_embeddings=True,
  attention_bias=False,
  mlp_bias=False,
  window=64,
  rope=rope.RopeConfig("none", 10_000.0),
)
LEARNING_RATE = 3e-3
BATCH = 64  # strings per step
TEST_STRINGS = 256  # of each length
CHUNK = 50  # steps per call of the program
TESTED = (*range(1, 11), 12, 15, 20, 25, 30, 35, 40, 45, 50)  # lengths, bits

# "none" puts all tokens at position 0, where rope rotates nothing; "skip" is rope that
# is trained with RandPos (2305.16843), random increasing positions below 64, so that it
# has seen all distances of the test. Tests use contiguous positions.
ENCODINGS = ("none", "rope", "skip")
SKIPS = positions.PositionConfig(
  strategy="randpos",
  max_position=64,
  skip_prob=1.0,
  prob_per="sample",
  resample="never",
  gaps="uniform",
)


class Cell(NamedTuple):
  """One kind of model: its task, its output representation, its positions."""

  task: str
  outrep: str
  encoding: str


CELLS = tuple(
  Cell(task, outrep, encoding)
  for task in tasks.TASKS
  for outrep in tasks.OUTREPS
  for encoding in ENCODINGS
  if task != "mean" or outrep == "y"  # means are bounded without it
)

Params = dict[str, Any]  # decoder: see model/decoder.py; head: weight [D], bias []
State = tuple[Params, optax.OptState]


def init(seed: int) -> Params:
  """The initial weights of all cells of a seed."""
  return {
    "decoder": decoder.init(MODEL, seed),
    "head": {"weight": jnp.zeros(MODEL.embed_dim), "bias": jnp.zeros(())},
  }


def predict(
  params: Params,
  tokens_BL: jax.Array,
  positions_BL: jax.Array,
  segment_ids_BL: jax.Array,
) -> jax.Array:
  """output_B fp32, from the last place of each string."""
  backend = backends.Backend("xla", 2)
  hidden_BLD, _ = decoder.bind(MODEL, params["decoder"])(
    tokens_BL, positions_BL, segment_ids_BL, "float32", backend=backend
  )
  last_B = segment_ids_BL.sum(1) - 1
  last_BD = jnp.take_along_axis(hidden_BLD, last_B[:, None, None], axis=1)[:, 0]
  return last_BD @ params["head"]["weight"] + params["head"]["bias"]


def encoded_positions(segment_ids_BL: jax.Array, key: jax.Array | None) -> jax.Array:
  """positions_EBL of the encodings; without a key, as in tests, without skips."""
  contiguous_BL = positions.contiguous(segment_ids_BL)
  skipped_BL = contiguous_BL
  if key is not None:
    B, L = segment_ids_BL.shape
    batch = {
      "segment_ids": segment_ids_BL,
      "block_ids": jnp.zeros((B, L), jnp.int32),
      "is_response": jnp.zeros((B, L), bool),
      "sample_ids": jnp.broadcast_to(jax.random.bits(key, (B, 1), jnp.uint32), (B, L)),
      "epochs": jnp.zeros((B, L), jnp.int32),
    }
    skipped_BL = positions.synthesize(SKIPS, 0, batch)
  found = {
    "none": jnp.zeros_like(contiguous_BL),
    "rope": contiguous_BL,
    "skip": skipped_BL,
  }
  return jnp.stack([found[name] for name in ENCODINGS])


def _targets(total_B: jax.Array, length_B: jax.Array) -> jax.Array:
  """target_CB: the output that each cell learns."""
  answers = {name: t.answer(total_B, length_B) for name, t in tasks.TASKS.items()}
  return jnp.stack([tasks.encode(c.task, c.outrep, answers[c.task]) for c in CELLS])


def losses(params_C: Params, key: jax.Array) -> jax.Array:
  """loss_C: mean squared error of the outputs of each cell on the key's strings."""
  keys = jax.random.split(key, 3)
  longest = tasks.LONGEST_TRAINED
  length_B = jax.random.randint(keys[0], (BATCH,), 1, longest + 1)
  tokens_BL, segment_ids_BL, total_B = tasks.draw_bits(keys[1], length_B, longest)
  positions_CBL = encoded_positions(segment_ids_BL, keys[2])[_encoding_of_cell()]
  output_CB = jax.vmap(predict, (0, None, 0, None))(
    params_C, tokens_BL, positions_CBL, segment_ids_BL
  )
  target_CB = _targets(total_B, length_B.astype(jnp.float32))
  return jnp.mean((output_CB - target_CB) ** 2, axis=1)


def _encoding_of_cell() -> np.ndarray:
  return np.array([ENCODINGS.index(cell.encoding) for cell in CELLS])


def update_rule(steps: int) -> optax.GradientTransformation:
  """The project's AdamW with linear warm-up and decay."""
  config = config_lib.default().optim
  config.learning_rate = LEARNING_RATE
  return optimizer.make(config, steps)


def start(seeds: int, steps: int) -> State:
  """params_SC and their optimizer states."""

  @jax.jit
  def make():
    params_S = jax.tree.map(lambda *x: jnp.stack(x), *map(init, range(seeds)))
    params_SC = jax.tree.map(
      lambda x: jnp.repeat(x[:, None], len(CELLS), axis=1), params_S
    )
    return params_SC, jax.vmap(jax.vmap(update_rule(steps).init))(params_SC)

  return make()


def train(seeds: int, steps: int) -> Iterator[tuple[Params, int, np.ndarray]]:
  """Yields (params_SC, steps done, loss_SC averaged over the last steps).

  Do not use the parameters after the next iteration has started: it donates their
  memory.
  """
  update, state = update_rule(steps), start(seeds, steps)

  def one_step(state_SC, step):
    def of_seed(state_C, seed):
      params_C, adam_C = state_C
      key = jax.random.fold_in(jax.random.key(seed), step)
      # Cells are independent: each gets the gradient of its own loss.
      loss_C, pull_back = jax.vjp(lambda params_C: losses(params_C, key), params_C)
      (grad_C,) = pull_back(jnp.ones_like(loss_C))
      change_C, adam_C = jax.vmap(update.update)(grad_C, adam_C, params_C)
      return (optax.apply_updates(params_C, change_C), adam_C), loss_C

    return jax.vmap(of_seed)(state_SC, jnp.arange(seeds))

  @functools.partial(jax.jit, donate_argnums=0, static_argnums=2)
  def some_steps(state_SC, first, count):
    state_SC, loss = jax.lax.scan(one_step, state_SC, first + jnp.arange(count))
    return state_SC, loss.mean(0)

  for first in range(0, steps, CHUNK):
    count = min(CHUNK, steps - first)
    state, loss_SC = some_steps(state, first, count)
    yield state[0], first + count, np.asarray(loss_SC)


def test(params_SC: Params, seeds: int) -> dict[str, np.ndarray]:
  """Errors on new strings at contiguous positions.

  Returns:
    "mse" [S, C, T]: mean squared error of the decoded answers; "accuracy" [S, C, T]:
    share of answers that are exact when rounded, NaN for means.
  """

  @functools.partial(jax.jit, static_argnums=2)
  def at_length(params_SC, length, places):
    def of_seed(params_and_seed):
      params_C, seed = params_and_seed
      # Training folds in its steps, which never reach this number.
      key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(2**32 - 1))
      length_B = jnp.full(TEST_STRINGS, length)
      tokens_BL, segment_ids_BL, total_B = tasks.draw_bits(
        jax.random.fold_in(key, length), length_B, tasks.LONGEST_TESTED
      )
      tokens_BL, segment_ids_BL = tokens_BL[:, :places], segment_ids_BL[:, :places]
      positions_CBL = encoded_positions(segment_ids_BL, None)[_encoding_of_cell()]
      output_CB = jax.vmap(predict, (0, None, 0, None))(
        params_C, tokens_BL, positions_CBL, segment_ids_BL
      )
      mse, accuracy = [], []
      for c, cell in enumerate(CELLS):
        task = tasks.TASKS[cell.task]
        y_B = task.answer(total_B, length_B.astype(jnp.float32))
        found_B = tasks.decode(cell.task, cell.outrep, output_CB[c])
        mse.append(jnp.mean((found_B - y_B) ** 2))
        exact = jnp.mean(jnp.abs(found_B - y_B) < 0.5)
        accuracy.append(exact if task.whole else jnp.nan)
      return jnp.stack(mse), jnp.stack(accuracy)

    # One seed at a time: the scores of all models would take gigabytes.
    return jax.lax.map(of_seed, (params_SC, jnp.arange(seeds)))

  found = []
  for length in TESTED:
    short = length <= tasks.LONGEST_TRAINED
    longest = tasks.LONGEST_TRAINED if short else tasks.LONGEST_TESTED
    found.append(jax.device_get(at_length(params_SC, length, longest + 1)))
  mse_SCT, accuracy_SCT = (np.stack(x, axis=-1) for x in zip(*found, strict=True))
  return {"mse": mse_SCT, "accuracy": accuracy_SCT}

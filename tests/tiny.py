"""Tiny models and batches, and naive computations of their results.

Shapes: B rows, L tokens per row, N heads, P rotated pairs, V vocab.
"""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import packing, preferences
from skipalign_jax.method import long_short, positions
from skipalign_jax.model import (
  backends,
  decoder,
  lora_state,
  model_config,
  rope,
  sharding,
)
from skipalign_jax.training import metrics, optimizer
from skipalign_jax.training import recipe as recipe_lib
from skipalign_jax.training import state as state_lib
from skipalign_jax.training import step as step_lib

ROOT = pathlib.Path(__file__).parents[1]
SEQ_LEN = 24

SKIPS = positions.PositionConfig(
  strategy="skip_outer",
  max_position=2000,
  skip_prob=1.0,
  prob_per="block",
  resample="epoch",
  gaps="sequential",
)


def config(**changes):
  """A ModelConfig whose sizes differ, except those that 4 and 2 must divide."""
  fields = dict(
    vocab_size=40,
    num_layers=2,
    embed_dim=24,
    ffn_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    norm_eps=1e-5,
    tie_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
    window=64,
    rope=rope.RopeConfig("none", 10_000.0),
  )
  return model_config.ModelConfig(**fields | changes)


def params(config, seed=0):
  """Weights large enough that every part of the model changes the logits."""
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    values = rng.standard_normal(shape.shape).astype(np.float32)
    if "norm" in sharding.path_of(path):
      return 1 + 0.3 * values
    return (0.5 if "bias" in sharding.path_of(path) else 0.25) * values

  return jax.tree_util.tree_map_with_path(draw, decoder.definition(config)[1])


def batch(rows=8, seed=0, epoch=0, max_samples=3):
  """Packed dialogues of 3 or more blocks; some rows have many targets, one none."""
  rng = np.random.default_rng(seed)
  assembled = []
  for row in range(rows):
    samples = []
    count = 1 + row % max_samples
    for i in range(count):
      m = int(rng.integers(5, SEQ_LEN // count + 1))
      a, b, c = sorted(rng.choice(np.arange(1, m), 3, replace=False))
      spans = [[a, b], [c, m]] if row % 4 == 1 else [[c, c + 1]]
      samples.append(
        dict(
          tokens=rng.integers(1, 40, m).astype(np.int32),
          block_starts=np.array([0, a, b, c]),
          target_spans=np.array(spans if row != 2 else []).reshape(-1, 2),
          sample_id=np.uint32(1000 * seed + 10 * row + i),
          is_text=False,
        )
      )
    assembled.append(packing.assemble_row(samples, SEQ_LEN, epoch))
  return {name: np.stack([row[name] for row in assembled]) for name in assembled[0]}


def pair_batch(rows=8, seed=0, most=2):
  """Rows of one or more preference pairs; their replies differ in length."""
  rng = np.random.default_rng(seed)
  assembled = []
  for row in range(rows):
    samples = []
    count = 1 + row % most
    for i in range(count):
      prompt = rng.integers(1, 40, 3)
      for n in rng.permutation([2, 3] if count > 1 else [2, 7]):
        samples.append(
          dict(
            tokens=np.concatenate([prompt, rng.integers(1, 40, n)]),
            block_starts=np.array([0, 1, 2, 3]),
            target_spans=np.array([4, 3 + n]),
            sample_id=np.uint32(1000 * seed + 10 * row + i),
            is_text=False,
          )
        )
    one = packing.assemble_row(samples, SEQ_LEN, 0)
    known = rng.uniform(-20, -5, (count, 2))
    assembled.append(preferences.with_pairs(one, known))
  return {name: np.stack([row[name] for row in assembled]) for name in assembled[0]}


def optim(**changes):
  """config.optim; eps is large, so that Adam does not amplify rounding errors."""
  given = dict(learning_rate=0.02, warmup_fraction=0.2, beta2=0.99, eps=1e-3)
  config = config_lib.default().optim
  config.update(given | changes)
  return config


def recipe(**changes):
  """The recipe of the tiny runs."""
  fields = dict(
    model=config(),
    positions=SKIPS,
    long_short=long_short.LongShortConfig(0.0, "none", 0),
    crop=0,
    seed=0,
    compute_dtype="float32",
    remat="none",
    attention=backends.Backend("blockwise", 4),
    loss_chunk=7,
    grad_accum=1,
  )
  return recipe_lib.Recipe(**fields | changes)


class Run:
  """A compiled step and its state on a mesh."""

  def __init__(self, mesh=None, steps=10, start=None, optim=optim(), **changes):  # noqa: B008
    self.recipe = recipe(steps=steps, **changes)
    one = dict(data=1, fsdp=1, tensor=1, context=1)
    self.mesh = mesh or sharding.make_mesh(one, jax.local_devices()[:1])
    update = optimizer.make(optim, steps)
    schedule = optimizer.schedule(optim, steps)
    with jax.set_mesh(self.mesh):
      self.train_step, self.eval_step = step_lib.compile_steps(
        self.recipe, update, schedule, self.mesh
      )
    _, self.shardings = state_lib.shardings(
      self.mesh, update, self.recipe.model, self.recipe.adapters
    )
    self.update = update
    self.reset(start)

  def reset(self, start=None):
    """The state before the first step, from the weights `start`."""
    start = params(self.recipe.model) if start is None else start
    adapters, base = self.recipe.adapters, None
    if adapters is not None:
      base = frozen_base(start, adapters, self.shardings.base)
      start = lora_state.init(adapters, start, self.recipe.seed)
    placed = jax.tree.map(
      lambda x, at: jax.make_array_from_callback(x.shape, at, lambda i: x[i]),
      start,
      self.shardings.params,
    )
    self.state = state_lib.create(placed, self.update, self.shardings, base)

  def step(self, local_batch):
    """One step on (this process' rows of) a batch; the metrics as numpy."""
    at = sharding.batch_sharding(self.mesh)
    placed = {
      name: jax.make_array_from_process_local_data(at, x)
      for name, x in local_batch.items()
    }
    with jax.set_mesh(self.mesh):
      self.state, metrics = self.train_step(self.state, placed)
    return jax.device_get(metrics)


def frozen_base(start, adapters, at):
  """The weights `start` as the frozen base of adapters."""
  place = lora_state.placer(adapters, at)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: place(sharding.path_of(path), x.shape, x.dtype, lambda i: x[i]),
    start,
  )


def naive_logits(params, config, tokens_L, positions_L, mask_LL):
  """logits_LV of one row: heads one by one, all scores, rotations as complex."""

  def norm(x, weight):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + config.norm_eps) * weight

  def linear(x, p):
    return x @ p["weight"].T + p.get("bias", 0)

  def head(x, n):
    return x[:, n * config.head_dim : (n + 1) * config.head_dim]

  def rotate(x, layer):
    if layer in config.nope_layers:
      return x
    pairs = config.head_dim // 2
    rate_P = config.rope.theta ** (-jnp.arange(pairs) / pairs)
    turned = (x[:, :pairs] + 1j * x[:, pairs:]) * jnp.exp(
      1j * positions_L[:, None] * rate_P
    )
    return jnp.concatenate([turned.real, turned.imag], -1)

  x = params["embed"]["weight"][tokens_L]
  for i in range(config.num_layers):
    p = jax.tree.map(lambda w: w[i], params["layers"])  # noqa: B023
    y = norm(x, p["attn_norm"]["weight"])
    q, k, v = (linear(y, p["attn"][name]) for name in "qkv")
    scaled = lambda x, name: (  # a norm of its own for each head
      norm(x, p["attn"][name]["weight"]) if config.qk_norm else x  # noqa: B023
    )
    outs = []
    for n in range(config.num_heads):
      kv = n * config.num_kv_heads // config.num_heads
      q_LH = rotate(scaled(head(q, n), "q_norm"), i)
      k_LH = rotate(scaled(head(k, kv), "k_norm"), i)
      score_LL = q_LH @ k_LH.T / config.head_dim**0.5
      e_LL = jnp.where(mask_LL, jnp.exp(score_LL), 0)
      outs.append(e_LL / jnp.sum(e_LL, -1, keepdims=True) @ head(v, kv))
    x = x + linear(jnp.concatenate(outs, -1), p["attn"]["o"])
    y = norm(x, p["mlp_norm"]["weight"])
    gate = linear(y, p["mlp"]["gate"])
    gated = gate / (1 + jnp.exp(-gate)) * linear(y, p["mlp"]["up"])
    x = x + linear(gated, p["mlp"]["down"])
  out = params["embed" if config.tie_embeddings else "lm_head"]["weight"]
  return norm(x, params["norm"]["weight"]) @ out.T


compiled_logits = jax.jit(naive_logits, static_argnums=1)


def alone_logits(params, config, tokens, positions=None):
  """naive_logits of one sequence by itself; SEQ_LEN long, so compiled once.

  Nothing attends to the padding.
  """
  m = len(tokens)
  places = np.arange(m) if positions is None else positions
  pad = lambda x: np.pad(x, (0, SEQ_LEN - m))
  causal_LL = np.tri(SEQ_LEN, dtype=bool)
  return compiled_logits(params, config, pad(tokens), pad(places), causal_LL)[:m]


drawn = jax.jit(functools.partial(positions.synthesize, SKIPS, 0))  # of a batch


def naive_sums(params, config, batch, positions_BL):
  """(Σ weight·loss, Σ weight) from full logits, by the definition of the arrays."""
  L = batch["tokens"].shape[1]
  segments_BL = batch["segment_ids"]
  same_BLL = segments_BL[:, :, None] == segments_BL[:, None, :]
  logits_BLV = jax.vmap(naive_logits, (None, None, 0, 0, 0))(
    params, config, batch["tokens"], positions_BL, same_BLL & np.tri(L, dtype=bool)
  )
  return weighed_sums(jax.nn.log_softmax(logits_BLV), batch)


def weighed_sums(log_p_BLV, batch):
  """(Σ weight·loss, Σ weight): place t predicts token t + 1 of the same sample."""
  segments_BL = batch["segment_ids"]
  log_p_BLV = log_p_BLV[:, :-1]
  log_p_BL = jnp.take_along_axis(log_p_BLV, batch["tokens"][:, 1:, None], 2)[..., 0]
  weight_BL = batch["loss_weight"][:, 1:] * (segments_BL[:, 1:] == segments_BL[:, :-1])
  return -jnp.sum(weight_BL * log_p_BL), jnp.sum(weight_BL)


def environment(devices):
  """The environment of a process with this number of virtual devices."""
  flag = f"--xla_force_host_platform_device_count={devices}"
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # halves the time to compile
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
    "PYTHONPATH": os.pathsep.join(
      [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    ),
  }


def is_plain(text, columns=80):
  """Whether piped text has no colour, and no table wider than `columns`."""
  tables = [line for line in text.splitlines() if line.startswith(tuple("┏┃┡│└"))]
  return "\x1b" not in text and max(map(len, tables), default=0) <= columns


TIMINGS = (
  "tokens_per_second",
  "tokens_per_second_per_device",
  "step_seconds",
  "data_seconds",
  "host_seconds",
  "peak_memory_gib",
)


def records(folder):
  """metrics.jsonl of a workdir without its timings."""
  found = metrics.read(folder / "metrics.jsonl")
  for record in found:
    for name in TIMINGS:
      record.pop(name, None)
  return found

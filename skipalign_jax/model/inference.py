"""Inference: prompts read in parts, tokens one by one, log-probabilities.

Shapes: B rows, L padded length, C places of a part, S cache length, D model, V vocab.
Rows are padded on the left, so all write the same place of the cache; padding has
segment 0 and is never attended to, and positions count from each row's first token.

Few shapes are compiled: lengths are rounded up to a short list, and the cost of a part
of a prompt depends on the places before it, not on the size of the cache.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from skipalign_jax.model import (
  attention,
  backends,
  cpu,
  decoder,
  losses,
  model_config,
  sharding,
)
from skipalign_jax.runtime import errors

PART = 512  # places of a prompt that a CPU reads at a time
SCORED = 128  # places per row whose logits exist at one time


class Programs(NamedTuple):
  """Compiled programs on one mesh; see `decoder.read` and `decoder.extend`."""

  empty: Callable[..., decoder.Cache]
  read: Callable[..., tuple[jax.Array, decoder.Cache]]
  extend: Callable[..., tuple[jax.Array, decoder.Cache]]


@functools.lru_cache
def programs(
  mesh: sharding.AnyMesh | None, config: model_config.ModelConfig
) -> Programs:
  """The programs with their shardings: rows over data × fsdp, the cache's places
  over context. The cache is donated."""
  cache_at = results_at = None
  if mesh is not None:
    cache_at = cache_shardings(mesh, config)
    results_at = (sharding.batch_sharding(mesh), cache_at)
  compiled = functools.partial(
    jax.jit,
    static_argnames=("config", "compute_dtype", "backend"),
    donate_argnames="cache",
  )
  return Programs(
    jax.jit(decoder.empty_cache, static_argnums=(0, 1, 2, 3), out_shardings=cache_at),
    compiled(decoder.read, out_shardings=results_at),
    compiled(decoder.extend, out_shardings=results_at),
  )


def cache_shardings(
  mesh: sharding.AnyMesh, config: model_config.ModelConfig
) -> decoder.Cache:
  """Where a cache lives on a mesh."""
  at = lambda spec: jax.sharding.NamedSharding(mesh, spec)
  kv = at(sharding.cache_spec(mesh, config.num_kv_heads))
  places = at(jax.sharding.PartitionSpec(sharding.BATCH, "context"))
  return decoder.Cache(kv, kv, places, sharding.replicated(mesh))


class Engine:
  """A model on its devices: generates, and scores given tokens."""

  def __init__(
    self,
    params: decoder.Params,
    config: model_config.ModelConfig,
    compute_dtype: str,
    mesh: jax.sharding.Mesh | None = None,
    part: int | None = None,
  ):
    """Casts the weights to the compute dtype.

    Args:
      params: weights, laid out over `mesh` if there is one; not kept.
      config: the model.
      compute_dtype: of products and cache, "float32" or "bfloat16".
      mesh: rows of a batch go over data × fsdp, a cache's places over context.
      part: tokens of a prompt that are read at a time; 0 reads whole prompts, by
        the fused kernels. Default: PART on CPUs, whole prompts elsewhere.
    """
    self.config = config
    self._dtype = compute_dtype
    self._mesh = mesh
    devices = jax.devices() if mesh is None else list(mesh.devices.flat)
    self._platform = devices[0].platform
    self.params = cast(params, compute_dtype, layers_as_bits=self._platform == "cpu")
    self._part = (PART if self._platform == "cpu" else 0) if part is None else part
    self._programs = programs(mesh, config)

  @property
  def row_shards(self) -> int:
    """Devices that the rows of a batch go over."""
    return 1 if self._mesh is None else sharding.row_shards(self._mesh)

  def room(self, tokens: int) -> int:
    """Places of the cache for a row of `tokens` tokens, of prompt and reply."""
    return bucket(tokens, backends.cache_multiple(self._platform))

  def generate(
    self,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    min_new_tokens: int = 0,
  ) -> Iterator[list[int | None]]:
    """Yields, step by step, the next token of each prompt.

    Args:
      prompts: token ids, none empty; lengths may differ.
      max_new_tokens: the largest number of steps.
      stop_ids: a reply ends before any of these.
      temperature: 0 is greedy; else logits are divided by it and sampled.
      top_p: samples from the smallest set of tokens with this probability.
      seed: of the samples.
      min_new_tokens: `stop_ids` are not allowed in this many first steps.

    Yields:
      One entry per prompt: a token id, or None once its reply has ended.

    Raises:
      UserError: an empty prompt, or options out of range.
      NotFiniteError: a logit of a reply that has not ended is NaN or infinite.
    """
    _check_sampling(prompts, temperature, top_p)
    batch = self._batch(prompts)
    cache = self._empty(batch, max_new_tokens)
    for at in self._parts(batch):
      logits_BV, cache = self._run(self._programs.extend, batch, at, cache)
    B = len(batch["tokens"])
    next_position_B1 = batch["positions"][:, -1:] + 1
    running = [True] * len(prompts)
    for step in range(max_new_tokens):
      key = jax.random.fold_in(jax.random.key(seed), step)
      banned = tuple(stop_ids) if step < min_new_tokens else ()
      with self.on_mesh():
        next_B, finite_B = choose(logits_BV, key, temperature, top_p, banned)
      if step + 1 < max_new_tokens:  # dispatched before this step's tokens are read
        token = {
          "tokens": next_B[:, None],
          "positions": next_position_B1 + step,
          "segment_ids": np.ones((B, 1), np.int32),
        }
        logits_BV, cache = self._run(self._programs.extend, token, slice(None), cache)
      tokens = np.asarray(next_B)[: len(prompts)].tolist()
      _check_finite(np.asarray(finite_B)[: len(prompts)] | ~np.array(running))
      running = [
        on and t not in stop_ids for on, t in zip(running, tokens, strict=True)
      ]
      if not any(running):
        return
      yield [t if on else None for on, t in zip(running, tokens, strict=True)]

  def hidden(self, sequences: Sequence[Sequence[int]]) -> jax.Array:
    """hidden_BLD: final hidden states of all tokens, in the compute dtype.

    Rows are padded on the left, up to a common L of at least the longest sequence:
    the last len(sequence) places of a row are its tokens. There may be more rows
    than sequences.
    """
    return jnp.concatenate(
      [hidden_BCD for _, hidden_BCD in self._hidden_parts(self._batch(sequences))],
      axis=1,
    )

  def score(
    self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """How likely the tokens of each sequence are, given all before them.

    Args:
      sequences: token ids, at least two each; those before `starts` are context only.
      starts: for each sequence, the index (at least 1) of its first token that is
        scored.

    Returns:
      For each sequence: log p, fp32 [len(sequence) − start], and whether each of
      these tokens is the likeliest one, bool of the same shape.

    Raises:
      NotFiniteError: a log p is NaN or infinite, as logits are; also in `score_after`
        and `score_next`.
    """
    assert all(0 < s < len(x) for x, s in zip(sequences, starts, strict=True))
    batch = self._batch([sequence[:-1] for sequence in sequences])
    B, L = batch["tokens"].shape
    targets_BL = np.zeros((B, L), np.int32)
    for row, sequence in enumerate(sequences):
      targets_BL[row, L - len(sequence) + 1 :] = sequence[1:]
    counts = [len(x) - start for x, start in zip(sequences, starts, strict=True)]
    log_p_BL, likeliest_BL = np.zeros((B, L), np.float32), np.zeros((B, L), bool)
    for at, hidden_BCD in self._hidden_parts(batch):
      if at.stop <= L - max(counts):
        continue  # nothing of this part is scored
      with self.on_mesh():
        log_p_BC, likeliest_BC = score_targets(
          self.params, self.config, hidden_BCD, self._place(targets_BL[:, at])
        )
      log_p_BL[:, at], likeliest_BL[:, at] = log_p_BC, likeliest_BC
    return _finite(
      (log_p_BL[row, L - count :], likeliest_BL[row, L - count :])
      for row, count in enumerate(counts)
    )

  def score_after(
    self,
    shared: Sequence[int],
    tails: Sequence[Sequence[int]],
    starts: Sequence[int],
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """`score` of several sequences that begin alike; the beginning is read once.

    Of tails that are equal up to where they are scored, as a question with several
    answers, that part is read once, and then all answers together.

    Args:
      shared: token ids of the beginning, at least one.
      tails: token ids after it, at least two each.
      starts: for each tail, the index (at least 1) of its first token that is scored.

    Returns:
      For each tail: log p, fp32 [len(tail) − start], and whether each of these tokens
      is the likeliest one, bool of the same shape.
    """
    assert all(0 < s < len(x) for x, s in zip(tails, starts, strict=True))
    batch = self._batch([shared])
    # The last token before an answer is read with the answer: it predicts its first.
    questions: dict[tuple[int, ...], list[int]] = {}
    for i, (tail, start) in enumerate(zip(tails, starts, strict=True)):
      questions.setdefault(tuple(tail[: start - 1]), []).append(i)
    places = lambda same: sum(len(tails[i]) - starts[i] for i in same)
    Q = bucket(max(1, *map(len, questions)), 1)
    T = bucket(max(map(places, questions.values())), 1)
    cache = self._empty(batch, Q + T)
    for at in self._parts(batch):
      _, cache = self._run(self._programs.read, batch, at, cache)
    end = cache.length + 0  # a copy: caches are donated
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for question, same in questions.items():
      n = len(question)
      if question:
        _, cache = self._read_after(
          [question], attention.SHARED, Q, len(shared), end + 0, cache
        )
      answers = [tails[i][n:] for i in same]
      hidden_BTD, cache = self._read_after(
        [answer[:-1] for answer in answers],
        attention.SHARED + 1,
        T,
        len(shared) + n,
        end + n,
        cache,
      )
      targets = [token for answer in answers for token in answer[1:]]
      targets_BT = _row(targets, T, len(batch["tokens"]))
      with self.on_mesh():
        scored = score_targets(
          self.params, self.config, hidden_BTD, self._place(targets_BT)
        )
      log_p_T, likeliest_T = (np.asarray(x)[0] for x in scored)
      ends = np.cumsum([len(answer) - 1 for answer in answers])
      for i, last, answer in zip(same, ends, answers, strict=True):
        at = slice(last - len(answer) + 1, last)
        found[i] = log_p_T[at], likeliest_T[at]
    return _finite(found[i] for i in range(len(tails)))

  def _read_after(
    self,
    parts: Sequence[Sequence[int]],
    first: int,
    places: int,
    position: int,
    length: jax.Array,
    cache: decoder.Cache,
  ) -> tuple[jax.Array, decoder.Cache]:
    """hidden_BTD of parts that each follow `length` places of the cache, in all rows.

    Parts are segments, from `first` on; T is `places`: the rest is padding. Overwrites
    what is in the cache after `length`.
    """
    B = len(cache.segment_ids)
    joined = lambda of_part: _row(
      [x for i, part in enumerate(parts) for x in of_part(i, part)], places, B
    )
    tail = {
      "tokens": joined(lambda i, part: part),
      "positions": position + joined(lambda i, part: range(len(part))),
      "segment_ids": joined(lambda i, part: [first + i] * len(part)),
    }
    cache = dataclasses.replace(cache, length=length)
    return self._run(self._programs.read, tail, slice(None), cache, from_cache=True)

  def score_next(
    self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """How likely each candidate is as the next token, as for multiple choice.

    Args:
      prompts: token ids, none empty.
      candidates: for each prompt, token ids, at least one.

    Returns:
      For each prompt: log p of its candidates, fp32, and whether each is the
      likeliest of all tokens, bool; both [len(candidates)].
    """
    batch = self._batch(prompts)
    B, K = len(batch["tokens"]), bucket(max(map(len, candidates)), 1)
    targets_BK = np.zeros((B, K), np.int32)
    for row, tokens in enumerate(candidates):
      targets_BK[row, : len(tokens)] = tokens
    *_, (_, hidden_BCD) = self._hidden_parts(batch)
    with self.on_mesh():
      hidden_BKD = jnp.repeat(hidden_BCD[:, -1:], K, axis=1)  # rows end with a token
      log_p_BK, likeliest_BK = map(
        np.asarray,
        score_targets(self.params, self.config, hidden_BKD, self._place(targets_BK)),
      )
    return _finite(
      (log_p_BK[row, : len(tokens)], likeliest_BK[row, : len(tokens)])
      for row, tokens in enumerate(candidates)
    )

  def _batch(self, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """tokens, segment_ids and positions, int32 [B, L]."""
    if not all(rows):
      raise errors.UserError("a prompt has no tokens; nothing to continue")
    B = 2 ** (len(rows) - 1).bit_length()  # few shapes
    B += -B % self.row_shards
    filled = [*rows, *[rows[-1]] * (B - len(rows))]
    longest = max(map(len, rows))
    L = bucket(longest, backends.TILE)
    if self._part and longest > self._part:
      L = -(-longest // self._part) * self._part
    tokens_BL = np.zeros((len(filled), L), np.int32)
    segment_ids_BL = np.zeros_like(tokens_BL)
    for row, tokens in enumerate(filled):
      tokens_BL[row, L - len(tokens) :] = tokens
      segment_ids_BL[row, L - len(tokens) :] = 1
    positions_BL = np.maximum(np.cumsum(segment_ids_BL, axis=1) - 1, 0)
    return {
      "tokens": tokens_BL,
      "segment_ids": segment_ids_BL,
      "positions": positions_BL.astype(np.int32),
    }

  def _parts(self, batch: dict[str, np.ndarray]) -> list[slice]:
    L = batch["tokens"].shape[1]
    size = min(self._part or L, L)
    return [slice(start, start + size) for start in range(0, L, size)]

  def _empty(self, batch: dict[str, np.ndarray], new_tokens: int) -> decoder.Cache:
    B, L = batch["tokens"].shape
    dtype = jnp.dtype(self._dtype)
    if self._platform == "cpu":
      dtype = cpu.bits_dtype(dtype)
    with self.on_mesh():
      return self._programs.empty(self.config, B, self.room(L + new_tokens), dtype)

  def _hidden_parts(
    self, batch: dict[str, np.ndarray]
  ) -> Iterator[tuple[slice, jax.Array]]:
    cache = self._empty(batch, 0)
    for at in self._parts(batch):
      hidden_BCD, cache = self._run(self._programs.read, batch, at, cache)
      yield at, hidden_BCD

  def _run(
    self, program, batch, at: slice, cache: decoder.Cache, from_cache: bool = False
  ):
    arrays = [
      self._place(batch[name][:, at]) for name in ("tokens", "positions", "segment_ids")
    ]
    new = arrays[0].shape[1]
    if self._part or new == 1 or from_cache:
      backend = backends.choose_cached(self._platform, new)
    else:
      backend = backends.choose(
        "auto",
        self._platform,
        self._dtype,
        new,
        self.config.head_dim,
        max_segments=3,  # padding comes first: a length does not describe that to cuDNN
      )
    with self.on_mesh():
      return program(
        self.params,
        *arrays,
        cache=cache,
        config=self.config,
        compute_dtype=self._dtype,
        backend=backend,
      )

  def on_mesh(self) -> contextlib.AbstractContextManager[Any]:
    """Sets the mesh, if there is one; programs that read `hidden` run in this."""
    return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

  def _place(self, x: Any) -> Any:
    """Rows to their devices; every process has them all."""
    if self._mesh is None or isinstance(x, jax.Array):
      return x
    at = sharding.batch_sharding(self._mesh)
    return jax.make_array_from_callback(x.shape, at, lambda index: x[index])


@functools.partial(jax.jit, static_argnums=(1, 2))
def cast(params: decoder.Params, dtype: str, layers_as_bits: bool) -> decoder.Params:
  """Weights in a dtype; those of layers, which a scan reads, as bits if asked for."""
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  if layers_as_bits:
    params["layers"] = jax.tree.map(cpu.to_bits, params["layers"])
  return params


def _row(tokens: Sequence[int], places: int, B: int) -> np.ndarray:
  """int32 [B, places]: the tokens and then zeros, in each row."""
  row = np.zeros(places, np.int32)
  row[: len(tokens)] = tokens
  return np.tile(row, (B, 1))


def _check_sampling(
  prompts: Sequence[Sequence[int]], temperature: float, top_p: float
) -> None:
  """Raises UserError for what cannot be sampled."""
  if not prompts:
    raise errors.UserError("there are no prompts to reply to")
  if not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
    raise errors.UserError(
      f"temperature={temperature} must be at least 0, top_p={top_p} in (0, 1]"
    )


def _check_finite(finite_R: np.ndarray) -> None:
  """Raises NotFiniteError if a row is not."""
  if not finite_R.all():
    raise errors.NotFiniteError(int(np.argmin(finite_R)))


def _finite(
  scored: Iterable[tuple[np.ndarray, np.ndarray]],
) -> list[tuple[np.ndarray, np.ndarray]]:
  """The scores of rows, if their log p are finite."""
  found = list(scored)
  _check_finite(np.array([np.isfinite(log_p).all() for log_p, _ in found]))
  return found


def bucket(n: int, multiple: int) -> int:
  """n rounded up to 4, 5, 6 or 7 times a power of two, and to a multiple."""
  step = max(1, 2 ** ((n - 1).bit_length() - 3))
  n = -(-n // step) * step
  return -(-n // multiple) * multiple


@functools.partial(jax.jit, static_argnames=("temperature", "top_p", "banned"))
def choose(
  logits_BV: jax.Array,
  key: jax.Array,
  temperature: float,
  top_p: float,
  banned: tuple[int, ...] = (),
) -> tuple[jax.Array, jax.Array]:
  """Next token of each row: the likeliest, or a sample of the nucleus.

  Returns:
    Tokens [B], and whether all logits of a row are finite, bool [B].
  """
  finite_B = sharding.constrain_replicated(jnp.isfinite(logits_BV).all(axis=-1))
  if banned:
    logits_BV = logits_BV.at[:, np.array(banned)].set(-jnp.inf)
  if temperature == 0:
    return sharding.constrain_replicated(jnp.argmax(logits_BV, axis=-1)), finite_B
  logits_BV = logits_BV / temperature
  if top_p < 1:
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1)
    before_BV -= jax.nn.softmax(sorted_BV, axis=-1)  # mass of likelier tokens
    min_B1 = jnp.min(
      jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True
    )
    logits_BV = jnp.where(logits_BV >= min_B1, logits_BV, -jnp.inf)
  sampled_B = jax.random.categorical(key, logits_BV, axis=-1)
  return sharding.constrain_replicated(sampled_B), finite_B


@functools.partial(jax.jit, static_argnames="config")
def score_targets(
  params: decoder.Params,
  config: model_config.ModelConfig,
  hidden_BCD: jax.Array,
  targets_BC: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """log p of each target, fp32, and whether it is the likeliest token."""
  head_VD = decoder.bind(config, params).head()
  scored = losses.target_log_probs(hidden_BCD, head_VD, targets_BC, SCORED)
  return jax.tree.map(sharding.constrain_replicated, scored)

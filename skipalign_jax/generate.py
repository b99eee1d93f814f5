"""Text from a model: one prefill, then one token a step from the KV cache.

python -m skipalign_jax.generate --model=REF --prompt=TEXT [--prompt=TEXT …]

Shapes: B prompts, L padded prompt length, S cache length, V vocab. Prompts are
padded on the left, so all rows write the same cache place; padding has segment
0 and is never attended to, and positions count from each row's first token.
"""

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from skipalign_jax import compile_cache, errors, kernels, model, model_config
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import reference

BUCKET = kernels.TILE  # prompts are padded to multiples: few shapes to compile


def generate(
  params: model.Params,
  config: model_config.ModelConfig,
  prompts: Sequence[Sequence[int]],
  max_new_tokens: int,
  stop_ids: Sequence[int],
  temperature: float = 0.0,
  top_p: float = 1.0,
  seed: int = 0,
  compute_dtype: str = "float32",
) -> Iterator[list[int | None]]:
  """Yields, step by step, the next token of each prompt.

  Args:
    params: weights.
    config: the model.
    prompts: token ids, none empty; lengths may differ.
    max_new_tokens: at most so many steps.
    stop_ids: a row ends before any of these.
    temperature: 0 is greedy; else logits are divided by it and sampled.
    top_p: samples from the smallest set of tokens with this probability.
    seed: of the samples.
    compute_dtype: "float32" or "bfloat16".

  Yields:
    One entry a prompt: a token id, or None once its reply has ended.

  Raises:
    UserError: an empty prompt, or options out of range.
  """
  if not all(prompts):
    raise errors.UserError("a prompt has no tokens; nothing to continue")
  if temperature < 0 or not 0 < top_p <= 1:
    raise errors.UserError(
      f"temperature={temperature} must be at least 0, top_p={top_p} in (0, 1]"
    )
  B = len(prompts)
  L = -(-max(map(len, prompts)) // BUCKET) * BUCKET
  tokens_BL = np.zeros((B, L), np.int32)
  segment_ids_BL = np.zeros((B, L), np.int32)
  for row, prompt in enumerate(prompts):
    tokens_BL[row, L - len(prompt) :] = prompt
    segment_ids_BL[row, L - len(prompt) :] = 1
  positions_BL = np.maximum(np.cumsum(segment_ids_BL, axis=1) - 1, 0)

  cache = model.empty_cache(config, B, L + max_new_tokens, jnp.dtype(compute_dtype))
  backend = kernels.choose(
    "auto",
    jax.default_backend(),
    compute_dtype,
    L,
    config.head_dim,
    max_segments=3,  # padding comes first, which cuDNN cannot be told by a length
  )
  forward = functools.partial(
    _forward, config=config, compute_dtype=compute_dtype, backend=backend
  )
  logits_BV, cache = forward(params, tokens_BL, positions_BL, segment_ids_BL, cache)
  position_B1 = positions_BL[:, -1:] + 1
  ones_B1 = np.ones((B, 1), np.int32)
  running = [True] * B
  for step in range(max_new_tokens):
    key = jax.random.fold_in(jax.random.key(seed), step)
    next_B = choose(logits_BV, key, temperature, top_p)
    if step + 1 < max_new_tokens:  # dispatched before this step's tokens are read
      logits_BV, cache = forward(
        params, next_B[:, None], position_B1 + step, ones_B1, cache
      )
    tokens = np.asarray(next_B).tolist()
    running = [on and t not in stop_ids for on, t in zip(running, tokens, strict=True)]
    if not any(running):
      return
    yield [t if on else None for on, t in zip(running, tokens, strict=True)]


_forward = jax.jit(
  model.extend,
  static_argnames=("config", "compute_dtype", "backend"),
  donate_argnames="cache",
)


@functools.partial(jax.jit, static_argnames=("temperature", "top_p"))
def choose(
  logits_BV: jax.Array, key: jax.Array, temperature: float, top_p: float
) -> jax.Array:
  """Next token of each row: the likeliest, or a sample of the nucleus."""
  if temperature == 0:
    return jnp.argmax(logits_BV, axis=-1)
  logits_BV = logits_BV / temperature
  if top_p < 1:
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1)
    before_BV -= jax.nn.softmax(sorted_BV, axis=-1)  # mass of likelier tokens
    least_B1 = jnp.min(
      jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True
    )
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
  return jax.random.categorical(key, logits_BV, axis=-1)


def encode(
  tokenizer: transformers.PreTrainedTokenizerBase, prompt: str, raw: bool, system: str
) -> list[int]:
  """Token ids of a prompt, as a user turn of the chat template unless `raw`."""
  if raw:
    return tokenizer.encode(prompt)
  if not tokenizer.chat_template:
    raise errors.UserError("this tokenizer has no chat template; use --raw")
  messages = [{"role": "user", "content": prompt}]
  if system:
    messages.insert(0, {"role": "system", "content": system})
  text = tokenizer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  )
  return tokenizer.encode(text, add_special_tokens=False)


class TextStream:
  """Turns growing token lists into growing text, never half a character."""

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
    self._tokenizer = tokenizer
    self._ids: list[int] = []
    self._shown = ""

  def add(self, token: int) -> str:
    """The text that became certain with this token."""
    self._ids.append(token)
    text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
    if text.endswith("\ufffd"):  # bytes of a character are still missing
      return ""
    new, self._shown = text[len(self._shown) :], text
    return new


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m skipalign_jax.generate")
  parser.add_argument("--model", required=True, help="hub id, folder, .gguf or workdir")
  parser.add_argument("--prompt", required=True, action="append", help="repeatable")
  parser.add_argument("--max_new_tokens", type=int, default=64)
  parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
  parser.add_argument("--top_p", type=float, default=1.0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--system", default="", help="system prompt")
  parser.add_argument("--raw", action="store_true", help="no chat template")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  args = parser.parse_args()
  if args.max_new_tokens < 1:
    raise errors.UserError("--max_new_tokens must be at least 1")

  compile_cache.enable()
  opened = reference.open_model(args.model)
  tokenizer = reference.load_tokenizer(args.model)
  reference.check_vocabulary(tokenizer, opened.config)
  prompts = [encode(tokenizer, p, args.raw, args.system) for p in args.prompt]
  longest = max(map(len, prompts)) + args.max_new_tokens
  if longest > opened.config.window:
    print(
      f"note: {longest} tokens are more than the model's window of "
      f"{opened.config.window}",
      file=sys.stderr,
    )
  params = reference.load_params(opened, args.dtype)
  steps = generate(
    params,
    opened.config,
    prompts,
    args.max_new_tokens,
    tokenizer_lib.stop_token_ids(tokenizer),
    args.temperature,
    args.top_p,
    args.seed,
    args.dtype,
  )
  streams = [TextStream(tokenizer) for _ in prompts]
  replies = [""] * len(prompts)
  for tokens in steps:
    for row, token in enumerate(tokens):
      if token is not None:
        text = streams[row].add(token)
        replies[row] += text
        if len(prompts) == 1:
          print(text, end="", flush=True)
  if len(prompts) == 1:
    print()
  else:
    for prompt, reply in zip(args.prompt, replies, strict=True):
      print(f"> {prompt}\n{reply}\n")
  return 0


if __name__ == "__main__":
  errors.run_command(main)

"""SmolLM2-135M-Instruct, ours against transformers in PyTorch, fp32."""

import dataclasses
import os
import pathlib

import jax
import numpy as np
import pytest
import tiny
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax import convert
from skipalign_jax.commands import generate
from skipalign_jax.data import pipeline
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import reference
from skipalign_jax.method import positions
from skipalign_jax.model import backends, inference, losses, rope
from skipalign_jax.training import objective

pytestmark = [pytest.mark.weights, pytest.mark.torch]

ROOT = pathlib.Path(__file__).parents[2]
GGUF = os.environ.get(
  "SKIPALIGN_SMOLLM2", str(ROOT / ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
)
PROMPTS = (
  "What is the capital of France?",
  "Write a short poem about a lighthouse.",
  "List three ways to save water at home, and explain each of them in a sentence.",
  "def fibonacci(n):",
)


@pytest.fixture(scope="module")
def opened():
  return reference.open_model(GGUF)


@pytest.fixture(scope="module")
def params(opened):
  return reference.load_params(opened)


@pytest.fixture(scope="module")
def tokenizer():
  return reference.load_tokenizer(GGUF)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  out = tmp_path_factory.mktemp("export") / "hf"
  assert (
    convert.main(["export", f"--model={GGUF}", f"--out={out}", "--dtype=float32"]) == 0
  )
  return out


@pytest.fixture(scope="module")
def theirs(exported):
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  return transformers.AutoModelForCausalLM.from_pretrained(
    exported, dtype=torch.float32
  )


def our_replies(params, config, prompts, count, stop_ids=()):
  engine = inference.Engine(params, config, "float32")
  steps = engine.generate(prompts, count, stop_ids)
  rows = zip(*steps, strict=True)
  return [[token for token in row if token is not None] for row in rows]


def test_greedy_equals_transformers_token_for_token(opened, params, tokenizer, theirs):
  """64 tokens of several prompts, ours as one left-padded batch."""
  import torch

  prompts = [generate.encode(tokenizer, p, raw=False, system="") for p in PROMPTS]
  ours = our_replies(params, opened.config, prompts, 64)
  for prompt, reply in zip(prompts, ours, strict=True):
    tokens = torch.tensor([prompt])
    out = theirs.generate(
      tokens,
      attention_mask=torch.ones_like(tokens),
      max_new_tokens=64,
      min_new_tokens=64,
      do_sample=False,
      eos_token_id=None,
    )
    assert reply == out[0, len(prompt) :].tolist()


def test_exported_model_replies_as_ours(opened, params, tokenizer, theirs, exported):
  """What a user of the export sees: its own tokenizer, template and stop tokens."""
  transformers = pytest.importorskip("transformers")
  their_tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
  messages = [{"role": "user", "content": PROMPTS[0]}]
  inputs = their_tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
  )
  out = theirs.generate(**inputs, max_new_tokens=64, do_sample=False)
  text = their_tokenizer.decode(
    out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
  )
  prompt = generate.encode(tokenizer, PROMPTS[0], raw=False, system="")
  stops = tokenizer_lib.stop_token_ids(tokenizer, opened.eos_ids)
  (reply,) = our_replies(params, opened.config, [prompt], 64, stops)
  assert tokenizer.decode(reply) == text == "The capital of France is Paris."


@pytest.mark.parametrize("strategy", ["contiguous", "skip_outer"])
def test_first_loss_equals_transformers_masked_loss(
  strategy, opened, params, theirs, tmp_path
):
  """Real dialogues, NTK rope; only targets count, positions skip."""
  import torch

  c = config_lib.default()
  c.model.init_from, c.data.train, c.data.eval = GGUF, "builtin:recall:8", ""
  c.data.seq_len, c.batch_size, c.steps = 384, 4, 1
  c.data.cache_dir = str(tmp_path)
  c.positions.strategy, c.positions.max_position = strategy, 32_768
  console = rich_console.Console(quiet=True)
  data = pipeline.build(c, tokenizer_lib.resolve(c), 0, 1, console)
  batch = next(data.train_iterator())

  scaled = dataclasses.replace(opened.config.rope, kind="ntk", factor=4.0)
  shape = dataclasses.replace(opened.config, rope=scaled)
  recipe = tiny.recipe(
    model=shape,
    positions=positions.PositionConfig(**c.positions),
    attention=backends.Backend("blockwise", 2),
    loss_chunk=128,
  )
  positions_BL = positions.synthesize(recipe.positions, 0, batch)
  assert (int(positions_BL.max()) > 5_000) == (strategy == "skip_outer")
  total, weight = jax.jit(
    lambda p: objective.cross_entropy_sum(recipe, p, batch, positions_BL)
  )(params)
  ours = float(total / weight)

  inv_freq_P, _ = rope.inverse_frequencies(scaled, shape.head_dim)
  embedding = theirs.model.rotary_emb
  original = embedding.inv_freq
  embedding.inv_freq = torch.tensor(inv_freq_P)
  with torch.no_grad():
    logits_BLV = theirs(
      torch.tensor(batch["tokens"]).long(),
      # Explicit ones: without a mask transformers 5 reads jumps as packing borders.
      attention_mask=torch.tensor((batch["segment_ids"] > 0).astype(np.int64)),
      position_ids=torch.tensor(np.asarray(positions_BL)).long(),
    ).logits
  embedding.inv_freq = original
  targets_BL, weight_BL = losses.next_token_targets(
    batch["tokens"], batch["segment_ids"], batch["loss_weight"]
  )
  log_p = torch.log_softmax(logits_BLV, -1)
  picked = log_p.gather(-1, torch.tensor(np.asarray(targets_BL)).long()[..., None])
  w = torch.tensor(np.asarray(weight_BL))
  masked_loss = float(-(picked[..., 0] * w).sum() / w.sum())
  assert ours == pytest.approx(masked_loss, abs=1e-4)

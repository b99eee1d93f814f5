"""Numbers that must come out on every device: positions, logits, losses.

goldens.json has them: logits of tiny models and their losses as transformers' PyTorch
code computes them, and positions as a CPU draws them. tests/make_goldens.py writes it.
"""

import dataclasses
import importlib.resources
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.data import packing
from skipalign_jax.hf import locations, names, reference, weights
from skipalign_jax.method import positions
from skipalign_jax.model import decoder, model_config

Record = dict[str, Any]
LENGTH = 20  # tokens of the models' texts
STRATEGIES = ("skip_outer", "pose", "cream")
# Largest error of logits by the largest logit, and of a loss in nats. Products in fp32
# with all bits; sines of large angles differ a little between devices.
BOUND = {"cpu": 1e-5}
BOUND_ELSEWHERE = 1e-3


def check(platform: str) -> Iterator[Record]:
  """A record per golden: name, error, bound and whether it holds.

  Args:
    platform: of the device that computes: "cpu", "gpu" or "tpu".
  """
  stored = json.loads(
    importlib.resources.files(__package__).joinpath("goldens.json").read_text()
  )
  for strategy, expected in stored["positions"].items():
    error = int(np.abs(drawn(strategy) - np.array(expected)).max())
    yield _record(f"positions {strategy}", error, 0)
  bound = BOUND.get(platform, BOUND_ELSEWHERE)
  for name, expected in stored["models"].items():
    logits_LV = logits(expected["config"], expected["seed"])
    last = np.array(expected["logits"])
    error = np.abs(logits_LV[-1] - last).max() / np.abs(last).max()
    yield _record(f"logits {name}", float(error), bound)
    error = abs(loss(logits_LV) - expected["loss"])
    yield _record(f"loss {name}", error, bound)


def _record(name: str, error: float, bound: float) -> Record:
  return {"golden": name, "error": error, "bound": bound, "holds": error <= bound}


def drawn(strategy: str) -> np.ndarray:
  """positions_BL of two rows of dialogues, on the default device."""
  config = config_lib.default().positions
  config.strategy = strategy
  L = 24
  starts = np.arange(0, L, 4)
  row = {
    "tokens": np.arange(1, L + 1, dtype=np.int32),
    "block_starts": starts,
    "target_spans": np.array([[s, s + 4] for s in starts[1::2]]),
    "is_text": False,
  }
  rows = [
    packing.assemble_row([row | {"sample_id": np.uint32(number)}], L, 0)
    for number in range(2)
  ]
  batch = {name: np.stack([one[name] for one in rows]) for name in rows[0]}
  draw = jax.jit(positions.synthesize, static_argnums=(0, 1))
  return np.asarray(draw(positions.PositionConfig(**config), 0, batch))


def logits(hf_config: Record, seed: int) -> np.ndarray:
  """logits_LV of a tiny model at positions up to the end of its window."""
  config = model_config.from_hf(hf_config)
  source = _Drawn(draw_weights(names.hf_shapes(config), seed))
  opened = reference.Model(
    "golden", locations.Location("hf", None), config, {}, None,
    weights.stacked(config, source),
  )  # fmt: skip
  params = reference.load_params(opened)
  tokens_BL = jnp.asarray(tokens(config.vocab_size), jnp.int32)
  positions_BL = jnp.asarray(skipped(config.window), jnp.int32)[None]
  run = jax.jit(decoder.logits, static_argnums=(1, 5))
  with jax.default_matmul_precision("highest"):
    found = run(
      params, config, tokens_BL, positions_BL, jnp.ones_like(tokens_BL), "float32"
    )
  return np.asarray(found)[0]


def loss(logits_LV: np.ndarray) -> float:
  """Mean cross entropy of the text's next tokens, in float64."""
  values = logits_LV[:-1].astype(np.float64)
  largest = values.max(axis=1, keepdims=True)
  total = np.log(np.exp(values - largest).sum(axis=1)) + largest[:, 0]
  targets = tokens(values.shape[1])[0, 1:]
  return float((total - values[np.arange(len(targets)), targets]).mean())


def draw_weights(
  shapes: dict[str, tuple[int, ...]], seed: int
) -> dict[str, np.ndarray]:
  """fp32 tensors by HF name, the same on every machine; norms lie around one."""
  rng = np.random.default_rng(seed)
  found = {}
  for name in sorted(shapes):
    values = rng.standard_normal(shapes[name]).astype(np.float32)
    found[name] = 1 + values / 8 if "norm" in name else values / 6
  return found


def skipped(window: int) -> np.ndarray:
  """positions_L of three runs, whose last token ends the window."""
  positions_L = np.arange(LENGTH)
  spare = window - LENGTH
  positions_L[7:] += spare // 3
  positions_L[12:] += spare - spare // 3
  return positions_L


def tokens(vocab_size: int) -> np.ndarray:
  """tokens_BL of the text."""
  return np.random.default_rng(1).integers(0, vocab_size, (1, LENGTH))


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """Tensors in memory, as `weights.TensorSource` wants them."""

  tensors: dict[str, np.ndarray]
  where: str = "memory"

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in self.tensors.items()}

  def dtype(self, name: str) -> np.dtype:
    return self.tensors[name].dtype

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    return self.tensors[name][rows]

"""How far each rotated pair of RoPE turns over the distances that are trained.

A pair whose wavelength is longer than every distance of pretraining has covered only a
part of its circle; longer distances give angles that the model has never seen. Scaling
(NTK: SkipAlign §4) slows the pairs down, the last one just enough; training at
positions up to L shows the model the remaining angles.

Shapes: P rotated pairs.
"""

import copy
from typing import Any

import ml_collections
import numpy as np

from skipalign_jax.hf import reference
from skipalign_jax.model import known_models, model_config, rope
from skipalign_jax.training import resolve


def measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Turns of each pair at the whole length, in pretraining and in the run.

  Args:
    config: the whole config; its model may be one of `known_models`.

  Returns:
    `lines`: for each stage its name, length, turns of each pair, how many
    pairs make a full turn, and how many reach angles beyond pretraining's.

  Raises:
    UserError: the model cannot be found, or its rope not be scaled so.
  """
  base, tuned = _models(config)
  L, seq_len = config.positions.max_position, config.data.seq_len
  same = base.rope == tuned.rope
  stages = [
    ("pretraining", base, base.window),
    ("contiguous samples", tuned, seq_len),
    ("positions to L", tuned, L),
  ]
  if not same:
    stages.insert(2, ("positions to L, rope not scaled", base, L))
  seen_P = turns(base, base.window)
  lines = []
  for name, model, length in stages:
    turns_P = turns(model, length)
    # NTK turns the last pair exactly as far: allow for rounding.
    beyond_P = (seen_P < 1) & (turns_P > seen_P * (1 + 1e-4))
    lines.append(
      {
        "name": name,
        "rope": describe(model.rope),
        "distance": length,
        "turns": [float(f"{x:.6g}") for x in turns_P.tolist()],
        "full_turn": int(np.sum(turns_P >= 1)),
        "beyond_pretraining": int(np.sum(beyond_P)),
      }
    )
  return {
    "kind": "rope",
    "title": f"Rotations of {config.model.init_from or 'a model from scratch'}",
    "pairs": base.head_dim // 2,
    "lines": lines,
  }


def turns(model: model_config.ModelConfig, distance: int) -> np.ndarray:
  """Turns_P of each pair over a distance, in positions."""
  inv_P, _ = rope.inverse_frequencies(model.rope, model.head_dim)
  return distance * inv_P.astype(np.float64) / (2 * np.pi)


def describe(config: rope.RopeConfig) -> str:
  """ "ntk x 24.4, base 10,000"."""
  scaled = "" if config.kind == "none" else f"{config.kind} x {config.factor:.3g}, "
  return f"{scaled}base {config.theta:,.0f}"


def _models(
  config: ml_collections.ConfigDict,
) -> tuple[model_config.ModelConfig, model_config.ModelConfig]:
  """The model that the run starts from, and the one that it trains."""
  name = config.model.init_from
  found = known_models.KNOWN.get(name)
  if found is None and name:
    found = reference.open_model(name).config
  vocab_size = config.model.vocab_size or 1  # not used here
  if found is None:
    plain = copy.deepcopy(config)
    plain.rope.kind, plain.rope.target_length = "model", None
    found = resolve.model_from(plain, None, vocab_size)
    return found, resolve.model_from(config, None, vocab_size)
  return found, resolve.model_from(config, found, vocab_size)

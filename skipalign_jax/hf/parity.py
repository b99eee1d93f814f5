"""Our logits against those of transformers, on the same weights (needs torch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from skipalign_jax.hf import reference, weights
from skipalign_jax.model import decoder, model_config
from skipalign_jax.runtime import errors, extras

if TYPE_CHECKING:
  import transformers


def skipped_positions(length: int, window: int) -> np.ndarray:
  """positions_L: three contiguous runs with jumps, the last ending the window."""
  positions_L = np.arange(length)
  spare = max(window - length, 0)
  positions_L[length // 3 :] += spare // 2
  positions_L[2 * length // 3 :] += spare - spare // 2
  return positions_L


def compare(opened: reference.Model, length: int) -> Iterator[tuple[str, float, float]]:
  """Yields (positions, largest absolute difference, largest absolute logit).

  Both sides compute in fp32 on the same random tokens, once with contiguous and
  once with skipped positions. transformers gets an explicit all-ones mask:
  without one, its v5 reads a jump in position_ids as a packing boundary.

  transformers reads an HF folder itself: config.json and weights. A GGUF file or a
  workdir it cannot read; there it gets our config and weights, and the comparison says
  nothing about how they were read.

  Raises:
    UserError: torch is not installed, or length < 3.
  """
  extras.need("torch", "verify, which compares with transformers' PyTorch model,")
  import torch

  if length < 3:
    raise errors.UserError(f"a comparison needs at least 3 tokens, not {length}")
  config = opened.config
  tokens_BL = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
  theirs = _loaded(opened) if opened.kind == "hf" else _built(opened)
  params = reference.load_params(opened, "float32")
  for name, positions_L in (
    ("contiguous positions", np.arange(length)),
    ("skipped positions", skipped_positions(length, config.window)),
  ):
    with torch.no_grad():
      expected_BLV = theirs(
        input_ids=torch.from_numpy(tokens_BL),
        position_ids=torch.from_numpy(positions_L)[None],
        attention_mask=torch.ones(1, length, dtype=torch.long),
        use_cache=False,
      ).logits.numpy()
    ours_BLV = decoder.logits(
      params,
      config,
      jnp.asarray(tokens_BL, jnp.int32),
      jnp.asarray(positions_L, jnp.int32)[None],
      jnp.ones((1, length), jnp.int32),
      "float32",
    )
    difference = float(np.abs(np.asarray(ours_BLV) - expected_BLV).max())
    yield f"{name} 0..{positions_L[-1]}", difference, float(np.abs(expected_BLV).max())


def _loaded(opened: reference.Model) -> transformers.PreTrainedModel:
  """transformers' model of an HF folder, by transformers' own reading."""
  import torch
  import transformers

  theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(
    opened.location.path,
    dtype=torch.float32,
    output_loading_info=True,
    local_files_only=True,
    pad_token_id=None,  # it may be outside of the vocabulary
  )
  if missing := sorted(loading["missing_keys"]):
    raise errors.UserError(
      f"{opened.reference}: transformers does not find {', '.join(missing[:5])} in it"
    )
  return theirs.eval()


def _built(opened: reference.Model) -> transformers.PreTrainedModel:
  """transformers' model of our config and our weights."""
  import torch
  import transformers

  # No ids: the defaults of the class may be outside of this vocabulary.
  ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
  theirs = transformers.AutoModelForCausalLM.from_config(
    transformers.AutoConfig.for_model(**model_config.to_hf(opened.config), **ids)
  )
  state = {
    name: torch.tensor(tensor)
    for name, tensor in weights.hf_tensors(opened.weights, "float32")
  }
  missing, unexpected = theirs.load_state_dict(state, strict=False)
  # A tied output matrix is the embedding's own storage.
  assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
  theirs.tie_weights()
  return theirs.float().eval()

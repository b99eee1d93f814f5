"""Our logits against those of transformers, on the same weights (needs torch)."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from skipalign_jax.hf import reference, weights
from skipalign_jax.model import decoder, model_config
from skipalign_jax.runtime import errors


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

  Raises:
    UserError: torch is not installed, or length < 3.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise errors.UserError(
      "verify compares with transformers' PyTorch model and torch is not installed: "
      "pip install '.[parity]'"
    ) from error
  if length < 3:
    raise errors.UserError(f"a comparison needs at least 3 tokens, not {length}")
  config = opened.config
  tokens_BL = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
  # No ids: the defaults of the class may be outside of this vocabulary.
  ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
  theirs = transformers.AutoModelForCausalLM.from_config(
    transformers.AutoConfig.for_model(**model_config.to_hf(config), **ids)
  )
  state = {
    name: torch.tensor(tensor)
    for name, tensor in weights.hf_tensors(opened.weights, "float32")
  }
  missing, unexpected = theirs.load_state_dict(state, strict=False)
  # A tied output matrix is the embedding's own storage.
  assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
  theirs.tie_weights()
  theirs = theirs.float().eval()
  del state
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

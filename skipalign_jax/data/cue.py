"""EndPrompt's cue (arXiv 2605.14589): a text after the last token of each sample.

It says that the text is over, is a block of its own, and is what moves far away
(`positions.terminal=cue`). Only training rows have it: held-out losses, prompts and
exports do not. Its tokens weigh less than others, but something: they alone see far
distances.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import ml_collections
import numpy as np

from skipalign_jax.data import prepare
from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import transformers


@dataclasses.dataclass(frozen=True)
class WithCue:
  """A tokenized source whose samples end with a cue.

  Attributes:
    prepared: the source; it leaves room for the cue.
    tokens: int32 [b] of the cue.
    weight: of each of them in the loss.
  """

  prepared: prepare.Prepared
  tokens: np.ndarray
  weight: float

  @property
  def source(self):
    """Where the records come from."""
    return self.prepared.source

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """Tokens per table row; 0 where unusable."""
    lengths = self.prepared.lengths
    return np.where(lengths > 0, lengths + len(self.tokens), 0)

  def sample(self, row: int) -> dict[str, np.ndarray]:
    """As `prepare.Prepared.sample`, with `cue`: its first token and its weight."""
    sample = self.prepared.sample(row)
    count = len(sample["tokens"])
    return sample | {
      "tokens": np.concatenate([sample["tokens"], self.tokens]),
      "block_starts": np.append(sample["block_starts"], count),
      "cue": (count, self.weight),
    }


def tokens_of(
  config: ml_collections.ConfigDict,
  tokenizer: transformers.PreTrainedTokenizerFast,
) -> np.ndarray:
  """int32 [b], the cue of a config; none unless EndPrompt appends one.

  Raises:
    UserError: there is no text, or `data.seq_len` has no room next to it.
  """
  p = config.positions
  if p.strategy != "endprompt" or p.terminal != "cue":
    return np.zeros(0, np.int32)
  found = tokenizer(p.cue, add_special_tokens=False, split_special_tokens=True)
  tokens = np.array(found["input_ids"], np.int32)
  if not len(tokens) or config.data.seq_len < len(tokens) + 2:
    raise errors.UserError(
      f"positions.cue={p.cue!r} has {len(tokens)} tokens; it must have some, and leave "
      f"at least 2 of data.seq_len={config.data.seq_len} for a sample"
    )
  return tokens

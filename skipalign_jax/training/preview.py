"""The first batch: its blocks and their positions, in words and in a picture."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from skipalign_jax.method import positions
from skipalign_jax.runtime import plotting

if TYPE_CHECKING:
  from matplotlib.axes import Axes

ROWS = 12  # samples in the picture
MAX_BLOCKS = 12  # of a sample in words
INSTRUCTION, RESPONSE = "#0072B2", "#E69F00"  # colour-blind safe


@dataclasses.dataclass(frozen=True)
class Span:
  """One block: who speaks, how many tokens, where they sit."""

  is_response: bool
  tokens: int
  first: int
  last: int


def draw_positions(
  recipe: positions.PositionConfig, seed: int, batch: dict[str, np.ndarray]
) -> np.ndarray:
  """positions_BL of a batch of the first step: compiled once, as one program."""
  # A constant, as in a step without a schedule: RandPos needs to know it.
  limit = positions.limit_at(recipe, 0, 1)
  draw = jax.jit(functools.partial(positions.synthesize, recipe, seed, limit=limit))
  return np.asarray(draw(batch))


def as_trained(
  recipe: positions.PositionConfig,
  seed: int,
  batch: dict[str, np.ndarray],
  crop: int = 0,
) -> dict[str, np.ndarray]:
  """The arrays of a batch as the first step computes them, and `positions`.

  Args:
    recipe: how positions are drawn.
    seed: of the run.
    batch: arrays [B, L].
    crop: tokens that a step cuts each row of a longer text to; 0 keeps all.
  """
  if not crop:
    return batch | {"positions": draw_positions(recipe, seed, batch)}
  limit = positions.limit_at(recipe, 0, 1)
  cut = functools.partial(positions.crop, recipe, seed, N=crop, limit=limit)
  return jax.tree.map(np.asarray, jax.jit(cut)(batch))


def samples(batch: dict[str, np.ndarray], positions_BL: np.ndarray) -> list[list[Span]]:
  """The blocks of every sample of a batch, in row order."""
  found = []
  for row in range(positions_BL.shape[0]):
    segment_L = batch["segment_ids"][row]
    for segment in range(1, segment_L.max() + 1):
      at = np.flatnonzero(segment_L == segment)
      block_ids = batch["block_ids"][row, at]
      blocks = []
      for block in np.unique(block_ids):
        inside = at[block_ids == block]
        blocks.append(
          Span(
            is_response=bool(batch["is_response"][row, inside[0]]),
            tokens=len(inside),
            first=int(positions_BL[row, inside[0]]),
            last=int(positions_BL[row, inside[-1]]),
          )
        )
      found.append(blocks)
  return found


def places(first: int, last: int, tokens: int) -> str:
  """The positions of some tokens: "3-9", or "3…900" with jumps between them."""
  return f"{first}-{last}" if last - first == tokens - 1 else f"{first}…{last}"


def is_text(blocks: list[Span]) -> bool:
  """Whether nobody speaks: every chat that is trained on has a response."""
  return not any(span.is_response for span in blocks)


def describe(blocks: list[Span]) -> str:
  """'user 0-22, assistant 23-80, user 50312-50340': one sample in a line.

  Of a sample of many blocks (a packed row without a mask) the first and the last.
  """
  other = "text" if is_text(blocks) else "user"
  words = [
    f"{'assistant' if span.is_response else other} "
    + places(span.first, span.last, span.tokens)
    for span in blocks
  ]
  if (more := len(words) - MAX_BLOCKS) > 0:
    words[MAX_BLOCKS - 1 : -1] = [f"… {more} more …"]
  return ", ".join(words)


def draw(
  chosen: list[list[Span]],
  max_position: int,
  title: str,
  path: str | pathlib.Path,
  labels: Sequence[str] = (),
) -> None:
  """A PNG: a line per sample, a bar per block at its positions.

  Args:
    chosen: blocks of each sample; the first `ROWS` samples are drawn.
    max_position: right end of the axis.
    title: above the picture.
    path: of the PNG.
    labels: of the samples; their token counts by default.
  """
  chosen = chosen[:ROWS]
  counts = [f"{sum(span.tokens for span in blocks)} tokens" for blocks in chosen]
  plt = plotting.pyplot()
  figure, axes = plt.subplots(figsize=(9, 1.2 + 0.32 * len(chosen)))
  bars(axes, chosen, max_position, labels or counts)
  axes.set(xlabel="position id (blocks are drawn wider than they are)", title=title)
  axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / len(chosen) - 0.1),
              ncols=2, frameon=False)  # fmt: skip
  plotting.save(figure, path, dpi=130, bbox_inches="tight")
  plt.close(figure)


def bars(
  axes: "Axes", chosen: list[list[Span]], max_position: int, labels: Sequence[str]
) -> None:
  """A line per sample with a bar per block, colored by who speaks."""
  texts = [is_text(blocks) for blocks in chosen]
  for row, blocks in enumerate(chosen):
    axes.hlines(row, 0, blocks[-1].last, color="#BBBBBB", linewidth=1, zorder=1)
    for span, (left, width) in zip(blocks, _places(blocks, max_position), strict=True):
      color = RESPONSE if span.is_response else INSTRUCTION
      axes.barh(row, width, 0.6, left, color=color, edgecolor="white", lw=0.5, zorder=2)
  names = ["instruction"] * (not all(texts)) + ["text"] * any(texts)
  axes.barh(0, 0, color=INSTRUCTION, label=", ".join(names))
  if not all(texts):
    axes.barh(0, 0, color=RESPONSE, label="response")
  axes.set(xlim=(0, max_position), yticks=range(len(chosen)), yticklabels=labels)
  axes.xaxis.set_major_formatter("{x:,.0f}")
  axes.invert_yaxis()
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.tick_params(axis="y", length=0)


def _places(blocks: list[Span], max_position: int) -> list[tuple[float, float]]:
  """Where each block is drawn, and how wide: wide enough to show, and none hidden."""
  narrowest = 0.012 * max_position
  widths = [max(span.tokens, narrowest) for span in blocks]
  lefts, free = [], 0.0
  for span, width in zip(blocks, widths, strict=True):
    lefts.append(max(span.first, free))
    free = lefts[-1] + width
  end = max_position
  for i in reversed(range(len(blocks))):  # those at the right end move back
    lefts[i] = min(lefts[i], end - widths[i])
    end = lefts[i]
  return list(zip(lefts, widths, strict=True))

"""Draws docs/images/strategies.png: one dialogue under four strategies."""

import pathlib

import numpy as np

from skipalign_jax.method import positions
from skipalign_jax.training import preview

BLOCKS = (35, 180, 20, 260, 25, 140, 30, 210)  # tokens; user first
L = 100_000


def main() -> None:
  block_L = np.repeat(np.arange(len(BLOCKS)), BLOCKS)
  batch = dict(
    segment_ids=np.ones_like(block_L)[None],
    block_ids=block_L[None],
    is_response=block_L[None] % 2 == 1,
    sample_ids=np.full_like(block_L, 22, np.uint32)[None],
    epochs=np.zeros_like(block_L)[None],
  )
  names = ("contiguous", "skip_outer", "skip_inner", "skip_all")
  drawn = []
  for name in names:
    recipe = positions.PositionConfig(name, L, 0.5, "block", "never", "sequential")
    drawn += preview.samples(batch, preview.draw_positions(recipe, 0, batch))
  path = pathlib.Path(__file__).parent / "images" / "strategies.png"
  path.parent.mkdir(exist_ok=True)
  title = f"The same {sum(BLOCKS)}-token dialogue under each strategy"
  preview.draw(drawn, L, title, path, labels=names)


if __name__ == "__main__":
  main()

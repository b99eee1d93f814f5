"""What others have published for training on the hardware of a plan.

Their models, lengths and ways to count differ from a plan's: MFU counts attention
differently, and clouds run chips at other power limits.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Anchor:
  """One published measurement.

  Attributes:
    hardware: names in hardware.HARDWARE.
    what: software, model and devices.
    tokens_per_second: per device; 0 if only the MFU was published.
    mfu: as published: "57 %".
    source: where.
  """

  hardware: tuple[str, ...]
  what: str
  tokens_per_second: int
  mfu: str
  source: str


_IBM = "pytorch.org/blog/maximizing-training"
_TITAN = "github.com/pytorch/torchtitan, docs/performance.md and benchmarks"
_MAXTEXT = "github.com/AI-Hypercomputer/maxtext, docs"
ANCHORS = (
  Anchor(
    ("a100-80gb",), "PyTorch FSDP, Llama-2-7B, 4,096 tokens, 128 GPUs",
    3700, "57 %", _IBM,
  ),
  Anchor(
    ("a100-80gb",), "the same with torch.compile", 0, "68 %",
    "pytorch.org/blog/maximizing-training-throughput",
  ),
  Anchor(
    ("h100",), "torchtitan FSDP, Llama-3.1-8B, 8,192 tokens, 8 GPUs at 500 W",
    5762, "33 %", _TITAN,
  ),
  Anchor(("h100",), "the same with torch.compile", 6667, "39 %", _TITAN),
  Anchor(
    ("v6e",), "MaxText, Llama-3.1-8B, 8,192 tokens, 256 chips", 7207, "45.5 %",
    _MAXTEXT,
  ),
  Anchor(
    ("v6e",), "MaxText, a dense model of 915B, 256 chips", 0, "39.8 %", _MAXTEXT,
  ),
  Anchor(
    ("v5p",), "MaxText, a dense model of 32B, 64 chips", 0, "71.5 %", _MAXTEXT,
  ),
)  # fmt: skip


def lines(hardware: str) -> list[str]:
  """A line per anchor on this hardware."""
  return [
    f"published: {anchor.what}: "
    + (
      f"{anchor.tokens_per_second:,} tokens/s a device, "
      if anchor.tokens_per_second
      else ""
    )
    + f"MFU {anchor.mfu} ({anchor.source})"
    for anchor in ANCHORS
    if hardware in anchor.hardware
  ]

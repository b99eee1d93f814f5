"""Owner margins of study A, from its results: an analysis after the fact.

  python -m studies.smollm2.margins     # writes them into README.md here

The margin (`keys.owner_margins`) is about whose key a question asks for: 0 for a model
that finds keys but does not know their owners. Differences are paired by text;
intervals are Student's 95 % over texts.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from skipalign_jax.evals import intervals, keys
from skipalign_jax.runtime import files
from skipalign_jax.sweep import plan as plan_lib
from skipalign_jax.sweep import runs
from studies import pages

PAGE = pathlib.Path(__file__).parent / "README.md"
ROOT = PAGE.parents[2]
FAR, NEAR = (12_288, 16_384), (1024,)
LENGTHS = {"1024": NEAR, "4096": (4096,), "12,288 and 16,384": FAR}
PAIRS = (
  ("SkipAlign", "Normal-SFT"),
  ("SkipAlign, seed 1", "Normal-SFT, seed 1"),
  ("SkipAlign, 48 steps", "Normal-SFT, 48 steps, at 32,768"),
  ("SkipAlign, 48 steps, seed 1", "Normal-SFT, 48 steps, seed 1"),
  ("SkipAlign", "Skip-Inner"),
)
Texts = dict[tuple[int, str], float]


def load() -> dict[str, Texts]:
  """Run → (length, keys of a text) → mean owner margin of its five keys, nats."""
  sweep = runs.load(str(PAGE.parent / "study_a.py"))
  plan = plan_lib.Plan(sweep, ROOT / sweep.out)
  found: dict[str, Texts] = {}
  for name in sweep.runs:
    for task in ("keys_near", "keys_far"):
      path = plan.evaluation(name, task) / "results.json"
      for item in files.read_json(path)["items"] if path.exists() else ():
        text = item["length"], " ".join(item["keys"])
        found.setdefault(name, {})[text] = float(np.mean(keys.owner_margins(item)))
  return found


def of_lengths(texts: Texts, lengths: Sequence[int]) -> list[float]:
  """The margins of the texts of these lengths."""
  return [margin for (length, _), margin in texts.items() if length in lengths]


def difference(one: Texts, other: Texts, lengths: Sequence[int]) -> list[float]:
  """one − other, for each text of these lengths that both have."""
  both = {text: margin - other[text] for text, margin in one.items() if text in other}
  return of_lengths(both, lengths)


def far_minus_near(far: Sequence[float], near: Sequence[float]) -> dict[str, Any]:
  """Difference of two means of different texts, with Welch's 95 % interval."""
  parts = [np.var(values, ddof=1) / len(values) for values in (far, near)]
  freedom = sum(parts) ** 2 / sum(
    part**2 / (len(values) - 1) for part, values in zip(parts, (far, near), strict=True)
  )
  mean = float(np.mean(far) - np.mean(near))
  half = float(special.stdtrit(freedom, 0.975)) * math.sqrt(sum(parts))
  return {"mean": mean, "low": mean - half, "high": mean + half}


def _shown(interval: dict[str, Any]) -> str:
  return "{mean:+.2f} ({low:+.2f} to {high:+.2f})".format(**interval)


def _cell(values: Sequence[float]) -> str:
  return _shown(intervals.of_values(values)) if values else ""


def of_runs(found: dict[str, Texts]) -> str:
  """The table of all runs."""
  rows = [
    [name, *(_cell(of_lengths(texts, lengths)) for lengths in LENGTHS.values())]
    for name, texts in found.items()
  ]
  return pages.table(["run", *LENGTHS], rows)


def of_pairs(found: dict[str, Texts]) -> str:
  """The table of differences."""
  rows = []
  for one, other in PAIRS:
    by_length = [difference(found[one], found[other], n) for n in LENGTHS.values()]
    near, *_, far = by_length
    slope = _shown(far_minus_near(far, near)) if near else ""
    rows.append([f"{one} - {other}", *map(_cell, by_length), slope])
  return pages.table(["difference", *LENGTHS, "far - near"], rows)


def main() -> None:
  """Writes both tables into the page."""
  found = load()
  pages.write(PAGE, margins=of_runs(found), margin_differences=of_pairs(found))


if __name__ == "__main__":
  main()

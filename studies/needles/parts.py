"""Study B's claim 1 by the words of an answer: an analysis after the fact.

  python -m studies.needles.parts     # writes the tables into README.md here

An answer is a key, which stands in the question right before it, and a value, which has
to be found. Runs that do not repeat the key are not runs that do not find the value. So
claim 1 is split: keys that are right, and values that are right after the right key.
"""

import pathlib
from typing import Any

import numpy as np

from skipalign_jax.evals import intervals
from skipalign_jax.runtime import files
from studies import pages

PAGE = pathlib.Path(__file__).parent / "README.md"
BEYOND = "2", "4", "8"  # lengths in windows
PARTS = {"repeats the key": 0, "finds the value after right words": 1}
RUNS = ("Skip-Outer", "PackedSFT", "Normal-SFT")
STEPS = {"250 steps (planned)": "", "500 steps (added)": ", 2 x steps"}
BASE = "base", "base + NTK"  # the row of its models, and its name in tables
Shares = dict[int, float]


def load() -> dict[str, Any]:
  """study_b.json."""
  return files.read_json(PAGE.parent / "results/study_b.json")


def shares(content: dict[str, Any], run: str, part: int) -> Shares:
  """Seed → share of words that are right, mean of the lengths beyond the window."""
  row, target = (BASE[0] if run == BASE[1] else run), content["table"][run]["s"]
  return {
    m["seed"]: float(np.mean([m["words"][n][part] for n in BEYOND]))
    for m in content["models"]
    if (m["row"], m["s"], m["needles"]) == (row, target, "test")
  }


def difference(one: Shares, other: Shares) -> dict[str, Any]:
  """one − other, paired by seed, with Student's interval over seeds."""
  return intervals.of_values([one[seed] - other[seed] for seed in sorted(one)])


def _percent(interval: dict[str, Any], sign: str = "") -> str:
  mean, half = 100 * interval["mean"], 100 * (interval["high"] - interval["mean"])
  return f"{mean:{sign}.1f} ± {half:.1f}"


def of_runs(content: dict[str, Any]) -> str:
  """Both parts of each run."""
  rows = []
  names = [run + suffix for suffix in STEPS.values() for run in RUNS]
  for name in (BASE[1], *names):
    found = (shares(content, name, part) for part in PARTS.values())
    cells = [_percent(intervals.of_values(list(one.values()))) for one in found]
    rows.append([name.replace(", 2 x steps", ", 500 steps"), *cells])
  return pages.table(["run", *PARTS], rows)


def of_pairs(content: dict[str, Any]) -> str:
  """Skip-Outer minus the others, by part."""
  rows = []
  for steps, suffix in STEPS.items():
    for other in RUNS[1:]:
      pair = [f"{run}{suffix}" for run in (RUNS[0], other)]
      cells = [
        _percent(difference(*(shares(content, run, part) for run in pair)), "+")
        for part in PARTS.values()
      ]
      rows.append([f"{RUNS[0]} - {other}, {steps}", *cells])
  return pages.table(["difference, points", *PARTS], rows)


def main() -> None:
  """Writes both tables into the page."""
  content = load()
  pages.write(PAGE, parts=of_runs(content), part_differences=of_pairs(content))


if __name__ == "__main__":
  main()

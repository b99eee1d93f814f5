"""Study B by the words of an answer.

  python -m studies.needles.parts     # writes the tables into README.md here

An answer is a key, which stands in the question right before it, and a value, which has
to be found. Runs that do not repeat the key are not runs that do not find the value. So
answers are split: keys that are right, and values that are right after the right key.
For claim 1 this is an analysis after the fact; for the lower rate of learning it was
planned.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import intervals
from skipalign_jax.runtime import files
from studies import pages
from studies.needles import recipes, statistics

PAGE = pathlib.Path(__file__).parent / "README.md"
BEYOND = "2", "4", "8"  # lengths in windows
PARTS = {"repeats the key": 0, "finds the value after right words": 1}
RUNS = ("Skip-Outer", "PackedSFT", "Normal-SFT")
STEPS = {"250 steps (planned)": "", "500 steps (added)": ", 2 x steps"}
LOWER_RATE = ", 2 x steps, rate / 5"
WHOLE = "whole answers"
BASE = "base", "base + NTK"  # the row of its models, and its name in tables
Shares = dict[int, float]


def load(name: str = "study_b") -> dict[str, Any]:
  """A file of results: of the study, or of the lower rate of learning."""
  return files.read_json(PAGE.parent / f"results/{name}.json")


def shares(
  content: dict[str, Any], run: str, part: str, lengths: Sequence[str] = BEYOND
) -> Shares:
  """Seed → share of answers or words that are right, mean of the lengths."""
  row, target = (BASE[0] if run == BASE[1] else run), content["table"][run]["s"]
  return {
    m["seed"]: float(np.mean([_share(m, n, part) for n in lengths]))
    for m in content["models"]
    if (m["row"], m["s"], m["needles"]) == (row, target, "test")
  }


def _share(model: dict[str, Any], length: str, part: str) -> float:
  if part == WHOLE:
    return model["text" if model["row"] == BASE[0] else "chat"][length]
  return model["words"][length][PARTS[part]]


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
    found = (shares(content, name, part) for part in PARTS)
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
        for part in PARTS
      ]
      rows.append([f"{RUNS[0]} - {other}, {steps}", *cells])
  return pages.table(["difference, points", *PARTS], rows)


def of_lower_rate(content: dict[str, Any]) -> str:
  """The runs of the claims at the lower rate, with targets and the window."""
  rows = []
  for name in (BASE[1], *(f"{run}{LOWER_RATE}" for run in recipes.FOLLOWED)):
    found = [shares(content, name, part) for part in (WHOLE, *PARTS)]
    found.append(shares(content, name, WHOLE, ("1",)))
    cells = [_percent(intervals.of_values(list(one.values()))) for one in found]
    target = str(content["table"][name]["s"])
    rows.append([name.removesuffix(LOWER_RATE), target, *cells])
  return pages.table(["run", "s", WHOLE, *PARTS, "whole answers inside W"], rows)


def of_lower_rate_pairs(content: dict[str, Any]) -> str:
  """Skip-Outer minus each of the others at the lower rate."""
  rows = []
  for other in (run for run in recipes.FOLLOWED if run != recipes.OUTER):
    pair = [f"{run}{LOWER_RATE}" for run in (recipes.OUTER, other)]
    found = [
      difference(*(shares(content, run, part) for run in pair))
      for part in (WHOLE, "finds the value after right words")
    ]
    rows.append([other, *(_percent(one, "+") for one in found)])
  columns = [f"{recipes.OUTER} minus", WHOLE, "finds the value after right words"]
  return pages.table(columns, rows)


def of_more_seeds(content: dict[str, Any], more: dict[str, Any]) -> str:
  """The claims after 500 steps, with three more seeds."""
  rows = []
  for number, one, other in (
    (1, recipes.OUTER, recipes.NORMAL),
    (1, recipes.OUTER, "PackedSFT"),
    (2, recipes.OUTER, "Skip-Inner"),
    (3, "Skip-Outer + LSA", recipes.OUTER),
  ):
    name = f"{number}, {'with LSA' if number == 3 else other}, 2 x steps"
    new = more["others"][name]["beyond"]["by_seed"]
    old = content["others"][name]["beyond"]["by_seed"]
    found = statistics.compare([*old, *new], [0.0] * len([*old, *new]))
    rows.append(
      [
        f"{number}: {one} - {other}",
        ", ".join(f"{100 * d:+.1f}" for d in new),
        _percent(found, "+"),
        f"{found['p_seeds']:.3f}",
        found["verdict"],
      ]
    )
  columns = ["claim, 500 steps", "the three seeds", "all eight", "p", "verdict"]
  return pages.table(columns, rows)


def main() -> None:
  """Writes the tables into the page."""
  content, lower = load(), load("study_b_lower_rate")
  more = load("study_b_more_seeds")
  pages.write(
    PAGE,
    parts=of_runs(content),
    part_differences=of_pairs(content),
    lower_rate=of_lower_rate(lower),
    lower_rate_differences=of_lower_rate_pairs(lower),
    more_seeds=of_more_seeds(content, more),
  )


if __name__ == "__main__":
  main()

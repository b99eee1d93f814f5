"""What study A's lead in longer texts consists of, from its committed results.

  python -m studies.smollm2.longer     # writes the table into README.md here

Five keys at depths of 10 to 90 % of 24,576 and 32,768 tokens. A model that guesses five
digits gives a key log(1/90,000) = -11.4 nats: a lead between two log-probabilities near
that level is no retrieval.
"""

import pathlib
from typing import Any

import numpy as np

from skipalign_jax.runtime import files
from studies import pages

PAGE = pathlib.Path(__file__).parent / "README.md"
TASKS = "keys_long", "keys_longest"
SEEDS = "", "_seed_1"


def texts(run: str) -> list[dict[str, Any]]:
  """The texts of a run, as saved by `keys` with rivals."""
  results = PAGE.parent / "results/evals" / run
  contents = (files.read_json(results / task / "results.json") for task in TASKS)
  return [item for content in contents for item in content["items"]]


def leads() -> list[dict[str, Any]]:
  """SkipAlign next to Normal-SFT, per text and seed.

  Returns:
    text (its number), seed, tokens; any: the probability of any key, of both; of each
    key in the order of its depth: lead_K, the difference of the log p after its own
    question, log_p_K of SkipAlign, p_K: its mean probability after all five questions,
    of both.
  """
  found = []
  for seed, suffix in enumerate(SEEDS):
    both = zip(texts(f"skipalign{suffix}"), texts(f"normal-sft{suffix}"), strict=True)
    for number, items in enumerate(both, 1):
      assert items[0]["keys"] == items[1]["keys"]
      ours_QK, theirs_QK = (np.array(item["log_p_of_keys"]) for item in items)
      found.append(
        {
          "text": number,
          "seed": seed,
          "tokens": items[0]["length"],
          "any": [float(np.exp(x).sum(1).mean()) for x in (ours_QK, theirs_QK)],
          "lead_K": np.diag(ours_QK) - np.diag(theirs_QK),
          "log_p_K": np.diag(ours_QK),
          "p_K": [np.exp(x).mean(0) for x in (ours_QK, theirs_QK)],
        }
      )
  return sorted(found, key=lambda one: (one["text"], one["seed"]))


def table() -> str:
  """The page's table."""
  columns = ["text", "tokens", "seed", "any key, %", "right key's lead, nats"]
  columns += ["at depths 10 and 30 %", "50 and 70 %", "90 %: the nearest key"]
  parts = ([0, 1], [2, 3], [4])
  rows = [
    [
      *map(str, (one["text"], f"{one['tokens']:,}", one["seed"])),
      "{:.0f} against {:.0f}".format(*(100 * p for p in one["any"])),
      f"{one['lead_K'].mean():+.1f}",
      *(f"{one['lead_K'][part].mean():+.1f}" for part in parts),
    ]
    for one in leads()
  ]
  return pages.table(columns, rows)


def share_of_far_keys() -> float:
  """The part of the mean lead that comes from the keys at depths of 10 and 30 %."""
  lead_NK = np.array([one["lead_K"] for one in leads()])
  return float(lead_NK[:, :2].sum() / lead_NK.sum())


def main() -> None:
  """Writes the table into the page."""
  pages.write(PAGE, longer_texts=table())


if __name__ == "__main__":
  main()

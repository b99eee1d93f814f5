"""What is made from results is on the pages, as it is made; prose has its numbers."""

import numpy as np
import pytest

from studies import pages
from studies.needles import parts
from studies.smollm2 import longer, margins


def test_a_part_is_replaced_and_read():
  page = "a\n<!-- x: make x -->\n\nold\n\n<!-- end of x -->\nb\n"
  new = pages.with_part(page, "x", pages.table(["a"], [["\\1"]]))
  assert pages.part(new, "x") == "| a |\n| --- |\n| \\1 |\n"
  assert pages.with_part(new, "x", "old\n") == page
  with pytest.raises(AssertionError, match="no part y"):
    pages.with_part(page, "y", "")


def test_study_a_has_the_owner_margins_of_its_results():
  page = margins.PAGE.read_text(encoding="utf-8")
  found = margins.load()
  assert pages.part(page, "margins") == margins.of_runs(found)
  assert pages.part(page, "margin_differences") == margins.of_pairs(found)
  far = {name: np.mean(margins.of_lengths(t, margins.FAR)) for name, t in found.items()}
  with_ntk = [margin for name, margin in far.items() if name != "base"]
  assert f"{min(with_ntk):+.1f} to {max(with_ntk):+.1f} nats" in page


def test_study_a_says_what_its_longer_texts_show():
  page = longer.PAGE.read_text(encoding="utf-8")
  assert pages.part(page, "longer_texts") == longer.table()
  found = longer.leads()
  assert len(found) == 8
  assert f"{100 * longer.share_of_far_keys():.0f} %," in page
  at_guessing = [x for one in found for x in one["log_p_K"][:2]]
  assert [round(x) for x in (min(at_guessing), max(at_guessing))] == [-14, -7]
  assert round(-np.log(90_000), 1) == -11.4
  assert sum(one["lead_K"][4] < 0 for one in found) == 5
  assert sum(one["p_K"][0][4] < one["p_K"][1][4] for one in found) == 6
  ours, theirs = (
    [100 * one["p_K"][i][3] for one in found if one["tokens"] == 32_768] for i in (0, 1)
  )
  assert [round(x) for x in (min(ours), max(ours))] == [6, 20]
  assert [round(x) for x in (min(theirs), max(theirs))] == [1, 9]


def test_study_b_has_the_parts_of_its_answers():
  page = parts.PAGE.read_text(encoding="utf-8")
  content = parts.load()
  assert pages.part(page, "parts") == parts.of_runs(content)
  assert pages.part(page, "part_differences") == parts.of_pairs(content)
  results = (parts.PAGE.parents[2] / "docs/results.md").read_text(encoding="utf-8")
  lines = [line.split(" | ") for line in parts.of_pairs(content).splitlines()[2:]]
  for planned, added in zip(lines[:2], lines[2:], strict=True):
    for a, b in zip(planned[1:], added[1:], strict=True):
      assert f"{a}; {b}".replace(" |", "") in results


def test_study_b_has_the_results_of_the_lower_rate():
  page = parts.PAGE.read_text(encoding="utf-8")
  found = parts.load("study_b_lower_rate")
  assert pages.part(page, "lower_rate") == parts.of_lower_rate(found)
  pairs = parts.of_lower_rate_pairs(found)
  assert pages.part(page, "lower_rate_differences") == pairs
  assert found["seeds"] == [0, 5, 6, 7, 9] and "0, 5, 6, 7 and 9" in page
  results = (parts.PAGE.parents[2] / "docs/results.md").read_text(encoding="utf-8")
  for line in pairs.splitlines()[2:]:
    other, whole, values = line.strip("| ").split(" | ")
    if other in ("Normal-SFT", "PackedSFT"):
      assert whole in results and values in results
  for other in ("Normal-SFT", "PackedSFT"):
    claim = found["others"][f"1, {other}{parts.LOWER_RATE}"]["beyond"]
    assert claim["verdict"] == "holds"
    by_seed = [f"{100 * d:+.1f}" for d in claim["by_seed"]]
    assert ", ".join(by_seed) in " ".join(page.split())
  for number in (2, 3):
    (claim,) = (
      c
      for name, c in found["others"].items()
      if name.startswith(f"{number}, ") and name.endswith(parts.LOWER_RATE)
    )
    assert claim["beyond"]["verdict"] == "open"


def test_study_b_has_its_three_more_seeds():
  page = parts.PAGE.read_text(encoding="utf-8")
  more = parts.load("study_b_more_seeds")
  assert more["seeds"] == [7, 9, 12]
  made = parts.of_more_seeds(parts.load(), more)
  assert pages.part(page, "more_seeds") == made
  rows = [line.strip("| ").split(" | ") for line in made.splitlines()[2:]]
  assert [row[-1] for row in rows] == ["holds", "holds", "holds", "open"]
  difference = rows[2][2].removeprefix("+")
  results = (parts.PAGE.parents[2] / "docs/results.md").read_text(encoding="utf-8")
  assert f"**holds**: {difference}" in results and f"+{difference} points" in page

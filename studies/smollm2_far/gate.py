"""What the gate decides, from pilots on validation texts.

Rules, in order; each is applied once:

1. The base chooses the answers of BASE_CHOICES of its facts inside the window, or the
   instrument is too hard and the study ends here.
2. Target: the better one by the mean gain of both pilots' 40 far facts, five texts.
   Both methods count, so that it is tuned for neither. Within one paired standard error
   over the texts both are carried, the better one first.
3. Length: at the first target Normal-SFT's gain far is above 0.5 and below 0.7 of its
   gain near. Below the floor, shorter; above the ceiling, longer.
4. Texts: the fewest whose expected half-width is within the margin of equivalence, with
   the texts' standard deviation of the pilots' difference and an assumed one of seeds.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from studies.smollm2_far import crossed, plan

# (row, target, NEAR or FAR) → mean gain of each text.
Gains = Mapping[tuple[str, int, str], list[float]]


@dataclasses.dataclass(frozen=True)
class Report:
  """The decision, and the numbers that it is based on.

  Attributes:
    passed: whether the study continues.
    decided: about arm II.
    numbers: for the page; JSON.
  """

  passed: bool
  decided: plan.Decided
  numbers: dict[str, Any]


def decide(base_choices: float, gains: Gains) -> Report:
  """Applies the rules.

  Args:
    base_choices: share of the base's facts inside the window that it chooses.
    gains: of Normal-SFT and Skip-Outer at both targets.
  """
  by_target = {
    target: np.mean([gains[row, target, plan.FAR] for row in _PILOTS], axis=0)
    for target in plan.TARGETS
  }
  first, second = sorted(plan.TARGETS, key=lambda t: -by_target[t].mean())
  lead = by_target[first] - by_target[second]
  error = float(np.std(lead, ddof=1)) / math.sqrt(len(lead))
  close = float(lead.mean()) <= error
  far, near = (
    float(np.mean(gains[plan.NORMAL, first, which])) for which in (plan.FAR, plan.NEAR)
  )
  floor, ceiling = plan.ROOM
  length = "shorter" if far <= floor else "longer" if far >= ceiling * near else "first"
  difference = np.subtract(*(gains[row, first, plan.FAR] for row in _PILOTS[::-1]))
  text_sd = float(np.std(difference, ddof=1))
  widths = {
    n: crossed.half_width(len(plan.SEEDS), n, plan.SEED_SD, text_sd)
    for n in plan.TEXT_COUNTS
  }
  enough = [n for n, width in widths.items() if width <= plan.MARGIN]
  texts = enough[0] if enough else plan.TEXT_COUNTS[-1]
  return Report(
    passed=base_choices >= plan.BASE_CHOICES,
    decided=plan.Decided(
      targets=(first, second) if close else (first,),
      far_length=plan.LENGTHS[length],
      far_texts=texts,
    ),
    numbers={
      "base_choices": base_choices,
      "gain_by_target": {t: float(x.mean()) for t, x in by_target.items()},
      "lead_of_the_first": float(lead.mean()),
      "error_of_the_lead": error,
      "normal_far": far,
      "normal_near": near,
      "room": length,
      "text_sd": text_sd,
      "half_widths": widths,
      "detectable": crossed.detectable(len(plan.SEEDS), texts, plan.SEED_SD, text_sd),
    },
  )


_PILOTS = (plan.NORMAL, plan.OUTER)

"""The gate's decision from its units' files, kept in gate.json."""

import dataclasses
import pathlib

import numpy as np

from skipalign_jax.runtime import files
from studies.smollm2_far import gate, plan, units


def path(study: units.Study) -> pathlib.Path:
  """gate.json."""
  return study.results / "gate.json"


def gate_is_done(study: units.Study) -> bool:
  """Whether all units of the gate are."""
  return all(study.is_done(unit) for unit in units.of_gate())


def decide(study: units.Study) -> gate.Report:
  """The report; it is made and written once, and read from then on."""
  if path(study).exists():
    content = files.read_json(path(study))
    given = content["decided"] | {"targets": tuple(content["decided"]["targets"])}
    return gate.Report(content["passed"], plan.Decided(**given), content["numbers"])
  gains, base_choices = {}, 0.0
  for unit in units.of_gate():
    for which in unit.arm.texts:
      texts = files.read_json(study.result(unit, which))["texts"]
      if unit.seed is not None:
        target = unit.arm.rope["rope.target_length"]
        gains[unit.row, target, which] = [float(np.mean(t["gain"])) for t in texts]
      elif which == plan.FAR:
        base_choices = float(np.mean([text["choice"] for text in texts]))
  report = gate.decide(base_choices, gains)
  files.write_json(path(study), dataclasses.asdict(report))
  return report


def all_units(study: units.Study) -> list[units.Unit]:
  """Those of the gate, and of the study: as decided, or as they would be without."""
  decided = decide(study).decided if gate_is_done(study) else plan.Decided()
  return units.of_gate() + units.of_study(decided)

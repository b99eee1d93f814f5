"""The plan's contrasts, from the units' files: an arm is read when it is complete."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from skipalign_jax.evals import fact_kinds, intervals
from skipalign_jax.runtime import files, json_limits
from studies.smollm2_far import crossed, decision, plan, units

# (row, seed, NEAR or FAR) → content of the file.
Found = dict[tuple[str, int | None, str], dict[str, Any]]


def folders(study: units.Study) -> dict[str, plan.Arm]:
  """Folder → arm, of all but the gate: the first target's is that of the contrasts."""
  found = {plan.ARM_1: plan.INSIDE}
  if decision.gate_is_done(study):
    decided = decision.decide(study).decided
    found |= {units.beyond(t): plan.beyond(decided, t) for t in decided.targets}
  return found


def load(study: units.Study, folder: str, arm: plan.Arm) -> Found:
  """The files of an arm; {} before all of its primary units are done: no looks."""
  if not all(study.is_done(unit) for unit in units.of_arm(folder, arm, True)):
    return {}
  return {
    (unit.row, unit.seed, which): files.read_json(
      study.result(unit, which), json_limits.MAX_RESULT_VALUES
    )
    for unit in units.of_arm(folder, arm)
    if study.is_done(unit)
    for which in arm.texts
  }


def grid(found: Found, row: str, seeds: Sequence[int], which: str, measure: str):
  """float [seeds, texts], the mean over a text's facts or keys."""
  read = lambda text: float(np.mean(text[measure]))
  return np.array(
    [[read(text) for text in found[row, s, which]["texts"]] for s in seeds]
  )


def seeds_of(found: Found, *rows: str) -> list[int]:
  """The seeds that all these rows have."""
  sets = [{s for r, s, _ in found if r == row and s is not None} for row in rows]
  return sorted(set.intersection(*sets))


def contrast(found: Found, one: plan.Contrast) -> dict[str, Any]:
  """Far, near and far − near of a contrast, over the seeds that both rows have.

  Returns:
    seeds; far and near: as of `crossed.mean`, with sign_flip and bootstrap; slope: far
    minus near; {} with fewer than two seeds.
  """
  seeds = seeds_of(found, one.one, one.other)
  if len(seeds) < 2:
    return {}
  at = lambda which: np.subtract(
    *(grid(found, row, seeds, which, one.measure) for row in (one.one, one.other))
  )
  far_ST, near_ST = at(plan.FAR), at(plan.NEAR)
  result = {"seeds": seeds, "slope": crossed.far_minus_near(far_ST, near_ST)}
  for name, d_ST in ((plan.FAR, far_ST), (plan.NEAR, near_ST)):
    result[name] = crossed.mean(d_ST) | {
      "sign_flip": crossed.sign_flip(d_ST.mean(axis=1)),
      "bootstrap": crossed.bootstrap(d_ST),
    }
  return result


def places(found: Found, row: str, seeds: Sequence[int], measure: str) -> np.ndarray:
  """float [seeds, far texts, places of facts]."""
  texts = [found[row, s, plan.FAR]["texts"] for s in seeds]
  return np.array([[text[measure] for text in of_seed] for of_seed in texts], float)


def by_distance(found: Found, one: str, other: str) -> dict[str, Any]:
  """One − other for each place of a fact in the far texts, the farthest first.

  Not planned: added after the results of arm I were seen.

  Returns:
    back: tokens from each fact to the end; gain, hit: an interval per place (as of
    `crossed.mean`), and last that of the two farthest minus the two nearest.
  """
  seeds = seeds_of(found, one, other)
  text = found[one, seeds[0], plan.FAR]["texts"][0]
  shown = {"back": [round((1 - depth) * text["length"]) for depth in text["depths"]]}
  for measure in ("gain", "hit"):
    d_STF = places(found, one, seeds, measure) - places(found, other, seeds, measure)
    tilt_ST = d_STF[..., :2].mean(axis=-1) - d_STF[..., -2:].mean(axis=-1)
    shown[measure] = [crossed.mean(d) for d in (*np.moveaxis(d_STF, -1, 0), tilt_ST)]
  return shown


def losses(found: Found, one: str, other: str) -> dict[str, Any]:
  """Held-out loss, one − other, nats per token, paired by seed."""
  seeds = seeds_of(found, one, other)
  read = lambda row, seed: found[row, seed, plan.FAR].get("eval_loss")
  pairs = [(read(one, s), read(other, s)) for s in seeds]
  known = [a - b for a, b in pairs if a is not None and b is not None]
  return intervals.of_values(known) if len(known) > 1 else {}


def misalignment(found: Found, measure: str, draws: int = 2000) -> dict[str, Any]:
  """Rank correlation of misalignment (SCE) and a measure of far texts, over models.

  Its interval redraws seeds with all their models, which are not independent.
  """
  models: dict[int, list[tuple[float, float]]] = {}
  for (_, seed, which), content in found.items():
    if seed is not None and which == plan.FAR and "misalignment" in content:
      value = float(np.mean([np.mean(t[measure]) for t in content["texts"]]))
      models.setdefault(seed, []).append((content["misalignment"]["sce"], value))
  seeds = sorted(models)
  if len(seeds) < 2:
    return {}

  def of(chosen) -> float:
    x, y = np.array([model for seed in chosen for model in models[seed]]).T
    return crossed.rank_correlation(x, y)

  rng = np.random.default_rng(0)
  drawn = [of(rng.choice(seeds, len(seeds))) for _ in range(draws)]
  low, high = np.nanquantile(drawn, [0.025, 0.975])
  count = sum(map(len, models.values()))
  return {"mean": of(seeds), "low": float(low), "high": float(high), "models": count}


def collect(study: units.Study) -> dict[str, Any]:
  """All that the page shows of complete arms; JSON.

  Returns:
    arms: folder → whether its primary units are done, how many of all are, rows (name
    → measure → near and far means), misalignment; contrasts: in the plan's order, with
    p_holm of the primary ones once both arms are complete, and words.
  """
  found = {folder: load(study, folder, arm) for folder, arm in folders(study).items()}
  arms = {
    folder: _arm(study, folder, arm, found[folder])
    for folder, arm in folders(study).items()
  }
  shown = []
  for one in plan.CONTRASTS:
    for folder, content in found.items():
      rows = {row for row, _, _ in content}
      if folder.startswith(one.arm) and {one.one, one.other} <= rows:
        if result := contrast(content, one):
          shown.append(dataclasses.asdict(one) | {"folder": folder} | result)
  _correct(shown)
  return {"arms": arms, "contrasts": shown}


def examples(found: Found, texts: int = 3) -> list[dict[str, Any]]:
  """Three random far texts of an arm: each fact's depth, question and answer.

  Returns:
    text (its id) and facts: depth, question, answer, and gain: row → mean over seeds.
  """
  of = {
    row: [k for k in found if k[0] == row and k[2] == plan.FAR] for row, *_ in found
  }
  first = found[next(iter(of.values()))[0]]["texts"]
  kinds = {kind.name: kind for kind in fact_kinds.KINDS}
  chosen = np.random.default_rng(0).permutation(len(first))[:texts]
  shown = []
  for i in sorted(map(int, chosen)):
    gains = {
      row: np.mean([found[key]["texts"][i]["gain"] for key in keys], axis=0).tolist()
      for row, keys in of.items()
    }
    of_text = [
      {
        "depth": first[i]["depths"][j],
        "question": kinds[first[i]["kinds"][j]].question,
        "answer": first[i]["answers"][j],
        "gain": {row: values[j] for row, values in gains.items()},
      }
      for j in range(len(first[i]["kinds"]))
    ]
    shown.append({"text": first[i]["id"], "facts": of_text})
  return shown


def _arm(study, folder: str, arm: plan.Arm, found: Found) -> dict[str, Any]:
  ours, primary = units.of_arm(folder, arm), units.of_arm(folder, arm, True)
  rows = {
    row: {
      measure: {
        which: float(
          np.mean(
            [
              np.mean(text[measure])
              for (r, _, w), content in found.items()
              if (r, w) == (row, which)
              for text in content["texts"]
            ]
          )
        )
        for which in arm.texts
      }
      for measure in ("gain", "hit", "choice", "owner_margin")
    }
    for row in dict.fromkeys(row for row, _, _ in found)
  }
  return {
    "complete": bool(found),
    "done": sum(map(study.is_done, ours)),
    "units": len(ours),
    "primary_done": sum(map(study.is_done, primary)),
    "primary_units": len(primary),
    "lengths": {which: texts.length for which, texts in arm.texts.items()},
    "rows": rows,
    "held_out_loss": losses(found, plan.OUTER, plan.NORMAL) if found else {},
    "by_distance": by_distance(found, plan.OUTER, plan.NORMAL) if found else {},
    "misalignment": misalignment(found, "gain") if found else {},
    "examples": examples(found) if found else [],
  }


def _correct(shown: list[dict[str, Any]]) -> None:
  """Adds Holm's p to the primary contrasts, and words to all.

  Holm counts both primary contrasts, also while only one arm is complete: the other's
  p is then taken as 1. A second target is reported next to the first and not counted.
  """
  first: dict[str, dict[str, Any]] = {}
  for one in shown:
    if one["primary"]:
      first.setdefault(one["claim"], one)
  claims = [c.claim for c in plan.CONTRASTS if c.primary]
  ps = [first[c][plan.FAR]["p"] if c in first else 1.0 for c in claims]
  for claim, p in zip(claims, crossed.holm(ps), strict=True):
    if claim in first:
      first[claim]["p_holm"] = p
  for one in shown:
    p = one.get("p_holm", one[plan.FAR]["p"])
    one["words"] = crossed.verdict(one[plan.FAR], p, plan.MARGIN)
    one["long_context"] = one["slope"]["low"] > 0

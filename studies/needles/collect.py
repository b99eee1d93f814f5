"""From the pieces' files to study_b.json: every number that is shown."""

import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import stats

from skipalign_jax.evals import intervals
from skipalign_jax.hf import card
from skipalign_jax.runtime import files
from studies.needles import pieces, recipes, statistics

# What each claim compares: the first row is claimed to be better.
CLAIMS = {
  "1, Normal-SFT": (recipes.OUTER, recipes.NORMAL),
  "1, PackedSFT": (recipes.OUTER, "PackedSFT"),
  "1, PackedSFT, masked": (recipes.OUTER, "PackedSFT, masked"),
  "2, Skip-Inner": (recipes.OUTER, "Skip-Inner"),
  "3, with LSA": ("Skip-Outer + LSA", recipes.OUTER),
}
FOLLOW_UP_CLAIMS = {
  f"{name}, {change}": tuple(f"{row}, {change}" for row in rows)
  for change in recipes.FOLLOW_UPS
  for name, rows in CLAIMS.items()
  if set(rows) <= set(recipes.FOLLOWED)
}
OTHERS = {
  f"{recipes.OUTER} - {name}": (recipes.OUTER, name)
  for name in ("Skip-All", "PoSE", "Skip-Outer, uniform gaps")
}


def collect(study: pieces.Study) -> dict[str, Any]:
  """The content of study_b.json, from the pieces that exist."""
  c = study.settings
  seeds = study.seeds()
  models = list(_models(study))
  rows = (recipes.BASE, *recipes.ROWS, *recipes.FOLLOW_UP_ROWS)
  chosen = {row: study.chosen(row) for row in rows}
  chosen = {row: target for row, target in chosen.items() if target}
  shown = {recipes.BASE: (recipes.BASE, 1)}
  if recipes.BASE in chosen:
    shown[recipes.BASE_NTK] = recipes.BASE, chosen[recipes.BASE]
  shown |= {row: (row, s) for row, s in chosen.items() if row != recipes.BASE}
  table = {}
  for name, (row, target) in shown.items():
    found = [m for m in models if _is(m, row, target, pieces.TEST)]
    if found:
      table[name] = {"s": target, "seeds": [m["seed"] for m in found]} | {
        form: _cells(found, form) for form in ("chat", "text")
      }
      table[name] |= {
        key: intervals.of_values([m[key] for m in found])
        for key in ("sce", "symmetric_kl", "held_out_loss")
        if all(m.get(key) is not None for m in found)
      }
  return {
    "settings": files.read_json(study.folder / "settings.json"),
    "versions": card.library_versions(),
    "seeds": seeds,
    "chosen": chosen,
    "table": table,
    "claims": _pairs(study, models, chosen, CLAIMS),
    "others": _pairs(study, models, chosen, FOLLOW_UP_CLAIMS | OTHERS),
    "targets": _targets(models, c.targets, seeds[: c.pilots]),
    "sweeps": _sweeps(models, chosen, seeds[: c.sweep_seeds]),
    "correlation": _correlation(models, str(max(c.tested))),
    "models": models,
  }


def _models(study: pieces.Study) -> Iterator[dict[str, Any]]:
  """Each evaluated model: accuracies by format and length, and other measures."""
  c = study.settings
  for row in (recipes.BASE, *recipes.ALL_ROWS):
    for seed, target, kind in itertools.product(
      study.seeds(), (1, *c.targets), (pieces.VALIDATION, pieces.TEST)
    ):
      path = study.result(seed, row, target, kind)
      if not path.exists():
        continue
      content = files.read_json(path)
      found = {"row": row, "seed": seed, "s": target, "needles": kind}
      for form in ("chat", "text"):
        if form in content:
          scores = content[form]
          found[f"{form}_beyond"] = _short(study.beyond(scores))
          found[form] = {n: _short(pieces.accuracy(s)) for n, s in scores.items()}
          found[f"{form}_questions"] = pieces.questions(next(iter(scores.values())))
          if form == pieces.form_of(row):
            found["depths"] = {n: s["depths"] for n, s in scores.items()}
            found["words"] = {
              n: [_short(right / pieces.questions(s)) for right in s["words"]]
              for n, s in scores.items()
            }
      own = study.result(seed, row, target, pieces.VALIDATION)
      if row != recipes.BASE and own.exists():
        sft = files.read_json(own)["sft"]
        found["held_out_loss"] = _short(sft["held_out_loss"][0])
      if "misalignment" in content:
        found |= {k: _short(v) for k, v in content["misalignment"].items()}
        loss = content["loss"]
        found["loss"] = {k: [_short(x) for x in loss[k]] for k in ("filler", "answers")}
      yield found


def _is(model: dict[str, Any], row: str, target: int, kind: str) -> bool:
  return (model["row"], model["s"], model["needles"]) == (row, target, kind)


def _cells(found: list[dict[str, Any]], form: str) -> dict[str, Any]:
  """Over seeds, with Wilson's interval: per length, and the mean beyond the window."""
  by_length = {n: [m[form][n] for m in found] for n in found[0][form]}
  questions = sum(m[f"{form}_questions"] for m in found)
  cells = {}
  for n, values in by_length.items():
    hits = round(float(np.mean(values)) * questions)
    wilson = intervals.of_scores([1.0] * hits + [0.0] * (questions - hits))
    cells[n] = intervals.of_values(values) | {
      "wilson": [wilson["low"], wilson["high"]],
      "questions": questions,
    }
  cells["beyond"] = intervals.of_values([m[f"{form}_beyond"] for m in found])
  return cells


def _pairs(study, models, chosen, wanted) -> dict[str, Any]:
  """Paired differences on test needles, each row at its own target."""
  found, longest = {}, str(max(study.settings.tested))
  for name, (one, other) in wanted.items():
    if one not in chosen or other not in chosen:
      continue
    at = lambda row: {
      m["seed"]: m for m in models if _is(m, row, chosen[row], pieces.TEST)
    }
    ours, theirs = at(one), at(other)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
      continue
    found[name] = {"rows": [one, other], "seeds": seeds} | {
      where: statistics.compare(
        [score(ours[seed]) for seed in seeds], [score(theirs[seed]) for seed in seeds]
      )
      for where, score in (
        ("beyond", lambda m: m["chat_beyond"]),
        ("longest", lambda m: m["chat"][longest]),
        ("window", lambda m: m["chat"]["1"]),
      )
    }
    differences = []
    for seed in seeds:
      contents = [
        files.read_json(study.result(seed, row, chosen[row], pieces.TEST))
        for row in (one, other)
      ]
      for n in map(str, study.settings.tested[1:]):
        a, b = (content["chat"][n]["hits"] for content in contents)
        counts = [(x.count("1"), y.count("1")) for x, y in zip(a, b, strict=True)]
        differences.append(np.subtract(*np.array(counts).T))
    # The questions of a haystack are not independent, haystacks are.
    found[name]["p_haystacks"] = statistics.sign_flip(np.concatenate(differences))
  return found


def _targets(models, targets, pilots) -> dict[str, Any]:
  """Validation accuracy of the pilots by NTK target: what the choice is based on."""
  found: dict[str, Any] = {}
  for row in (recipes.BASE, *recipes.ROWS, *recipes.FOLLOW_UP_ROWS):
    form, cells = pieces.form_of(row), {}
    for target in (1, *targets):
      tested = [
        m
        for m in models
        if _is(m, row, target, pieces.VALIDATION) and m["seed"] in pilots
      ]
      if tested:
        cells[str(target)] = {
          n: _short(np.mean([m[form][n] for m in tested])) for n in tested[0][form]
        } | {"beyond": _short(np.mean([m[f"{form}_beyond"] for m in tested]))}
    if cells:
      found[row] = cells
  return found


def _sweeps(models, chosen, seeds) -> dict[str, Any]:
  """Validation accuracy over the seeds of the sweeps, at Skip-Outer's NTK target."""
  target = chosen.get(recipes.OUTER)
  found: dict[str, Any] = {}
  for sweep, rows in recipes.SWEEPS.items():
    for row in (recipes.NORMAL, recipes.OUTER, *rows):
      tested = [
        m
        for m in models
        if _is(m, row, target, pieces.VALIDATION) and m["seed"] in seeds
      ]
      if tested:
        beyond = [m["chat_beyond"] for m in tested]
        found.setdefault(sweep, {})[row] = {
          n: intervals.of_values([m["chat"][n] for m in tested])
          for n in tested[0]["chat"]
        } | {"beyond": intervals.of_values(beyond) | {"by_seed": beyond}}
  return found


def _correlation(models, longest: str) -> dict[str, Any]:
  """Rank correlation (Spearman) of misalignment and accuracy over tested checkpoints.

  "not packed" has only the checkpoints trained without packing, and the correlation of
  the held-out loss: packed dialogues are held out in another form.
  """
  tested = [m for m in models if "sce" in m and m["row"] in recipes.OF_ONE_TASK]
  ranks = _ranks(tested, ("sce", "symmetric_kl"), longest)
  not_packed = [m for m in tested if recipes.ALL_ROWS[m["row"]].packed == 1]
  if held_out := _ranks(not_packed, ("sce", "symmetric_kl", "held_out_loss"), longest):
    ranks["not packed"] = held_out
  return ranks


def _ranks(models, keys: Sequence[str], longest: str) -> dict[str, Any]:
  scores = {
    "beyond": [m["chat_beyond"] for m in models],
    "longest": [m["chat"][longest] for m in models],
  }
  if len(models) < 3 or any(len(set(y)) == 1 for y in scores.values()):
    return {}
  return {"checkpoints": len(models)} | {
    f"{key}, {where}": _short(stats.spearmanr([m[key] for m in models], y).statistic)
    for key in keys
    for where, y in scores.items()
  }


def _short(value: float) -> float:
  return float(f"{float(value):.5g}")


def write(study: pieces.Study) -> pathlib.Path:
  """Writes OUT/study_b.json, one line per model."""
  content = collect(study)
  lines = {key: json.dumps(value) for key, value in content.items()}
  models = ",\n".join(json.dumps(model) for model in content["models"])
  lines["models"] = f"[\n{models}\n]"
  text = ",\n".join(f'"{key}": {line}' for key, line in lines.items())
  path = study.folder / "study_b.json"
  with files.replacing(path, shared=True) as new:
    new.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
  return path

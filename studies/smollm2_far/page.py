"""The results on README.md here, and three pictures (`make study-pages`).

Everything is made from the committed files; an arm that is not complete is not read.
"""

import pathlib
from typing import Any

import numpy as np

from skipalign_jax.runtime import files, plotting, terminal
from studies import pages
from studies.smollm2_far import analysis, decision, plan, units

PAGE = pathlib.Path(__file__).parent / "README.md"
NAMES = {plan.ARM_1: "Arm I", plan.ARM_2: "Arm II"}
MEASURES = {
  "gain": "gain, nats",
  "owner_margin": "owner margin, nats",
  "hit": "hits, %",
}
CAPTION = (
  "**Contrasts.** Differences in nats with 95 % intervals; p, sign flip and bootstrap "
  "are those of the far texts, and bold names a primary contrast.\n"
)
# File → what it shows; drawn by `draw`.
FIGURES = {
  "contrasts": "All contrasts: far, near, and far minus near",
  "distance": "Gain by distance, a thin line per seed and their mean",
  "depth": "Facts found by depth and length",
}


def _interval(one: dict[str, Any], scale: float = 1, digits: int = 2) -> str:
  mean, low, high = (f"{scale * one[k]:+.{digits}f}" for k in ("mean", "low", "high"))
  return f"{mean} ({low} to {high})"


def made(content: dict[str, Any], report: dict[str, Any] | None) -> str:
  """The page's part.

  Args:
    content: as of `analysis.collect`.
    report: of the gate, as in gate.json; None before.
  """
  if report is None:
    return "Not run.\n"
  parts = [gate_report(report)]
  for folder, arm in content["arms"].items():
    name = f"{NAMES[folder.split('_')[0]]} ({folder})"
    done = f"{arm['done']} of {arm['units']} units are done"
    if not arm["complete"]:
      primary = f"{arm['primary_done']} of {arm['primary_units']} primary ones"
      parts.append(
        f"**{name}**: {done}, {primary}; it is read when all of these are.\n"
      )
      continue
    parts.append(
      f"**{name}**: {done}. Means over seeds, texts, and facts or keys:\n\n{rows(arm)}"
    )
    if found := arm["misalignment"]:
      parts.append(
        f"Misalignment (SCE) against gain far: rank correlation {_interval(found)}, "
        f"{found['models']} models, redrawing seeds.\n"
      )
    if found := arm["held_out_loss"]:
      parts.append(
        "Held-out response loss, Skip-Outer - Normal-SFT, nats per token: "
        f"{_interval(found, digits=3)}.\n"
      )
    parts.append(by_distance(arm))
    parts += [example(one) for one in arm["examples"]]
  if content["contrasts"]:
    figures = (f"![{text}](results/{name}.png)\n" for name, text in FIGURES.items())
    parts[1:1] = [CAPTION, contrasts(content["contrasts"]), *figures]
  return "\n".join(parts)


def gate_report(report: dict[str, Any]) -> str:
  """What the gate found and decided, a line per rule."""
  numbers, decided = report["numbers"], report["decided"]
  by_target = numbers["gain_by_target"].items()
  gains = ", ".join(f"{gain:.2f} at {int(target):,}" for target, gain in by_target)
  far, near = numbers["normal_far"], numbers["normal_near"]
  widths = ", ".join(f"{x:.2f} with {n}" for n, x in numbers["half_widths"].items())
  passed = report["passed"]
  lines = [
    [
      "instrument",
      f"the base chooses {100 * numbers['base_choices']:.0f} % of its answers inside "
      "the window",
      "the study continues" if passed else "the study ends here",
    ],
    [
      "target",
      f"mean gain far, nats: {gains}; lead {numbers['lead_of_the_first']:.2f}, its "
      f"standard error {numbers['error_of_the_lead']:.2f}",
      " and ".join(f"{t:,}" for t in decided["targets"]),
    ],
    [
      "room",
      f"Normal-SFT gains {far:.2f} nats far, {near:.2f} near: {far / near:.2f}",
      f"far texts of {decided['far_length']:,} tokens",
    ],
    [
      "number of texts",
      f"expected half-width, nats: {widths}",
      f"{decided['far_texts']}; four of five studies see "
      f"{numbers['detectable']:.2f} nats",
    ],
  ]
  title = f"**Gate: {'passed' if passed else 'not passed'}.**"
  return f"{title}\n\n{pages.table(['rule', 'found', 'decided'], lines)}"


def rows(arm: dict[str, Any]) -> str:
  """Means of each row, near and far."""
  lengths = arm["lengths"]
  columns = ["row"] + [
    f"{name} at {lengths[which]:,}"
    for name in MEASURES.values()
    for which in (plan.NEAR, plan.FAR)
  ]
  lines = []
  for row, found in arm["rows"].items():
    cells = [
      f"{100 * found[m][w]:.0f}" if m == "hit" else f"{found[m][w]:+.2f}"
      for m in MEASURES
      for w in (plan.NEAR, plan.FAR)
    ]
    lines.append([row, *cells])
  return pages.table(columns, lines)


def by_distance(arm: dict[str, Any]) -> str:
  """Skip-Outer minus Normal-SFT at each place of the far texts."""
  found, far = arm["by_distance"], arm["lengths"][plan.FAR]
  places = [f"{back:,}" for back in found["back"]] + ["two farthest - two nearest"]
  lines = [
    [place, _interval(gain), _interval(hit, 100, digits=0)]
    for place, gain, hit in zip(places, found["gain"], found["hit"], strict=True)
  ]
  return (
    "**Added after these results were seen**: Skip-Outer - Normal-SFT by the distance "
    f"of the fact, texts of {far:,} tokens, not corrected for the number of rows:\n\n"
    + pages.table(["tokens back", "gain, nats", "hits, points"], lines)
  )


def example(one: dict[str, Any]) -> str:
  """A text's questions and answers, with the gain of each row."""
  names = list(one["facts"][0]["gain"])
  lines = [
    [f"{100 * fact['depth']:.0f} %", fact["question"], fact["answer"]]
    + [f"{fact['gain'][row]:+.1f}" for row in names]
    for fact in one["facts"]
  ]
  table = pages.table(["depth", "question", "answer", *names], lines)
  return f"Text {one['text']}, gain in nats, mean over seeds:\n\n{table}"


def contrasts(found: list[dict[str, Any]]) -> str:
  """All contrasts, the primary ones first."""
  columns = ["contrast", "far", "near", "far - near", "p", "sign flip", "bootstrap"]
  columns += ["by seed, far", "says"]
  lines = []
  for one in sorted(found, key=lambda c: not c["primary"]):
    far = one[plan.FAR]
    p = f"{_p(one['p_holm'])} (Holm)" if "p_holm" in one else _p(far["p"])
    says = one["words"]
    if "holds" in says and one["primary"]:
      says += "; of long contexts" if one["long_context"] else "; not of long contexts"
    lines.append(
      [
        f"{_claim(one)}: {one['one']} - {one['other']}, {MEASURES[one['measure']]} "
        f"({one['folder']})",
        *(_interval(one[part]) for part in (plan.FAR, plan.NEAR, "slope")),
        p,
        f"{far['sign_flip']:.3f}",
        "{:+.2f} to {:+.2f}".format(*far["bootstrap"]),
        ", ".join(f"{x:+.2f}" for x in far["by_seed"]),
        says,
      ]
    )
  return pages.table(columns, lines)


def _p(p: float) -> str:
  return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _claim(one: dict[str, Any]) -> str:
  if "p_holm" in one:
    return f"**{one['claim']}**"
  return f"{one['claim']}, {'other target' if one['primary'] else 'exploratory'}"


def draw(study: units.Study, content: dict[str, Any]) -> list[pathlib.Path]:
  """The pictures of FIGURES, of complete arms."""
  if not content["contrasts"]:
    return []
  plt = plotting.pyplot()
  found = content["contrasts"]
  figure, axes = plt.subplots(figsize=(8, 0.9 + 0.55 * len(found)))
  for i, one in enumerate(found):
    for j, part in enumerate((plan.FAR, plan.NEAR, "slope")):
      cell, y = one[part], -i - 0.22 * (j - 1)
      axes.plot([cell["low"], cell["high"]], [y, y], color=f"C{j}")
      label = ("far", "near", "far - near")[j] if i == 0 else None
      axes.plot(cell["mean"], y, "o", color=f"C{j}", label=label)
  axes.axvline(0, color="0.5", linewidth=0.8)
  axes.axvspan(-plan.MARGIN, plan.MARGIN, color="0.9", zorder=0)
  labels = [f"{c['claim']}: {c['one']} - {c['other']}" for c in found]
  axes.set_yticks([-i for i in range(len(found))], labels)
  axes.set_xlabel("difference, nats; the band is the margin of equivalence")
  axes.legend()
  return [_save(plt, figure, study, "contrasts"), *_by_place(plt, study)]


def _by_place(plt: Any, study: units.Study) -> list[pathlib.Path]:
  """Gain by distance, a line per seed; hits by length and depth."""
  arms = analysis.folders(study)
  loaded = {name: analysis.load(study, name, arm) for name, arm in arms.items()}
  loaded = {name: found for name, found in loaded.items() if found}
  shape = dict(squeeze=False, layout="constrained")
  lines, line_axes = plt.subplots(1, len(loaded), figsize=(5 * len(loaded), 4), **shape)
  maps, map_axes = plt.subplots(1, len(loaded), figsize=(5 * len(loaded), 4), **shape)
  for name, line, depth in zip(loaded, line_axes[0], map_axes[0], strict=True):
    found = loaded[name]
    rows = [r for r, row in arms[name].rows.items() if row.planned and row.seeds]
    for i, row in enumerate(rows):
      curves = [
        _gain_by_distance(found[row, seed, plan.FAR]["texts"])
        for seed in analysis.seeds_of(found, row)
      ]
      for x, y in curves:
        line.plot(x, y, color=f"C{i}", alpha=0.4, linewidth=0.8)
      line.plot(*np.mean(curves, axis=0), color=f"C{i}", linewidth=2, label=row)
      for which, style in ((plan.NEAR, "--"), (plan.FAR, "-")):
        hits = [
          np.mean([t["hit"] for t in found[row, s, which]["texts"]], axis=0)
          for s in analysis.seeds_of(found, row)
        ]
        depths = found[row, plan.SEEDS[0], which]["texts"][0]["depths"]
        length = arms[name].texts[which].length
        label = f"{row}, {length:,}"
        depth.plot(depths, np.mean(hits, axis=0), style, color=f"C{i}", label=label)
    line.set(title=name, xlabel="tokens back", ylabel="gain, nats")
    depth.set(title=name, xlabel="depth", ylabel="facts found", ylim=(0, 1))
    line.legend()
    depth.legend()
  return [_save(plt, lines, study, "distance"), _save(plt, maps, study, "depth")]


def _gain_by_distance(texts: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
  back = [(1 - depth) * texts[0]["tokens"] for depth in texts[0]["depths"]]
  gains = np.mean([text["gain"] for text in texts], axis=0)
  return back, gains.tolist()


def _save(plt: Any, figure: Any, study: units.Study, name: str) -> pathlib.Path:
  path = study.results / f"{name}.png"
  plotting.save(figure, path, dpi=100, bbox_inches="tight")
  plt.close(figure)
  return path


def main(study: units.Study | None = None, page: pathlib.Path = PAGE) -> None:
  """Writes analysis.json, the pictures and the page's part."""
  study = study or units.Study()
  path = decision.path(study)
  report = None
  if decision.gate_is_done(study):
    decision.decide(study)
    report = files.read_json(path)
    content = analysis.collect(study)
    files.write_json(study.results / "analysis.json", content)
    content = files.read_json(study.results / "analysis.json")
    if plotting.possible(terminal.Console(), study.results / "contrasts.png"):
      draw(study, content)
  else:
    content = {"arms": {}, "contrasts": []}
  pages.write(page, results=made(content, report))


if __name__ == "__main__":
  main()

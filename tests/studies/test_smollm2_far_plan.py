"""The plan's page says what its code does, and every row can be trained."""

import numpy as np
import pytest
import tiny

from skipalign_jax import cli
from skipalign_jax.evals import fact_kinds, facts
from skipalign_jax.training import resolve
from studies.smollm2 import margins
from studies.smollm2_far import crossed, gate, plan

PAGE = (tiny.ROOT / "studies/smollm2_far/README.md").read_text(encoding="utf-8")
ARMS = {
  "I": plan.INSIDE,
  "II": plan.beyond(plan.Decided(), 32_768),
  "gate": plan.gate(65_536),
  "gate, base": plan.BASE_GATE,
}


def test_the_page_has_the_texts_of_the_plan():
  shown = lambda n: str(n) if n < 10_000 else f"{n:,}"
  for name, arm in ARMS.items():
    (line,) = (x for x in PAGE.splitlines() if x.startswith(f"| {name} |"))
    far, near = arm.texts[plan.FAR], arm.texts[plan.NEAR]
    count = "4 to 8" if name == "II" else str(far.samples)
    assert line.split(" | ")[1].startswith(f"{count} texts of {shown(far.length)}")
    assert f"{near.samples} of {shown(near.length)}, seed {near.seed}" in line
    assert f", seed {far.seed}" in line.split(" | ")[1]
  assert plan.TEXT_COUNTS == (4, 6, 8) and "Of 4, 6 and 8" in PAGE
  seeds = [texts.seed for arm in ARMS.values() for texts in arm.texts.values()]
  assert len(set(seeds)) == 8


def test_the_page_has_the_numbers_of_the_plan():
  assert f"{plan.STEPS} updates of 4096 tokens" in PAGE
  assert "seeds 0 to 5" in PAGE and plan.SEEDS == tuple(range(6))
  assert "seeds 0\nto 2" in PAGE and plan.FEW == (0, 1, 2)
  assert f"pilot seed ({plan.PILOT})" in PAGE
  assert f"at least {100 * plan.BASE_CHOICES:.0f} %" in PAGE
  assert "above {} nats and below {} of".format(*plan.ROOM) in PAGE
  for length in plan.LENGTHS.values():
    assert f"{length:,}" in PAGE
  assert f"within ±{plan.MARGIN} nats" in PAGE
  assert f"{plan.SEED_SD} nats between seeds" in PAGE
  assert f"{plan.RECALL} built-in recall" in PAGE
  assert len(fact_kinds.KINDS) * plan.gate(32_768).texts[plan.FAR].samples == 40
  for arm in (plan.INSIDE, ARMS["II"]):
    for name, row in arm.rows.items():
      if name != plan.BASE:
        assert row.seeds == (plan.SEEDS if row.planned else plan.FEW)
  primary = [c for c in plan.CONTRASTS if c.primary]
  assert [(c.arm, c.measure) for c in primary] == [
    ("inside", "owner_margin"),
    ("beyond", "gain"),
  ]
  for contrast in primary:
    assert f"| {contrast.claim} |" in PAGE
    assert f"{contrast.one} - {contrast.other} |" in PAGE


def test_the_page_has_the_widths_of_the_plan():
  for texts, text_sd in ((16, 0.1), (8, 0.4)):
    width, seen = (
      f"{f(6, texts, 0.2, text_sd):.2f}"
      for f in (crossed.half_width, crossed.detectable)
    )
    assert width in PAGE and seen in PAGE
  found = margins.load()
  pair = margins.difference(found["SkipAlign"], found["Skip-Inner"], (4096,))
  assert f"({np.std(pair, ddof=1):.2f} in study A)" in PAGE
  two = [
    margins.difference(found[f"SkipAlign{s}"], found[f"Normal-SFT{s}"], margins.FAR)
    for s in ("", ", seed 1")
  ]
  assert f"had {crossed.deviations(np.array(two))['seed_sd']:.2f}" in PAGE


def test_contrasts_name_rows_and_measures():
  for contrast in plan.CONTRASTS:
    rows = (plan.INSIDE if contrast.arm == plan.ARM_1 else ARMS["II"]).rows
    assert {contrast.one, contrast.other} <= rows.keys()
    assert contrast.measure in (*facts.SCORES, "owner_margin")
    planned = {rows[contrast.one].planned, rows[contrast.other].planned}
    assert not contrast.primary or planned == {True}


@pytest.mark.parametrize("name", ["I", "II", "gate"])
def test_each_row_is_a_config_that_train_takes(name):
  arm = ARMS[name]
  for row in arm.rows.values():
    changes = plan.COMMON | arm.rope | row.changes
    changes["positions.max_position"] = arm.max_position
    arguments = [f"--config.{key}={value}" for key, value in changes.items()]
    config, _ = cli.parse(["x", f"--config={plan.CONFIG}", *arguments], "usage")
    resolve.check(config)
    tokens = config.steps * config.batch_size * config.data.seq_len
    halved = row.changes.get("steps") in (12, 24) and "data.seq_len" not in row.changes
    assert halved or tokens == plan.STEPS * 4096


def gains(shift=0.0, near=3.0, far=1.5, noise=0.1):
  """Five texts of pilots: the second target is better by `shift`."""
  rng = np.random.default_rng(0)
  return {
    (row, target, which): (
      (near if which == plan.NEAR else far)
      + shift * (target == plan.TARGETS[1])
      + noise * rng.standard_normal(5)
    ).tolist()
    for row in (plan.NORMAL, plan.OUTER)
    for target in plan.TARGETS
    for which in (plan.NEAR, plan.FAR)
  }


@pytest.mark.parametrize(
  ("given", "targets", "length"),
  [
    (dict(shift=0.5), (65_536,), 20_480),
    (dict(shift=-0.5), (32_768,), 20_480),
    (dict(shift=-0.5, far=1.0, near=1.2), (32_768,), 24_576),
    (dict(shift=-0.2, far=0.3), (32_768,), 16_384),
  ],
)
def test_the_gate_follows_its_rules(given, targets, length):
  report = gate.decide(0.9, gains(**given))
  assert report.passed
  assert report.decided.targets == targets
  assert report.decided.far_length == length


def test_close_targets_are_both_carried():
  found = gains(noise=1.0)
  for row in (plan.NORMAL, plan.OUTER):
    there = found[row, plan.TARGETS[0], plan.FAR]
    nearly = np.add(there, (1, -1, 1, -1, 0.01))
    found[row, plan.TARGETS[1], plan.FAR] = nearly.tolist()
  assert gate.decide(0.9, found).decided.targets == plan.TARGETS[::-1]


def test_the_gate_counts_texts_by_their_width():
  few = gate.decide(0.9, gains(shift=0.5, noise=0.01))
  assert few.decided.far_texts == 4 and few.numbers["half_widths"][4] < 0.3
  many = gate.decide(0.9, gains(shift=2.0, noise=1.0, far=2.0, near=9.0))
  assert many.decided.far_texts == 8 and many.numbers["half_widths"][8] > 0.3


def test_a_base_that_fails_ends_the_study():
  assert not gate.decide(0.79, gains()).passed
  assert gate.decide(0.8, gains()).passed

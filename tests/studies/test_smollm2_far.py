"""The study's units, its gate, its numbers and its page, with simulated models."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from skipalign_jax.evals import facts
from skipalign_jax.runtime import errors, files, plotting
from skipalign_jax.sweep import execute
from studies import pages
from studies.smollm2_far import (
  __main__,
  analysis,
  decision,
  dialogues,
  page,
  plan,
  units,
)

# What a method adds to gains and margins of far texts; near it adds half of it.
EFFECTS = {plan.OUTER: 1.0, plan.INNER: 0.2, plan.NORMAL: 0.0}


class Machine:
  """Stands for `train` and `evaluate`: writes what they would write."""

  def __init__(self):
    self.calls = []
    self.stop_at = None

  def __call__(self, command, output):
    output.write("owner_margin 2.5\n")
    self.calls.append(command)
    if len(self.calls) == self.stop_at:
      return 0, 143
    options = dict(x[2:].split("=", 1) for x in command if x.startswith("--"))
    if command[2] == units.TRAIN:
      folder = pathlib.Path(options["workdir"])
      folder.mkdir(parents=True, exist_ok=True)
      loss = json.dumps({"step": 48, "eval_loss": 1.5}) + "\n"
      (folder / "metrics.jsonl").write_text(loss)
      return 0, 0
    folder = pathlib.Path(options["out"])
    folder.mkdir(parents=True)
    if command[3] == "misalignment":
      summary = {k: {"mean": 1.0 + len(self.calls)} for k in ("sce", "symmetric_kl")}
      results = {"protocol": {}, "summary": summary, "items": []}
    else:
      results = {"protocol": {"task": "facts"}, "summary": {}}
      results["items"] = texts(folder, options)
    files.write_json(folder / "results.json", results)
    return 0, 0


def texts(folder, options):
  length, count = int(options["lengths"]), int(options["samples"])
  name = folder.parent.name
  row = next((r for r in EFFECTS if units.runs.slug(r) in name), None)
  far = folder.name == plan.FAR
  effect = EFFECTS.get(row, 0.0) * (1.0 if far else 0.5)
  of_text = np.random.default_rng([length, int(options["seed"])]).standard_normal(count)
  seed = int(name.rpartition("_s")[2]) if row else 0
  noise = np.random.default_rng([seed, length, *(row or "").encode()])
  level = (1.4 if far else 3.0) + effect + 0.02 * noise.standard_normal()
  if "65536" in str(folder):
    level -= 0.5  # the other target is better
  tilt = 0.2 if row == plan.OUTER else 0.0
  return [text(i, length, level + 0.1 * of_text[i], tilt) for i in range(count)]


def text(number, length, gain, tilt):
  log_p = (np.full((5, 5), -4.0) + gain * np.eye(5)).tolist()
  return {
    "id": f"{length}/{number}",
    "tokens": length,
    "length": length,
    "depths": facts.DEPTHS,
    "kinds": ["city"] * 8,
    "values": [["Bergen", *"abcdefgh"]] * 8,
    "gain": [gain + tilt * x for x in (1, 1, 0, 0, 0, 0, -1, -1)],
    "hit": [1.0] * 8,
    "choice": [1.0] * 8,
    "log_p_of_keys": log_p,
    "found": [1.0] * 5,
  }


def smaller(arm):
  """An arm with three seeds, and one exploratory row with two."""
  rows = {
    name: dataclasses.replace(row, seeds=row.seeds[:3])
    for name, row in arm.rows.items()
    if row.planned
  }
  if plan.LSA in arm.rows:
    rows[plan.LSA] = dataclasses.replace(arm.rows[plan.LSA], seeds=(0, 1))
  return dataclasses.replace(arm, rows=rows)


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """An empty folder, in which nothing is really run; arms have fewer seeds."""
  monkeypatch.chdir(tmp_path)
  beyond = plan.beyond
  monkeypatch.setattr(plan, "beyond", lambda *given: smaller(beyond(*given)))
  monkeypatch.setattr(plan, "INSIDE", smaller(plan.INSIDE))
  monkeypatch.setattr(__main__, "_prepare", lambda console: None)
  found = Machine()
  monkeypatch.setattr(execute, "call", found)
  return found


def test_the_command_makes_the_gate_then_what_it_decided(machine, capsys):
  study = units.Study()
  assert __main__.main(["--gate"]) == 0
  assert sorted(decision.path(study).parent.rglob("*_far.json"))
  report = decision.decide(study)
  assert report.passed and report.decided.targets == (32_768,)
  assert report.decided.far_length == 20_480 and report.decided.far_texts == 4
  gate = len(machine.calls)
  assert __main__.main([]) == 0
  made = {unit.name for unit in units.of_study(report.decided) if study.is_done(unit)}
  assert len(made) == 12 + 7
  trained = [c for c in machine.calls[gate:] if c[2] == units.TRAIN]
  assert len(trained) == 11 + 6
  done = len(machine.calls)
  assert __main__.main([]) == 0 and len(machine.calls) == done  # nothing is repeated
  # No looks before an arm is complete: scores are in a file.
  assert "owner_margin" not in capsys.readouterr().out
  assert __main__.PRINTED.read_text().count("owner_margin") == done
  assert __main__.main(["--status"]) == 0
  assert "inside: 12 of 12 units are done" in capsys.readouterr().out


def test_all_units_of_the_plan():
  """Primary rows first, seed by seed, each trained row in one unit."""
  ours = units.of_study(plan.Decided())
  planned = [unit.arm.rows[unit.row].planned for unit in ours]
  assert planned == sorted(planned, reverse=True) and sum(planned) == 19 + 13
  assert len({unit.name for unit in ours}) == len(ours) == 43 + 19
  assert [u.seed for u in ours[1:19]] == sorted(plan.SEEDS * 3)
  assert len(units.of_study(plan.Decided(targets=plan.TARGETS))) == 43 + 2 * 19


def test_commands_have_the_rope_and_template_of_their_arm(machine):
  study = units.Study()
  base, *trained = units.of_arm("beyond_65536", plan.beyond(plan.Decided(), 65_536))
  command = study.evaluate_command(base, plan.FAR)
  assert (
    f"--model={plan.WEIGHTS}" in command and "--rope.target_length=65536" in command
  )
  assert not any(x.startswith("--template") for x in command)
  normal = next(u for u in trained if u.row == plan.NORMAL and u.seed == 2)
  command = study.evaluate_command(normal, plan.FAR)
  assert "--template=tulu" in command and "--lengths=20480" in command
  assert not any(x.startswith("--rope") for x in command)  # as it was trained
  command = study.train_command(normal)
  assert "--config.seed=2" in command and "--config.rope.target_length=65536" in command
  assert "--config.positions.max_position=65536" in command


def test_a_unit_that_was_stopped_resumes(machine, capsys):
  study = units.Study()
  machine.stop_at = 4  # in the far texts of the first pilot
  assert __main__.main(["--gate"]) == 143
  first, second, *_ = units.of_gate()
  assert study.is_done(first) and not study.is_done(second)
  assert "resumes here" in capsys.readouterr().out
  machine.stop_at = None
  assert __main__.main(["--gate"]) == 0
  repeated = [
    c for c in machine.calls if c[2] == units.EVALUATE and second.name in str(c)
  ]
  assert len(repeated) == 4  # the far texts twice, near texts and misalignment once
  content = files.read_json(study.result(second, plan.FAR))
  assert content["machine"] == units.machine() and content["eval_loss"] == 1.5
  assert content["seconds"].keys() == {"train", "far", "near", "misalignment"}
  assert content["texts"][0]["answers"] == ["Bergen"] * 8


def test_no_unit_begins_after_the_time_is_up(machine, capsys):
  assert __main__.main(["--minutes=1e-9"]) == 0
  assert not machine.calls and "5 units are left" in capsys.readouterr().out


def test_a_command_that_fails_ends_the_run(machine):
  study, unit = units.Study(), units.of_gate()[1]
  with pytest.raises(units.Failed) as failed:
    units.make(study, unit, lambda command: (2, 0))
  assert failed.value.args == (2,) and not study.is_done(unit)


def test_hours_are_those_of_this_machine(machine):
  study = units.Study()
  __main__.main(["--gate"])
  path = study.result(units.of_gate()[1], plan.FAR)
  content = files.read_json(path)
  gate_minutes = units.of_gate()[1].arm.minutes
  slow = {"seconds": {"train": 60.0 * 4 * gate_minutes}}
  for unit in units.of_gate()[1:]:
    files.write_json(study.result(unit, plan.FAR), content | slow)
  ours = decision.all_units(study)
  found = units.minutes(study, ours)
  assert found["gate_32768"] == 4 * gate_minutes
  assert found["inside"] == 4 * plan.INSIDE.minutes  # as much slower as the gate is
  assert any("more than 45 minutes" in line for line in units.status(study, ours))
  elsewhere = content | {"machine": {"processor": "another", "cores": 64}}
  for unit in units.of_gate():
    files.write_json(study.result(unit, plan.FAR), elsewhere)
  assert units.minutes(study, ours)["inside"] == plan.INSIDE.minutes


def test_an_arm_is_read_when_its_primary_rows_are_complete(machine):
  study = units.Study()
  __main__.main([])
  arm = analysis.folders(study)[plan.ARM_1]
  assert analysis.load(study, plan.ARM_1, arm)
  study.result(units.of_arm(plan.ARM_1, arm, True)[5], plan.NEAR).unlink()
  assert analysis.load(study, plan.ARM_1, arm) == {}
  content = analysis.collect(study)
  assert {one["folder"] for one in content["contrasts"]} == {"beyond_32768"}
  shown = page.made(content, files.read_json(decision.path(study)))
  wanted = "11 of 12 units are done, 9 of 10 primary ones; it is read when all of these"
  assert wanted in shown


def test_known_effects_are_found_and_the_page_has_them(machine, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    plotting, "save", lambda figure, path, **_: drawn.append(path.name)
  )
  study = units.Study()
  __main__.main([])
  here = pathlib.Path("README.md")
  shutil.copy(page.PAGE, here)
  page.main(study, here)
  assert drawn == [f"{name}.png" for name in page.FIGURES]
  content = files.read_json(study.results / "analysis.json")
  first, second = (one for one in content["contrasts"] if "p_holm" in one)
  for one, effect in ((first, 0.8), (second, 1.0)):
    for which, share in (("far", 1.0), ("near", 0.5), ("slope", 0.5)):
      assert one[which]["mean"] == pytest.approx(share * effect, abs=0.1)
    assert one["far"]["low"] < effect < one["far"]["high"]
    assert one["words"] == "holds" and one["long_context"]
    assert one["far"]["sign_flip"] == 2 / 8
    assert one["p_holm"] >= one["far"]["p"]
  by_distance = content["arms"]["inside"]["by_distance"]
  assert by_distance["back"][0] > by_distance["back"][-1]
  means = [cell["mean"] for cell in by_distance["gain"]]
  assert means == pytest.approx([1.2, 1.2, 1, 1, 1, 1, 0.8, 0.8, 0.4], abs=0.1)
  text = here.read_text()
  part = pages.part(text, "results")
  assert "| two farthest - two nearest | +0.40 (+0.40 to +0.40) |" in part
  assert "**Gate: passed.**" in part and "holds; of long contexts" in part
  report = files.read_json(decision.path(study))
  assert part == page.made(content, report).strip("\n") + "\n"
  assert all(f"](results/{name})" in part for name in drawn)
  assert "| Skip-Inner |" in part and "rank correlation" in part
  assert part.count("| In which city is the next meeting") == 6 * 8
  assert "Skip-Outer - Normal-SFT, nats per token: +0.000" in part
  assert all(c["claim"] in part for c in content["contrasts"])


def test_holm_counts_the_contrast_of_an_arm_that_is_not_there():
  cell = {"mean": 0.5, "low": 0.1, "high": 0.9, "p": 0.03}
  one = {"claim": "claim 2", "primary": True, "far": cell, "slope": cell}
  analysis._correct([one])
  assert one["p_holm"] == 0.06 and one["words"] == "not decided"


def test_the_committed_page_is_that_of_the_committed_results():
  study = units.Study(results=page.PAGE.parent / "results")
  report, content = None, {"arms": {}, "contrasts": []}
  if decision.gate_is_done(study):
    report = files.read_json(decision.path(study))
    content = json.loads(json.dumps(analysis.collect(study)))
    assert content == files.read_json(study.results / "analysis.json")
  text = page.PAGE.read_text(encoding="utf-8")
  assert pages.part(text, "results") == page.made(content, report).strip("\n") + "\n"


def test_the_first_screen_and_the_results_have_the_numbers_of_the_json():
  content = files.read_json(page.PAGE.parent / "results" / "analysis.json")
  top = page.PAGE.read_text(encoding="utf-8").partition("This page is the plan")[0]
  docs = page.PAGE.parents[2] / "docs" / "results.md"
  results = docs.read_text(encoding="utf-8")
  claim_2, owners, gains = (
    next(c["far"] for c in content["contrasts"] if c["claim"] == claim)
    for claim in (
      "claim 2",
      "claim 1 inside the window",
      "claim 1 inside the window, facts",
    )
  )
  assert "{mean:.2f} nats above that of\n  Skip-Inner".format(**claim_2) in top
  assert "({low:+.2f} to {high:+.2f})".format(**claim_2) in top
  assert "{mean:+.2f} nats ({low:+.2f} to {high:+.2f})".format(**claim_2) in results
  assert "({:.2f} nats, not {}".format(claim_2["seed_sd"], plan.SEED_SD) in top
  for cell in (owners, gains):
    less = [f"{-cell[k]:.2f}" for k in ("mean", "high", "low")]
    assert all(number in top for number in less)
  inside = content["arms"][plan.ARM_1]
  for row, found in inside["rows"].items():
    near, far = found["gain"][plan.NEAR], found["gain"][plan.FAR]
    hits = [100 * found["hit"][which] for which in (plan.NEAR, plan.FAR)]
    assert f"| {hits[0]:.0f}, {hits[1]:.0f} | {near:+.2f}, {far:+.2f} |" in results, row
  gain = inside["by_distance"]["gain"]
  assert f"{-gain[7]['mean']:.1f} nats for facts 256" in top
  tilt = "{mean:+.2f} nats ({low:+.2f} to {high:+.2f})".format(**gain[8])
  assert f"two farthest minus two nearest {tilt}" in results


class Words:
  """A tokenizer: a token per word."""

  chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"

  def encode(self, text):
    return text.split()


def chat(*contents):
  roles = ["user", "assistant"] * len(contents)
  pairs = zip(roles, contents, strict=False)
  return {"messages": [{"role": r, "content": c} for r, c in pairs]}


def test_dialogues_have_turns_no_test_words_and_are_short(monkeypatch):
  monkeypatch.setattr(
    dialogues.chat_template,
    "render",
    lambda tokenizer, messages: " ".join(m["content"] for m in messages),
  )
  good = chat("a b", "c", "d e", "f")
  records = [
    good,
    chat("a", "b"),
    chat("a", "the QUINCE, please", "c", "d"),
    chat("a " * 9, "b", "c", "d"),
  ]
  counts = dialogues.Counts()
  assert list(dialogues.chosen(iter(records), Words(), 8, counts)) == [good]
  assert counts == dialogues.Counts(kept=1, one_turn=1, words=1, long=1)


def test_missing_files_are_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError, match=r"SmolLM2.*is missing; `make weights`"):
    units.check_data()


@pytest.mark.slow
def test_a_tiny_unit_runs_the_real_commands(tmp_path):
  study = units.Study(tmp_path / "out", tmp_path / "results", tiny=True)
  (unit,) = (
    one
    for one in units.of_arm(plan.ARM_1, plan.INSIDE)
    if (one.row, one.seed) == (plan.INNER, 0)
  )
  made = units.make(study, unit, execute.call)
  assert [path.name for path in made] == [
    "skip-inner_s0_far.json",
    "skip-inner_s0_near.json",
  ]
  content = files.read_json(made[0])
  assert len(content["texts"]) == 2 and np.isfinite(content["eval_loss"])
  assert content["misalignment"]["sce"] > 0
  shutil.rmtree(study.evaluation(unit, plan.NEAR))  # it is stopped after training
  commands = []

  def call(command):
    commands.append(command[2:4])
    return execute.call(command)

  units.make(study, unit, call)
  assert commands == [[units.EVALUATE, "facts"]]

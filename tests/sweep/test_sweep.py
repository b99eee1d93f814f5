"""Sweeps: their runs are real configs, killed ones resume, results become tables."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import saved_results
import tiny
from matplotlib import axes as matplotlib_axes
from scipy import stats

from skipalign_jax import config as config_lib
from skipalign_jax import evaluate
from skipalign_jax.evals import tasks
from skipalign_jax.runtime import errors, terminal
from skipalign_jax.sweep import __main__ as command
from skipalign_jax.sweep import collect, execute, retrieval, retrieval_tables, runs
from skipalign_jax.sweep import plan as plan_lib

PAPER = {"paper_table1": 12, "paper_table2": 5, "paper_figure4": 10}  # runs
FILES = {
  path.stem: path
  for folder in ("configs", "studies/smollm2")
  for path in sorted((tiny.ROOT / folder).glob("*.py"))
  if "def get_sweep(" in path.read_text(encoding="utf-8")
}
SWEEPS = sorted(FILES)


def load(name, variant=""):
  return runs.load(f"{FILES[name]}:{variant}")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
  monkeypatch.chdir(tiny.ROOT)


def resolved(sweep, name):
  return plan_lib.Plan(sweep, pathlib.Path("out")).check(name)


@pytest.mark.parametrize("variant", ["", "tiny"])
@pytest.mark.parametrize("name", SWEEPS)
def test_every_run_is_a_config(name, variant):
  sweep = load(name, variant)
  assert variant or len(sweep.runs) == PAPER.get(name, len(sweep.runs))
  for run in sweep.runs:
    config = resolved(sweep, run)
    assert (config is None) == bool(sweep.runs[run].model)
    if variant:
      assert config.model.num_layers == 2 and config.steps == 8


@pytest.mark.parametrize("variant", ["", "tiny"])
@pytest.mark.parametrize("name", SWEEPS)
def test_every_evaluation_is_a_command(name, variant):
  plan = plan_lib.Plan(load(name, variant), pathlib.Path("out"))
  parser = evaluate._parser()
  for run in plan.sweep.runs:
    for evaluation in plan.sweep.evaluations:
      args = parser.parse_args(plan.evaluate_command(run, evaluation)[2:])
      assert args.model and pathlib.Path(args.out).parts[:2] == ("out", "evals")
      fields = dataclasses.fields(tasks.module(args.task).Options)
      tasks.options(args.task, {f.name: getattr(args, f.name) for f in fields})


def test_runs_are_the_papers():
  one, two, four = (load(name) for name in PAPER)
  skip = resolved(one, "LLAMA-2-7B + SkipAlign")
  assert skip.positions.to_dict() | {"max_position": 100_000} == {
    **skip.positions.to_dict(),
    "strategy": "skip_outer",
    "max_position": 100_000,
    "skip_prob": 0.5,
  }
  assert (skip.rope.kind, skip.rope.target_length) == ("ntk", None)  # to L
  for k, rope in ((16, 32_768), (32, 32_768), (50, 51_200)):
    packed = resolved(one, f"LLAMA-2-7B + PackedSFT-{k}k")
    assert packed.data.seq_len == 1024 * k and packed.rope.target_length == rope
    assert packed.data.packing and not packed.data.packing_mask
    assert packed.positions.strategy == "contiguous"
  yi = resolved(one, "Yi-6B-200K + PackedSFT-16k")
  assert yi.data.seq_len == 16_384 and yi.data.packing and not yi.data.packing_mask
  assert (yi.positions.strategy, yi.rope.kind) == ("contiguous", "model")
  strategies = {
    "Normal-SFT": "contiguous",
    "Skip-All": "skip_all",
    "Skip-Inner": "skip_inner",
    "SkipAlign": "skip_outer",
  }
  for name, strategy in strategies.items():
    assert resolved(two, f"Yi-6B-200K + {name}").positions.strategy == strategy
  found = {
    (config.positions.max_position, config.positions.skip_prob): run.point
    for name, run in four.runs.items()
    if run.point and (config := resolved(four, name))
  }
  assert found == {at: at for at in found} and len(found) == 9
  assert {L for L, _ in found} == {50_000, 100_000, 150_000}
  assert {p for _, p in found} == {0.2, 0.5, 0.8}


# Key → values that are methods: of these configs/methods.py has a row each.
METHODS = {
  "positions.strategy": set(config_lib.KEYS["positions.strategy"].choices),
  "positions.terminal": {"turn", "cue"},  # response is turn without its question
  "positions.terminal_at": set(config_lib.KEYS["positions.terminal_at"].choices),
  "positions.gaps": set(config_lib.KEYS["positions.gaps"].choices),
  "distill.view": set(config_lib.KEYS["distill.view"].choices),
  "loss.kind": set(config_lib.KEYS["loss.kind"].choices),
  "loss.reduction": set(config_lib.KEYS["loss.reduction"].choices),
}


def test_methods_has_a_row_for_each():
  sweep, found = load("methods"), {key: set() for key in METHODS}
  for name in sweep.runs:
    if (config := resolved(sweep, name)) is None:
      continue
    flat = config_lib.flatten(config)
    assert flat["loss.kind"] == "sft" or "DPO" in name or "SimPO" in name
    for key in METHODS:
      section = key.split(".")[0]
      if section == "distill" and not flat["distill.weight"]:
        continue
      if key.startswith("positions.terminal") and (
        flat["positions.strategy"] != "endprompt"
      ):
        continue
      found[key].add(flat[key])
  assert found == METHODS
  randomized = resolved(sweep, "Randomized YaRN")
  assert randomized.positions.schedule and randomized.rope.kind == "yarn"
  assert randomized.positions.strategy == "randpos"


def test_the_readme_names_each_method():
  text = (tiny.ROOT / "README.md").read_text(encoding="utf-8")
  table = text.split("| method | one change of a config |")[1].split("\n\n")[0]
  for key in ("positions.strategy", "loss.kind"):
    default = config_lib.KEYS[key].default
    for value in METHODS[key] - {default}:
      assert re.search(rf"[`=]{value}`", table), value
  for key in ("positions.schedule", "distill.weight", "long_short.alpha", "lora.rank"):
    assert key in table


def test_runs_of_one_name_are_one_run():
  """Sweeps share folders, so a run must be the same in all of them."""
  plans = [plan_lib.Plan(load(name), pathlib.Path("out")) for name in PAPER]
  seen = {}
  for plan in plans:
    for name in plan.sweep.runs:
      made = (plan.train_command(name), plan.evaluate_command(name, "longbench"))
      assert seen.setdefault(name, made) == made
  assert len(seen) == sum(PAPER.values()) - 5
  slugs = {runs.slug(name) for name in seen}
  assert len(slugs) == len(seen)


QUICK = "configs/llama2_ntk.py"


@pytest.fixture
def plan(tmp_path):
  """Three trained runs, one of them impossible, and a model as it is."""
  table = {
    "A & co": runs.Run(QUICK, paper={"Avg.": 41.5}),
    "bad": runs.Run(QUICK, {"positions.strateggy": "skip_all"}),
    "B": runs.Run(QUICK, {"positions.max_position": 50_000}, point=(50_000, 0.5)),
    "base": runs.Run(model="some/model", evaluate={"chat": False}),
  }
  evaluations = {
    "long": {"task": "longbench", "per_set": 2},
    "keys": {"task": "needle"},
  }
  sweep = runs.Sweep("A table", table, evaluations, "runs/x", "tiny")
  return plan_lib.Plan(
    sweep, tmp_path / "out", ["--config.seed=3"], {"keys": {"depths": 2}}
  )


def trained(plan, name, done, steps):
  """The parts of a workdir that a sweep reads."""
  saved = plan.workdir(name) / "checkpoints" / str(done)
  (saved / "params").mkdir(parents=True)
  for file in ("_CHECKPOINT_METADATA", "params/_METADATA"):
    (saved / file).write_text("{}")
  (plan.workdir(name) / "steps.json").write_text(json.dumps({"steps": steps}))
  records = [{"step": 0, "eval_loss": 4.0}, {"step": done, "loss": 2.5}]
  lines = [json.dumps(r) for r in records] + ['{"step": 9']  # killed while writing
  (plan.workdir(name) / "metrics.jsonl").write_text("\n".join(lines))


def evaluated(plan, name, evaluation, score=30.0):
  if evaluation == "keys":
    task, summary, items = "needle", {"average": score / 100}, []
    options = {"depths": "2"}
  else:
    task, items = "longbench", []
    whole = dict.fromkeys(saved_results.WHOLE, score)
    summary = saved_results.long_summary(whole)
    options = saved_results.OPTIONS
  folder = plan.evaluation(name, evaluation)
  model = plan.sweep.runs[name].model or str(plan.workdir(name))
  saved_results.save(folder, task, summary, model, options, items)


def quiet():
  return terminal.Console(file=io.StringIO(), width=200)


def shown(console):
  return console.file.getvalue()


def test_list(plan):
  trained(plan, "A & co", 4, 8)
  trained(plan, "B", 8, 8)
  evaluated(plan, "B", "keys")
  evaluated(plan, "base", "keys")
  evaluated(plan, "base", "long")
  console = quiet()
  execute.show(plan, console)
  text = shown(console)
  assert "A & co: step 4 of 8\n" in text
  assert (
    "B: trained, 1 of 2 evaluated\n  configs/llama2_ntk.py positions.max_pos" in text
  )
  assert "base: done\n  model some/model\n" in text
  assert "bad: cannot run: config has no key 'positions.strateggy'; did you" in text
  assert str(plan.workdir("A & co")) in text and "a_co" in text


def describe(plan, name, **changes):
  """Writes the config that a run was trained with."""
  config = plan.config(name)
  config.update_from_flattened_dict(changes)
  content = {"format": "skipalign_jax", "config": config.to_dict()}
  content["model_config"] = dataclasses.asdict(tiny.config())
  (plan.workdir(name) / "config.json").write_text(json.dumps(content))


def test_a_run_that_was_changed_after_its_training_is_refused(plan):
  trained(plan, "B", 8, 8)
  describe(plan, "B", **{"positions.max_position": 70_000})
  message = "positions.max_position: trained with 70000, the sweep says 50000"
  with pytest.raises(errors.UserError, match=message):
    plan.check("B")
  names, refused = collect.usable(plan)
  assert names == ["A & co", "base"]
  assert refused[1].startswith("B (") and message in refused[1]
  (plan.workdir("B") / "config.json").unlink()
  describe(plan, "B")
  plan.check("B")


def test_runs_that_are_made_in_another_way_are_not_mixed(plan):
  for name in ("A & co", "B"):
    trained(plan, name, 8, 8)
    describe(plan, name)
  assert collect.overrides(plan, ["A & co", "B"]) == []
  (plan.workdir("B") / "config.json").unlink()
  describe(plan, "B", **{"optim.learning_rate": 0.5, "log_every": 7})
  with pytest.raises(errors.UserError, match=r"learning_rate: trained with 0\.5, the"):
    plan.check("B")
  assert collect.usable(plan)[0] == ["A & co", "B", "base"]  # and the table says so:
  (note,) = collect.overrides(plan, ["A & co", "B"])
  assert note.startswith("B: optim.learning_rate: trained with 0.5, the sweep says ")


def test_an_evaluation_with_other_options_is_refused(plan):
  evaluated(plan, "base", "keys")
  plan.check("base")
  plan.options["keys"]["depths"] = "3"
  with pytest.raises(errors.UserError, match="evaluated with --depths=2, now 3"):
    plan.check("base")
  console = quiet()
  collect.run(plan, "table", console)  # shows it, and says so
  line = "keys with --depths=2, not 3 (base)"
  assert "Not as the sweep says" in console.file.getvalue()
  assert json.loads((plan.out / "table.json").read_text())["other_options"] == [line]
  plan.options["keys"] = {"depths": "2", "haystack": "elsewhere.txt"}
  plan.check("base")
  assert collect.other_options(plan, ["base"]) == []
  plan.options["keys"] = {"depths": "2", "limit": "3"}
  with pytest.raises(errors.UserError, match="evaluated with --limit=0, now 3"):
    plan.check("base")


@pytest.mark.parametrize(
  ("key", "value", "before"),
  [
    ("dtype", "float32", "bfloat16"), ("template", "tulu", "model"),
    ("template_kwargs", "thinking=false", "thinking=true"),
    ("date", "2026-01-02", "2026-01-01"), ("batch_tokens", "99", 16384),
  ],
)  # fmt: skip
def test_an_evaluation_with_other_flags_is_refused(plan, key, value, before):
  evaluated(plan, "base", "keys")
  path = plan.evaluation("base", "keys") / "results.json"
  content = json.loads(path.read_text())
  content["protocol"] |= {"date": "2026-01-01", "batch_tokens": 16384}
  content["model"] = {"template": "model", "template_kwargs": "thinking=true"}
  path.write_text(json.dumps(content))
  given = {"depths": "2", "template_kwargs": "thinking=true"}
  plan.options["keys"] = given
  plan.check("base")
  plan.options["keys"] = given | {key: value}
  with pytest.raises(errors.UserError, match=f"evaluated with --{key}={before}, now "):
    plan.check("base")


def test_an_evaluation_of_another_rope_or_model_is_refused(plan):
  evaluated(plan, "base", "keys")  # at ntk, 4096
  changed = lambda **changes: dataclasses.replace(
    plan,
    sweep=dataclasses.replace(
      plan.sweep,
      runs={"base": dataclasses.replace(plan.sweep.runs["base"], **changes)},
    ),
  )
  scaled = {"rope.kind": "ntk", "rope.target_length": 4096}
  changed(evaluate=scaled).check("base")
  for key, value in (("rope.kind", "yarn"), ("rope.target_length", 8192)):
    with pytest.raises(errors.UserError, match=f"with --{key}=.*, now {value}"):
      changed(evaluate=scaled | {key: value}).check("base")
  with pytest.raises(errors.UserError, match="--model=some/model, now other/one"):
    changed(model="other/one").check("base")
  changed(model="elsewhere/model@7").check("base")  # it may be in another place


def test_an_evaluation_after_another_training_is_refused(plan):
  """As where the workdir was removed, so that it is made again in another way."""
  evaluated(plan, "B", "keys")
  path = plan.evaluation("B", "keys") / "results.json"
  content = json.loads(path.read_text())
  config = plan.config("B").to_dict()
  for rate in (config["optim"]["learning_rate"], 0.5):
    config["optim"]["learning_rate"] = rate
    path.write_text(json.dumps(content | {"model": {"config": config}}))
    if rate != 0.5:
      plan.check("B")
  with pytest.raises(errors.UserError, match="learning_rate: evaluated after training"):
    plan.check("B")


def test_an_option_that_no_evaluation_has_is_refused_before_the_training(plan):
  plan.options["keys"] = {"depth": "3"}
  with pytest.raises(errors.UserError, match="needle has no option 'depth'"):
    plan.check("B")


def test_flags_are_those_of_evaluate():
  args = vars(evaluate._parser().parse_args(["needle", "--model=m"]))
  assert plan_lib.FLAGS == {key: args[key] for key in plan_lib.FLAGS}
  common = {*plan_lib.FLAGS, *plan_lib._OTHER_FLAGS, "task", "model", "out"}
  options = {field.name for field in dataclasses.fields(tasks.module("needle").Options)}
  assert args.keys() - options == common


def test_a_damaged_run_does_not_stop_the_others(plan):
  trained(plan, "B", 8, 8)
  (plan.workdir("B") / "steps.json").write_text("{")
  console = quiet()
  execute.show(plan, console)
  assert "B: cannot run:" in shown(console) and "base:" in shown(console)


def test_a_sweep_resumes_and_failures_do_not_stop_it(plan, monkeypatch):
  trained(plan, "A & co", 4, 8)
  trained(plan, "B", 8, 8)
  evaluated(plan, "B", "long")
  called = []

  def call(arguments):
    _, _, module, *rest = arguments
    task = "train" if module == plan_lib.TRAIN else rest[0]
    folder = next(a for a in rest if a.startswith(("--workdir=", "--out=")))
    called.append((task, pathlib.Path(folder.split("=")[1]).relative_to(plan.out)))
    return (1 if task == "train" or "needle" in rest else 0), 0

  monkeypatch.setattr(execute, "call", call)
  console = quiet()
  assert execute.run(plan, console) == 1
  p = pathlib.Path
  assert called == [
    ("train", p("rows/a_co")),  # begun; fails: nothing of it is evaluated
    ("needle", p("evals/b/keys")),  # trained, and evaluated in part
    ("longbench", p("evals/base/long")),
    ("needle", p("evals/base/keys")),
  ]
  failures = shown(console).split("runs failed:")[1]
  assert "A & co: training ended with status 1" in failures
  assert (
    "bad: config has no key" in failures and "B: needle ended with status 1" in failures
  )

  # A signal ends the sweep, with the status that shells give it.
  monkeypatch.setattr(execute, "call", lambda _: (143, 143))
  assert execute.run(plan, quiet()) == 143

  for name in ("A & co", "B", "base"):
    for evaluation in ("long", "keys"):
      if not plan.is_evaluated(name, evaluation):
        evaluated(plan, name, evaluation)
  trained(plan, "A & co", 8, 8)
  del plan.sweep.runs["bad"]
  monkeypatch.setattr(execute, "call", lambda _: pytest.fail("done already"))
  assert execute.run(plan, quiet()) == 0


def test_commands_are_those_of_run(plan):
  trains = plan.train_command("B")
  assert trains == [
    *("-m", "skipalign_jax.train", "--config=configs/llama2_ntk.py:tiny"),
    *(f"--workdir={plan.out}/rows/b", "--config.seed=3"),
    "--config.positions.max_position=50000",
  ]
  assert plan.evaluate_command("B", "keys") == [
    *("-m", "skipalign_jax.evaluate", "needle", f"--model={plan.out}/rows/b"),
    *(f"--out={plan.out}/evals/b/keys", "--depths=2"),
  ]
  given = dataclasses.replace(plan, options={"keys": {"chat": "True"}})
  assert given.evaluate_command("base", "keys")[-1] == "--chat=True"  # not the run's
  with pytest.raises(errors.UserError, match="run 'bad': config has no key"):
    execute.write_commands(plan, quiet())
  del plan.sweep.runs["bad"]
  plan.sweep.runs["A & co"].changes["data.system_prompt"] = "it's $HOME"
  execute.write_commands(plan, quiet())
  lines = (plan.out / "commands.txt").read_text().splitlines()
  assert len(lines) == 3
  parts = shlex.split(lines[0])
  assert parts[:3] == ["python", "-m", "skipalign_jax.train"] and parts.count("&&") == 2
  assert "--config.data.system_prompt=it's $HOME" in parts
  assert shlex.split(lines[2])[3:6] == [
    "longbench",
    "--model=some/model",
    f"--out={plan.out}/evals/base/long",
  ]
  assert "--chat=False" in lines[2]


def until(path):
  """Waits for a file that a child process writes."""
  end = time.monotonic() + 20
  while not path.exists() and time.monotonic() < end:
    time.sleep(0.05)


CHILD = (  # one line, as in commands.txt
  "import pathlib, signal, sys, time; "
  "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "
  "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
)


def test_a_signal_reaches_the_command_and_its_end_is_awaited(tmp_path):
  ready = tmp_path / "ready"

  def terminate():
    until(ready)
    os.kill(os.getpid(), signal.SIGTERM)

  thread = threading.Thread(target=terminate)
  thread.start()
  assert execute.call([sys.executable, "-c", CHILD, str(ready)]) == (7, 143)
  thread.join()
  assert execute.call([sys.executable, "-c", "raise SystemExit(3)"]) == (3, 0)


def test_slurm_array(tmp_path):
  ready, commands = tmp_path / "ready", tmp_path / "commands.txt"
  waits = shlex.join([sys.executable, "-c", CHILD, str(ready)])
  commands.write_text(f"echo first && exit 5\n{waits} && echo second\n")

  def start(index):
    return subprocess.Popen(
      ["launch/slurm_array.sbatch", commands],
      env=os.environ | {"SLURM_ARRAY_TASK_ID": str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  first = start(1)
  assert first.communicate()[0] == "first\n" and first.returncode == 5
  missing = start(3)
  assert "no line 3" in missing.communicate()[1] and missing.returncode == 2
  second = start(2)
  until(ready)
  second.send_signal(signal.SIGTERM)
  out, _ = second.communicate(timeout=30)
  assert (out, second.returncode) == (
    "",
    7,
  )  # saved; nothing followed


def test_collect(plan):
  with pytest.raises(errors.UserError, match="no results of this sweep yet"):
    collect.run(plan, "table", quiet())
  trained(plan, "A & co", 8, 8)
  trained(plan, "B", 4, 8)
  for name, score in (("A & co", 30.0), ("base", 20.0), ("B", 40.0)):
    evaluated(plan, name, "long", score)
  evaluated(plan, "B", "keys", 60.0)
  console = quiet()
  collect.run(plan, "table", console)
  content = json.loads((plan.out / "table.json").read_text())
  tables = {
    table["title"]: {
      row["model"]: {
        c: (x["value"], bool(x["partial"])) for c, x in row["cells"].items()
      }
      for row in table["rows"]
    }
    for table in content["tables"]
  }
  table_1 = tables["LongBench (Table 1)"]
  assert list(table_1) == ["A & co", "B", "base"]
  assert table_1["A & co"]["Avg."] == (30.0, False) and table_1["B"]["Code"][0] == 40.0
  assert tables["Other tasks, as they report"] == {"B": {"needle": (0.6, False)}}
  assert tables["As the paper prints them"] == {"A & co": {"Avg.": (41.5, False)}}
  assert tables["Training"] == {
    "A & co": {"steps": (8, False), "loss": (2.5, False), "held-out loss": (4, False)},
    "B": {"steps": (4, True), "loss": (2.5, True), "held-out loss": (4.0, True)},
  }
  bad, *missing = content["missing"]
  assert bad.startswith("bad (config has no key") and missing == [
    "A & co (keys)",
    "base (keys)",
  ]
  points = {p["row"]: (p["at"], p["score"]) for p in content["points"]}
  assert points["B"] == ([50_000, 0.5], 40.0) and "bad" not in points
  assert points["A & co"] == (None, 30.0)
  with (plan.out / "table.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == sum(len(cells) for t in tables.values() for cells in t.values())
  assert {
    "table": "LongBench (Table 1)",
    "row": "base",
    "column": "Summ",
    "value": "20.0",
    "partial": "",
  } in lines
  assert (plan.out / "table.png").read_bytes()[:4] == b"\x89PNG"
  text = (plan.out / "table.md").read_text()
  assert text.startswith("## A table") and "| A & co | 30.0 |" in text


def test_curves_run_over_both_axes(tmp_path, monkeypatch):
  """Each line holds the points of one p, or of one L, from left to right."""
  drawn = []
  axes = matplotlib_axes.Axes
  plot = axes.plot

  def spy(self, x, y, **style):
    drawn.append((style["label"], list(x), list(y)))
    return plot(self, x, y, **style)

  monkeypatch.setattr(axes, "plot", spy)
  content = {
    "title": "t",
    "points": [
      {"row": f"{L}{p}", "at": [L, p], "score": L * p, "what": "score"}
      for L in (200, 100)
      for p in (0.5, 0.2)
    ]
    + [{"row": "base", "at": None, "score": 30.0, "what": "score"}]
    + [{"row": "missing", "at": [300, 0.2], "score": None, "what": ""}],
  }
  collect.draw(content, tmp_path / "curves.png")
  assert drawn == [
    ("p = 0.2", [100, 200], [20.0, 40.0]),
    ("p = 0.5", [100, 200], [50.0, 100.0]),
    ("L = 100", [0.2, 0.5], [20.0, 50.0]),
    ("L = 200", [0.2, 0.5], [40.0, 100.0]),
  ]


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--config=configs/nowhere.py"], "no such file"),
    (["--config=configs/llama2_ntk.py"], "no get_sweep.*skipalign_jax.train"),
    (["--config=configs/paper_table1.py:huge"], "unknown sweep variant 'huge'"),
    (["--config=configs/paper_table1.py", "--runn"], "'--runn'; did you mean --run?"),
    (["--config=configs/paper_table1.py", "--config.seed"], "--config.KEY=VALUE"),
    (
      ["--config=configs/paper_table1.py", "--eval.short.tasks=mmlu"],
      "--eval.short: .*longbench",
    ),
  ],
)
def test_refused(argv, message):
  with pytest.raises(errors.UserError, match=message):
    command.main(argv)


def test_files_that_cannot_be_sweeps_are_refused(tmp_path):
  broken = tmp_path / "broken.py"
  broken.write_text("import nothing_like_it")
  with pytest.raises(errors.UserError, match="line 1: ModuleNotFoundError"):
    runs.load(str(broken))
  twice = tmp_path / "twice.py"
  twice.write_text(
    "from skipalign_jax.sweep import runs\n"
    "row = runs.Run(model='m')\n"
    "get_sweep = lambda _: runs.sweep('t', {'a b': row, 'A_B': row}, {}, '')\n"
  )
  with pytest.raises(errors.UserError, match="'a b' and 'A_B' would share a folder"):
    runs.load(str(twice))


@pytest.mark.slow
def test_tiny_sweep(tmp_path, cache_dir):
  """Two runs: trained, evaluated and collected; nothing is done a second time."""
  file = tmp_path / "two.py"
  file.write_text(
    "from skipalign_jax.sweep import runs\n"
    "def get_sweep(variant):\n"
    "  table = {name: runs.Run('configs/yi_6b_200k.py', "
    "{'positions.strategy': name}) for name in ('contiguous', 'skip_all')}\n"
    "  return runs.sweep('Two', table, {}, variant)\n"
  )
  run = lambda what: subprocess.run(
    [
      *(sys.executable, "-m", "skipalign_jax.sweep", f"--config={file}:tiny", what),
      *(f"--out={tmp_path / 'out'}", f"--config.data.cache_dir={cache_dir}"),
    ],
    env=tiny.environment(1),
    capture_output=True,
    text=True,
  )
  first = run("--run")
  assert first.returncode == 0, first.stderr
  again = run("--run")
  assert again.returncode == 0 and "-m skipalign_jax" not in again.stdout
  assert run("--collect").returncode == 0
  content = json.loads((tmp_path / "out" / "two.json").read_text())
  training = next(t for t in content["tables"] if t["title"] == "Training")
  assert [row["cells"]["steps"]["value"] for row in training["rows"]] == [8, 8]
  assert not content["missing"]


@pytest.fixture
def choosing(tmp_path):
  """A trained run and a model with its own rope, in a sweep with two NTK targets."""
  table = {
    "A": runs.Run(QUICK),
    "base": runs.Run(model="some/model", evaluate={"rope.kind": "model"}),
  }
  sweep = runs.Sweep("A table", table, {"keys": {"task": "keys"}}, "runs/x", "tiny")
  choose = {"task": "keys", "seed": 7}
  sweep = dataclasses.replace(
    sweep, targets=(512, 1024), choose=choose, window=1000, claimed=(1200,)
  )
  return plan_lib.Plan(sweep, tmp_path / "out")


def chosen(plan, target, *log_p):
  folder = plan.evaluation("A", f"choose@{target}")
  folder.mkdir(parents=True)
  by_length = {str(i): {"mean": x} for i, x in enumerate(log_p)}
  (folder / "results.json").write_text(json.dumps({"summary": {"log_p": by_length}}))


def test_each_run_is_evaluated_at_its_best_target(choosing, monkeypatch):
  trained(choosing, "A", 8, 8)
  called = []

  def call(arguments):
    given = dict(a.split("=", 1) for a in arguments if a.startswith("--"))
    called.append(given)
    out = pathlib.Path(given["--out"]).name
    if out.startswith("choose@"):
      target = int(out.partition("@")[2])
      chosen(choosing, target, *{512: (-9.0, -1.0), 1024: (-4.0, -4.0)}[target])
    return 0, 0

  monkeypatch.setattr(execute, "call", call)
  execute.run(choosing, quiet())
  asked = [
    (pathlib.Path(g["--out"]).name, g.get("--rope.kind"), g.get("--rope.target_length"))
    for g in called
  ]
  assert asked == [
    ("choose@512", "ntk", "512"),
    ("choose@1024", "ntk", "1024"),
    ("keys", "ntk", "1024"),
    ("keys", "model", None),
  ]
  assert [g.get("--seed") for g in called] == ["7", "7", None, None]
  assert choosing.target("A") == 1024 and choosing.target("base") is None


def test_tables_of_chosen_targets_pair_keys(choosing, tmp_path):
  """Two lengths, two texts of two keys: shares, choice and differences by hand."""
  table = choosing.sweep.runs | {"B": runs.Run(QUICK)}
  sweep = dataclasses.replace(choosing.sweep, runs=table, pairs=(("A", "B"),))
  plan = plan_lib.Plan(sweep, choosing.out)
  for name, found in (("A", [1.0, 1.0]), ("B", [1.0, 0.0]), ("base", [0.0, 0.0])):
    trained(plan, name, 8, 8)
    for target, log_p in ((512, -3.0), (1024, -2.0)) if name != "base" else ():
      folder = plan.evaluation(name, f"choose@{target}")
      folder.mkdir(parents=True)
      summary = {"log_p": {"1200": {"mean": log_p}}}
      (folder / "results.json").write_text(json.dumps({"summary": summary}))
    items = [
      {
        "id": f"{n}/{k}", "length": n, "depths": [0.25, 0.75],
        "keys": [f"{k}1111", f"{k}2222"],
        "found": [1.0, 1.0] if n == 900 else [1.0, 0.0] if name == "A" and k else found,
        "log_p": [-1.0, -2.0 * (1 + k) * (name == "B")],
        "log_p_of_keys": np.log(
          [[0.4, 0.3], [0.3, 0.1]] if name == "B" else [[0.5, 0.3], [0.3, 0.5]]
        ).tolist(),
      }
      for n in (900, 1200)
      for k in range(2)
    ]  # fmt: skip
    folder = plan.evaluation(name, "keys")
    folder.mkdir(parents=True)
    protocol = {"task": "keys", "options": {}, "model": name, "rope": None}
    results = {
      "protocol": protocol, "notes": [], "summary": {"average": 0.5}, "items": items
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
  console = quiet()
  collect.run(plan, "study", console)
  content = json.loads((plan.out / "study.json").read_text())["keys"]
  assert {n: row["target"] for n, row in content["rows"].items()} == {
    "A": 1024,
    "base": None,
    "B": 1024,
  }
  (pair,) = content["pairs"]
  assert pair["score"]["mean"] == 0.25 and pair["score"]["n"] == 2
  assert pair["log_p"]["mean"] == 1.5
  text = (plan.out / "study.md").read_text()
  assert "| B | 1,024 | 100 | 50 | 50 (15 to 85, n 4) |" in text
  assert "| base | own rope | 100 | 0 |" in text
  assert (
    "| A - B | +25 (-293 to +343) | +1.50 (-4.85 to +7.85) | 2 "
    "| +25 (+25 to +25) | +50 (+50 to +50) | 2 |" in text
  )
  assert "cells" not in content["rows"]["A"]  # they are in the evaluations' results
  found = retrieval.gather(plan, ["A", "B"])["rows"]
  assert retrieval.difference(found["A"], found["B"], [1300]) == {}
  assert (plan.out / "study_keys.png").read_bytes().startswith(b"\x89PNG")


def test_keys_of_several_evaluations_are_paired_where_both_runs_have_them(choosing):
  evaluations = {
    "keys": {"task": "keys"},
    "far": {"task": "keys", "rivals": True},
    "long": {"task": "keys"},
    "needle": {"task": "needle"},
    "more": {"task": "needle", "seed": 1},
    "other": {"task": "x"},
  }
  plan = dataclasses.replace(
    choosing, sweep=dataclasses.replace(choosing.sweep, evaluations=evaluations)
  )
  for name, evaluation, found in (
    ("A", "keys", [1.0, 0.0]),
    ("base", "keys", [0.0, 0.0]),
    ("A", "far", [1.0, 1.0]),
    ("A", "long", [1.0, 1.0]),
  ):
    path = plan.evaluation(name, evaluation) / "results.json"
    path.parent.mkdir(parents=True)
    names = [f"{evaluation}1", f"{evaluation}2"]
    length = 2400 if evaluation == "long" else 1200
    item = {"length": length, "depths": [0, 1], "keys": names, "found": found}
    item["log_p"] = [-1.0, -2.0]
    if evaluation == "far":
      item["log_p_of_keys"] = np.log([[0.5, 0.25], [0.5, 0.25]]).tolist()
    path.write_text(json.dumps({"items": [item]}))
  for name, evaluation, scores in (
    ("A", "needle", [1.0, 1.0]),
    ("A", "more", [1.0, 0.0]),
    ("base", "more", [0.0, 0.0]),
  ):
    path = plan.evaluation(name, evaluation) / "results.json"
    path.parent.mkdir(parents=True)
    items = [
      {"id": f"{n}/0.5/0", "length": n, "answer": f"{evaluation} {n}", "score": score}
      for n, score in zip((1200, 2400), scores, strict=True)
    ]
    path.write_text(json.dumps({"items": items}))
  content = retrieval.gather(plan, ["A", "base"])
  found = content["rows"]
  text = retrieval_tables.markdown(content)
  columns = ("any, 1,200", "any, 1,200", "right, 1,200", "right, 1,200", "same, 1,200")
  assert f"| run | {' | '.join(columns)} |" in text  # claimed is the only length
  assert "| base | own rope | 0 |  | 0 (0 to 66, n 2) |" in text  # 2,400: not asked
  whose, single = text.split("Which key")[1].split("single key")
  assert "| A | 75 | 75 | 50 | 50 | 2.0 |" in whose and "| base | " not in whose
  assert "| run | 1,200 | 2,400 | 1,200, % |" in single
  assert "| A | 2 of 2 | 1 of 2 | 100 (34 to 100, n 2) |" in single
  assert "| base | 0 of 1 | 0 of 1 | 0 (0 to 79, n 1) |" in single
  assert [len(row["cells"]) for row in found.values()] == [6, 2]
  pair = retrieval.difference(found["A"], found["base"], [1200])
  assert pair["score"] == {"mean": 0.5, "low": None, "high": None, "n": 1}
  assert retrieval_tables.interval(pair["score"], 100, ".0f") == "+50"
  assert pair["needles"] == {"one": 1, "other": 0, "n": 1, "p": 1.0}
  said = lambda *scores: [
    {"length": 1200, "text": str(i // 2), "key": str(i), "score": score}
    for i, score in enumerate(scores)
  ]
  one = {"cells": [], "whose": [], "needles": said(*[1.0] * 7, 0.0, 1.0)}
  other = one | {"needles": said(*[0.0] * 6, 1.0, 1.0)}  # not asked for the last one
  needles = retrieval.difference(one, other, [1200])["needles"]
  # Two keys a place: 3 places to nothing and, of the last, one key that `other` says.
  assert needles == {"one": 3, "other": 1, "n": 4, "p": pytest.approx(2 * 5 / 2**4)}


def test_keys_in_another_haystack_are_separate(choosing):
  """They do not count for the claims, and do not change the tables of the first one."""
  evaluations = {
    "keys": {"task": "keys", "haystack": "a.txt"},
    "far": {"task": "keys", "haystack": "a.txt", "seed": 1},
    "other": {"task": "keys", "haystack": "b.txt"},
  }
  sweep = dataclasses.replace(
    choosing.sweep, evaluations=evaluations, pairs=(("A", "base"),)
  )
  plan = dataclasses.replace(choosing, sweep=sweep)
  for name, evaluation, found, right in (
    ("A", "keys", 0.0, 0.25),
    ("A", "far", 0.0, 0.25),
    ("A", "other", 1.0, 0.5),
    ("base", "keys", 1.0, 0.25),
    ("base", "other", 0.0, 0.25),
  ):
    path = plan.evaluation(name, evaluation) / "results.json"
    path.parent.mkdir(parents=True)
    item = {"length": 1200, "depths": [0, 1]}
    item["keys"] = [f"{evaluation}1", f"{evaluation}2"]
    item |= {"found": [found] * 2, "log_p": [-1.0 - found, -2.0]}
    item["log_p_of_keys"] = np.log([[right, 0.3], [0.3, right]]).tolist()
    path.write_text(json.dumps({"items": [item]}))
  content = retrieval.gather(plan, ["A", "base"])
  assert [pair["score"]["mean"] for pair in content["pairs"]] == [-1.0]
  assert list(content["others"]) == ["other"]
  (pair,) = content["others"]["other"]["pairs"]
  assert pair["score"]["mean"] == 1.0 and pair["log_p"]["mean"] == -0.5
  assert pair["any_key"]["mean"] == pytest.approx(0.25) and "needles" not in pair
  ours, other = retrieval_tables.markdown(content).split("### In another text (other)")
  assert "| A | own rope | 0 | 0 (0 to 49, n 4) |" in ours
  row = "| A | 100 | 100 (34 to 100, n 2) | -2.00 | -2.00 | 80 | 80 | 100 | 100 | 1.0 |"
  assert row in other
  assert "| A - base | +100 | -0.50 | 1 | +25 | +100 | 1 |\n" in other + "\n"
  option = {"other": {"haystack": "a.txt"}}  # now it is the first one's
  plan = dataclasses.replace(plan, options=option)
  assert not retrieval.gather(plan, ["A"])["others"]


def test_a_run_without_results_is_missing_as_a_whole(choosing):
  assert collect.gather(choosing, ["base"]) == ([], ["base"])


def test_misalignment_is_correlated_with_the_keys_that_runs_find():
  cell = lambda length, log_p: {"length": length, "score": log_p > -3, "log_p": log_p}
  row = lambda kl, log_p: {
    "sce": kl,
    "cells": [cell(900, -9.0 * kl), cell(1200, log_p)],
  }
  measured = [row(0.1, -1.0), row(0.2, -2.0), row(0.3, -5.0), row(0.4, -4.0)]
  rank = lambda rows: retrieval.correlation(rows, "sce", [1200])
  found = rank([*measured, {"cells": []}, {"sce": 0.5, "cells": [cell(900, -1.0)]}])
  assert found["rows"] == 4 and found["log_p"] == pytest.approx(-0.8)
  assert found["score"] == pytest.approx(stats.spearmanr([1, 2, 3, 4], [1, 1, 0, 0])[0])
  assert rank(measured[:3]) is None
  assert rank([row(0.1, -1.0)] * 4) is None


def test_losses_are_correlated_over_runs_of_the_same_data(choosing):
  same, other = {"steps": 2}, {"data.seq_len": 512}
  row = lambda changes: runs.Run("configs/smollm2_ntk.py", changes)
  table = {name: row(same) for name in "ABCD"} | {name: row(other) for name in "EF"}
  table["base"] = runs.Run(model="some/model")
  plan = dataclasses.replace(
    choosing, sweep=dataclasses.replace(choosing.sweep, runs=table, claimed=(1200,))
  )
  # In A to D the held-out loss rises as log p falls; misalignment does so over all.
  numbers = {
    "A": (5, 1.0, -1.0), "B": (3, 2.0, -2.0), "C": (6, 3.0, -3.0), "D": (4, 4.0, -4.0),
    "E": (9, 0.5, -9.0), "F": (8, 0.6, -8.0), "base": (1, None, 0.0),
  }  # fmt: skip
  found = {}
  for name, (kl, loss, log_p) in numbers.items():
    cell = {"length": 1200, "score": log_p > -2.5, "log_p": log_p}
    found[name] = {"sce": -kl, "symmetric_kl": kl, "cells": [cell]}
    found[name] |= {} if loss is None else {"held_out_loss": loss}
  ranks = retrieval._correlations(plan, found)
  assert {measure: rank["rows"] for measure, rank in ranks.items()} == {
    "SCE": 7,
    "symmetric KL": 7,
    "SCE, same data": 4,
    "symmetric KL, same data": 4,
    "held-out loss, same data": 4,
  }
  assert ranks["held-out loss, same data"]["log_p"] == pytest.approx(-1)
  assert ranks["symmetric KL, same data"]["log_p"] == pytest.approx(0)
  every = stats.spearmanr([[kl, log_p] for kl, _, log_p in numbers.values()])[0]
  assert ranks["symmetric KL"]["log_p"] == pytest.approx(every) and every < -0.7
  assert ranks["SCE"]["log_p"] == pytest.approx(-every)
  assert not retrieval._correlations(plan, {"base": found["base"]})


def test_of_targets_that_do_as_well_the_smallest_is_chosen(choosing):
  for target in (1024, 512):
    chosen(choosing, target, -2.0)
  assert choosing.target("A") == 512


def test_a_run_can_have_a_given_target(choosing):
  given = {"rope.kind": "ntk", "rope.target_length": 2048}
  row = runs.Run(model="some/model", evaluate=given)
  sweep = dataclasses.replace(choosing.sweep, runs={"given": row})
  plan = dataclasses.replace(choosing, sweep=sweep)
  assert plan.target("given") == 2048 and not plan.targets("given")
  (command,) = plan.todo("given")  # asked at once
  assert command[-2:] == ["--rope.kind=ntk", "--rope.target_length=2048"]


def test_a_run_is_not_evaluated_before_all_its_targets_are(choosing):
  trained(choosing, "A", 8, 8)
  chosen(choosing, 512, -1.0)
  (only,) = choosing.todo("A")
  assert f"--out={choosing.evaluation('A', 'choose@1024')}" in only
  assert choosing.target("A") is None and choosing.status("A") != "done"
  with pytest.raises(errors.UserError, match="--rows=NAME"):
    execute.write_commands(choosing, quiet())


def test_some_runs_by_the_names_of_their_folders(plan):
  kept = runs.select(plan.sweep, ["base", "a_co"])
  assert list(kept.runs) == ["A & co", "base"]
  with pytest.raises(errors.UserError, match="no run 'A'; there are a_co, bad"):
    runs.select(plan.sweep, ["A"])

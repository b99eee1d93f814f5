"""Study A's pages have the numbers of its committed results."""

import json
import pathlib
import shutil

import numpy as np
import tiny

from skipalign_jax.runtime import terminal
from skipalign_jax.sweep import collect, retrieval, runs
from skipalign_jax.sweep import plan as plan_lib


def test_study_a_page_is_made_from_its_results(tmp_path, monkeypatch):
  made = pathlib.Path("studies/smollm2/results")
  monkeypatch.chdir(tmp_path)  # the results name their folders
  monkeypatch.setattr(retrieval, "draw", lambda keys, path: None)
  pathlib.Path("configs").symlink_to(tiny.ROOT / "configs")
  shutil.copytree(tiny.ROOT / made, made)
  text = (made / "study_a.md").read_text()
  (made / "study_a.md").unlink()
  sweep = runs.load(str(tiny.ROOT / "studies/smollm2/study_a.py"))
  console = terminal.Console(quiet=True)
  collect.run(plan_lib.Plan(sweep, made), "study_a", console)
  assert (made / "study_a.md").read_text() == text


def test_study_a_in_the_layout_of_table_1_has_the_numbers_of_its_results():
  sweep = runs.load(str(tiny.ROOT / "studies/smollm2/study_a.py"))
  plan = plan_lib.Plan(sweep, tiny.ROOT / sweep.out)
  results = lambda name, task: json.loads(
    (plan.evaluation(name, task) / "results.json").read_text()
  )
  page = (tiny.ROOT / "studies/smollm2/README.md").read_text(encoding="utf-8")
  table = page.partition("Table 1: an average")[2].partition("These averages rank")[0]
  lines = [[c.strip() for c in x.strip("|").split("|")] for x in table.splitlines()]
  shown = {name: cells for name, *cells in lines if name in sweep.runs}
  assert len(shown) == 18
  for name, cells in shown.items():
    items = results(name, "keys")["items"] + results(name, "keys_far")["items"]
    keys = [hit for i in items if i["length"] in sweep.claimed for hit in i["found"]]
    needles = results(name, "needle")["items"]
    single = [i["score"] for i in needles if i["length"] == 12_288]
    ruler = results(name, "ruler")["summary"]["by_task"]
    assert (len(keys), len(single)) == (60, 3)
    tasks = ("niah_single_1", "niah_multikey_2", "vt")
    means = [np.mean(keys), np.mean(single), *(ruler[task]["mean"] for task in tasks)]
    assert cells == [f"{100 * mean:.0f}" for mean in (np.mean(means), *means)]

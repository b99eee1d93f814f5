"""lm_eval's long tasks from files: BABILong, LongBench v2, InfiniteBench; not RULER."""

import json
import os
import pathlib
import shutil

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
import tiny_subject
from lm_eval.tasks import manager as manager_lib
from rich import console as rich_console

from skipalign_jax.evals import runner
from skipalign_jax.evals.lm_eval import patches
from skipalign_jax.evals.lm_eval import task as lm_eval_task
from skipalign_jax.evals.lm_eval import tasks as lm_eval_tasks
from skipalign_jax.runtime import errors

QUIET = rich_console.Console(quiet=True)
FACTS = "Mary walked into the office. John came into the garden."


@pytest.fixture(scope="module")
def few_tasks(tmp_path_factory):
  whole = pathlib.Path(manager_lib.__file__).parent
  some = tmp_path_factory.mktemp("tasks")
  for name in ("babilong", "longbench2", "infinitebench", "ruler"):
    shutil.copytree(whole / name, some / name)
  with pytest.MonkeyPatch.context() as patch:
    lm_eval_tasks._manager.cache_clear()
    patch.setattr(manager_lib, "__file__", str(some / "manager.py"))
    yield
  lm_eval_tasks._manager.cache_clear()


def write(folder, name, records):
  path = folder / f"{name}.jsonl"
  path.parent.mkdir(exist_ok=True)
  path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def benchmarks(few_tasks, tmp_path_factory):
  data = tmp_path_factory.mktemp("data")
  rows = [
    dict(input=FACTS, question="Where is Mary?", target="office"),
    dict(input=FACTS, question="Where is John?", target="garden", more=1),
  ]
  write(data, "babilong/qa1", rows)
  choices = {f"choice_{letter}": f"node {letter}" for letter in "ABCD"}
  record = dict(context="A leads to B.", question="Where to?", answer="B", **choices)
  write(data, "longbench2/graph_reasoning", [record])
  book = dict(id=0, context="A book.", input="Who?", answer=["Ann"])
  write(data, "infinitebench/passkey", [book | dict(answer="71432", options=[])])
  write(
    data,
    "infinitebench/longbook_choice_en",
    [book | dict(options=["Ann", "Bob", "Cy", "Di"])],
  )
  return str(data)


def loaded(names, folder):
  notes = []
  with patches.own_code_eval():
    found = lm_eval_tasks.load(names.split(","), folder, False, -1, notes.append)
  for task in found["tasks"].values():
    task.build_all_requests()
  return found, notes


def test_babilong(benchmarks):
  found, _ = loaded("babilong_qa1", benchmarks)
  task = found["tasks"]["babilong_qa1"]
  assert [request.doc["target"] for request in task.instances] == ["office", "garden"]
  prompt, options = task.instances[0].args
  assert prompt.endswith(f"{FACTS}\nWhere is Mary?")
  assert prompt.count("The most recent location of") == 3  # the form, two examples
  assert options["max_gen_toks"] == 16
  assert task.process_results(task.instances[1].doc, ["in the Garden"]) == {"acc": 1}


def test_longbench_v2(benchmarks):
  found, notes = loaded("longbench2", benchmarks)
  assert list(found["tasks"]) == ["longbench2_graph"]
  assert notes == ["longbench2: 1 of 20 tasks have files: longbench2_graph"]
  requests = found["tasks"]["longbench2_graph"].instances
  assert [request.args[1] for request in requests] == [" A", " B", " C", " D"]
  assert "A leads to B." in requests[0].args[0]
  assert "(D) node D" in requests[0].args[0]


def test_infinitebench(benchmarks):
  names = "infinitebench_passkey,infinitebench_longbook_choice_en"
  found, _ = loaded(names, benchmarks)
  passkey, choice = found["tasks"].values()
  assert passkey.instances[0].args[0].endswith("A book.\n\nWho?")
  assert passkey.process_results(passkey.instances[0].doc, ["71432"]) == {"score": 1}
  assert passkey.process_results(passkey.instances[0].doc, ["no"]) == {"score": 0}
  assert all(name in choice.instances[0].args[0] for name in ("Ann", "Bob", "Cy", "Di"))
  assert choice.process_results(choice.instances[0].doc, ["A"]) == {"score": 1}


@pytest.mark.slow
def test_a_model_is_evaluated_on_all_of_them(benchmarks, tmp_path):
  options = lm_eval_task.Options(
    "babilong_qa1,longbench2_graph,infinitebench_passkey", local_data=benchmarks
  )
  subject = tiny_subject.make(window=2048)
  folder = tmp_path / "out"
  results = runner.run("lm_eval", lm_eval_task, options, subject, folder, QUIET)
  tasks = results["summary"]["tasks"]
  assert tasks["babilong_qa1"]["acc"]["n"] == 2
  assert 0 <= tasks["longbench2_graph"]["acc"]["mean"] <= 1
  assert tasks["infinitebench_passkey"]["score"]["mean"] == 0
  assert not any("cut off" in note for note in results["notes"])


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ("babilong_qa2", "no files for babilong_qa2"),
    ("longbench2_table", "no files for longbench2_table"),
    ("infinitebench_code_run", "no files for infinitebench_code_run"),
    ("niah_single_1", "use `evaluate ruler`"),
    ("ruler", "use `evaluate ruler`"),
  ],
)
def test_what_has_no_files_is_refused(benchmarks, names, message):
  with pytest.raises(errors.UserError, match=message):
    loaded(names, benchmarks)


def test_a_record_without_a_key_is_refused(few_tasks, tmp_path):
  write(tmp_path, "babilong/qa1", [dict(input="a", question="b")])
  with pytest.raises(errors.UserError, match=r"babilong.*'target'"):
    loaded("babilong_qa1", str(tmp_path))

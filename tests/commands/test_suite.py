"""evaluate suite: tasks with data, folders, one table, resuming."""

import json

import pytest
import tiny
import tiny_subject

from skipalign_jax import evaluate
from skipalign_jax.evals import items, runner, suite
from skipalign_jax.runtime import errors

PROSE = " ".join(
  f"Number {i} said {i * i} long and empty words to number {i + 7} of the row."
  for i in range(1, 400)
)
RECORD = dict(
  context="A text.", question="Which?", answer="A", difficulty="hard", length="short",
  domain="Code", **{f"choice_{letter}": letter for letter in "ABCD"},
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("suite")
  (folder / "book.txt").write_text(PROSE)
  (folder / "data.jsonl").write_text(json.dumps(RECORD) + "\n")
  tiny_subject.folder(folder / "hf", window=4096)
  return folder


def run(files, out, *more):
  """The suite with one item per task."""
  flags = ["suite", f"--model={files / 'hf'}", f"--out={out}", "--dtype=float32"]
  return evaluate.main(
    [*flags, "--distributed=off", "--lengths=3600", "--samples=1", "--limit=1", *more]
  )


@pytest.fixture
def quick(monkeypatch):
  """Replies without a model."""
  monkeypatch.setattr(items, "replies", lambda _, batch: [""] * len(batch))


@pytest.mark.slow
def test_a_model_is_evaluated(files, tmp_path):
  with_data = (f"--haystack={files}/book.txt", f"--longbench_v2={files}/data.jsonl")
  assert run(files, tmp_path / "out", *with_data) == 0
  for path in (tmp_path / "out").glob("*/results.json"):
    (item,) = json.loads(path.read_text())["items"]
    assert isinstance(item["reply"], str)


def test_tasks_with_data_are_evaluated_into_one_table(files, tmp_path, capsys, quick):
  out = tmp_path / "out"
  with_data = (f"--haystack={files}/book.txt", f"--longbench_v2={files}/data.jsonl")
  assert run(files, out, *with_data) == 0
  printed = capsys.readouterr().out
  assert tiny.is_plain(printed)
  names = ["needle", "ruler", "babilong", "mrcr", "longbench_v2"]
  content = json.loads((out / "suite.json").read_text())
  assert list(content["tasks"]) == names and content["left_out"] == []
  table = (out / "suite.md").read_text()
  for name in names:
    results = json.loads((out / name / "results.json").read_text())
    assert results["protocol"]["limit"] == 1 and len(results["items"]) == 1
    assert content["tasks"][name] == results["summary"]
    assert f"| **{name}** |" in table
  assert "| babilong_qa1 (ours) |" in table and "| niah_single_1 |" in table
  assert "without niah_single_2 (not evaluated)" in table
  assert table.strip() in printed
  # What is done is not measured again, and another suite is refused.
  before = (out / "ruler/records.jsonl").read_bytes()
  assert run(files, out, *with_data) == 0
  assert (out / "ruler/records.jsonl").read_bytes() == before
  assert (out / "suite.md").read_text() == table
  with pytest.raises(errors.UserError, match="holds another evaluation"):
    run(files, out, *with_data, "--seed=1")


def test_a_stopped_suite_goes_on_with_the_task_that_it_stopped_in(
  files, tmp_path, monkeypatch, quick
):
  done, real = [], runner.run

  def until_ruler(name, *args):
    if name == "babilong" and done.count("babilong") == 0:
      done.append(name)
      raise KeyboardInterrupt
    done.append(name)
    return real(name, *args)

  monkeypatch.setattr(runner, "run", until_ruler)
  book = f"--haystack={files}/book.txt"
  with pytest.raises(KeyboardInterrupt):
    run(files, tmp_path / "out", book)
  assert not (tmp_path / "out/suite.json").exists()
  assert run(files, tmp_path / "out", book) == 0
  assert done == ["needle", "ruler", "babilong", "needle", "ruler", "babilong", "mrcr"]


def test_tasks_without_data_are_left_out_and_named(files):
  found, skipped = suite.parts(suite.Options())
  assert [part.task for part in found] == ["needle", "ruler"]
  books = "(no --haystack)"
  assert skipped[:2] == [f"babilong {books}", f"mrcr {books}"]
  assert skipped[2:] == ["longbench_v2 (no --longbench_v2)"]
  found, skipped = suite.parts(
    suite.Options(haystack=f"{files}/book.txt", longbench_v2=f"{files}/data.jsonl")
  )
  assert len(found) == 5 and skipped == []


def test_options_reach_every_task(files, tmp_path):
  answer = dict(question="Who?", answers=[dict(text="Ann")])
  article = dict(title="A", paragraphs=[dict(context="Ann.", qas=[answer])])
  (tmp_path / "squad.json").write_text(json.dumps(dict(data=[article])))
  book, records = f"{files}/book.txt", f"{files}/data.jsonl"
  given = suite.Options(
    haystack=book, longbench_v2=records, qa=str(tmp_path), lengths="2048,4096",
    samples=3, chat=False, seed=7,
  )  # fmt: skip
  for part in suite.parts(given)[0]:
    assert part.options.chat is False
    if part.task != "longbench_v2":
      assert part.options.lengths == "2048,4096" and part.options.samples == 3
      assert part.options.seed == 7 and part.options.haystack == book
  by_name = {part.task: part.options for part in suite.parts(given)[0]}
  assert by_name["ruler"].qa == str(tmp_path)
  assert by_name["longbench_v2"].data == records
  assert by_name["mrcr"].needles == "2,4"
  longer = suite.parts(suite.Options(haystack=book, lengths="4096"))[0]
  assert longer[-1].options.needles == "2,4,8"


def test_the_table_has_percent_by_length_intervals_and_what_is_missing():
  score = lambda mean, n: dict(mean=mean, low=mean - 0.1, high=mean + 0.1, n=n)
  summaries = {
    "ruler": dict(
      interval=score(0.5, 8),
      by_length={"10000": score(0.25, 4), "2048": score(0.75, 4)},
      table={"vt": {"2048": 1.0, "10000": 0.125}, "cwe": {"2048": 0.5}},
      mean_of="2 of 13 tasks",
      lacks=["qa_1 (no --qa)"],
    ),
    "longbench_v2": dict(
      interval=score(0.3, 5), by_length={"short": score(0.3, 5)}, lacks=["5 of 503"]
    ),
  }
  lines = suite.table("m|x", summaries, ["mrcr (no --haystack)"]).splitlines()
  assert lines[2] == "|  | 2,048 | 10,000 | all | 95 % | items |"
  assert lines[4:8] == [
    "| **ruler** | 75.0 | 25.0 | 50.0 | 40.0 to 60.0 | 8 |",
    "| vt | 100.0 | 12.5 |  |  |  |",
    "| cwe | 50.0 | - |  |  |  |",
    "| **longbench_v2** | - | - | 30.0 | 20.0 to 40.0 | 5 |",
  ]
  assert "m|x" not in lines[0]  # a name cannot make a column
  notes = "\n".join(lines[9:])
  assert "left out: mrcr" in notes and "2 of 13 tasks without qa" in notes


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--preset=short", "'short' is unknown; choose from long"),
    ("--lengths=x", "--lengths=x"),
    ("--samples=0", "--samples=0"),
    ("--haystack=none.txt", "--haystack.*none.txt"),
    ("--qa=none", "--qa=none is not a folder"),
    ("--qa=damaged", r"squad\.json cannot be read"),
    ("--longbench_v2=none.json", "none.json cannot be read"),
  ],
)
def test_mistakes_are_errors_before_the_model_is_read(
  tmp_path, monkeypatch, flag, message
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "damaged").mkdir()
  (tmp_path / "damaged/squad.json").write_text('{"data": [')
  with pytest.raises(errors.UserError, match=message):
    evaluate.main(["suite", "--model=nowhere/x", f"--out={tmp_path}/o", flag])
  assert not (tmp_path / "o").exists()

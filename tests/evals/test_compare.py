"""Tables of evaluations: layouts, joins, partial cells, protocols that differ."""

import io
import json

import pytest
from saved_results import OPTIONS, ROPE, WHOLE, long_summary, save

from skipalign_jax.evals import compare, needle
from skipalign_jax.evals.longbench import task as longbench_task
from skipalign_jax.runtime import errors, terminal


def interval(mean, n=4):
  return {"mean": mean, "low": None, "high": None, "n": n}


def run(*folders, out=""):
  """(text printed, tables by title)"""
  shown = io.StringIO()
  content = compare.run(folders, out, terminal.Console(file=shown, width=60))
  return shown.getvalue(), {table["title"]: table for table in content["tables"]}


def values(table):
  """{model: {column: value}}"""
  return {
    row["model"]: {column: cell["value"] for column, cell in row["cells"].items()}
    for row in table["rows"]
  }


TABLE_1 = "LongBench (Table 1)"
TABLE_2 = "Long and short tasks (Table 2)"
OTHERS = "Other tasks, as they report"


def test_table_1(tmp_path):
  a = save(tmp_path / "a", "longbench", long_summary(WHOLE), "base", OPTIONS)
  better = {name: score + 2 for name, score in WHOLE.items()}
  b = save(tmp_path / "b", "longbench", long_summary(better), "tuned", OPTIONS)
  text, tables = run(a, b)
  assert set(tables) == {TABLE_1}
  base = {
    "Avg.": 42.5, "S-Doc QA": 15.0, "M-Doc QA": 30.0, "Summ": 45.0, "Few-shot": 60.0,
    "Code": 72.5,
  }  # fmt: skip
  assert list(base) == tables[TABLE_1]["columns"]
  assert values(tables[TABLE_1]) == {
    "base": base,
    "tuned": {column: value + 2 for column, value in base.items()},
  }
  assert tables[TABLE_1]["notes"] == []
  assert text.splitlines() == [
    "### LongBench (Table 1)",
    "",
    "| Model | Avg. | S-Doc QA | M-Doc QA | Summ | Few-shot | Code |",
    "| ----- | ---: | -------: | -------: | ---: | -------: | ---: |",
    "| base  | 42.5 |     15.0 |     30.0 | 45.0 |     60.0 | 72.5 |",
    "| tuned | 44.5 |     17.0 |     32.0 | 47.0 |     62.0 | 74.5 |",
  ]


def test_an_incomplete_average_is_marked(tmp_path):
  summary = long_summary(
    {"qmsum": 20, "multi_news": 24, "trec": 50, "triviaqa": 40, "samsum": 30},
    sizes={"multi_news": 40},
  )
  a = save(tmp_path / "a", "longbench", summary, "base", OPTIONS)
  text, tables = run(a)
  table = tables[TABLE_1]
  assert values(table) == {"base": {"Avg.": 32.8, "Summ": 22.0, "Few-shot": 40.0}}
  cells = table["rows"][0]["cells"]
  assert not cells["Few-shot"]["partial"]  # all of its sets
  assert cells["Avg."]["partial"].startswith(
    "mean of 5 set(s); multi_news: 40 of 200 records; not evaluated: narrativeqa, "
  )
  assert cells["Summ"]["partial"] == (
    "gov_report 0 of 200 records, multi_news 40 of 200 records"
  )
  row = next(line for line in text.splitlines() if line.startswith("| base"))
  shown = [cell.strip() for cell in row.strip("|").split("|")]
  assert shown == ["base", "32.8*", "-", "-", "22.0*", "40.0", "-"]
  assert "- \\* base, Summ: gov_report 0 of 200 records" in text


def lm_eval(groups=None, **tasks):
  return {"average": 0.1, "tasks": tasks} | ({"groups": groups} if groups else {})


def test_table_2_joins_results_of_a_model(tmp_path):
  a = save(tmp_path / "a", "longbench", long_summary(WHOLE), "base", OPTIONS)
  b = save(tmp_path / "b", "longbench", long_summary(WHOLE), "other", OPTIONS)
  short = lm_eval(
    dict(
      mmlu={"acc": interval(0.642), "acc_norm": interval(0.1)},
      bbh={"exact_match,get-answer": interval(0.43)},
    ),
    mmlu_law={"acc": interval(0.1)},
    bbh_cot_fewshot_dates={"exact_match,get-answer": interval(0.2)},
    humaneval={"pass@1,create_test": interval(0.199)},
  )
  c = save(tmp_path / "c", "lm_eval", short, "base", {"tasks": "mmlu,bbh,humaneval"})
  tydi = lm_eval(
    dict(tydiqa_gold={"exact_match": interval(0.1), "f1": interval(0.162)}),
    tydiqa_gold_thai={"f1": interval(0.1)},
    gsm8k={
      "exact_match,strict": interval(0.25),
      "exact_match,flexible": interval(0.5),
    },
  )
  d = save(tmp_path / "d", "lm_eval", tydi, "base", {"tasks": "tydiqa_gold,gsm8k"})
  e = save(tmp_path / "e", "lm_eval", short, "third", {"tasks": "humaneval,mmlu,bbh"})
  text, tables = run(a, b, c, d, e)
  table = tables[TABLE_2]
  assert table["columns"] == [
    "LongBench", "MMLU", "BBH", "TydiQA", "Codex-Eval (HumanEval)"
  ]  # fmt: skip
  found = values(table)
  assert list(found) == ["base", "other", "third"]
  assert found["base"] == pytest.approx(
    {"LongBench": 42.5, "MMLU": 64.2, "BBH": 43.0, "TydiQA": 16.2,
     "Codex-Eval (HumanEval)": 19.9}
  )  # fmt: skip
  assert found["other"] == {"LongBench": 42.5}
  assert "LongBench" not in found["third"]
  assert [line for line in text.splitlines() if line.startswith("| third")] == [
    "| third |         - | 64.2 | 43.0 |      - |                   19.9 |"
  ]
  assert table["notes"] == []  # other tasks are not another protocol
  assert values(tables[OTHERS]) == {"base": {"gsm8k": 25.0}}


def test_parts_of_a_short_benchmark_are_marked(tmp_path):
  parts = lm_eval(
    mmlu_law={"acc": interval(0.4)}, mmlu_art={"acc": interval(0.6)},
    bbh={"exact_match": interval(0.5)},
    bbh_cot_fewshot_dates={"exact_match": interval(0.1)},
  )  # fmt: skip
  a = save(tmp_path / "a", "lm_eval", parts)
  _, tables = run(a)
  assert values(tables[TABLE_2]) == {"llama": {"MMLU": 50.0, "BBH": 50.0}}
  assert tables[TABLE_2]["notes"] == [
    "* llama, MMLU: mean of 2 task(s), mmlu_law, mmlu_art"
  ]
  few = lm_eval(
    bbh={"exact_match": interval(0.5)},
    humaneval={"pass@1": interval(0.5)},
    mmlu_law={"acc": interval(0.4)},
  )
  b = save(tmp_path / "b", "lm_eval", few, limit=9)
  _, tables = run(b)
  assert tables[TABLE_2]["notes"] == [
    "* llama, MMLU: mean of 1 task(s), mmlu_law; only the first 9",
    "* llama, BBH, Codex-Eval (HumanEval): only the first 9",
  ]


def test_benchmarks_whose_names_begin_alike_are_others(tmp_path):
  exact = lambda mean: {"exact_match,custom-extract": interval(mean)}
  found = lm_eval(
    dict(mmlu={"acc": interval(0.6)}, mmlu_stem={"acc": interval(0.5)},
         mmlu_pro=exact(0.3), bbh_zeroshot=exact(0.2)),
    mmlu_professional_law={"acc": interval(0.6)}, mmlu_pro_law=exact(0.3),
    mmlu_law_generative=exact(0.1), bbh_zeroshot_snarks=exact(0.2),
    humaneval={"pass@1,create_test": interval(0.25)},
    humaneval_plus={"pass@1,create_test": interval(0.125)},
  )  # fmt: skip
  _, tables = run(save(tmp_path / "a", "lm_eval", found))
  short = {"MMLU": 60.0, "Codex-Eval (HumanEval)": 25.0}
  assert values(tables[TABLE_2]) == {"llama": short}
  assert tables[TABLE_2]["notes"] == []
  assert values(tables[OTHERS])["llama"] == pytest.approx(
    {"mmlu_pro": 30.0, "mmlu_pro_law": 30.0, "mmlu_law_generative": 10.0,
     "bbh_zeroshot": 20.0, "bbh_zeroshot_snarks": 20.0, "humaneval_plus": 12.5}
  )  # fmt: skip
  alone = lm_eval(dict(mmlu_pro=exact(0.3)), mmlu_pro_law=exact(0.3))
  _, tables = run(save(tmp_path / "b", "lm_eval", alone))
  assert set(tables) == {OTHERS}


def test_tasks_of_lm_eval_with_other_metrics_are_shown_as_they_are(tmp_path):
  found = lm_eval(
    infinitebench_passkey={"score": interval(0.75)},
    wikitext={"word_perplexity": interval(20.5), "bits_per_byte": interval(0.9)},
    mbpp={"pass_at_1,extract": interval(0.5)},
    squadv2={"exact": interval(0.5), "f1": interval(0.8)},  # percents
    scrolls_qasper={"f1": interval(30.0)},
  )
  _, tables = run(save(tmp_path / "a", "lm_eval", found))
  assert values(tables[OTHERS]) == {
    "llama": {
      "infinitebench_passkey score": 0.75,
      "wikitext word_perplexity": 20.5,
      "mbpp pass_at_1": 0.5,
      "squadv2": 0.8,
      "scrolls_qasper": 30.0,
    }
  }


@pytest.mark.parametrize(
  ("changes", "note"),
  [
    (dict(options=OPTIONS | {"max_length": 3500}),
     "--max_length is 15500 in {a}, 3500 in {b}"),
    (dict(limit=7), "limit is 0 in {a}, 7 in {b}"),
    (dict(compute_dtype="float32"), "compute_dtype is bfloat16 in {a}, float32 in {b}"),
    (dict(skipalign_jax="0.2"), "skipalign_jax is 0.1.0 in {a}, 0.2 in {b}"),
    (dict(lm_eval="0.5"), "lm_eval is not recorded in {a}, 0.5 in {b}"),
    (dict(options=OPTIONS | {"new": 1}), "--new is not recorded in {a}, 1 in {b}"),
  ],
)  # fmt: skip
def test_other_protocols_are_noted(tmp_path, changes, note):
  summary = long_summary(WHOLE)
  a = save(tmp_path / "a", "longbench", summary, "base", OPTIONS)
  fields = dict(model="tuned", options=OPTIONS) | changes
  b = save(tmp_path / "b", "longbench", summary, **fields)
  text, tables = run(a, b)
  wanted = "longbench: protocols differ, " + note.format(a=a, b=b)
  assert tables[TABLE_1]["notes"] == [wanted]
  assert f"- {wanted}" in text


def test_prompts_are_compared_by_content(tmp_path):
  summary = long_summary(WHOLE)
  a = save(tmp_path / "a", "longbench", summary, "base", OPTIONS)
  b = save(tmp_path / "b", "longbench", summary, "b", OPTIONS | {"prompts": "/other"})
  assert run(a, b)[1][TABLE_1]["notes"] == []
  changed = summary | {"prompts": "lm_eval 0.4.13"}
  c = save(tmp_path / "c", "longbench", changed, "c", OPTIONS)
  (note,) = run(a, b, c)[1][TABLE_1]["notes"]
  assert note == (
    f"longbench: protocols differ, --prompts is official in {a} and {b}, "
    f"lm_eval 0.4.13 in {c}"
  )


def test_other_items_of_the_same_protocol_are_noted(tmp_path):
  """A book that was edited between two evaluations leaves no other trace."""

  def of(name, items, tokenizer="one", task="perplexity", **more):
    same = dict(items_sha256=items, tokenizer_sha256=tokenizer)
    options = {"files": "book.txt"}
    return save(tmp_path / name, task, {task: 2.5}, name, options, **same, **more)

  a, b, c = of("a", "x"), of("b", "y"), of("c", "z", tokenizer="two")
  (note,) = run(a, b, c)[1][OTHERS]["notes"]
  assert note.startswith(f"perplexity: items differ in {a} and in {b}; files have")
  assert run(a, c, of("d", "x"))[1][OTHERS]["notes"] == []
  limited = run(a, of("e", "y", limit=3))[1][OTHERS]["notes"]  # for this reason
  assert not any("items differ" in note for note in limited)


def test_heat_maps_of_one_model_are_told_apart(tmp_path, monkeypatch):
  maps = []
  monkeypatch.setattr(compare.heatmap, "draw", lambda panels, path: maps.extend(panels))
  a = needle_results(tmp_path / "a")
  b = needle_results(tmp_path / "b", rope={"kind": "none", "factor": 1.0})
  c = needle_results(tmp_path / "c")
  run(a, b, c, out=str(tmp_path / "out"))
  assert [one["title"].split("\n")[0] for one in maps] == [
    "llama, rope ntk × 8.0", "llama, rope none × 1.0", f"llama, rope ntk × 8.0 [{c}]",
  ]  # fmt: skip
  assert all("passkey" in one["title"].split("\n")[1] for one in maps)


def test_a_second_result_of_a_model_has_its_own_table_row(tmp_path):
  summary = long_summary(WHOLE)
  a = save(tmp_path / "a", "longbench", summary, "base", OPTIONS)
  short = OPTIONS | {"max_length": 3500}
  b = save(tmp_path / "b", "longbench", summary, "base", short)
  c = save(tmp_path / "c", "longbench", summary, "base", OPTIONS, rope={"kind": "none"})
  _, tables = run(a, b, a, c)  # a twice is one result
  assert [row["model"] for row in tables[TABLE_1]["rows"]] == [
    "base, rope ntk × 8.0",
    f"base, rope ntk × 8.0 [{b}]",
    "base, rope none × None",
  ]
  assert [row["folders"] for row in tables[TABLE_1]["rows"]] == [[a], [b], [c]]


def test_results_of_other_weights_have_their_own_table_row(tmp_path):
  of = lambda name, task, summary, **protocol: save(
    tmp_path / name, task, summary, "m", {}, compute_dtype="float32", **protocol
  )
  a = of("a", "ruler", {"average": 0.5}, weights="one")
  b = of("b", "mrcr", {"average": 0.25}, weights="other")
  c = of("c", "babilong", {"average": 0.25}, weights="one")
  _, tables = run(a, b, c)
  assert [row["folders"] for row in tables[OTHERS]["rows"]] == [[a, c], [b]]


def test_a_folder_that_is_named_twice_is_shown_once(tmp_path, monkeypatch):
  save(tmp_path / "a", "longbench", long_summary(WHOLE), "base", OPTIONS)
  (tmp_path / "link").symlink_to("a")
  monkeypatch.chdir(tmp_path)
  printed, tables = run("a", "./a", "link", str(tmp_path / "a"))
  assert [row["folders"] for row in tables[TABLE_1]["rows"]] == [["a"]]
  assert "./a is the same folder as a before it; it counts once" in printed
  assert printed.count("counts once") == 3 and "differ" not in printed


def test_longbench_e_has_a_table_by_length(tmp_path):
  options = longbench_task.Options(e=True)
  whole = dict.fromkeys(longbench_task.expected(True), 30)
  a = save(
    tmp_path / "a", "longbench", long_summary(whole, options), options={"e": True}
  )
  _, tables = run(a)
  assert set(tables) == {"LongBench-E"}
  assert tables["LongBench-E"]["columns"] == ["Avg.", "0-4k", "4-8k", "8k+"]
  assert values(tables["LongBench-E"]) == {"llama": {"Avg.": 30.0, "4-8k": 30.0}}


def needle_results(folder, variant="passkey", model="llama", rope=ROPE, **changes):
  options = needle.Options(variant=variant)
  items = [
    {"id": f"{n}/{d}", "length": n, "depth": d, "score": float(n < 2000)}
    for n in (1024, 2048)
    for d in (0.1, 0.9)
  ]
  summary = needle.summarize(options, items)
  given = {"variant": variant, "lengths": "1024,2048"} | changes
  return save(folder, "needle", summary, model, given, items, rope=rope)


def test_a_mean_of_a_part_of_the_tasks_is_marked(tmp_path):
  lacks = ["qa_1 (no --qa)", "qa_2 (no --qa)"]
  summary = {"average": 0.25, "mean_of": "11 of 13 tasks", "lacks": lacks}
  text, tables = run(save(tmp_path / "a", "ruler", summary))
  assert "0.25*" in text
  assert tables[OTHERS]["notes"] == [
    "* llama, ruler: without qa_1 (no --qa), qa_2 (no --qa)"
  ]
  assert "*" not in run(save(tmp_path / "b", "ruler", summary | {"lacks": []}))[0]


def test_other_tasks_and_heat_maps(tmp_path):
  folders = [
    needle_results(tmp_path / "a"),
    needle_results(tmp_path / "b", "sandwich"),
    needle_results(tmp_path / "c", model="tuned", lengths="1024,2048,4096"),
    save(tmp_path / "d", "ruler", {"x": "text", "average": 0.25}, notes=["3 beyond"]),
    save(tmp_path / "e", "perplexity", {"done": True, "perplexity": interval(12.3456)}),
  ]
  text, tables = run(*folders, out=str(tmp_path / "out"))
  assert set(tables) == {OTHERS}
  assert values(tables[OTHERS]) == {
    "llama": {
      "needle passkey": 0.5,
      "needle sandwich": 0.5,
      "ruler": 0.25,
      "perplexity": 12.3456,
    },
    "tuned": {"needle passkey": 0.5},
  }
  assert tables[OTHERS]["notes"] == [
    f"{folders[3]}: 3 beyond",
    f"needle passkey: protocols differ, --lengths is 1024,2048 in {folders[0]}, "
    f"1024,2048,4096 in {folders[2]}",
  ]
  written = tmp_path / "out"
  assert (written / "needle.png").read_bytes().startswith(b"\x89PNG")
  assert (written / "compare.md").read_text() in text + "\n"
  assert json.loads((written / "compare.json").read_text())["tables"] == [
    tables[OTHERS]
  ]
  assert "|      12.35 |" in text
  assert f"written to {written}: compare.html, .md, .json and needle.png\n" in text


def test_nothing_is_written_without_out(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run(needle_results(tmp_path / "a"))
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_numbers_that_are_not_finite_are_shown_but_not_in_the_json(tmp_path):
  a = save(tmp_path / "a", "perplexity", {"average": float("nan")})
  text, tables = run(a)
  assert "nan" in text and values(tables[OTHERS]) == {"llama": {}}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "name folders that `evaluate` wrote"),
    ("{", "not valid JSON.*delete it"),
    ("[]", "not a JSON object"),
    ('{"protocol": {"x": %s}}' % ("1" * 4000), "a number of 4,000 digits"),
    ('{"protocol": {}}', "has no 'summary'"),
    ('{"protocol": {}, "summary": {}, "items": [], "notes": []}', "has no 'task'"),
  ],
)
def test_bad_folders_are_named(tmp_path, content, message):
  if content is not None:
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
  with pytest.raises(errors.UserError, match=message) as caught:
    run(str(tmp_path))
  assert str(tmp_path / "results.json") in str(caught.value)


def test_an_unfinished_evaluation_is_not_a_wrong_folder(tmp_path):
  (tmp_path / "protocol.json").write_text("{}")
  with pytest.raises(errors.UserError, match="run its command again"):
    run(str(tmp_path))
  with pytest.raises(errors.UserError, match="needs folders"):
    run()


@pytest.mark.parametrize(
  ("task", "summary"),
  [
    ("longbench", {}),
    ("longbench", {"sets": {"lcc": 3}, "average": 1}),
    ("lm_eval", {"tasks": {"mmlu": {"acc": 0.5}}}),
    ("lm_eval", {"tasks": None}),
    ("lm_eval", {"tasks": {"mmlu": {"acc": {"mean": [0.5]}}}}),
    ("lm_eval", {"tasks": {"x": {"f1": {"mean": "half"}}}}),
  ],
)
def test_damaged_summaries_are_named(tmp_path, task, summary):
  a = save(tmp_path / "a", task, summary, options={"e": False})
  with pytest.raises(errors.UserError, match=f"{task} is not complete"):
    run(a)


def test_damaged_needle_items_and_a_bad_out_are_named(tmp_path):
  a = save(
    tmp_path / "a", "needle", {"average": 0.5, "score": "fu"}, items=[{"length": 1}],
    options={"variant": "passkey"},
  )  # fmt: skip
  with pytest.raises(errors.UserError, match="what a heat map needs"):
    run(a, out=str(tmp_path / "out"))
  window = needle_results(tmp_path / "window")
  path = tmp_path / "window" / "results.json"
  path.write_text(path.read_text().replace('"window": 4096', '"window": "4096"'))
  with pytest.raises(errors.UserError, match=r"heat map needs.*window is '4096'"):
    run(window, out=str(tmp_path / "out"))
  b = needle_results(tmp_path / "b")
  (tmp_path / "file").write_text("")
  with pytest.raises(errors.UserError, match="cannot be written"):
    run(b, out=str(tmp_path / "file"))


def test_names_and_notes_are_text_in_every_format(tmp_path):
  evil = "a|b<img src=x>\n# c\x1b[2J[d](e)"
  summary = {"average": 0.5}
  a = save(tmp_path / "a", "ruler", summary, evil, notes=[evil])
  b = save(tmp_path / "b", "lm_eval", lm_eval(**{evil: {"acc": interval(0.5)}}), "m")
  shown, tables = run(a, b, out=str(tmp_path / "out"))
  written = (tmp_path / "out/compare.md").read_text()
  assert "\x1b" not in shown + written and "<" not in written.replace("\\<", "")
  rows = [line for line in written.splitlines() if line.startswith("| ")]
  assert {line.replace("\\|", "").count("|") for line in rows} == {4}
  assert not any(line.startswith("# c") for line in written.splitlines())
  page = (tmp_path / "out/compare.html").read_text()
  assert "\x1b" not in page and "<img" not in page
  assert page.count("a|b&lt;img src=x&gt;\\n# c\\x1b[2J[d](e)") == 3  # twice a name
  assert evil in values(tables[OTHERS])  # JSON has the name itself

"""LongBench: records, prompts, truncation, templates, scores, bad data."""

import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import types
import zipfile
from unittest import mock

import huggingface_hub
import pytest
import tiny
from rich import console as rich_console
from tokenizers import processors

from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import runner
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.longbench import data, official
from skipalign_jax.evals.longbench import task as longbench_task
from skipalign_jax.model import backends, inference
from skipalign_jax.runtime import errors

CONFIG = tiny.config(vocab_size=260)
PARAMS = tiny.params(CONFIG)
SETS = list(longbench_task.SETS)
RAW = ["trec", "triviaqa", "samsum", "lcc", "repobench-p"]
BEFORE, AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def small_lengths(monkeypatch):
  monkeypatch.setattr(backends, "TILE", 8)
  monkeypatch.setattr(backends, "CPU_BLOCK", 8)


@pytest.fixture
def subject():
  engine = inference.Engine(PARAMS, CONFIG, "float32")
  tokenizer = tokenizer_lib.byte_tokenizer()
  identity = subject_lib.identity("tiny", CONFIG, tokenizer, "float32")
  return subject_lib.Subject(engine, tokenizer, identity, batch_tokens=1024, eos_ids=())


def record(context="some context", **changes):
  fields = dict(
    input="what?", context=context, answers=["yes"], length=7, all_classes=None
  )
  return fields | changes


def write(folder, name, records):
  path = folder / f"{name}.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
  return path


@pytest.fixture
def prompts(tmp_path):
  """A folder of prompts: C and I around context and input, six new tokens."""
  folder = tmp_path / "prompts"
  folder.mkdir()
  texts = {name: "C{context}I{input}" for name in SETS}
  (folder / "dataset2prompt.json").write_text(json.dumps(texts), encoding="utf-8")
  lengths = {name: 6 + i for i, name in enumerate(SETS)}
  (folder / "dataset2maxlen.json").write_text(json.dumps(lengths), encoding="utf-8")
  return str(folder)


@pytest.fixture
def options(tmp_path, prompts):
  folder = tmp_path / "data"
  folder.mkdir()
  for name in SETS:
    fields = dict(all_classes=["yes", "no"])
    write(
      folder, name, [record(f"{name} {i}", _id=f"id{i}", **fields) for i in range(3)]
    )

  def make(**changes):
    return longbench_task.Options(**dict(data=str(folder), prompts=prompts) | changes)

  return make


def text_of(subject, item):
  return subject.tokenizer.decode(item.query.tokens)


def test_all_are_the_papers_14_sets_with_their_lengths(subject, options):
  items = longbench_task.items(options(per_set=1), subject)
  assert [item.id for item in items] == [
    f"{name}/0"
    for name in "narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique "
    "gov_report qmsum multi_news trec triviaqa samsum lcc repobench-p".split()
  ]
  for item in items:
    assert item.query.max_new_tokens == 6 + SETS.index(item.record["set"])


def test_longbench_e_has_13_sets(subject, options, tmp_path):
  for name in SETS:
    answer = "Paragraph 3" if name == "passage_retrieval_en" else "3"
    write(tmp_path / "data", f"{name}_e", [record(answers=[answer], all_classes=["3"])])
  items = longbench_task.items(options(e=True), subject)
  assert len(items) == 13
  assert {"passage_count_e/0", "passage_retrieval_en_e/0"} <= {i.id for i in items}
  assert not any("narrativeqa" in i.id or "musique" in i.id for i in items)
  with pytest.raises(errors.UserError, match="no set 'musique' in LongBench-E"):
    longbench_task.items(options(e=True, tasks="musique"), subject)


def test_prompts_use_the_template_except_few_shot_and_code(subject, options):
  for item in longbench_task.items(options(per_set=1), subject):
    name = item.record["set"]
    plain = f"C{name} 0Iwhat?"
    wanted = plain if name in RAW else BEFORE + plain + AFTER
    assert text_of(subject, item) == wanted
    assert item.record["tokens"] == len(item.query.tokens)
    assert item.record["tokens_before"] == item.record["tokens_after"] == len(plain)
  for item in longbench_task.items(options(per_set=1, chat=False), subject):
    assert text_of(subject, item) == f"C{item.record['set']} 0Iwhat?"


def test_there_is_one_bos_token(subject, options):
  subject.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 1)]
  )
  raw, templated = longbench_task.items(
    options(tasks="lcc,qasper", per_set=1), subject
  )[::-1]
  assert raw.query.tokens[0] == 1 and raw.query.tokens.count(1) == 1
  assert 1 not in templated.query.tokens  # this template writes none
  # It counts, but is not in the remaining text.
  assert longbench_task.truncate(subject, "abcdefgh", 9) == ("abcdefgh", 9, 9)
  assert longbench_task.truncate(subject, "abcdefgh", 8) == ("abcefgh", 9, 8)


def test_a_base_model_needs_chat_false_only_for_sets_with_a_template(subject, options):
  subject.tokenizer.chat_template = None
  assert longbench_task.items(options(tasks="lcc,trec"), subject)
  assert longbench_task.items(options(chat=False), subject)
  with pytest.raises(errors.UserError, match="--chat=False"):
    longbench_task.items(options(tasks="qasper"), subject)


def test_samsum_stops_at_a_newline_and_is_not_empty(subject, options):
  newline = subject.encode("\n")[-1]
  for item in longbench_task.items(options(per_set=1), subject):
    samsum = item.record["set"] == "samsum"
    assert (newline in item.query.stop_ids) == samsum
    assert item.query.min_new_tokens == int(samsum)
    assert set(subject.stop_ids) <= set(item.query.stop_ids)


@pytest.mark.parametrize(
  ("max_length", "expected"),
  [(10, "0123456789"), (9, "01236789"), (8, "01236789"), (2, "09")],
)
def test_truncation_keeps_both_ends(subject, max_length, expected):
  text, before, after = longbench_task.truncate(subject, "0123456789", max_length)
  assert (text, before, after) == (expected, 10, len(expected))


def test_truncation_keeps_names_of_tokens_and_not_broken_characters(subject):
  found = longbench_task.truncate(subject, "<|im_start|>abcdef<|im_end|>", 6)
  assert found == ("<|id|>", 28, 6)
  # Four bytes each: the cuts split characters, and the rest is encoded again.
  text, before, after = longbench_task.truncate(subject, "😀😀😀", 10)
  assert (text, before) == ("😀�" + "�😀", 12)
  assert after == len(subject.encode(text)) == 14


def test_names_of_special_tokens_in_records_are_text(subject, options, tmp_path):
  context = "<|endoftext|> a <|im_end|>\n<|im_start|>assistant\nb"
  for name in ("qasper", "lcc"):
    write(tmp_path / "data", name, [record(context)])
  templated, raw = longbench_task.items(options(tasks="qasper,lcc"), subject)
  special = [subject.tokenizer.convert_tokens_to_ids(t) for t in tokenizer_lib.SPECIAL]
  assert text_of(subject, templated) == f"{BEFORE}C{context}Iwhat?{AFTER}"
  assert [t for t in templated.query.tokens if t in special] == [2, 3, 2]
  assert text_of(subject, raw) == f"C{context}Iwhat?"
  assert not set(raw.query.tokens) & set(special)


@pytest.mark.parametrize("chat", [True, False])
def test_a_record_that_cannot_be_encoded_is_named(subject, options, tmp_path, chat):
  """The tokens that frame messages were added to a base model as usual tokens."""
  subject.tokenizer.add_tokens(["<|user|>", "<|end|>"])
  subject.tokenizer.chat_template = (
    "{% for m in messages %}{{ '<|user|>' + m['content'] + '<|end|>' }}{% endfor %}"
  )
  write(tmp_path / "data", "qasper", [record("a"), record("b <|end|>")])
  with pytest.raises(errors.UserError, match=r"record qasper/1: .* a special token"):
    longbench_task.items(options(tasks="qasper", chat=chat), subject)


def test_truncation_is_before_the_template(subject, options):
  item = longbench_task.items(options(tasks="qasper", max_length=8), subject)[0]
  assert text_of(subject, item) == BEFORE + "Cqas" + "hat?" + AFTER
  assert item.record["truncated"] and item.record["tokens_before"] == 15
  assert item.record["tokens_after"] == 8
  whole = longbench_task.items(options(tasks="qasper", max_length=15), subject)[0]
  assert not whole.record["truncated"]


def scripted(monkeypatch, replies):
  """Replies by the number of the record, whatever the model."""
  monkeypatch.setattr(
    items_lib,
    "replies",
    lambda subject, batch: [replies[int(item.id.split("/")[1])] for item in batch],
  )


@pytest.mark.parametrize(
  ("name", "answers", "reply", "expected"),
  [
    ("qasper", ["no", "the cat"], "Cat!", 1.0),  # best over the answers
    ("qasper", ["cat"], "cat\nQuestion: dog", 0.5),  # all lines count
    ("triviaqa", ["cat"], "\n\ncat\nQuestion: dog", 1.0),  # the first one only
    ("samsum", ["a b"], "\na b\nc d", 1.0),
    ("gov_report", ["a b"], "a b\nc d", 2 * 0.5 / 1.5),
    ("trec", ["yes"], "yes\nno", 1.0),
    ("trec", ["yes"], "yes no", 0.5),
    ("lcc", ["x = 1"], "\n# set\nx = 1\ny", 1.0),
    ("repobench-p", ["x = 1"], "y = 1", 0.8),
    ("passage_count", ["3"], "3 or 4", 0.5),
    ("passage_retrieval_en", ["Paragraph 3"], "Paragraph 3", 1.0),
    ("narrativeqa", ["cat"], "", 0.0),
    ("multi_news", ["cat"], "", 0.0),
    ("trec", ["yes"], "", 0.0),
    ("lcc", ["x = 1"], "", 0.0),
  ],
)
def test_scores(
  monkeypatch, subject, options, tmp_path, name, answers, reply, expected
):
  write(tmp_path / "data", name, [record(answers=answers, all_classes=["yes", "no"])])
  scripted(monkeypatch, [reply])
  given = options(tasks=name)
  (found,) = longbench_task.measure(
    given, subject, longbench_task.items(given, subject)
  )
  assert found["prediction"] == reply
  assert found["score"] == pytest.approx(expected, abs=1e-6)


def records_of(scores, lengths=(1,) * 500):
  """Records by set: scores and lengths of the records."""
  return [
    dict(set=name, score=score, length=lengths[i], truncated=i == 0, prompts="p")
    for name, found in scores.items()
    for i, score in enumerate(found)
  ]


def test_the_average_is_the_plain_mean_of_the_14():
  means = dict(zip(longbench_task.expected(e=False), range(14), strict=True))
  size = longbench_task.expected(e=False)
  records = records_of(
    {name: [mean / 100] * size[name] for name, mean in means.items()},
  )
  summary = longbench_task.summarize(longbench_task.Options(), records)
  assert summary["complete"] and summary["lacks"] == []
  assert summary["average"] == 6.5
  # The mean of the five categories would be 1, 4, 7, 10, 12.5: another number.
  assert summary["categories"] == {
    "S-Doc QA": 1.0,
    "M-Doc QA": 4.0,
    "Summ": 7.0,
    "Few-shot": 10.0,
    "Code": 12.5,
  }
  assert {name: found["mean"] for name, found in summary["sets"].items()} == means
  assert summary["truncated"] == 14


SIZES = longbench_task.expected(e=False)


@pytest.mark.parametrize(
  ("changes", "lacks"),
  [
    ({"qmsum": 199}, ["qmsum: 199 of 200 records"]),
    ({"lcc": 0, "qasper": 0}, ["not evaluated: qasper, lcc"]),
    ({"passage_count": 1}, ["also counted: passage_count"]),
    (
      dict.fromkeys(SIZES, 0) | {"trec": 7, "passage_count": 1},
      [
        "trec: 7 of 200 records",
        f"not evaluated: {', '.join(name for name in SIZES if name != 'trec')}",
        "also counted: passage_count",
      ],
    ),
  ],
)
def test_a_part_is_not_complete(changes, lacks):
  records = records_of({name: [1.0] * n for name, n in (SIZES | changes).items()})
  summary = longbench_task.summarize(longbench_task.Options(), records)
  assert not summary["complete"] and summary["average"] == 100
  assert summary["lacks"] == lacks


def test_sets_are_rounded_to_two_digits_and_have_intervals():
  summary = longbench_task.summarize(
    longbench_task.Options(),
    records_of({"qasper": [0.0, 1 / 3, 1.0], "trec": [0, 1, 1, 1]}),
  )
  qasper, trec = summary["sets"]["qasper"], summary["sets"]["trec"]
  assert qasper["mean"] == 44.44 and trec["mean"] == 75.0
  assert summary["average"] == 59.72
  assert 0 <= qasper["low"] < 44.44 < qasper["high"] <= 100 and qasper["n"] == 3
  assert (trec["low"], trec["high"]) == (30.06, 95.44)  # Wilson's, of 3 hits in 4


def test_buckets_of_longbench_e():
  lengths = [0, 3999, 4000, 7999, 8000, 90_000]
  summary = longbench_task.summarize(
    longbench_task.Options(e=True),
    records_of(
      {"qasper": [1, 0, 1, 1, 0, 0], "lcc": [0.5, 0.5]},
      lengths,
    ),
  )
  assert summary["sets_by_length"] == {
    "qasper": {"0-4k": 50.0, "4-8k": 100.0, "8k+": 0.0},
    "lcc": {"0-4k": 50.0, "4-8k": None, "8k+": None},
  }
  assert summary["by_length"] == {"0-4k": 50.0, "4-8k": 100.0, "8k+": 0.0}
  assert summary["average"] == 50 and not summary["complete"]
  assert "by_length" not in longbench_task.summarize(
    longbench_task.Options(), records_of({"lcc": [0.5]})
  )


def test_a_run_of_a_real_engine(subject, options, tmp_path):
  out = tmp_path / "out"
  given = options(tasks="samsum, qasper", per_set=2)
  quiet = rich_console.Console(file=io.StringIO())
  results = runner.run("longbench", longbench_task, given, subject, out, quiet)
  assert [item["id"] for item in results["items"]] == [
    "qasper/0",
    "qasper/1",
    "samsum/0",
    "samsum/1",
  ]
  for item in results["items"]:
    assert item.keys() >= {
      "set", "length", "tokens_before", "tokens_after", "truncated", "prediction",
      "answers", "score",
    }  # fmt: skip
    assert item["prediction"]  # not empty, even of a tiny random model
  alone = items_lib.replies(subject, longbench_task.items(given, subject)[:1])
  assert results["items"][0]["prediction"] == alone[0]
  assert json.loads((out / "results.json").read_text())["summary"]["lacks"]


def test_gzip_and_zip_have_the_same_records(subject, options, tmp_path, monkeypatch):
  plain = tmp_path / "data" / "qasper.jsonl"
  expected = data.records(str(plain.parent), "qasper", 0)
  assert len(expected) == 3
  packed = tmp_path / "packed"
  packed.mkdir()
  (packed / "qasper.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
  assert data.records(str(packed), "qasper", 0) == expected
  archive = packed / "data.zip"
  with zipfile.ZipFile(archive, "w") as file:
    file.write(plain, "data/qasper.jsonl")
  assert data.records(str(archive), "qasper", 0) == expected
  with pytest.raises(errors.UserError, match=r"no lcc\.jsonl"):
    data.records(str(archive), "lcc", 0)

  monkeypatch.setattr(data.hub, "is_reachable", lambda: True)
  calls = []
  download = lambda *args, **kwargs: calls.append((args, kwargs)) or str(archive)
  monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
  assert data.records("hub", "qasper", 2) == expected[:2]
  asked = {"repo_type": "dataset", "local_files_only": False}
  assert calls == [(("THUDM/LongBench", "data.zip"), asked)]

  def offline(*args, **kwargs):
    raise ConnectionError("no route\nto host")

  monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
  with pytest.raises(errors.UserError, match=r"data.zip could.*\(no route\).*network"):
    data.records("hub", "qasper", 2)
  monkeypatch.undo()
  monkeypatch.setattr(data.hub, "is_reachable", lambda: False)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "no"))
  with pytest.raises(errors.UserError, match=r"data.zip could.*cannot be reached"):
    data.records("hub", "qasper", 2)


GOOD = json.dumps(record())


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"input": "x", ', "not JSON"),
    ("[]", "JSON object"),
    (json.dumps(record(context="")), "'context' must be"),
    (json.dumps(record(context=" \n")), "'context' must be"),
    (json.dumps(record(context=None)), "'context' must be"),
    (json.dumps(record(answers=[])), "'answers' must be"),
    (json.dumps(record(answers="yes")), "'answers' must be"),
    (json.dumps(record(length="long")), "'length' must be a whole number"),
    *(
      (json.dumps({k: v for k, v in record().items() if k != key}), f"no '{key}'")
      for key in ("input", "context", "answers", "length", "all_classes")
    ),
  ],
)
def test_bad_lines_are_named(subject, options, tmp_path, line, message):
  path = tmp_path / "data" / "qasper.jsonl"
  path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n", encoding="utf-8")
  with pytest.raises(errors.UserError, match=message) as caught:
    longbench_task.items(options(tasks="qasper"), subject)
  assert f"{path}:3: " in str(caught.value)
  assert len(longbench_task.items(options(tasks="qasper", per_set=1), subject)) == 1


def test_records_must_fit_their_metric(subject, options, tmp_path):
  write(tmp_path / "data", "trec", [record()])
  with pytest.raises(errors.UserError, match=r"trec.jsonl:1: 'all_classes' must be"):
    longbench_task.items(options(tasks="trec"), subject)
  write(tmp_path / "data", "passage_retrieval_en", [record(answers=["12"])])
  with pytest.raises(errors.UserError, match=r":1: '12' "):
    longbench_task.items(options(tasks="passage_retrieval_en"), subject)


def test_bad_files_are_named(subject, options, tmp_path):
  folder = tmp_path / "data"
  (folder / "lcc.jsonl").unlink()
  with pytest.raises(errors.UserError, match=r"neither lcc.jsonl nor.*leave lcc out"):
    longbench_task.items(options(), subject)
  packed = gzip.compress((folder / "qasper.jsonl").read_bytes())
  (folder / "lcc.jsonl.gz").write_bytes(packed[: len(packed) // 2])
  with pytest.raises(errors.UserError, match=r"lcc.jsonl.gz: cannot be read"):
    longbench_task.items(options(tasks="lcc"), subject)
  (folder / "lcc.jsonl.gz").write_bytes(b"no gzip")
  with pytest.raises(errors.UserError, match=r"lcc.jsonl.gz: cannot be read"):
    longbench_task.items(options(tasks="lcc"), subject)
  (folder / "qmsum.jsonl").write_bytes(b"\n")
  with pytest.raises(errors.UserError, match=r"qmsum.jsonl has no records"):
    longbench_task.items(options(tasks="qmsum"), subject)
  (folder / "qmsum.jsonl").write_bytes(b'{"input": "\xff"}\n')
  with pytest.raises(errors.UserError, match=r"qmsum.jsonl:1: .*not JSON"):
    longbench_task.items(options(tasks="qmsum"), subject)
  (folder / "x.zip").write_bytes(b"no zip")
  with pytest.raises(errors.UserError, match=r"x.zip cannot be read"):
    longbench_task.items(options(data=str(folder / "x.zip")), subject)
  with pytest.raises(errors.UserError, match="no such folder"):
    longbench_task.items(options(data=str(folder / "nowhere")), subject)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(tasks="qasper,lsht"), "'lsht'.*narrativeqa"),
    (dict(tasks=""), "no set ''"),
    (dict(max_length=1), "--max_length=1"),
    (dict(per_set=-1), "--per_set=-1"),
    (dict(prompts="nowhere"), "dataset2prompt.json cannot be read"),
  ],
)
def test_bad_options_are_refused(subject, options, changes, message):
  with pytest.raises(errors.UserError, match=message):
    longbench_task.items(options(**changes), subject)


@pytest.mark.parametrize(
  ("file", "content", "message"),
  [
    ("dataset2prompt.json", "{", "cannot be read"),
    ("dataset2prompt.json", "[]", "has no str for 'qasper'"),
    ("dataset2prompt.json", '{"lcc": "x"}', "has no str for 'qasper'"),
    ("dataset2prompt.json", '{"qasper": "{contxt}"}', "cannot be filled"),
    ("dataset2prompt.json", '{"qasper": "{context"}', "cannot be filled"),
    *(
      ("dataset2prompt.json", json.dumps({"qasper": prompt}), "cannot be filled")
      for prompt in (
        "{context:>99999999999}",  # a width
        "{input!r}",
        "{context.__class__}",
        "{context[0]}",
        "{0}",
        "{}",
        "{context:{input}}",
        "}",
        "{context}" * 11,
      )
    ),
    ("dataset2maxlen.json", '{"qasper": "6"}', "has no int for 'qasper'"),
    ("dataset2maxlen.json", '{"qasper": true}', "has no int for 'qasper'"),
    ("dataset2maxlen.json", '{"qasper": 0}', "'qasper' must be from 1 to"),
    ("dataset2maxlen.json", f'{{"qasper": {"9" * 300}}}', "'qasper' must be from 1"),
    ("dataset2maxlen.json", f'{{"qasper": {"9" * 4000}}}', "4,000 digits"),
  ],
)
def test_bad_prompt_files_are_named(subject, options, tmp_path, file, content, message):
  (tmp_path / "prompts" / file).write_text(content, encoding="utf-8")
  with pytest.raises(errors.UserError, match=f"{file}.*{message}"):
    longbench_task.items(options(tasks="qasper"), subject)


def test_doubled_braces_of_a_prompt_are_braces(subject, options, tmp_path):
  path = tmp_path / "prompts" / "dataset2prompt.json"
  path.write_text(json.dumps({"lcc": "{{x}}{input}{{"}), encoding="utf-8")
  (item,) = longbench_task.items(options(tasks="lcc", per_set=1), subject)
  assert text_of(subject, item) == "{x}what?{"


def test_results_name_the_source_of_the_prompts(subject, options, tmp_path, prompts):
  source = lambda **changes: longbench_task.items(
    options(tasks="qasper", **changes), subject
  )[0].record["prompts"]
  mine = source()
  assert mine.startswith("dataset2prompt.json ")
  path = tmp_path / "prompts" / "dataset2prompt.json"
  path.write_text(path.read_text().replace("C{context}", "D{context}"))
  assert source() != mine and source().startswith("dataset2prompt.json ")


def test_braces_in_a_record_stay(subject, options, tmp_path):
  write(tmp_path / "data", "lcc", [record(context="f{x}{{y}}", input="{context}")])
  (item,) = longbench_task.items(options(tasks="lcc"), subject)
  assert text_of(subject, item) == "Cf{x}{{y}}I{context}"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval")
def test_without_a_folder_lm_evals_texts_are_used(subject, options, tmp_path):
  items = longbench_task.items(options(prompts="", per_set=1), subject)
  lengths = [128, 128, 64, 32, 32, 32, 512, 512, 512, 64, 32, 128, 64, 64]
  assert [item.query.max_new_tokens for item in items] == lengths
  for item in items:
    text = text_of(subject, item)
    assert f"{item.record['set']} 0" in text
    # The prompts of these sets do not have the record's input.
    silent = item.record["set"] in ("gov_report", "multi_news", "lcc")
    assert ("what?" in text) != silent
    assert "{" not in text
    assert item.record["prompts"].startswith("lm_eval 0.")


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval")
def test_without_a_folder_all_texts_are_longbenchs(subject, options, tmp_path):
  """Their white space, which lm_eval's files have lost in six sets."""
  name = "passage_retrieval_en"
  write(tmp_path / "data", name, [record(f"{name} 0", answers=["Paragraph 3"])])
  found = {
    item.record["set"]: item
    for item in longbench_task.items(
      options(prompts="", tasks=",".join(SETS), per_set=1, chat=False), subject
    )
  }
  for item in found.values():
    assert "official_prompt" not in item.record
    assert item.record["prompts"].endswith(", as in LongBench")
  for name in ("triviaqa", "samsum"):
    assert f"{name} 0\n\nwhat?" in text_of(subject, found[name])
  for name in ("lcc", "repobench-p"):
    assert text_of(subject, found[name]).endswith("Next line of code:\n")
  for name in ("passage_count", "passage_retrieval_en"):
    assert text_of(subject, found[name]).endswith("answer is: ")


def test_other_prompts_are_not_complete(subject, options):
  items = longbench_task.items(options(per_set=1), subject)
  assert all(item.record["official_prompt"] is False for item in items)
  records = records_of({name: [1.0] * n for name, n in SIZES.items()})
  for record in records:
    if record["set"] in ("trec", "lcc"):
      record["official_prompt"] = False
  summary = longbench_task.summarize(longbench_task.Options(), records)
  assert not summary["complete"]
  assert summary["lacks"] == ["prompts that differ from LongBench's: trec, lcc"]


def test_a_prompt_is_official_if_text_and_length_are():
  text = "{context}|{input}"
  fill = lambda record: text.format(**record)
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  with mock.patch.dict(official.PROMPTS, {"lcc": (digest, 64)}):
    assert official.is_official("lcc", fill, 64)
    assert not official.is_official("lcc", fill, 65)
    assert not official.is_official("lcc", lambda record: fill(record) + " ", 64)
    assert not official.is_official("qasper", fill, 64)


def test_without_a_folder_and_lm_eval_there_are_no_prompts(
  monkeypatch, subject, options
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError, match=r"--prompts.*install lm_eval"):
    longbench_task.items(options(prompts="", tasks="qasper"), subject)


def test_lm_evals_texts_are_rendered_as_it_does(
  monkeypatch, subject, options, tmp_path
):
  path = tmp_path / "tasks" / "longbench" / "qasper.yaml"
  path.parent.mkdir(parents=True)
  spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
  monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
  given = options(prompts="", tasks="qasper", chat=False)
  task = 'doc_to_text: "{{context}}|{{question}}\\n"\nmetric: !function a.b\n'
  path.write_text(task + "generation_kwargs: {max_gen_toks: 5}\n")
  item = longbench_task.items(given, subject)[0]
  assert text_of(subject, item) == "qasper 0|what?\n"  # with its last newline
  assert item.query.max_new_tokens == 5 and item.record["prompts"] == "lm_eval 9.9"
  for broken in (task, "[", "", task.replace("question", "ask")):
    path.write_text(broken)
    with pytest.raises(errors.UserError, match=r"lm_eval 9.9: .*qasper.yaml does not"):
      longbench_task.items(given, subject)
  path.unlink()
  with pytest.raises(errors.UserError, match=r"lm_eval 9.9: .*qasper.yaml does not"):
    longbench_task.items(given, subject)

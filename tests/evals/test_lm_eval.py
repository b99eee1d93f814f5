"""lm-evaluation-harness with our models: answers, resuming, tasks from files."""

import csv
import dataclasses
import gzip
import importlib.util
import json
import os
import pathlib
import shutil

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import datasets
import jax
import numpy as np
import pytest
import tiny
import tokenizers
import transformers
from lm_eval.api import instance
from lm_eval.tasks import manager as manager_lib
from rich import console as rich_console
from tokenizers import decoders, models, pre_tokenizers

from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.evals import runner
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.lm_eval import adapter, code_eval, patches, queries, tydiqa
from skipalign_jax.evals.lm_eval import task as lm_eval_task
from skipalign_jax.evals.lm_eval import tasks as lm_eval_tasks
from skipalign_jax.model import backends, inference
from skipalign_jax.runtime import errors

WINDOW = 64
CONFIG = tiny.config(vocab_size=260, window=WINDOW)
PARAMS = jax.device_put(tiny.params(CONFIG))
TOKENIZER = tokenizer_lib.byte_tokenizer()
EOS = TOKENIZER.eos_token_id
CONSOLE = rich_console.Console(quiet=True)


@pytest.fixture(autouse=True)
def small_lengths(monkeypatch):
  monkeypatch.setattr(backends, "TILE", 8)
  monkeypatch.setattr(backends, "CPU_BLOCK", 8)


@pytest.fixture
def few_tasks(tmp_path_factory, monkeypatch):
  """The harness with some of its 14,000 task files, which take ten seconds to read."""
  whole = pathlib.Path(manager_lib.__file__).parent
  some = tmp_path_factory.mktemp("tasks")
  for name in ("mmlu/default", "bbh/cot_fewshot", "humaneval", "hellaswag"):
    shutil.copytree(whole / name, some / name)
  lm_eval_tasks._manager.cache_clear()
  monkeypatch.setattr(manager_lib, "__file__", str(some / "manager.py"))
  yield
  lm_eval_tasks._manager.cache_clear()


def subject(tokenizer=TOKENIZER):
  return subject_lib.Subject(
    inference.Engine(PARAMS, CONFIG, "float32"),
    tokenizer,
    subject_lib.identity("tiny", CONFIG, tokenizer, "float32"),
    batch_tokens=256,
    eos_ids=(),
  )


def test_names_of_special_tokens_are_the_tokens():
  """As in the harness's own adapter, so that scores can be compared."""
  text = "a <|im_end|> b"
  found = adapter.SubjectLM(subject()).tok_encode(text)
  assert found == TOKENIZER.encode(text)
  assert found[2] == TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def requests(kind, *arguments):
  return [
    instance.Instance(kind, {}, args, 0, ("t", doc, 1))
    for doc, args in enumerate(arguments)
  ]


@jax.jit
def log_softmax(tokens_L):
  L = len(tokens_L)
  logits_LV = tiny.naive_logits(
    PARAMS, CONFIG, tokens_L, np.arange(L), np.tri(L, dtype=bool)
  )
  return jax.nn.log_softmax(logits_LV)


def naive(before, tokens):
  """Σ log p of tokens, and whether each is the likeliest; one length is compiled."""
  whole = [*before, *tokens]
  padded = np.pad(whole, (0, WINDOW + 8 - len(whole)))
  log_p_LV = np.asarray(log_softmax(padded))[len(before) - 1 : len(whole) - 1]
  total = float(np.sum(log_p_LV[np.arange(len(tokens)), tokens]))
  return total, bool((log_p_LV.argmax(-1) == tokens).all())


def naive_reply(prompt, count):
  tokens = list(prompt)
  for _ in range(count):
    padded = np.pad(tokens, (0, WINDOW + 8 - len(tokens)))
    tokens.append(int(np.asarray(log_softmax(padded))[len(tokens) - 1].argmax()))
  return tokens[len(prompt) :]


def likeliest_character(contexts):
  """A context and a character that is the likeliest one after it."""
  for context in contexts:
    (token,) = naive_reply(TOKENIZER.encode(context), 1)
    if TOKENIZER.decode([token]).isalnum():
      return context, TOKENIZER.decode([token])
  raise AssertionError("no context with a plain answer")


def test_loglikelihood_equals_its_definition():
  liked = likeliest_character(f"{a}{b}" for a in "abcdefghijk" for b in "lmnopqrs")
  pairs = [
    ("the cat", " sat"),
    ("the cat ", "sat"),  # the blank belongs to the continuation
    ("the cat \n", "sat"),
    ("choose: ", "A"),  # two tokens with the blank
    ("choose:", "A"),
    ("", "start"),
    ("", "<|endoftext|>start"),  # its own first token is the context
    ("x" * 50 + "y" * 50, "zz"),  # cut off on the left
    liked,
    ("w" * 64, "v"),  # fits: the last token is never read
  ]
  encode = TOKENIZER.encode
  expected = [
    naive(encode("the cat"), encode(" sat")),
    naive(encode("the cat"), encode(" sat")),
    naive(encode("the cat"), encode(" \nsat")),
    naive(encode("choose:"), encode(" A")),
    naive(encode("choose:"), encode("A")),
    naive([EOS], encode("start")),
    naive([EOS], encode("start")),
    naive(encode("x" * 13 + "y" * 50), encode("zz")),
    naive(encode(liked[0]), encode(liked[1])),
    naive(encode("w" * 64), encode("v")),
  ]
  lm = adapter.SubjectLM(subject())
  found = lm.loglikelihood(requests("loglikelihood", *pairs))
  assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
  assert expected[8][1] and not expected[0][1]
  np.testing.assert_allclose(
    [log_p for log_p, _ in found], [log_p for log_p, _ in expected], rtol=1e-4
  )
  assert (lm.truncated, lm.planned) == (1, 10)


def test_choices_of_a_question_share_a_pass():
  measured = []

  def measure(items):
    measured.extend(items)
    return queries.measure(lm._subject, items)

  lm = adapter.SubjectLM(subject(), measure)
  choices = [
    instance.Instance("loglikelihood", {}, (f"Q{doc}", letter), i, ("t", doc, 1))
    for doc in range(2)
    for i, letter in enumerate("ABC")
  ]
  found = lm.loglikelihood(choices)
  assert [item.id for item in measured] == [
    "loglikelihood/t/0/0",
    "loglikelihood/t/1/0",
  ]
  expected = [
    naive(TOKENIZER.encode(f"Q{doc}"), TOKENIZER.encode(letter))
    for doc in range(2)
    for letter in "ABC"
  ]
  np.testing.assert_allclose(
    [log_p for log_p, _ in found], [log_p for log_p, _ in expected], rtol=1e-4
  )


def test_context_and_continuation_that_share_a_token():
  last = TOKENIZER.convert_ids_to_tokens(259)
  vocab = {t: i for t, i in TOKENIZER.get_vocab().items() if t != last} | {"ab": 259}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  backend.decoder = decoders.ByteLevel()
  merging = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token="<|endoftext|>"
  )
  lm = adapter.SubjectLM(subject(merging))
  x, a, ab, c = (merging.convert_tokens_to_ids(t) for t in ("x", "a", "ab", "c"))
  # Split by the number of the context's own tokens, as the harness does.
  assert lm._encode_pair("xa", "bc") == ([x, a], [c])
  assert merging.encode("xabc") == [x, ab, c]
  with pytest.raises(errors.UserError, match="no token of its own"):
    lm.loglikelihood(requests("loglikelihood", ("xa", "b")))


def test_rolling_predicts_every_token_once():
  text = "".join(chr(97 + i * i % 26) for i in range(100))
  tokens = TOKENIZER.encode(text)
  expected = naive([EOS], tokens[:64])[0] + naive(tokens[35:64], tokens[64:])[0]
  lm = adapter.SubjectLM(subject())
  found = lm.loglikelihood_rolling(
    requests("loglikelihood_rolling", (text,), (text[:9],), ("",))
  )
  np.testing.assert_allclose(
    found, [expected, naive([EOS], tokens[:9])[0], 0], rtol=1e-4
  )


def options(**changes):
  return {"until": [], "max_gen_toks": 12, "do_sample": False} | changes


def test_replies_end_before_a_stop_string():
  prompts = ["once", "upon a", "time there"]
  replies = [naive_reply(TOKENIZER.encode(prompt), 12) for prompt in prompts]
  assert not any(EOS in reply for reply in replies)
  texts = [TOKENIZER.decode(reply, skip_special_tokens=True) for reply in replies]
  stop = texts[0][4:6]
  steps = 0

  class Counting(inference.Engine):
    def generate(self, *args, **kwargs):
      nonlocal steps
      for tokens in super().generate(*args, **kwargs):
        steps += 1
        yield tokens

  engine = Counting(PARAMS, CONFIG, "float32")
  lm = adapter.SubjectLM(dataclasses.replace(subject(), engine=engine))
  found = lm.generate_until(
    requests(
      "generate_until",
      (prompts[0], options(until=["nowhere", stop])),
      (prompts[1], options(max_gen_toks=5)),
      (prompts[2], options()),
    )
  )
  assert found[0] == texts[0].split(stop)[0] != texts[0]
  assert found[1] == TOKENIZER.decode(replies[1][:5], skip_special_tokens=True)
  assert found[2] == texts[2]
  steps = 0  # a batch ends when its last row has its stop string
  lm.generate_until(
    requests("generate_until", (prompts[0], options(until=stop, max_gen_toks=40)))
  )
  assert 0 < steps < 12


def test_special_tokens_stop_although_they_have_no_text():
  request = options(until=["<|im_start|>"])
  lm = adapter.SubjectLM(subject())
  (item,), _ = adapter.Plan(lm, lm._subject).of(
    requests("generate_until", ("once", request))
  )
  start = TOKENIZER.convert_tokens_to_ids("<|im_start|>")
  assert {EOS, start} <= set(item.query.stop_ids)


def test_a_special_token_without_a_role_stops_too():
  tokenizer = tokenizer_lib.byte_tokenizer()
  # The byte of "z" as a special token that no attribute of the tokenizer names.
  tokenizer.add_tokens([tokenizers.AddedToken("z", special=True)])
  assert "z" not in tokenizer.all_special_tokens
  lm = adapter.SubjectLM(dataclasses.replace(subject(), tokenizer=tokenizer))
  (item,), _ = adapter.Plan(lm, lm._subject).of(
    requests("generate_until", ("once", options(until=["z"])))
  )
  assert tokenizer.convert_tokens_to_ids("z") in item.query.stop_ids


def test_sampling_is_used_and_repeats_differ():
  lm = adapter.SubjectLM(subject())
  sampled = options(do_sample=True, temperature=2.0, top_p=0.9)
  (request,) = requests("generate_until", ("once upon", sampled))
  found = lm.generate_until([request] * 3)
  assert len(set(found)) == 3
  assert lm.generate_until([request] * 3) == found


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(num_beams=4), "num_beams"),
    (dict(do_sample=True, temperature=1.0, top_k=5), "top_k"),
    (dict(max_gen_toks=WINDOW), "no room"),
    (dict(max_gen_toks=0), "max_gen_toks=0 must be at least 1"),
    (dict(max_gen_toks=-3), "max_gen_toks=-3 must be at least 1"),
  ],
)
def test_options_that_would_be_ignored_are_refused(change, message):
  lm = adapter.SubjectLM(subject())
  with pytest.raises(errors.UserError, match=message):
    lm.generate_until(requests("generate_until", ("a", options(**change))))


def test_dialogues_by_the_chat_template():
  lm = adapter.SubjectLM(subject())
  turns = [dict(role="user", content="hi"), dict(role="assistant", content="So")]
  user = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
  assert lm.apply_chat_template(turns[:1]) == user
  assert lm.apply_chat_template(turns, add_generation_prompt=False) == user + "So"
  plain = tokenizer_lib.byte_tokenizer()
  plain.chat_template = None
  with pytest.raises(errors.UserError, match="--chat=False"):
    adapter.SubjectLM(subject(plain)).apply_chat_template(turns[:1])


CHOICES = """
task: tiny_choice
custom_dataset: !function data.choices
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "{{q}}"
doc_to_choice: ["A", "B", "CD"]
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
REPLIES = """
task: tiny_reply
custom_dataset: !function data.choices
output_type: generate_until
test_split: test
doc_to_text: "{{q}}:"
doc_to_target: "{{q}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
DATA = """
import datasets
def choices(**_):
  rows = [{"q": "abcdefgh"[i:], "answer": i % 3} for i in range(8)]
  data = datasets.Dataset.from_list(rows)
  return datasets.DatasetDict(test=data, train=data)
"""


@pytest.fixture
def task_files(tmp_path):
  (tmp_path / "data.py").write_text(DATA)
  (tmp_path / "choice.yaml").write_text(CHOICES)
  (tmp_path / "reply.yaml").write_text(REPLIES)
  return f"{tmp_path / 'choice.yaml'},{tmp_path / 'reply.yaml'}"


def evaluate(tasks, folder, limit=0, **changes):
  return runner.run(
    "lm_eval",
    lm_eval_task,
    lm_eval_task.Options(tasks=tasks, **changes),
    subject(),
    folder,
    CONSOLE,
    limit,
  )


def test_evaluation_by_task_files_resumes(task_files, tmp_path, monkeypatch):
  whole = evaluate(task_files, tmp_path / "whole", limit=5)
  # By hand: the likeliest of three continuations with a blank before them.
  hits = []
  for i in range(5):
    context = TOKENIZER.encode("abcdefgh"[i:])
    log_ps = [naive(context, TOKENIZER.encode(f" {x}"))[0] for x in ("A", "B", "CD")]
    hits.append(float(np.argmax(log_ps) == i % 3))
  records = {record["id"]: record for record in whole["items"]}
  assert len(records) == 10
  assert [records[f"tiny_choice/{i}"]["scores"]["acc"] for i in range(5)] == hits
  assert all(len(records[f"tiny_reply/{i}"]["replies"]) == 1 for i in range(5))
  acc = whole["summary"]["tasks"]["tiny_choice"]["acc"]
  half = 1.959964 * np.std(hits, ddof=1) / 5**0.5
  assert acc["n"] == 5 and acc["mean"] == pytest.approx(np.mean(hits))
  assert acc["high"] - acc["mean"] == pytest.approx(half)
  assert whole["summary"]["average"] == pytest.approx(
    (acc["mean"] + whole["summary"]["tasks"]["tiny_reply"]["exact_match"]["mean"]) / 2
  )
  assert whole["protocol"]["lm_eval"]

  lines = (tmp_path / "whole/records.jsonl").read_bytes().splitlines(keepends=True)
  assert len(lines) > 2
  saved = [record["id"] for line in lines for record in json.loads(line)]
  assert "loglikelihood/tiny_choice/3/0" in saved
  assert "generate_until/tiny_reply/4/0" in saved
  cut = tmp_path / "cut"
  cut.mkdir()
  (cut / "protocol.json").write_bytes((tmp_path / "whole/protocol.json").read_bytes())
  (cut / "records.jsonl").write_bytes(lines[0] + lines[1][:-9])
  assert evaluate(task_files, cut, limit=5) == whole
  again = json.loads((cut / "results.json").read_text())
  assert again == json.loads((tmp_path / "whole/results.json").read_text())
  # Everything is saved now: no model is needed.
  monkeypatch.setattr(queries, "measure", None)
  assert evaluate(task_files, cut, limit=5)["summary"] == whole["summary"]


def test_examples_and_chat(task_files, tmp_path, monkeypatch):
  (choices, _) = task_files.split(",")
  with pytest.raises(errors.UserError, match="8 examples"):
    evaluate(choices, tmp_path / "many", num_fewshot=9)
  with pytest.raises(errors.UserError, match="--num_fewshot=-2 must be at least -1"):
    evaluate(choices, tmp_path / "less", num_fewshot=-2)
  monkeypatch.setenv("HOME", str(pathlib.Path(choices).parent))
  at_home = "~/choice.yaml"
  results = evaluate(at_home, tmp_path / "some", limit=2, num_fewshot=2, chat=True)
  # A dialogue of three questions does not fit into 64 bytes.
  assert "6 of 6 requests are longer" in " ".join(results["notes"])


def test_without_the_extra_there_is_one_clear_error(tmp_path, monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *a: None if name == "lm_eval" else real(name, *a),
  )
  with pytest.raises(errors.UserError, match=r"\.\[eval\]"):
    evaluate("mmlu", tmp_path / "out")


def test_names_that_cannot_be_used(few_tasks, tmp_path, monkeypatch):
  def no_network(*args, **kwargs):
    raise ConnectionError("no network")

  monkeypatch.setattr(datasets, "load_dataset", no_network)
  with pytest.raises(errors.UserError, match="no task, group or tag 'mmluu'"):
    evaluate("mmluu", tmp_path / "out")
  with pytest.raises(errors.UserError, match="different names"):
    evaluate("mmlu,mmlu", tmp_path / "out")
  with pytest.raises(errors.UserError, match="--unsafe_code=True"):
    evaluate("humaneval", tmp_path / "out")
  with pytest.raises(errors.UserError, match="--local_data"):
    evaluate("mmlu_anatomy", tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("config.py", "import a\ndef get_config(v=''): pass\n"),
    ("results.json", '{"protocol": {}}'),
    ("list.yaml", "- task: a\n"),
    ("empty.yaml", ""),
    ("zeros.npz", "\0" * 9),
    ("nested.json", "[" * 100_000),
    ("number.yaml", "task: 7\n"),
    ("names.yaml", "task: [a, b]\n"),
    ("self.yaml", "task: a\ninclude: self.yaml\n"),
    ("missing.yaml", "task: a\ninclude: nothing.yaml\n"),
    ("bytes.yaml", b"\xff\xfe"),
    ("no_data.yaml", "task: a\n"),
    ("no_function.yaml", "task: a\ndataset_path: x\ndoc_to_text: !function a.b\n"),
    ("numbers.yaml", "group: a\ntask: [1]\n"),
  ],
)
def test_other_files_than_tasks(few_tasks, tmp_path, monkeypatch, name, content):
  def no_network(*args, **kwargs):
    raise ConnectionError("no network")

  monkeypatch.setattr(datasets, "load_dataset", no_network)
  data = content if isinstance(content, bytes) else content.encode()
  (tmp_path / name).write_bytes(data)
  with pytest.raises(errors.UserError, match=name):
    evaluate(str(tmp_path / name), tmp_path / "out")


@pytest.mark.slow
def test_the_harness_knows_the_names_of_the_readme():
  index = lm_eval_tasks.Index(["mmlu", "bbh", "humaneval", "tydiqa_gold"])
  assert len(index.manager.all_tasks) > 10_000
  assert len(index.tasks("mmlu")) == 57


@pytest.fixture
def benchmarks(few_tasks, tmp_path):
  """Invented records in the layout of `local_data`."""
  for name in ("mmlu", "bbh", "human_eval", "tydiqa"):
    (tmp_path / "data" / name).mkdir(parents=True)
  data = tmp_path / "data"
  for split, count in (("test", 3), ("dev", 5)):
    with (data / f"mmlu/anatomy_{split}.csv").open("w", newline="") as file:
      rows = csv.writer(file)
      rows.writerow(["question", "choice0", "choice1", "choice2", "choice3", "answer"])
      rows.writerows(
        [f"{split} {i}?", "one, two", "b", "c", "d", i % 4] for i in range(count)
      )
  examples = [{"input": "True and False is", "target": "False"}] * 2
  (data / "bbh/boolean_expressions.json").write_text(json.dumps({"examples": examples}))
  problem = {
    "task_id": "X/0",
    "prompt": "def two():\n",
    "canonical_solution": "  return 2\n",
    "test": "def check(candidate):\n  assert candidate() == 2\n",
    "entry_point": "two",
  }
  with gzip.open(data / "human_eval/HumanEval.jsonl.gz", "wt") as file:
    file.write(json.dumps(problem) + "\n")
  record = lambda language, i, answers: {
    "id": f"{language}-{i}-1",
    "context": f"Passage {i}.",
    "question": f"Question {i}?",
    "answers": answers,
  }
  lines = [record("english", 1, ["one"]), record("finnish", 2, {"text": ["kaksi"]})]
  (data / "tydiqa/train.jsonl").write_text("\n".join(map(json.dumps, lines)))
  question = record("english", 3, [{"text": "The three"}, {"text": "3"}])
  article = {"title": "T", "paragraphs": [{"context": "Passage 3.", "qas": [question]}]}
  (data / "tydiqa/dev.json").write_text(json.dumps({"data": [article]}))
  return str(data)


def loaded(names, folder, unsafe_code=False, num_fewshot=-1):
  notes = []
  with patches.own_code_eval():
    found = lm_eval_tasks.load(
      names.split(","), folder, unsafe_code, num_fewshot, notes.append
    )
  for task in found["tasks"].values():
    task.build_all_requests()
  return found, notes


def test_benchmarks_from_files_with_the_harness_s_own_prompts(benchmarks, monkeypatch):
  found, notes = loaded("mmlu", benchmarks, num_fewshot=2)
  assert list(found["tasks"]) == ["mmlu_anatomy"]
  assert {"mmlu", "mmlu_stem"} <= set(found["groups"])
  assert notes == ["mmlu: 1 of 57 tasks have files: mmlu_anatomy"]
  requests = found["tasks"]["mmlu_anatomy"].instances
  prompt, answer = requests[5].args
  assert prompt.startswith("The following are multiple choice questions")
  assert "dev 0?\nA. one, two\nB. b\nC. c\nD. d\nAnswer: A\n\ndev 1?" in prompt
  assert prompt.endswith("test 1?\nA. one, two\nB. b\nC. c\nD. d\nAnswer:")
  assert (len(requests), answer) == (12, " B")

  monkeypatch.setenv("HOME", str(pathlib.Path(benchmarks).parent))
  found, _ = loaded("bbh_cot_fewshot_boolean_expressions", "~/data")
  (prompt, generation), *_ = [
    request.args
    for request in found["tasks"]["bbh_cot_fewshot_boolean_expressions"].instances
  ]
  assert prompt.count("So the answer is") == 3  # its examples come with the task
  assert prompt.endswith("Q: True and False is\nA: Let's think step by step.\n")
  assert "\n\n" in generation["until"]

  for names, message in [
    ("mmlu_virology", "no files for mmlu_virology"),
    ("hellaswag", "cannot be read from files"),
  ]:
    with pytest.raises(errors.UserError, match=message):
      loaded(names, benchmarks)
  with pytest.raises(errors.UserError, match="is not a folder"):
    loaded("mmlu", benchmarks + "x")


def test_programs_are_run_if_allowed(benchmarks):
  found, _ = loaded("humaneval", benchmarks, unsafe_code=True)
  task = found["tasks"]["humaneval"]
  (doc,) = task.eval_docs
  for reply, expected in [("  return 2\n", 1.0), ("  return 3\n", 0.0)]:
    assert task.process_results(doc, [[doc["prompt"] + reply]]) == {"pass@1": expected}


@pytest.mark.parametrize(
  ("program", "expected"),
  [
    ("x = 1", "passed"),
    ("x = 2", "failed"),
    ("x = = 1", "failed"),
    ("import os; os._exit(0)", "failed"),  # exits before its test
    ("import os; os._exit(87)", "failed"),
    ("raise SystemExit(0)", "failed"),
    ("x = 1\nif __name__ == '__main__': x = 2", "passed"),
    ("x = bytearray(1 << 40)", "failed"),
    ("while True: pass", "timed out"),
  ],
)
def test_outcomes_of_programs(program, expected):
  assert code_eval.outcome(f"{program}\nassert x == 1", timeout=1) == expected


def test_pass_at_k():
  found, results = code_eval.CodeEval().compute(
    references=["assert x == 1", "assert x == 1"],
    predictions=[["x = 1", "x = 2", "x = 2"], ["x = 1"] * 3],
    k=[1, 2, 5],
  )
  assert found == pytest.approx({"pass@1": (1 / 3 + 1) / 2, "pass@2": (2 / 3 + 1) / 2})
  assert [ok["passed"] for _, ok in results[0]] == [True, False, False]


def test_tydiqa_from_files(benchmarks):
  found, notes = loaded("tydiqa_gold", benchmarks)
  assert list(found["tasks"]) == ["tydiqa_gold_english"]  # Finnish has no question
  assert notes == ["tydiqa_gold: 1 of 9 tasks have files: tydiqa_gold_english"]
  task = found["tasks"]["tydiqa_gold_english"]
  (request,) = task.instances
  prompt, generation = request.args
  assert prompt.endswith(
    "Passage: Passage 1.\nQuestion: Question 1?\nAnswer: one\n\n"
    "Passage: Passage 3.\nQuestion: Question 3?\nAnswer:"
  )
  assert generation["until"] == ["\n"]
  (doc,) = task.eval_docs
  assert task.process_results(doc, [" three."]) == {"f1": 1.0, "exact_match": 1.0}


@pytest.mark.parametrize(
  ("answer", "f1", "exact"),
  [
    ("The Eiffel Tower!", 1.0, 1.0),
    ("eiffel tower, Paris", 0.8, 0.0),
    ("tower eiffel", 1.0, 0.0),
    ("tower tower", 0.5, 0.0),
    ("Louvre", 0.0, 0.0),
    ("", 0.0, 0.0),
  ],
)
def test_tydiqa_scores(answer, f1, exact):
  doc = {"answers": {"text": ["Notre Dame de Paris", "an Eiffel Tower"]}}
  found = tydiqa.score(doc, [answer])
  if answer == "eiffel tower, Paris":
    assert found["f1"] == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
  assert found == {"f1": pytest.approx(f1), "exact_match": exact}


def test_groups_and_intervals_of_a_summary():
  found = {
    "results": {
      "a": {"name": "a", "sample_len": 4, "acc,none": 0.5, "acc_stderr,none": 0.1},
      "b": {"name": "b", "sample_len": 1, "acc,none": 1.0, "acc_stderr,none": "N/A"},
      "g": {"name": "g", "sample_len": 5, "acc,none": 0.6, "acc_stderr,none": 0.05},
      "p": {"name": "p", "sample_len": 5, "em,strict": 0.2, "em_stderr,strict": 0.0},
    },
    "samples": {
      "a": [{"acc": 1.0}, {"acc": True}, {"acc": 0}, {"acc": 0.0}],
      "b": [{"acc": 1.0}],
      "p": [{"em": 0.2}] * 5,
      "e": [{"acc": 0.0}] * 3 + [{"acc": 1.0}],
      "w": [{"words": -1.5}, {"words": (0.1, 2)}],
    },
    "group_subtasks": {"g": ["a", "b"]},
    "higher_is_better": {n: {"acc": True, "em": True} for n in "abgp"},
  }
  summary = lm_eval_task.summary(found)
  assert summary["average"] == pytest.approx(0.4)
  assert summary["groups"]["g"]["acc"]["n"] == 5
  assert summary["tasks"]["b"]["acc"] == {
    "mean": 1.0,
    "low": None,
    "high": None,
    "n": 1,
  }
  # All scores are equal: a standard error of 0 does not mean certainty.
  assert summary["tasks"]["p"]["em,strict"] == {
    "mean": 0.2,
    "low": None,
    "high": None,
    "n": 5,
  }
  # Scores from 0 to 1 have such an interval, other values any.
  edge = {"name": "e", "sample_len": 4, "acc,none": 0.25, "acc_stderr,none": 0.2}
  other = {"name": "w", "sample_len": 2, "words,none": 0.1, "words_stderr,none": 1.0}
  found["results"] |= {"e": edge, "w": other}
  found["results"]["g"]["acc,none"] = 0.95
  summary = lm_eval_task.summary(found)
  assert summary["tasks"]["w"]["words"]["low"] < -1
  assert summary["tasks"]["e"]["acc"]["low"] == 0.0
  assert summary["groups"]["g"]["acc"]["high"] == 1.0
  found["results"] = {n: found["results"][n] for n in "abgp"}
  found["higher_is_better"]["p"]["em"] = False  # such as a perplexity
  assert "average" not in lm_eval_task.summary(found)

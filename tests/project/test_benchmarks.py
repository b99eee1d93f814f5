"""The benchmarks: statistics, workers, and the scripts that need no peer."""

import collections
import dataclasses
import importlib.util
import itertools
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import export
from skipalign_jax.model import known_models

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


def load(name):
  """A script as a module; its directory is the first place that it looks in."""
  sys.path.insert(0, str(FOLDER))
  try:
    # Not `import positions`: the scripts share names with modules of the package.
    spec = importlib.util.spec_from_file_location(
      f"bench_{name}", FOLDER / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
  finally:
    sys.path.remove(str(FOLDER))


harness = load("harness")


class Counter:
  """A contender for the worker below."""

  def __init__(self, start):
    self.count = start

  def add(self, n):
    print("not a reply")
    self.count += n
    return self.count

  def fail(self):
    raise ValueError("on purpose")

  def die(self):
    sys.exit(3)


def test_ratio_says_who_is_faster():
  ratio = harness.compare("ours", [1.0, 2.0, 1.0], "theirs", [2.0, 6.0, 2.0])
  assert ratio["text"] == "ours is 2.00x as fast as theirs (2.00-3.00 over 3 rounds)"
  ratio = harness.compare("ours", [2.0, 4.0], "theirs", [1.0, 1.0])
  assert ratio["text"].startswith("theirs is 2.67x as fast as ours (2.00-4.00")
  assert harness.spread([3.0, 1.0, 2.0])["median"] == 2.0
  assert harness.share([1.0, 2.0], [100.0, 100.0])["max"] == 2.0


def test_rounds_rotate_and_drop_what_fails():
  order = []

  def broken():
    raise harness.Failed("no memory")

  turns = {name: lambda name=name: order.append(name) or name for name in "ab"}
  results, failed = harness.rounds(turns | {"c": broken}, 3)
  assert results == {"a": ["a"] * 3, "b": ["b"] * 3}
  assert failed == {"c": "no memory"}
  assert order == ["a", "b", "b", "a", "a", "b"]


def test_worker():
  worker = harness.Worker(Counter, start=5)
  assert [worker("add", n=1), worker("add", n=2)] == [6, 8]
  with pytest.raises(harness.Failed, match="ValueError: on purpose"):
    worker("fail")
  assert worker("add", n=0) == 8  # still there
  with pytest.raises(harness.Failed, match="status 3"):
    worker("die")


def test_dialogue_fills_its_row():
  batch = harness.dialogue("tiny", 300)
  assert all(array.shape == (1, 300) for array in batch.values())
  assert np.all(batch["segment_ids"] == 1) and batch["block_ids"].max() >= 2
  assert np.all(batch["loss_weight"] <= batch["is_response"])
  packed = harness.cut_into_samples(batch, turns=1)
  assert packed["segment_ids"].max() >= 2 and packed["block_ids"].max() == 1
  assert len(np.unique(packed["sample_ids"])) == packed["segment_ids"].max()
  changes = lambda x: np.flatnonzero(np.diff(x[0]))
  assert np.isin(changes(packed["segment_ids"]), changes(batch["block_ids"])).all()


def test_flops_of_a_7b_model():
  work = harness.flops(known_models.KNOWN["meta-llama/Llama-2-7b-hf"], 1024)
  # 6.74e9 parameters, of which the input embedding multiplies nothing.
  assert work["products"] == pytest.approx(6 * (6.738e9 - 0.131e9) * 1024, rel=1e-3)
  assert work["attention"] == 6 * 32 * 1024**2 * 32 * 128


def test_templates_are_compared_with_transformers(tmp_path):
  templates = load("templates")
  tokenizer = tokenizer_lib.byte_tokenizer()
  export.save_tokenizer(tokenizer, tmp_path)
  pair = templates.read(str(tmp_path))
  page = templates.page({"Bytes": pair})
  assert "| 1 of 1 | 2 of 2 | 2 of 2 | refused | refused |" in page
  assert "*reasoning*: refused: turn key reasoning_content is not written" in page
  assert "learned T h r e e . <|im_end|>\nread    \\n" in page
  no_stop = dataclasses.replace(pair, stop_ids=(ord("}") + 4,))
  found = templates.check(no_stop, templates.CHATS["two turns"])
  assert found.differences == {"stops": "message 3, message 5"}
  pair.theirs.chat_template = tokenizer.chat_template + (
    "{{ 'more' if add_generation_prompt else '!' }}"
  )
  assert templates.check(pair, templates.CHATS["one turn"]).differences == {
    "text": "transformers' ends with `!` more",
    "prompts": "transformers' ends with `m o r e` more",
  }


def test_the_page_of_methods_is_made_of_records(tmp_path):
  methods = load("methods_real")
  sweep = methods.table("chats.jsonl", "books")
  assert {"SkipAlign", "DPO", "SkipAlign, muon"} < sweep.runs.keys()
  assert "base" not in sweep.runs  # a model that is not trained
  assert sweep.runs["DPO"].changes["data.train"] == methods.PAIRS
  assert sweep.runs["PoSE, cropped, on books"].changes["data.train"] == "books"
  folder = tmp_path / "rows/dpo"
  folder.mkdir(parents=True)
  steps = [
    {
      "step": i,
      "loss": 2 - i / 20 + 0.1 * (-1) ** i,
      "tokens": 512,
      "tokens_per_second": 256.0,
      "largest_position": 700,
      "rewards/margin": i / 10,
    }
    for i in range(1, 21)
  ]
  records = [
    {"step": 0, "eval_loss": 2.0},
    *steps,
    {"step": 20, "eval_loss": 1.5},
  ]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))
  (folder / "done.json").write_text("{}")
  methods.write_page(sweep, tmp_path)
  lines = (tmp_path / "table.md").read_text().splitlines()
  (row,) = [line for line in lines if line.startswith("| DPO |")]
  assert "| 1.830 | 1.120 | 0.105 (+10.7) | 2.000 → 1.500 | 2.0 |" in row
  assert "margin 0.300 → 1.800; largest position 700" in row
  assert len(lines) == 2 + len(sweep.runs)
  assert sum("| not run |" in line for line in lines) == len(sweep.runs) - 1


def test_replies_are_compared_token_after_token(tmp_path):
  parity = load("eval_parity")
  assert parity.spread(list(range(10)), 4) == [0, 3, 6, 9]
  assert parity.spread([5], 3) == [5]
  differ = parity.first_difference
  assert differ([1, 2], [1, 2]) is None
  assert (differ([1, 2], [1, 3]), differ([1], [1, 2])) == (1, 1)
  replies = {"a": ([1, 2], [1, 2]), "b": ([1, 2, 3], [1, 5])}
  worker = lambda method, **given: {
    "prompt": lambda: {"prompt": [7], "max_new_tokens": 9, "stop_ids": [0]},
    "reply": lambda: replies[given["id"]][0],
    "score": lambda: [1.0, 0.5],
  }[method]()
  calls = []

  def other(method, **given):
    calls.append(given)
    return 0.25 if method == "gap" else replies["b" if len(calls) > 1 else "a"][1]

  found = [parity.compare(worker, other, "mrcr", id) for id in "ab"]
  assert [one["differ_at"] for one in found] == [None, 1]
  assert calls[-1] == {"tokens": [7, 1], "one": 5, "other": 2}
  lines = [json.dumps(one) for one in found]
  (tmp_path / "mrcr.jsonl").write_text("\n".join(lines))
  assert "b: token 1, gap 0.2500" in parity.table(tmp_path, ["mrcr"])


@pytest.mark.slow
def test_positions_run():
  positions = load("positions")
  contender = positions.Ours("tiny", 512, "float32")
  turns = {
    name: lambda name=name: contender.step(name)
    for name in ("skip_outer", "packed skip_outer")  # one program
  }
  seconds, failed = harness.rounds(turns | {"draw": lambda: contender.draw("full")}, 2)
  assert not failed and all(s > 0 for s in itertools.chain(*seconds.values()))
  assert contender.describe()["packed"]["samples"] > 1


@pytest.mark.slow
def test_growth_and_objectives_run():
  growth = load("growth")
  contender = growth.Ours("tiny", "float32", "full")
  assert contender.step(256) > 0
  planned = contender.planned(256)
  assert planned["temporaries"] > 0
  config = harness.open_model("tiny").config
  assert planned["executed_flops"] > sum(harness.flops(config, 256).values())
  objectives = load("objectives")
  contender = objectives.Ours("tiny", "float32", "full")
  twice = contender.planned("Long-Short", 256)["executed_flops"]
  assert 1.9 < twice / planned["executed_flops"] < 2.1
  # A pair is longer than 256 bytes.
  assert all(contender.step(variant, 1024) > 0 for variant in objectives.BASE)
  assert harness.resident_bytes("VmHWM") >= harness.resident_bytes("VmRSS") > 0


def test_kinds_of_thunks():
  thunks = load("thunks")

  def program(x_TI, weight_OI, vocabulary_VI):
    y_TO = jnp.einsum("ti,oi->to", x_TI, weight_OI)
    logits_TV = jnp.einsum("to,vo->tv", y_TO, vocabulary_VI)
    score_KTS = jnp.einsum("kth,ksh->kts", x_TI.reshape(2, 8, 8), y_TO.reshape(2, 8, 8))
    return jax.nn.softmax(logits_TV), score_KTS, x_TI.T + 0

  shapes = [(16, 8), (8, 8), (99, 8)]
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  text = jax.jit(program).lower(*args).compile().as_text()
  found = collections.Counter(thunks.kinds(text, vocabulary=99).values())
  kinds = ("linear", "vocabulary", "attention", "exponentials")
  assert [found[kind] for kind in kinds] == [1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("program", ["step", "prefill"])
def test_thunks_run(program):
  script = [sys.executable, FOLDER / "thunks.py", f"--program={program}"]
  command = [*script, "--model=tiny", "--length=300", "--dtype=float32"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  rows = dict(re.findall(r"^\| (\w+) +\| [\d.]+ +\| (\d+)%", done.stdout, re.M))
  assert int(rows["linear"]) > 0 and int(rows["attention"]) > 0, done.stdout

"""The plan command: topologies, bad input, arithmetic, records, compiled plans."""

import dataclasses
import io
import json
import math
import pathlib
import sys

import pytest
import tiny
import tiny_files
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax import plan
from skipalign_jax.commands import plan as commands_plan
from skipalign_jax.model import known_models
from skipalign_jax.planning import (
  anchors,
  compiler,
  hlo,
  plan_json,
  plan_table,
  search,
)
from skipalign_jax.runtime import errors, hardware, terminal

LLAMA = "meta-llama/Llama-2-7b-hf"
FLAGS = dict(
  topology="a100-80gb:8", out="", job="train", length=0, part=0, samples=0, search=0
)


def llama(**changes):
  c = config_lib.default()
  c.model.init_from, c.epochs = LLAMA, 2
  c.update_from_flattened_dict(changes)
  return c


def small(**changes):
  c = config_lib.tiny(config_lib.default())
  c.data.seq_len = 128
  c.update_from_flattened_dict(changes)
  return c


def run(config, **flags):
  console = rich_console.Console(file=io.StringIO(), width=200, markup=False)
  flags = FLAGS | flags
  plan.check(flags)
  records = commands_plan.records(config, flags, console)
  plan_table.show(records, console)
  return records, console.file.getvalue()


@pytest.fixture
def no_compiler(monkeypatch):
  monkeypatch.setattr(compiler, "available", lambda kind: False)


def test_a_local_model_comes_before_a_known_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shape = lambda name: commands_plan.model_shape(llama(**{"model.init_from": name}))
  assert shape(LLAMA) == shape(f"hub:{LLAMA}") != tiny_files.config()
  (tmp_path / "meta-llama").mkdir()
  tiny_files.hf_folder(tmp_path / LLAMA)
  assert shape(LLAMA) == tiny_files.config()


def test_topologies():
  found = hardware.parse("a100-80gb:64, V5E:4x8,v5p:2x2x2,h100:2,tpu7x:2x2x1,b200:16")
  assert [(t.name, t.devices, t.devices_per_host) for t in found] == [
    ("a100-80gb:64", 64, 8),
    ("v5e:4x8", 32, 32),
    ("v5p:2x2x2", 8, 8),
    ("h100:2", 2, 2),
    ("tpu7x:2x2x1", 8, 8),  # a chip is two devices
    ("b200:16", 16, 8),
  ]
  for name in ("l4:1", "l40s:4", "h200:8"):
    (topology,) = hardware.parse(name)
    assert hardware.of_device(topology.hardware.kind) is topology.hardware


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "is missing; a topology is"),
    ("b300:8", "unknown topology 'b300:8'"),
    ("a100-80gb", "has no number of chips"),
    ("h100:0", "has no number of chips"),
    ("a100-80gb:2x4", "GPUs take one number"),
    ("h100:12", "hosts of 8"),
    ("v5e:8", "have 2 axes, as in v5e:2x2"),
    ("v5p:4x4", "have 3 axes"),
    ("v6e:1x4", "first two axes must be even"),
    ("tpu7x:2x2", "have 3 axes"),
  ],
)
def test_unknown_topologies_are_errors(text, message):
  with pytest.raises(errors.UserError, match=message):
    hardware.parse(text)


def test_each_gpu_is_described_to_xla():
  for kind in hardware.HARDWARE.values():
    if kind.platform == "cuda":
      text = hardware.gpu_target(kind)
      assert f"device_memory_size: {kind.memory}\n" in text
      assert "cuda_compute_capability { major: " in text and "None" not in text


@pytest.mark.parametrize(
  ("changes", "given", "message"),
  [
    ({}, dict(topology="a100:8"), "unknown topology"),
    ({}, dict(job="serve"), "choose train or generate"),
    ({}, dict(job="generate"), "needs --length=N"),
    ({}, dict(length=9), "is for --job=generate"),
    ({}, dict(part=4), "--part=4"),
    ({}, dict(job="generate", length=9, part=4), "must divide --length=9"),
    ({}, dict(samples=-1), "must be positive"),
    ({}, dict(search=2), "--search=2 must be 0 or 1"),
    ({}, dict(job="generate", length=8, samples=9), "--samples is for --job=train"),
    (
      {"steps": 7, "epochs": None},
      dict(samples=9),
      "--samples=9 is for runs of epochs",
    ),
    ({"batch_size": 12}, {}, r"12 rows .* 8 devices .*grad_accum"),
    ({"mesh.tensor": 3}, {}, "does not fit 8 devices"),
    ({"model.init_from": "no/such/place.gguf"}, {}, f"known without.*{LLAMA}"),
    ({"model.remat": "all"}, {}, "model.remat"),
  ],
)
def test_mistakes_are_errors(changes, given, message):
  with pytest.raises(errors.UserError, match=message):
    run(llama(**changes), **given)


def test_seven_billion_by_arithmetic(no_compiler):
  shorter = llama(**{"data.seq_len": 1024})  # four blocks of attention to trace
  (record,), text = run(shorter, samples=commands_plan.TULU_SAMPLES)
  assert "pip install -e '.[plan]'" in text and "ANALYTIC" in text
  (step,) = record["programs"]
  memory = step["bytes_per_device"]
  assert record["mode"] == "analytic" and memory["peak_is"] == "analytic"
  counts = 3 * 4  # of steps
  assert memory["state"] == 12 * 6_738_415_616 // 8 + counts
  assert 15 < memory["peak"] / 2**30 < 30 and step["fits"]
  # The forward pass again but for `down` and the head; blocks on the diagonal.
  assert 1.2 < step["flops"]["recompute_factor"] < 1.34
  assert record["duration"]["steps"] == math.ceil(2 * commands_plan.TULU_SAMPLES / 128)
  low, high = step["estimate"]["mfu"]
  assert 0.3 < low < high < 0.75
  assert "Llama-2-7B, 4,096 tokens, 128 GPUs: 3,700 tokens/s a device, MFU 57 %" in text


def test_float32_is_planned_at_its_own_peak(no_compiler):
  found = {}
  for dtype in ("bfloat16", "float32"):
    config = small(**{"model.compute_dtype": dtype})
    (record,), text = run(config, topology="a100-80gb:1")
    found[dtype] = record["programs"][0]["bounds_seconds"]["arithmetic"]
    assert f"TFLOP/s {dtype}" in text
  assert 15.9 < found["float32"] / found["bfloat16"] < 16.1
  assert "use no tensor cores (and no TF32): the peak of bfloat16 is 16 times" in text


def test_anchors_are_of_known_hardware(no_compiler):
  names = {name for anchor in anchors.ANCHORS for name in anchor.hardware}
  assert names < hardware.HARDWARE.keys()
  assert len(anchors.lines("h100")) == 2 and anchors.lines("l4") == []
  (record,), _ = run(small(), job="generate", length=256, topology="h100:8")
  assert record["published"] == []


def test_adapters_by_arithmetic(no_compiler):
  changes = {"lora.rank": 16, "lora.base": "nf4", "batch_size": 1, "data.seq_len": 1024}
  (record,), text = run(llama(**changes), topology="a100-40gb:1")
  memory, flops = (record["programs"][0][key] for key in ("bytes_per_device", "flops"))
  adapters = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11_008))
  matrices, words = 32 * (4 * 4096**2 + 3 * 4096 * 11_008), 2 * 32_000 * 4096
  norms = 4 * 65 * 4096
  counts = 3 * 4  # of steps
  assert memory["state"] == (
    12 * adapters + matrices * 4.5 / 8 + 2 * words + norms + counts
  )
  assert record["programs"][0]["fits"]
  pairs = 32 * (1024 * 1025 // 2) * 4 * 4096
  products = 2 * (matrices + words // 2) + 3 * adapters
  assert flops["model"] == 2 * 1024 * products + 3 * pairs
  assert "rank 16, alpha 16 on q, k, v, o, gate" in text


@pytest.mark.parametrize(("kind", "each"), [("lion", 4), ("muon", 4), ("adamw", 8)])
def test_the_state_of_the_optimizer_of_the_config_is_planned(no_compiler, kind, each):
  (record,), _ = run(small(**{"optim.kind": kind}), topology="h100:1")
  shape = commands_plan.model_shape(small())
  others = shape.vocab_size * shape.embed_dim * (kind == "muon")  # by AdamW
  state = record["programs"][0]["bytes_per_device"]["state"]
  expected = (4 + each) * shape.num_params() + 4 * others
  assert state == pytest.approx(expected, rel=0.02)


def test_known_shapes_need_no_files_and_no_network(no_compiler, monkeypatch):
  monkeypatch.setattr(commands_plan.reference, "open_model", None)
  assert commands_plan.model_shape(llama()).num_params() == 6_738_415_616
  for name in known_models.KNOWN:
    assert commands_plan.model_shape(llama(**{"model.init_from": name})).vocab_size > 0


KEYS = {
  "": "topology device devices mode job mesh parameters settings programs search "
  "duration advice published assumptions",
  "program": "program compiled refused compile_seconds rows length new rows_per_device "
  "bytes_per_device fits flops collectives loops_of_unknown_length "
  "sent_bytes_per_device bounds_seconds estimate",
  "bytes_per_device": "state arguments temporaries peak peak_is reserve needed "
  "available margin",
  "flops": "model executed recompute_factor",
  "bounds_seconds": "arithmetic memory interconnect",
  "estimate": "seconds mfu tokens_per_second",
  "collective": "kind dtype crosses_hosts count payload_bytes sent_bytes "
  "network_bytes asynchronous_bytes hidden_bytes",
}


def check_keys(record):
  assert set(record) == set(KEYS[""].split())
  for program in record["programs"]:
    assert set(program) == set(KEYS["program"].split())
    for part in ("bytes_per_device", "flops", "bounds_seconds", "estimate"):
      assert set(program[part]) == set(KEYS[part].split()), part
    for collective in program["collectives"] or ():
      assert set(collective) == set(KEYS["collective"].split())


def test_the_command_writes_a_record_per_topology(
  no_compiler, monkeypatch, tmp_path, capsys
):
  monkeypatch.chdir(tiny.ROOT)
  argv = [
    "plan",
    "--config=configs/llama2_ntk.py:tiny",
    "--topology=v5e:2x4,h100:4",
    f"--out={tmp_path / 'new'}",
    "--config.data.seq_len=64",
    "--config.positions.max_position=1000",
  ]
  monkeypatch.setattr(sys, "argv", argv)
  assert plan.main() == 0
  records = json.loads((tmp_path / "new/plan.json").read_text())
  assert [r["topology"] for r in records] == ["v5e:2x4", "h100:4"]
  for record in records:
    check_keys(record)
    assert record["parameters"] > 0 and record["duration"]["steps"] == 8
  printed = capsys.readouterr().out
  assert "v5e:2x4" in printed and "all of them:\n  - products" in printed
  assert tiny.is_plain(printed)


def test_the_table_of_many_topologies_fits(no_compiler):
  console = terminal.Console(file=io.StringIO(), width=80)
  names = "a100-80gb:8,v5p:2x2x2,h100:8,a100-40gb:16"
  flags = FLAGS | {"topology": names}
  plan_table.show(commands_plan.records(small(batch_size=16), flags, console), console)
  printed = console.file.getvalue()
  assert tiny.is_plain(printed) and "…" not in printed


def test_generation_by_arithmetic(no_compiler):
  changes = {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.context": 2}
  shape = {"model.num_kv_heads": 4}
  (record,), _ = run(small(**changes, **shape), job="generate", length=512)
  check_keys(record)
  prefill, decode = record["programs"]
  assert (prefill["program"], decode["program"]) == ("prefill", "decode")
  assert prefill["flops"]["model"] > 100 * decode["flops"]["model"]
  assert record["duration"] is None


def test_one_device_has_no_other_setting_for_a_long_prompt(no_compiler):
  flags = dict(topology="a100-40gb:1", job="generate", length=200_000, search=1)
  _, text = run(llama(), **flags)
  assert "decode does not fit, and no setting makes it smaller" in text


@pytest.mark.parametrize(
  ("changes", "samples", "steps"),
  [
    ({"steps": 7, "epochs": None}, 0, 7),
    ({}, 0, None),
    ({}, 1000, 16),
    ({"data.train": "builtin:recall:400"}, 0, 6),
    ({"data.train": "builtin:recall", "data.eval": ""}, 0, 16),
  ],
)
def test_steps_of_the_whole_run(changes, samples, steps):
  config = llama(**{"data.train": "hub:some/chats"} | changes)
  found, note = commands_plan.run_steps(config, samples)
  assert found == steps
  assert ("--samples" in note) == (steps is None)


def test_samples_are_counted_in_local_files(tmp_path):
  names = []
  for count in (30, 70):
    path = tmp_path / f"{count}.jsonl"
    path.write_text('{"prompt": "x", "completion": "y"}\n' * count)
    names.append(str(path))
  changes = {"data.train": f"{names[0]},{names[1]}*2", "batch_size": 8}
  steps, note = commands_plan.run_steps(llama(**changes, **{"data.eval": ""}), 0)
  assert steps == math.ceil(2 * (30 + 2 * 70) / 8)
  assert note == "data.train has 100 records"
  held = llama(**changes, **{"data.eval": "holdout:10", "data.packing": True})
  steps, note = commands_plan.run_steps(held, 0)
  assert steps == math.ceil(2 * 170 * 0.9 / 8) and "packing" in note
  absent = llama(**{"data.train": str(tmp_path / "none.jsonl")})
  steps, note = commands_plan.run_steps(absent, 0)
  assert steps is None and "none.jsonl" in note and "--samples" in note


@pytest.mark.parametrize("name", ["book.txt", "book.jsonl"])
def test_pieces_of_texts_are_not_counted_as_one_sample(tmp_path, name):
  book = "Call me Ishmael. " * 10_000
  path = tmp_path / name
  path.write_text(book if name.endswith(".txt") else json.dumps({"text": book}))
  mixed = f"builtin:recall:50,{path}"
  steps, note = commands_plan.run_steps(llama(**{"data.train": mixed}), 0)
  assert steps is None and f"{path} has texts" in note and "--samples" in note
  assert commands_plan.run_steps(llama(**{"data.train": mixed}), 640)[0] == 10


@pytest.mark.parametrize("several", ["data.overlong=split", "data.rewritten=each"])
def test_a_note_says_that_a_record_can_be_several_samples(several):
  key, value = several.split("=")
  given = {"data.train": "builtin:recall:64", key: value}
  assert several in commands_plan.run_steps(llama(**given), 0)[1]


@pytest.mark.parametrize(
  ("gpus", "change"),
  [
    (8, "--config.grad_accum=2 "),
    (4, "--config.grad_accum=4 "),
    (2, "weights, optimizer state and gradients alone need 3 such devices"),
  ],
)
def test_without_a_compiler_the_first_setting_that_fits_is_named(
  no_compiler, gpus, change
):
  shorter = llama(**{"data.seq_len": 1024, "batch_size": 64 * gpus})
  (record,), text = run(shorter, topology=f"a100-40gb:{gpus}", search=1)
  assert not record["programs"][0]["fits"] and change in text
  if gpus > 2:
    assert "by arithmetic" in text
    tried = record["search"]["tried"]
    assert tried[-1]["fits"] and "grad_accum" in tried[-1]["settings"]


class FakeCompiler:
  """Needs `gib_per_row` GiB per row of a microbatch."""

  def __init__(self, gib_per_row):
    (self.topology,) = hardware.parse("a100-40gb:8")
    self.compiled, self.gib_per_row = {}, gib_per_row

  def measure(self, job):
    share = 0.5 if job.recipe.remat == "full" else 1
    peak = round(job.micro_rows * self.gib_per_row * share / job.axes["tensor"] * 2**30)
    traffic = hlo.Traffic((), 0)
    found = compiler.Measured(0, 0, peak, "", 1, traffic, 0.0)
    return self.compiled.setdefault(job, found)


def job_of(**changes):
  (topology,) = hardware.parse("a100-40gb:8")
  config = llama(**changes)
  recipe = commands_plan.recipe_lib.from_config(
    config,
    commands_plan.model_shape(config),
    commands_plan.resolve.check(config),
    "cuda",
  )
  return commands_plan._job(config, FLAGS, recipe, topology)


def test_search_of_the_largest_microbatch():
  job = job_of()  # 16 rows per device
  tell = lambda text: None
  assert search.largest_microbatch(FakeCompiler(9), job, tell)[0] == 8
  assert search.largest_microbatch(FakeCompiler(1.5), job, tell)[0] == 32
  assert search.largest_microbatch(FakeCompiler(500), job, tell)[0] == 0


def test_the_table_says_where_a_larger_microbatch_may_fit():
  job, shown = job_of(), []
  for gib in (9, 1.5, 0.01, 500):
    rows, tried = search.largest_microbatch(FakeCompiler(gib), job, lambda text: None)
    found = {"largest_rows_per_device": rows, "tried": [vars(t) for t in tried]}
    shown.append(plan_table._largest(found))
  assert shown == ["8", "32", "256 or more", "0"]
  generation = {"largest_rows_per_device": None, "tried": []}
  assert plan_table._largest(None) == plan_table._largest(generation) == "-"


def test_a_large_microbatch_is_halved_until_it_fits():
  """The table has the size with which the advice says that it fits."""
  job, build = job_of(batch_size=8 * 4096), FakeCompiler(20)
  assert search.largest_microbatch(build, job, lambda text: None)[0] == 2
  found, _ = search.remedy(build, job, lambda text: None)
  assert found.settings == {"grad_accum": 2048} and found.micro_rows == 2


@pytest.mark.parametrize(
  ("gib", "remat", "settings"),
  [
    (3, "full", None),  # fits as it is: no remedy is looked for
    (5, "full", {"grad_accum": 2}),
    (40, "dots", {"grad_accum": 16, "model.remat": "full"}),
    (100, "full", {"grad_accum": 32, "loss.chunk": 128, "mesh.fsdp": 4,
                   "mesh.tensor": 2}),
  ],
)  # fmt: skip
def test_the_first_setting_that_fits(gib, remat, settings):
  job, build = job_of(**{"model.remat": remat}), FakeCompiler(gib)
  if settings is None:
    kind, measured = build.topology.hardware, build.measure(job)
    assert search.fit(kind, measured.peak, measured.refused).fits
    return
  found, tried = search.remedy(build, job, lambda text: None)
  assert found.settings == settings
  assert [t.fits for t in tried] == [False] * (len(tried) - 1) + [True]


@pytest.mark.parametrize(
  ("rows", "accums"),
  [(8 * 15, [3, 15]), (8 * 9, [3, 9]), (8 * 7, [7]), (8 * 12, [2, 4, 12])],
)
def test_a_microbatch_of_any_size_is_divided(rows, accums):
  """Nine rows a device do not fit, and one does: that takes no other devices."""
  job = job_of(batch_size=rows, **{"data.seq_len": 128, "loss.chunk": 128})
  tried = [search.differences(other, job) for other in search.alternatives(job)]
  found = [one["grad_accum"] for one in tried if set(one) == {"grad_accum"}]
  assert found == accums


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", LLAMA, "HuggingFaceTB/SmolLM3-3B"])
def test_a_run_accepts_every_setting_that_is_tried(name):
  """28 heads cannot be split over 8 devices."""
  given = {"model.init_from": name, "batch_size": 64}
  job = job_of(**given)
  for other in search.alternatives(job):
    config = llama(**given, **search.differences(other, job))
    commands_plan.resolve.check(config)
    shape = commands_plan.model_shape(config)
    commands_plan.resolve.check_mesh(config, shape, other.axes)


def test_no_rows_are_suggested_for_generation():
  """Its prompts are as many as devices that hold different ones."""
  job = dataclasses.replace(job_of(), kind="prefill", rows=8)
  for other in search.alternatives(job):
    assert {"mesh.fsdp"} < set(search.differences(other, job)) <= {
      "mesh.fsdp", "mesh.tensor", "mesh.context"
    }  # fmt: skip


def test_a_refusal_of_the_tpu_compiler_does_not_fit():
  message = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (15.98G) exceeds available HBM (15.75G)."
  )
  assert compiler.refused_bytes(message) == round(15.98 * 2**30)
  assert compiler.refused_bytes("Used 20.50G of 15.75G hbm.") == round(20.5 * 2**30)
  assert search.fit(hardware.HARDWARE["v5e"], 2**30).fits
  assert not search.fit(hardware.HARDWARE["v5e"], 2**30, message).fits


def test_advice_for_a_gpu_that_needs_more_than_jax_takes():
  (topology,) = hardware.parse("a100-80gb:8")
  part = lambda gib: {"bytes_per_device": {"peak": gib * 2**30}, "fits": True}
  assert plan_json.allocator_advice([part(40)], topology) == []
  (advice,) = plan_json.allocator_advice([part(67.8)], topology)
  assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.87" in advice


@pytest.mark.plan
@pytest.mark.parametrize(
  "name",
  ["a100-80gb:8", "a100-40gb:2", "h100:16", "v5e:2x4", "h200:8", "b200:8", "l4:4",
   "l40s:8", "tpu7x:2x2x1"],
)  # fmt: skip
def test_the_tiny_step_compiles(name):
  assert compiler.available(hardware.parse(name)[0].hardware), compiler.INSTALL
  sizes = {"batch_size": 16, "model.compute_dtype": "bfloat16"}
  (record,), text = run(small(**sizes), topology=name)
  check_keys(record)
  (step,) = record["programs"]
  assert step["compiled"] and step["fits"], text
  assert step["bytes_per_device"]["peak"] >= step["bytes_per_device"]["state"]
  found = {(c["kind"], c["dtype"]): c for c in step["collectives"]}
  # The layers' weights are gathered as bf16, forward and backward.
  weights = 2 * 3 * 64 * 128 * 2  # layers x matrices of the MLP x bytes
  moved = sum(c["payload_bytes"] for (_, dtype), c in found.items() if dtype == "bf16")
  assert moved >= 2 * weights
  assert any(c["crosses_hosts"] for c in step["collectives"]) == (name == "h100:16")
  for c in step["collectives"]:
    assert 0 <= c["hidden_bytes"] <= c["asynchronous_bytes"] <= c["sent_bytes"]
    gpu = hardware.parse(name)[0].hardware.platform == "cuda"
    assert c["asynchronous_bytes"] == c["sent_bytes"] or not gpu


@pytest.mark.plan
def test_the_tiny_generation_compiles():
  changes = {"mesh.fsdp": 4, "mesh.tensor": 2}
  (record,), _ = run(small(**changes), job="generate", length=256)
  check_keys(record)
  assert all(p["compiled"] and p["fits"] for p in record["programs"])


@pytest.mark.plan
def test_a_part_of_a_prompt_compiles_with_the_cache_over_devices():
  changes = {"mesh.fsdp": 2, "mesh.context": 4}
  given = dict(job="generate", length=4096)
  (record,), _ = run(small(**changes, **{"model.num_layers": 16}), part=512, **given)
  part = record["programs"][0]
  assert part["compiled"] and part["fits"] and part["new"] == 512
  # Each layer's own places come together, once: not the whole cache in every layer.
  cache = 16 * 4096 * 2 * (2 * 16) * 4
  assert 0.5 * cache < part["sent_bytes_per_device"] < 3 * cache


@pytest.mark.plan
def test_a_dead_compiler_is_an_answer(monkeypatch):
  (topology,) = hardware.parse("a100-80gb:8")
  with compiler.Compiler(topology) as build:
    monkeypatch.setattr(compiler, "measure", _die)
    found = build.measure(job_of())
  assert "died" in found.refused


def _die(topology, job):
  import os

  os.abort()


@pytest.mark.plan
@pytest.mark.parametrize(
  ("name", "rows", "max_gib", "attention"),
  [  # Not more than a few percent above what a bare function of this model takes.
    ("llama2_ntk", 16, 46.3, "cudnn"),
    ("yi_6b_200k", 16, 42.5, "cudnn"),
    ("llama2_packed_sft_50k", 1, 39.6, "triton"),
  ],
)
def test_the_recipes_fit_eight_a100(name, rows, max_gib, attention):
  config_file = pathlib.Path(tiny.ROOT / f"configs/{name}.py")
  namespace = {}
  exec(compile(config_file.read_text(), str(config_file), "exec"), namespace)
  (record,), text = run(namespace["get_config"]())
  (step,) = record["programs"]
  assert step["compiled"] and step["fits"], text
  assert record["settings"]["attention"] == attention
  assert step["rows_per_device"] == rows
  assert max_gib / 2 < step["bytes_per_device"]["peak"] / 2**30 < max_gib
  weights = [c for c in step["collectives"] if c["kind"] == "all-gather"]
  assert max(weights, key=lambda c: c["sent_bytes"])["dtype"] == "bf16"

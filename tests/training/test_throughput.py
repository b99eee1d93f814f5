"""Rates and times of a step, the devices' peaks, and traces of steps."""

import io
import re
import shlex
import types

import jax
import numpy as np
import pytest
import tiny
import tiny_train

from skipalign_jax.method import long_short
from skipalign_jax.model import flops, lora
from skipalign_jax.runtime import errors, hardware, terminal
from skipalign_jax.training import log, run, throughput, trace


class Time:
  """A clock that is moved by hand."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(throughput.time, "monotonic", lambda: self.now)


def test_a_lap_says_what_a_step_waited_for(monkeypatch):
  time = Time(monkeypatch)
  clock = throughput.Clock()
  time.now += 5  # before the first step
  clock.restart()
  for what, seconds in (("data", 0.5), ("device", 2.0), ("data", 0.25)):
    with clock.waiting(what):
      time.now += seconds
    time.now += 1
  expected = {"step_seconds": 5.75, "data_seconds": 0.75, "host_seconds": 3.0}
  assert clock.lap() == expected
  time.now += 1
  assert clock.lap() == {"step_seconds": 1, "data_seconds": 0, "host_seconds": 1}


def test_mfu_is_model_flops_over_the_peak_of_all_devices(monkeypatch):
  kind = hardware.HARDWARE["a100-80gb"]
  device = types.SimpleNamespace(device_kind=kind.kind)
  monkeypatch.setattr(jax, "devices", lambda: [device])
  monkeypatch.setattr(jax, "device_count", lambda: 4)
  rates = lambda recipe: throughput.Throughput(recipe).of(96, length=16, seconds=2.0)
  found = rates(tiny.recipe(compute_dtype="bfloat16"))
  needed = 6 * flops.training(tiny.config(), 1, 16)  # six full rows
  assert found == pytest.approx(
    {
      "tokens_per_second": 48,
      "tokens_per_second_per_device": 12,
      "mfu": needed / 2.0 / (4 * 312e12),
    }
  )
  fp32 = rates(tiny.recipe(compute_dtype="float32"))
  assert fp32["mfu"] == pytest.approx(found["mfu"] * 312 / 19.49, rel=1e-3)
  twice = tiny.recipe(long_short=long_short.LongShortConfig(0.1, "none", 0))
  assert rates(twice)["mfu"] == pytest.approx(2 * fp32["mfu"])


@pytest.mark.parametrize("adapters", [None, lora.Config(4, 8.0, ("q",), "bfloat16")])
def test_a_second_read_without_a_backward_pass_costs_a_forward_pass(adapters):
  of = lambda **changes: throughput.model_flops(
    tiny.recipe(adapters=adapters, **changes), 1, 16
  )
  stopped = {
    side: of(long_short=long_short.LongShortConfig(0.1, side, 0))
    for side in ("none", "long", "short")
  }
  # The low-rank products: q has 24 inputs and 32 outputs, in two layers.
  low = 2 * 16 * 2 * 4 * (24 + 32) if adapters else 0
  assert stopped["none"] == stopped["long"] == 2 * of()
  assert stopped["short"] == of() + flops.forward(tiny.config(), 1, 16) + low


def test_mfu_counts_the_tokens_that_a_crop_leaves(monkeypatch, tmp_path):
  """The step of a longer row of text computes seq_len of its tokens."""
  asked = []

  def of(self, tokens, length, seconds):
    asked.append(length)
    return {"tokens_per_second": 1.0}

  monkeypatch.setattr(throughput.Throughput, "of", of)
  config, console = tiny_train.load("quickstart"), terminal.Console(file=io.StringIO())
  for crop in (0, 8):
    recipe = tiny.recipe(crop=crop)
    read = log.Log(config, recipe, tmp_path, console, 0, 3)
    numbers = dict(tokens=16, loss=1.0, learning_rate=1.0, finite=True, grad_norm=1.0)
    numbers = {name: jax.numpy.asarray(value) for name, value in numbers.items()}
    read.dispatched(1, numbers, {"tokens": np.zeros((2, 32), np.int32)})
    read.read()
  assert asked == [32, 8]


def test_a_device_without_a_known_peak_has_no_mfu():
  assert hardware.of_device(jax.devices()[0].device_kind) is None
  assert "mfu" not in throughput.Throughput(tiny.recipe()).of(8, 8, 1.0)


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6 lite", "v6e"),
  ],
)
def test_names_of_devices(name, kind):
  assert hardware.of_device(name).name == kind


def test_peak_memory_is_that_of_the_fullest_device(monkeypatch):
  assert 0.05 < throughput.peak_memory() < 64  # of this process
  devices = [
    types.SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n << 30})
    for n in (3, 7, 5)
  ]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  assert throughput.peak_memory() == 7


@pytest.mark.parametrize("text", ["3", "0:2", "4:3", "a:b", "1:2:3", "-1:2", "1:"])
def test_other_texts_are_no_steps(text):
  with pytest.raises(errors.UserError, match="START:STOP"):
    trace.parse(text)


def test_steps_after_the_last_one_are_refused():
  trace.check("2:4", 4)
  with pytest.raises(errors.UserError, match="the run has 4"):
    trace.check("2:5", 4)


@pytest.mark.parametrize(("first", "started"), [(1, 2), (3, 3), (5, None)])
def test_a_trace_starts_and_stops_with_its_steps(monkeypatch, tmp_path, first, started):
  calls = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda at: calls.append(at))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
  folder = trace.folder_of(tmp_path)
  traced, starts = trace.Trace(trace.parse("2:4"), folder), []
  for step in range(first, 7):
    traced.before(step)
    starts += [step] * (len(calls) == 1 and not starts)
    ended = traced.after(step, jax.numpy.ones(1))
    assert ended == (tmp_path / "profile" if started and step == 4 else None)
  traced.close()
  assert calls == ([tmp_path / "profile", "stop"] if started else [])
  assert starts == ([started] if started else [])


@pytest.mark.parametrize(
  ("index", "folder"), [(0, "profile"), (1, "profile/process_1"), (2, "profile")]
)
def test_processes_of_one_host_have_folders_of_their_own(
  monkeypatch, tmp_path, index, folder
):
  """JAX would write all of their traces to one file."""
  monkeypatch.setattr(trace.distributed, "exchange", lambda _: ["a", "a", "b", "b"])
  monkeypatch.setattr(jax, "process_index", lambda: index)
  assert trace.folder_of(tmp_path) == tmp_path / folder


def test_a_trace_ends_with_a_run_that_stops_early(monkeypatch, tmp_path):
  calls = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda at: calls.append("start"))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
  traced = trace.Trace(trace.parse("2:4"), tmp_path)
  traced.before(2)
  traced.close()
  traced.close()
  assert calls == ["start", "stop"]


def test_a_run_records_its_times_and_writes_a_trace(cache_dir, tmp_path):
  c = tiny_train.load("llama2_ntk")
  c.data.cache_dir, c.data.eval, c.steps, c.profile = cache_dir, "", 2, "2:2"
  c.batch_size, c.data.seq_len = 2, 128
  folder = tmp_path / "my run"
  console = terminal.Console(file=io.StringIO(), soft_wrap=True)
  assert run.run(c, folder, console) == 0
  printed = console.file.getvalue()
  assert "step 2: the trace is in" in printed
  assert re.search(
    r"speed      [\d,]+ tok/s per device, \d+% of a step waits for data, \d+% is host "
    r"work, peak memory \d+\.\d\d GiB",
    printed,
  )
  assert f"skipalign_jax.analyze training {shlex.quote(str(folder))}\n" in printed
  assert list((folder / "profile").rglob("*.xplane.pb"))
  records = tiny.metrics.read(folder / "metrics.jsonl")
  for record in records:
    assert set(tiny.TIMINGS) <= record.keys()
    rate = record["tokens"] / record["step_seconds"]
    assert record["tokens_per_second"] == pytest.approx(rate)
    parts = record["data_seconds"] + record["host_seconds"]
    assert 0 < parts <= record["step_seconds"]

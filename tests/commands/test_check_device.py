"""The check of a machine's devices: it runs whole, and finds what is wrong."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import make_goldens
import numpy as np
import pytest
import tiny

from skipalign_jax import check_device as skipalign_jax_check_device
from skipalign_jax.commands import check_device
from skipalign_jax.model import attention, backends, products, sharding
from skipalign_jax.planning import (
  attention_errors,
  device_report,
  goldens,
  timed_programs,
)
from skipalign_jax.runtime import hardware


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """(status, folder) of the command on this CPU."""
  folder = tmp_path_factory.mktemp("check") / "out"
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(sys, "argv", ["check_device", f"--out={folder}"])
    return skipalign_jax_check_device.main(), folder


def test_it_runs_whole_in_small(whole):
  status, folder = whole
  found = json.loads((folder / "report.json").read_text())
  assert status == 0 and found["passed"] and found["size"] == "small"
  assert found["versions"]["jax"] == jax.__version__
  assert found["positions"]["equal"] and found["positions"]["largest"] > 1000
  tried = {(one["backend"], one["dtype"]) for one in found["attention"]}
  kinds = ("bfloat16", "float32")
  assert tried == {(name, kind) for name in ("xla", "blockwise") for kind in kinds}
  assert [one["holds"] for one in found["goldens"]] == [True] * (3 + 2 * 4)
  narrow = [o["error"] for o in found["attention"] if o["dtype"] == "bfloat16"]
  assert len(found["attention"]) == 8 and min(narrow) > 1e-4
  (program,) = found["programs"]
  assert program["train"]["losses"][-1] < program["train"]["losses"][0]
  assert program["train"]["tokens_per_second"] > 0 < program["prefill_seconds"]
  assert program["train"]["executed_flops"] > 0 < program["decode_seconds_per_token"]


def test_the_report_has_each_check(whole):
  text = (whole[1] / "report.md").read_text()
  for words in (
    "All checks hold",
    "blockwise float32  head  64 packed",
    "tok/s",
    "logits qwen3",
  ):
    assert words in text
  assert "FAILS" not in text


@pytest.mark.parametrize(("packed", "fails"), [(True, True), (False, False)])
def test_a_wrong_backend_is_found(monkeypatch, packed, fails):
  """One that lets packed samples see each other."""

  def leaks(q_BLNH, k_BLKH, v_BLKH, segment_ids_BL):
    return attention.blockwise(q_BLNH, k_BLKH, v_BLKH, segment_ids_BL > 0)

  case = attention_errors.Case("blockwise", "bfloat16", 64, packed)
  monkeypatch.setitem(backends.BACKENDS, "blockwise", leaks)
  error = attention_errors.error(case, 128)
  assert (error > attention_errors.bound(case, "cpu")) == fails


@pytest.mark.parametrize("bits", [8, 11])  # as a TPU's default, as TF32
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_products_of_fewer_bits_are_found(monkeypatch, bits, platform):
  case = attention_errors.Case("blockwise", "float32", 64, True)
  whole = products.einsum
  assert attention_errors.error(case, 128) < attention_errors.bound(case, "cpu")

  def rounded(x):
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits - 1)

  def narrow(equation, left, right):
    return whole(equation, rounded(left), rounded(right))

  monkeypatch.setattr(products, "einsum", narrow)
  assert attention_errors.error(case, 128) > attention_errors.bound(case, platform)


GOOD = {
  "positions": {"equal": True, "largest": 9},
  "goldens": [{"holds": True}, {"holds": True}],
  "attention": [{"holds": True}, {"refused": "not on this GPU"}],
  "losses": {"holds": True},
  "programs": [{"train": {}}, {"skipped": "needs memory"}],
}


@pytest.mark.parametrize(
  ("change", "passed"),
  [
    ({}, True),
    ({"positions": {"skipped": "no CPU"}}, True),
    ({"positions": {"equal": False, "largest": 9}}, False),
    ({"goldens": [{"holds": True}, {"holds": False}]}, False),
    ({"attention": [{"holds": False}]}, False),
    ({"losses": {"holds": False}}, False),
    ({"losses": {"failed": "no memory"}}, False),
    ({"programs": [{"train": {}}, {"failed": "no memory"}]}, False),
  ],
)
def test_each_check_counts(change, passed):
  assert device_report.passed(GOOD | change) == passed


def fail(*arguments, **options):
  raise MosaicError("INTERNAL: does not compile\nand more")


class MosaicError(Exception):
  """As Pallas has: none of JAX's own."""


def test_a_part_that_fails_does_not_end_the_others(monkeypatch, tmp_path, capsys):
  one_case = attention_errors.Case("blockwise", "float32", 64, False)
  monkeypatch.setattr(attention_errors, "cases", lambda *arguments: [one_case])
  monkeypatch.setattr(backends, "attend", fail)
  monkeypatch.setattr(goldens, "check", fail)
  monkeypatch.setattr(check_device, "check_losses", fail)
  monkeypatch.setattr(timed_programs, "train", fail)
  monkeypatch.setattr(sys, "argv", ["check_device", f"--out={tmp_path}"])
  assert skipalign_jax_check_device.main() == 1
  found = json.loads((tmp_path / "report.json").read_text())
  why = "MosaicError: INTERNAL: does not compile"
  assert found["positions"]["equal"] and not found["passed"]
  assert found["goldens"] == found["losses"] == {"failed": why}
  assert found["attention"][0]["failed"] == found["programs"][0]["failed"] == why
  assert found["programs"][0]["prefill_seconds"] > 0
  text = (tmp_path / "report.md").read_text()
  assert "Some checks fail" in text and text.count(f"FAILS: {why}") == 4
  assert "prefill" in text and "Not complete" not in text
  assert "in fail" in capsys.readouterr().err


def test_parts_that_ended_are_written_before_the_next(monkeypatch, tmp_path):
  """A fault of XLA may end the process."""

  def abort(platform):
    raise KeyboardInterrupt

  monkeypatch.setattr(goldens, "check", abort)
  monkeypatch.setattr(sys, "argv", ["check_device", f"--out={tmp_path}"])
  with pytest.raises(KeyboardInterrupt):
    skipalign_jax_check_device.main()
  assert json.loads((tmp_path / "report.json").read_text())["positions"]["equal"]
  assert "Not complete: nothing after positions" in (tmp_path / "report.md").read_text()


def test_goldens_are_those_of_the_script():
  """The file has what transformers computed, and positions that skip."""
  stored = json.loads(pathlib.Path(goldens.__file__).with_suffix(".json").read_text())
  logits = np.load(make_goldens.FOLDER / "logits.npz")
  for name, model in stored["models"].items():
    expected = logits[f"{name}/skipped"][0, -1]
    np.testing.assert_allclose(model["logits"], expected, rtol=1e-6)
  for name, rows in stored["positions"].items():
    drawn = np.array(rows)
    assert drawn.max() > 1000, name
    assert (np.diff(drawn, axis=1) > 0).all() and (drawn[0] != drawn[1]).any()


def test_a_wrong_rope_and_a_wrong_draw_are_found(monkeypatch):
  stored = json.loads(pathlib.Path(goldens.__file__).with_suffix(".json").read_text())
  few = stored | {"models": {"qwen2": stored["models"]["qwen2"]}}
  monkeypatch.setattr(goldens.json, "loads", lambda text: few)
  monkeypatch.setattr(goldens, "skipped", lambda window: np.arange(goldens.LENGTH))
  drawn = {name: np.array(rows) for name, rows in stored["positions"].items()}
  drawn["pose"][1, -1] += 1
  monkeypatch.setattr(goldens, "drawn", drawn.get)
  found = [one["holds"] for one in goldens.check("cpu")]
  assert found == [name != "pose" for name in drawn] + [False] * 2


def test_other_losses_on_more_devices_fail(monkeypatch):
  found = {1: [3.0, 2.9], 2: [3.0, 2.91], 4: [3.0, 2.95]}
  some = lambda run, counts: {count: found[count] for count in counts}
  monkeypatch.setattr(timed_programs, "losses_by_devices", some)
  assert check_device.check_losses(3)["holds"]  # 1 and 2
  four = check_device.check_losses(4)
  assert not four["holds"] and four["difference"] == pytest.approx(0.05)
  monkeypatch.setitem(found, 1, [np.nan, 2.9])
  assert not check_device.check_losses(1)["holds"]


class Device:
  device_kind, platform = "NVIDIA A100-SXM4-80GB", "gpu"

  def memory_stats(self):
    return {"bytes_limit": 60 * 2**30, "peak_bytes_in_use": 2**30}


def test_a_known_device_has_ratios_and_the_models_that_fit(monkeypatch):
  mesh = sharding.make_mesh(dict(data=1, fsdp=-1, tensor=1, context=1))
  one_b, seven_b = (
    timed_programs.job(run, "train", mesh, "gpu") for run in timed_programs.FULL
  )
  assert timed_programs.fits(one_b, Device())
  assert not timed_programs.fits(seven_b, Device())
  flops = 10**15
  measured = {
    "peak_memory_gib": 40.0,
    "compiled_gib": 32.0,
    "executed_flops": flops,
    "seconds": {"median": 9.0},
  }
  monkeypatch.setattr(jax, "devices", lambda: [Device()])
  found = timed_programs.ratios(measured, one_b)
  assert found["memory_by_compiled"] == 1.25
  shortest, longest = found["estimated_seconds"]
  assert shortest >= flops / hardware.HARDWARE["a100-80gb"].flops / 0.75
  assert found["time_by_shortest"] == pytest.approx(9 / shortest)
  assert found["time_by_longest"] == pytest.approx(9 / longest)


def test_a_model_that_does_not_fit_is_named(monkeypatch):
  large = dataclasses.replace(timed_programs.FULL[1], name="large")
  monkeypatch.setattr(timed_programs, "FULL", (large,))
  found = check_device.time_programs("full", Device())
  assert "needs about" in found[0]["skipped"]
  assert "JAX has 60.0" in found[0]["skipped"]
  assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in found[0]["skipped"]
  assert "not run: needs about" in device_report.section(
    "programs", {"programs": found}
  )


@pytest.mark.slow
@pytest.mark.multidevice
def test_four_devices(tmp_path):
  command = [sys.executable, "-m", "skipalign_jax.check_device", f"--out={tmp_path}"]
  subprocess.run(command, env=tiny.environment(devices=4), cwd=tiny.ROOT, check=True)
  found = json.loads((tmp_path / "report.json").read_text())
  assert list(found["losses"]["by_devices"]) == ["1", "2", "4"]

"""Packages of extras that are not installed: one message, with the command."""

import sys
import tomllib
from unittest import mock

import pytest
import tiny
from packaging import requirements

from skipalign_jax.commands import analyze
from skipalign_jax.data import sources
from skipalign_jax.evals import runner
from skipalign_jax.evals.lm_eval import task as lm_eval_task
from skipalign_jax.hf import gguf, parity
from skipalign_jax.model import quantized
from skipalign_jax.runtime import errors, extras, terminal
from skipalign_jax.training import loggers

PROJECT = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def open_gguf(folder):
  (folder / "a.gguf").write_bytes(b"GGUF")
  gguf.read_metadata(folder / "a.gguf")


# Package → what needs it.
USES = {
  "datasets": lambda _: sources.parse("hub:org/name"),
  "gguf": open_gguf,
  "lm_eval": lambda _: lm_eval_task._names(mock.Mock(tasks="mmlu")),
  "matplotlib": lambda _: analyze.redraw_all(["a.json"]),
  "mlflow": lambda _: loggers.check_installed("mlflow"),
  "qwix": lambda _: quantized.check("nf4"),
  "torch": lambda _: next(parity.compare(mock.Mock(), 8)),
  "trackio": lambda _: loggers.check_installed("trackio"),
  "wandb": lambda _: loggers.check_installed("wandb"),
}


@pytest.mark.parametrize("package", extras.EXTRAS)
def test_a_missing_package_is_one_error_with_the_command(
  package, monkeypatch, tmp_path
):
  monkeypatch.setitem(sys.modules, package, None)
  extra = extras.EXTRAS[package]
  with pytest.raises(errors.UserError) as caught:
    USES[package](tmp_path)
  assert f"needs {package}" in str(caught.value)
  assert f"pip install -e '.[{extra}]'" in str(caught.value)


def test_every_package_is_in_its_extra():
  found = PROJECT["project"]["optional-dependencies"]
  for package, extra in extras.EXTRAS.items():
    assert package in {requirements.Requirement(one).name for one in found[extra]}
  assert set(USES) == set(extras.EXTRAS)


def test_the_command_in_and_outside_of_a_checkout(monkeypatch, tmp_path):
  assert extras.command("hub", "gguf") == "pip install -e '.[hub,gguf]'"
  monkeypatch.setattr(extras, "__file__", str(tmp_path / "a/runtime/extras.py"))
  assert extras.command("hub") == "pip install 'skipalign_jax[hub]'"


def test_a_folder_without_code_is_no_package(monkeypatch, tmp_path):
  (tmp_path / "only_a_folder").mkdir()
  monkeypatch.syspath_prepend(tmp_path)
  assert not extras.is_installed("only_a_folder") and extras.is_installed("numpy")


def test_without_matplotlib_results_are_written_and_a_note_names_the_picture(
  monkeypatch, tmp_path
):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  console = mock.Mock(spec=terminal.Console)
  task = mock.Mock()
  runner._write(task, None, {"protocol": {"task": "needle"}}, tmp_path, console)
  analyze._write({"kind": "coverage"}, str(tmp_path), console)
  assert {path.name for path in tmp_path.iterdir()} == {"results.json", "coverage.json"}
  assert not task.draw.called
  notes = [str(call.args[0]) for call in console.print.call_args_list]
  for picture in ("needle.png", "coverage.png"):
    (note,) = [one for one in notes if one.startswith(f"note: {picture}")]
    assert "pip install -e '.[plots]'" in note

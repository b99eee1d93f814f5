"""The command: flags, rope at inference, meshes, printed results and errors."""

import json

import pytest
import tiny
import tiny_subject

from skipalign_jax import evaluate
from skipalign_jax.commands import evaluate as commands_evaluate
from skipalign_jax.hf import reference
from skipalign_jax.runtime import errors


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return str(tiny_subject.folder(tmp_path_factory.mktemp("model") / "hf"))


def run(model, out, *more, task="needle"):
  flags = [task, f"--model={model}", f"--out={out}", "--dtype=float32"]
  return evaluate.main([*flags, "--distributed=off", *more])


NEEDLE = ("--lengths=300", "--depths=2", "--max_new_tokens=3")


def test_command_writes_results_and_prints_them(model, tmp_path, capsys):
  assert run(model, tmp_path / "out", *NEEDLE, "--limit=1") == 0
  results = json.loads((tmp_path / "out/results.json").read_text())
  assert 0 <= results["summary"]["average"] <= 1
  printed = capsys.readouterr().out
  assert "note: 1 of 1 items need more than the model's window of 256" in printed
  assert f"average: {results['summary']['average']:.4f}" in printed
  assert tiny.is_plain(printed) and f"needle of {model}, 1 items; 95 %" in printed
  assert "interval" in printed and f"{tmp_path}/out/results.json" in printed


def test_processes_that_find_other_checkpoints_are_refused(monkeypatch):
  """The latest one of a run that saves meanwhile."""
  commands_evaluate._check_step("runs/a", 20)
  monkeypatch.setattr(
    commands_evaluate.distributed, "exchange", lambda step: [step, "40", step]
  )
  with pytest.raises(errors.UserError, match=r"step 20 or 40.*name one, as runs/a@20"):
    commands_evaluate._check_step("runs/a", 20)


def test_processes_with_other_copies_of_the_model_are_refused(monkeypatch):
  commands_evaluate._check_copies("m", "config", "1234")
  monkeypatch.setattr(
    commands_evaluate.distributed, "exchange", lambda one: [one, one.replace("4", "5")]
  )
  with pytest.raises(errors.UserError, match="--model=m: the processes have copies"):
    commands_evaluate._check_copies("m", "config", "1234")


def test_rope_is_scaled_at_inference(model, tmp_path):
  run(model, tmp_path / "a", *NEEDLE, "--rope.kind=ntk", "--rope.target_length=1024")
  protocol = json.loads((tmp_path / "a/results.json").read_text())["protocol"]
  assert protocol["rope"]["kind"] == "ntk" and protocol["rope"]["factor"] == 4
  assert protocol["window"] == 1024
  opened = reference.open_model(model)
  assert commands_evaluate.with_rope(opened, "model", None) == opened.config


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--rope.kind=ntk"], "needs --rope.target_length"),
    (["--rope.kind=none", "--rope.target_length=512"], "has no effect with"),
    (["--rope.kind=magic", "--rope.target_length=512"], "magic"),
    (["--rope.kind=ntk", "--rope.target_length=8"], "below the model's window"),
    (["--mesh=fdsp=2"], "--mesh=fdsp=2"),
    (["--mesh=fsdp=3"], "does not fit"),
    (["--template=chatml"], "chatml"),
    (["--template=tulu", "--chat=False"], "add --chat=True, or leave it out"),
    (["--template_kwargs=a=true", "--chat=False"], "uses no chat template here"),
    (["--variant=pin"], "passkey or sandwich"),
    (["--lengths=16"], "--lengths=16: the prompt without"),
  ],
)
def test_mistakes_are_errors(model, tmp_path, flags, message):
  with pytest.raises(errors.UserError) as caught:
    run(model, tmp_path / "out", *flags)
  assert message in str(caught.value)
  assert not (tmp_path / "out").exists()


def test_unreadable_checkpoint_is_an_error(model, tmp_path):
  broken = tiny_subject.folder(tmp_path / "broken")
  weights = broken / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-500])
  with pytest.raises(errors.UserError, match=r"model\.safetensors"):
    run(broken, tmp_path / "out", *NEEDLE)
  with pytest.raises(errors.UserError, match="no such file or folder"):
    run(tmp_path / "nowhere", tmp_path / "out", *NEEDLE)
  assert not (tmp_path / "out").exists()


def test_error_of_an_unknown_task_lists_the_tasks(capsys):
  with pytest.raises(SystemExit) as caught:
    evaluate.main(["needles", "--model=x"])
  assert caught.value.code == 2
  assert "needle" in capsys.readouterr().err


def test_model_without_template_needs_chat_false(tmp_path):
  bare = tiny_subject.folder(tmp_path / "bare")
  for name in ("chat_template.jinja", "tokenizer_config.json"):
    (bare / name).unlink(missing_ok=True)
  with pytest.raises(errors.UserError, match="--chat=False"):
    run(bare, tmp_path / "out", *NEEDLE)
  assert run(bare, tmp_path / "out", *NEEDLE, "--chat=False", "--limit=1") == 0


def test_error_of_an_unknown_flag_names_the_nearest(capsys):
  with pytest.raises(SystemExit) as caught:
    evaluate.main(["needle", "--model=x", "--lenghts=1"])
  assert caught.value.code == 2
  printed = capsys.readouterr().err
  assert "--lenghts=1" in printed and "did you mean --lengths?" in printed
  assert "evaluate needle --model=REF" in printed


def test_default_folder_and_report():
  assert (
    commands_evaluate.default_folder("needle", "a/b c.gguf")
    == "runs/evals/needle-a_b_c.gguf"
  )
  lines = commands_evaluate.report(
    {"x": 0.5, "by": {"1": {"mean": 0.25, "low": 0.0, "high": 1.0, "n": 4}}}
  )
  assert lines == ["x: 0.5000", "by", "  1: 0.2500 (0.0000 to 1.0000, n 4)"]
  lacks = {"lacks": ["a: 1 of 2 records", "b"], "also": []}
  assert commands_evaluate.report(lacks) == [
    "lacks: a: 1 of 2 records; b",
    "also: nothing",
  ]


def test_compare_shows_folders_side_by_side(model, tmp_path, capsys):
  run(model, tmp_path / "a", *NEEDLE, "--limit=1")
  run(model, tmp_path / "b", *NEEDLE)
  command = ["compare", str(tmp_path / "a"), str(tmp_path / "b")]
  assert evaluate.main([*command, f"--out={tmp_path / 'both'}"]) == 0
  assert "needle" in capsys.readouterr().out
  assert (tmp_path / "both/needle.png").read_bytes().startswith(b"\x89PNG")
  with pytest.raises(errors.UserError, match=r"results\.json"):
    evaluate.main(["compare", str(tmp_path)])

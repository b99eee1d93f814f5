"""`analyze`: its JSON, the pictures drawn from it, and its errors."""

import json

import numpy as np
import pytest
import tiny
from matplotlib import figure as figure_lib

from skipalign_jax import analyze, config
from skipalign_jax.analysis import pictures, reach, training
from skipalign_jax.commands import analyze as commands_analyze
from skipalign_jax.runtime import errors

CONFIG = "--config=configs/llama2_ntk.py:tiny"
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def flags(cache_dir, tmp_path_factory):
  out = tmp_path_factory.mktemp("analysis")
  return out, [
    CONFIG,
    f"--config.data.cache_dir={cache_dir}",
    "--config.data.train=builtin:recall:12",
    f"--out={out}",
  ]


def run(what, *args):
  assert analyze.main(["analyze", what, *args]) == 0


def test_distances_are_of_all_dialogues_and_draws(flags, capsys):
  out, given = flags
  run("distances", *given, "--strategies=contiguous,skip_outer", "--draws=3")
  record = json.loads((out / "distances.json").read_text())
  before, after = record["strategies"].values()
  assert record["draws"] == 3 and before["samples"] == after["samples"] == 36
  bins = lambda found, kind: np.array(found["wide"][kind]) * found["wide"]["width"]
  # The same pairs, elsewhere: 500 divides 100 000, so every bin is full.
  assert bins(before, "pairs").sum() == pytest.approx(
    bins(after, "pairs").sum(), rel=1e-5
  )
  assert not bins(before, "pairs")[2:].any() and bins(after, "pairs")[2:].any()
  assert before["beyond"]["pairs"] is None
  assert sum(after["beyond"]["pairs"]["parts"]) == pytest.approx(1, abs=1e-4)
  assert (out / "distances.png").read_bytes().startswith(PNG)
  printed = capsys.readouterr().out
  assert "12 dialogues" in printed and "┃ strategy" in printed
  assert tiny.is_plain(printed)


def test_the_strategy_of_the_config_is_one_of_the_measured(flags, capsys):
  out, given = flags
  pose = ["--config.positions.strategy=pose", "--config.data.train=builtin:recall:4*2"]
  run("diagram", *given, *pose, "--samples=1")
  (sample,) = json.loads((out / "diagram.json").read_text())["samples"]
  assert list(sample["strategies"]) == [*commands_analyze.DIAGRAM, "pose"]
  assert "weights of sources have no effect" in capsys.readouterr().out
  run("diagram", *given, "--config.positions.gaps=uniform", "--samples=1")
  (sample,) = json.loads((out / "diagram.json").read_text())["samples"]
  drawn = sample["strategies"]
  assert list(drawn) == [*commands_analyze.DIAGRAM, "skip_outer/uniform"]
  assert drawn["skip_outer"] != drawn["skip_outer/uniform"]


def test_diagram_of_texts(flags, monkeypatch):
  out, given = flags
  figures = []
  keep = lambda figure, *_, **__: figures.append(figure)
  monkeypatch.setattr(pictures.plotting, "save", keep)
  texts = ["--config.data.train=builtin:text:4", "--config.data.text_blocks=sentences"]
  run("coverage", *given, *texts, "--strategies=contiguous")
  assert " samples of " in json.loads((out / "coverage.json").read_text())["title"]
  figures.clear()
  run("diagram", *given, *texts, "--samples=2")
  for sample in json.loads((out / "diagram.json").read_text())["samples"]:
    count = len(sample["strategies"]["contiguous"])
    assert (
      sample["title"].startswith("text ") and f": {count} blocks, " in sample["title"]
    )
  run("diagram", *given, "--samples=1")
  legends = [[text.get_text() for text in f.legends[0].get_texts()] for f in figures]
  assert legends == [["text"], ["instruction", "response"]]


def test_coverage_and_diagram(flags, capsys):
  out, given = flags
  run("coverage", *given, "--strategies=contiguous,skip_outer", "--samples=5")
  found = json.loads((out / "coverage.json").read_text())["strategies"]
  assert found["contiguous"]["unmoved"] == 1 and found["skip_outer"]["unmoved"] < 1
  assert found["skip_outer"]["samples"] == 5
  run("rope", *given)
  printed = capsys.readouterr().out
  assert printed.count("┡") == 2 and tiny.is_plain(printed)
  run("diagram", *given, "--samples=2", "--strategies=contiguous,skip_outer")
  record = json.loads((out / "diagram.json").read_text())
  assert len(record["samples"]) == 2
  for sample in record["samples"]:
    rows = sample["strategies"]
    assert list(rows) == ["contiguous", "skip_outer"]
    assert len({sum(block["tokens"] for block in row) for row in rows.values()}) == 1
    assert rows["contiguous"][-1]["last"] < 512
  for name in ("coverage", "diagram"):
    (out / f"{name}.png").unlink()
    run("draw", str(out / f"{name}.json"))
    assert (out / f"{name}.png").read_bytes().startswith(PNG)


def test_reach_of_llama_2():
  c = config.default()
  c.model.init_from, c.rope.kind = "meta-llama/Llama-2-7b-hf", "ntk"
  record = reach.measure(c)
  lines = {line["name"]: line for line in record["lines"]}
  wavelength_P = 2 * np.pi * 10_000 ** (np.arange(64) / 64)
  pretrained = lines["pretraining"]
  np.testing.assert_allclose(pretrained["turns"], 4096 / wavelength_P, rtol=1e-5)
  assert pretrained["full_turn"] == np.sum(wavelength_P <= 4096) == 46
  scaled = lines["positions to L"]
  # NTK leaves the first pair and slows the last one by L / 4096.
  assert scaled["turns"][0] == pytest.approx(100_000 / (2 * np.pi), rel=1e-5)
  assert scaled["turns"][-1] == pytest.approx(pretrained["turns"][-1], rel=1e-4)
  assert scaled["beyond_pretraining"] == 17  # all but the last of the 18 slow ones
  assert lines["positions to L, rope not scaled"]["beyond_pretraining"] == 18
  assert lines["contiguous samples"]["full_turn"] < pretrained["full_turn"]


def test_training_curves(tmp_path, capsys):
  records = [{"step": 0, "eval_loss": 3.0, "passkey/average": 0.25}]
  records += [{"step": i, "loss": float(i), "grad_norm": 1.0} for i in range(1, 1201)]
  records.append({"step": 1201, "loss": float("nan"), "grad_norm": 1.0})
  lines = [json.dumps(record) for record in records]
  for name in ("one", "two"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 12')
  run("training", str(tmp_path / "one"), str(tmp_path / "two"), f"--out={tmp_path}")
  found = json.loads((tmp_path / "training.json").read_text())["runs"]
  assert list(found) == ["one", "two"]
  steps, losses = found["one"]["loss"]
  assert steps == losses and steps[:2] == [2, 5] and len(steps) == 400
  assert found["two"]["eval_loss"] == [[0], [3]]
  assert found["two"]["passkey/average"] == [[0], [0.25]]
  assert (tmp_path / "training.png").read_bytes().startswith(PNG)
  again = str(tmp_path / "one" / ".." / "one")
  run("training", str(tmp_path / "one"), again, f"--out={tmp_path}")
  assert list(json.loads((tmp_path / "training.json").read_text())["runs"]) == ["one"]
  assert "it counts once" in capsys.readouterr().out


def test_the_loss_of_pairs_has_its_unit(monkeypatch):
  figures = []
  keep = lambda figure, *_, **__: figures.append(figure)
  monkeypatch.setattr(pictures.plotting, "save", keep)
  sft = {"loss": [[1, 2], [2.0, 1.0]]}
  dpo = sft | {"rewards/margin": [[1, 2], [0.0, 0.5]]}
  for runs in ({"a": sft}, {"b": dpo}, {"a": sft, "b": dpo}):
    pictures.draw({"kind": "training", "title": "Training", "runs": runs}, "x.png")
  units = [f.axes[0].get_ylabel().partition("nats per ")[2] for f in figures]
  assert units == ["target", "pair", "pair or target"]


def test_a_record_in_the_home_folder_is_drawn(flags, tmp_path, monkeypatch):
  out, given = flags
  run("rope", given[0], given[-1])
  (tmp_path / "rope.json").write_bytes((out / "rope.json").read_bytes())
  monkeypatch.setenv("HOME", str(tmp_path))
  run("draw", "~/rope.json")
  assert (tmp_path / "rope.png").read_bytes().startswith(PNG)


def test_a_value_between_missing_ones_is_a_dot():
  """EndPrompt's last positions, one bin at L, were not in the picture."""
  axes = figure_lib.Figure().subplots()
  nan = float("nan")
  pictures._line(axes, range(7), [1, nan, 2, 3, nan, nan, 4], "name", 0)
  assert axes.collections[0].get_offsets().tolist() == [[0, 1], [6, 4]]


def test_running_mean():
  assert pictures._running_mean([1.0, 3.0] * 20)[-1] == 2
  assert pictures._running_mean([1.0, 3.0, 8.0]) == [1, 2, 4]


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["coverge"], "did you mean coverage?"),
    (["figures"], "unexpected argument 'figures'"),
    (["distances", CONFIG, "--strategies=skip"], "positions.strategy='skip'"),
    (["distances", CONFIG, "--draws=0"], "--draws 1 or more"),
    (["rope", CONFIG, "--samples=3"], "rope reads no data"),
    (["diagram", CONFIG, "--draws=3"], "diagram shows one draw"),
    (
      [
        "distances",
        CONFIG,
        "--config.data.packing=True",
        "--config.data.packing_mask=False",
      ],
      "set data.packing_mask=True",
    ),
    (["training"], "needs the workdirs"),
    (["training", "nowhere"], "nowhere/metrics.jsonl does not exist"),
    (["training", "a", "--steps=3"], "unexpected argument '--steps=3'"),
    (["draw", "pyproject.toml"], "cannot be drawn"),
    (["draw"], "draw needs JSON files"),
  ],
)
def test_mistakes_are_errors(args, message):
  with pytest.raises(errors.UserError) as caught:
    analyze.main(["analyze", *args])
  assert message in str(caught.value)


def test_a_record_of_something_else(tmp_path):
  (tmp_path / "results.json").write_text('{"summary": 1}')
  with pytest.raises(errors.UserError, match="kind None has no picture"):
    commands_analyze.redraw(tmp_path / "results.json")
  with pytest.raises(errors.UserError, match="no records yet"):
    (tmp_path / "metrics.jsonl").write_text("")
    training.read([str(tmp_path)])


def test_a_record_whose_numbers_cannot_be_drawn(tmp_path):
  found = {"samples": 0, "tokens": 1, "gaps_per_sample": [1]}
  wide = {"wide": {"tokens": [1], "width": 1}}
  record = {"kind": "coverage", "title": "", "strategies": {"a": found | wide}}
  (tmp_path / "coverage.json").write_text(json.dumps(record))
  with pytest.raises(errors.UserError, match=r"coverage\.json cannot be drawn"):
    commands_analyze.redraw(tmp_path / "coverage.json")


def test_huge_integers_of_metrics_are_drawn():
  found = training.curves([{"step": 1, "loss": 10**300}, {"step": 2, "loss": 1.0}])
  assert found["loss"] == [[1.0, 2.0], [1e300, 1.0]]


def test_help(capsys):
  assert analyze.main(["analyze", "--help"]) == 0
  assert "distances  relative" in capsys.readouterr().out

"""The notebooks in colabs/: stored without outputs, and running as documented.

`make colabs` executes them on the CPU with fewer steps and the local weights.
"""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from skipalign_jax import config

ROOT = pathlib.Path(__file__).parents[2]
GGUF = ROOT / ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))

# Where Colab asks for a repository: the notebooks do not know the address of theirs.
BADGE = (
  "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
  "(https://colab.research.google.com/github/)"
)
# Notebook → its `%env` lines as CI runs it, and a file that must be there then.
MODEL = {"MODEL": str(GGUF)}
SMALL = {
  "01_positions": ({"DIALOGUES": "100"}, "analysis/distances.png"),
  "02_finetune": (MODEL | {"STEPS": "2"}, "runs/quickstart/metrics.jsonl"),
  "03_needle": (
    MODEL | {"STEPS": "1", "LENGTHS": "256,512", "DEPTHS": "2"},
    "runs/evals/all/compare.md",
  ),
  "04_your_data": (MODEL | {"STEPS": "1"}, "runs/mine_hf/model.safetensors"),
  "05_long_short": (
    MODEL | {"STEPS": "2", "SAMPLES": "2"},
    "runs/evals/alpha_0.1/results.json",
  ),
  "06_instruct_lora": (
    MODEL | {"STEPS": "1", "LENGTHS": "256", "DEPTHS": "2"},
    "runs/adapter/adapter_model.safetensors",
  ),
}


def source(cell):
  return "".join(cell["source"])


def read(path):
  return json.loads(path.read_text(encoding="utf-8"))


def only(path, tag):
  """The one cell of a notebook that has the tag."""
  found = [c for c in read(path)["cells"] if tag in c["metadata"].get("tags", ())]
  assert len(found) == 1, f"{path.name}: {len(found)} cells are tagged {tag}"
  return found[0]


def test_all_are_run():
  assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_clean(path):
  text = path.read_text(encoding="utf-8")
  notebook = json.loads(text)
  for cell in notebook["cells"]:
    assert set(cell["metadata"]) <= {"tags"}, cell["id"]
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
  assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
  # No folder or host of whoever wrote it, no address but those of papers and Colab.
  assert not re.findall(r"/(?:home|root|tmp|work|Users|content|mnt|opt)\b", text)
  assert not re.findall(r"localhost|127\.0\.0\.1|[A-Z]:\\\\", text)
  addresses = set(re.findall(r"https?://[^\s)\"\\]+", text))
  known = ("https://arxiv.org/abs/", "https://colab.research.google.com/")
  assert all(address.startswith(known) for address in addresses), addresses


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_has_the_badge_of_colab(path):
  first = source(read(path)["cells"][0])
  assert f"{BADGE} and choose colabs/{path.name} of this repository" in first
  assert path.name in (ROOT / "docs/notebooks.md").read_text(encoding="utf-8")


def test_install_cells_are_one():
  assert len({source(only(path, "install")) for path in NOTEBOOKS}) == 1


def test_install_does_nothing_where_the_package_is():
  before = dict(sys.modules)
  exec(source(only(NOTEBOOKS[0], "install")), {})
  assert dict(sys.modules) == before


@pytest.fixture
def missing(monkeypatch):
  """The install cell where the package is missing: the arguments of pip."""
  cell, commands = source(only(NOTEBOOKS[0], "install")), []
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(
    subprocess, "run", lambda command, check: commands.append(command)
  )
  monkeypatch.setattr(shutil, "which", lambda name: name)

  def run(repository=""):
    exec(cell.replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}", 1), {})
    ((_, *pip, wanted),) = commands
    assert pip == ["-m", "pip", "install", "-q"]
    return wanted

  return run


def test_install_is_from_the_clone_around_the_notebook(missing, monkeypatch):
  monkeypatch.chdir(ROOT / "colabs")
  assert missing() == f"{ROOT}[plots,hub,gguf,lora,gpu]"


def test_install_is_from_the_repository_that_is_named(missing, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  address = "https://example.org/skipalign_jax"
  assert missing(address) == f"skipalign_jax[plots,hub,gguf,lora,gpu] @ git+{address}"


def test_install_says_what_to_fill_in(missing, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(RuntimeError, match="REPOSITORY"):
    missing()


def test_quickstart_is_the_config_of_that_name(tmp_path):
  text = next(
    source(cell)
    for cell in read(ROOT / "colabs/02_finetune.ipynb")["cells"]
    if source(cell).startswith("%%writefile quickstart.py\n")
  )
  shown, kept = {}, {}
  exec(text.partition("\n")[2], shown)
  exec((ROOT / "configs/quickstart.py").read_text(encoding="utf-8"), kept)
  expected = kept["get_config"]()
  expected.model.init_from = ""  # the notebook's command names the model
  assert shown["get_config"]().to_dict() == expected.to_dict()
  assert expected.to_dict() != config.default().to_dict()


@pytest.mark.colabs
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
  import nbclient
  import nbformat

  changes, result = SMALL[path.stem]
  if "MODEL" in changes and not GGUF.is_file():
    pytest.fail(f"{GGUF} is missing: make weights")
  notebook = nbformat.read(path, as_version=4)
  for cell in notebook.cells:
    if "parameters" in cell.metadata.get("tags", ()):
      for name, value in changes.items():
        line = re.compile(rf"^%env {name}=.*$", re.MULTILINE)
        cell.source, count = line.subn(f"%env {name}={value}", cell.source)
        assert count == 1, f"{path.name} has no %env {name}"
  # Commands run with this Python, on this checkout, wherever the notebook is.
  folders = [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
  monkeypatch.setenv("PATH", os.pathsep.join(folders))
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  nbclient.NotebookClient(
    notebook,
    timeout=900,  # a cell, on a busy machine
    kernel_name="python3",
    resources={"metadata": {"path": str(tmp_path)}},
  ).execute()
  assert (tmp_path / result).stat().st_size > 0
  # Commands write lines, not a progress bar that a notebook shows a thousand times.
  assert "\x1b[" not in json.dumps(notebook).replace("\\u001b", "\x1b")

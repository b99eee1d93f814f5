"""What is installed: the package and its configs, without tests and studies."""

import pathlib
import subprocess
import sys
import tomllib
import zipfile
from email import parser

import pytest
import tiny

PROJECT = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TOOL = PROJECT["tool"]["setuptools"]
# git's own list has only what is part of the repository.
TRACKED = subprocess.run(
  ["git", "ls-files", "skipalign_jax", "configs"],
  cwd=tiny.ROOT,
  capture_output=True,
  text=True,
  check=True,
).stdout.split()


def installed(name):
  """Where a file of the repository is in the wheel."""
  return name if name.startswith("skipalign_jax/") else f"skipalign_jax/{name}"


def test_every_folder_with_code_is_a_package_of_the_project():
  folders = {
    installed(name).rpartition("/")[0] for name in TRACKED if name[-3:] == ".py"
  }
  assert {folder.replace("/", ".") for folder in folders} == set(TOOL["packages"])


def test_the_configs_are_found_where_they_are():
  """Outside of the package's folder, below it in the wheel."""
  assert TOOL["package-dir"] == {
    "skipalign_jax": "skipalign_jax",
    "skipalign_jax.configs": "configs",
  }
  assert (tiny.ROOT / "configs" / "llama2_ntk.py").exists()


def test_every_other_file_is_data_of_a_package():
  patterns = {
    f"{package.replace('.', '/')}/{pattern}": 0
    for package, each in TOOL["package-data"].items()
    for pattern in each
  }
  for name in TRACKED:
    if not name.endswith(".py"):
      (pattern,) = [one for one in patterns if pathlib.PurePath(name).match(one)]
      patterns[pattern] += 1
  assert all(patterns.values())


def test_the_script_and_the_licence_exist():
  assert PROJECT["project"]["scripts"] == {"skipalign": "skipalign_jax.__main__:script"}
  for name in (PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]):
    assert (tiny.ROOT / name).is_file()


def build(folder):
  """The wheel, in `folder`, of what git has, as setuptools builds it."""
  archive = ["git", "archive", "--format=tar", f"--output={folder}/a.tar", "HEAD"]
  subprocess.run(archive, cwd=tiny.ROOT, check=True)
  source = folder / "source"
  source.mkdir()
  subprocess.run(["tar", "-xf", "../a.tar"], cwd=source, check=True)
  code = "from setuptools import build_meta; build_meta.build_wheel('..')"
  subprocess.run([sys.executable, "-c", code], cwd=source, check=True)
  (wheel,) = folder.glob("*.whl")
  return wheel


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(tmp_path):
  wheel = build(tmp_path)
  with zipfile.ZipFile(wheel) as file:
    names = {name for name in file.namelist() if ".dist-info/" not in name}
    (place,) = [name for name in file.namelist() if name.endswith("/METADATA")]
    metadata = parser.Parser().parsestr(file.read(place).decode())
    script = file.read(place.replace("METADATA", "entry_points.txt")).decode()
    assert file.read(place.replace("METADATA", "licenses/LICENSE"))
  assert names == {installed(name) for name in TRACKED}
  assert "skipalign = skipalign_jax.__main__:script" in script
  assert metadata["License-Expression"] == "Apache-2.0"
  assert "# skipalign_jax" in metadata.get_payload()
  extras = set(metadata.get_all("Provides-Extra"))
  assert extras == set(PROJECT["project"]["optional-dependencies"])

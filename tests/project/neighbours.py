"""Reads what packages that users have next to ours ask for; writes neighbours.json.

  make neighbours

Asks the package index, through pip and uv, for each package of NEIGHBOURS:
  requires   its own requirements of packages that we ask for too, as it publishes them
  together   the versions of these that uv finds for it and skipalign_jax[all] together
test_neighbours.py compares them with our ranges, without a network.
"""

import datetime
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import test_lock
from packaging import requirements, utils

FILE = pathlib.Path(__file__).with_name("neighbours.json")
PYTHON = "3.11"
# Without a version: the newest one.
NEIGHBOURS = (
  "vllm", "vllm==0.20.0", "unsloth", "unsloth_zoo", "easydel", "trl", "peft",
)  # fmt: skip


def ours() -> dict[str, list[requirements.Requirement]]:
  """What our package asks for with all extras that users install: name → ranges."""
  found = {}
  for need in test_lock.asked(*(set(test_lock.EXTRAS) - {"dev", "docs"})):
    found.setdefault(utils.canonicalize_name(need.name), []).append(need)
  return found


def output(*command: str) -> str:
  """What a command prints; its errors go to the terminal."""
  return subprocess.run(
    command, cwd=test_lock.ROOT, stdout=subprocess.PIPE, text=True, check=True
  ).stdout


def metadata(asked: str) -> dict:
  """Name, version and requirements of a package that is not installed."""
  pip = (sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps")
  report = output(*pip, "--ignore-installed", "--quiet", "--report=-", asked)
  (install,) = json.loads(report)["install"]
  return install["metadata"]


def together(name: str, version: str) -> dict[str, str]:
  """Versions that uv finds for a package and ours, with the extra `all`."""
  with tempfile.NamedTemporaryFile("w", suffix=".in") as file:
    file.write(f"skipalign_jax[all] @ file://{test_lock.ROOT}\n{name}=={version}\n")
    file.flush()
    uv = (sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header")
    platform = ("--python-platform=linux", f"--python-version={PYTHON}")
    text = output(*uv, *platform, "--no-annotate", file.name)
  return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


def read(asked: str) -> dict:
  """The entry of a package in the file."""
  found = metadata(asked)
  shared = ours()
  needs = {
    need: utils.canonicalize_name(requirements.Requirement(need).name)
    for need in found.get("requires_dist", ())
    if "extra ==" not in need
  }
  versions = together(found["name"], found["version"])
  names = {name for name in needs.values() if name in shared}
  return {
    "name": found["name"],
    "version": found["version"],
    "requires_python": found.get("requires_python", ""),
    "requires": [need for need, name in needs.items() if name in names],
    "together": {name: versions[name] for name in sorted(names & set(versions))},
  }


def main() -> None:
  entries = [read(asked) for asked in NEIGHBOURS]
  day = datetime.datetime.now(datetime.UTC).date().isoformat()
  content = {"read": day, "python": PYTHON, "neighbours": entries}
  FILE.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()

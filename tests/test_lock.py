"""requirements.lock: pins all that requirements.txt pulls in, each with its hashes."""

import importlib.metadata
import pathlib
import re

from packaging import requirements, utils

ROOT = pathlib.Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def locked() -> dict[str, tuple[str, list[str]]]:
  """Name → version and hashes."""
  found = {}
  for block in re.split(r"\n(?=[a-z0-9])", "\n" + re.sub("#.*", "", LOCK)):
    if match := re.match(r"([\w.-]+)==(\S+)", block):
      name = utils.canonicalize_name(match[1])
      assert name not in found, name
      found[name] = match[2], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block)
  return found


def test_every_requirement_is_locked_with_its_version_and_hashes():
  found = locked()
  lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
  asked = [line for line in lines if line and not line.startswith("#")]
  for name, version in (line.split("==") for line in asked):
    assert found[utils.canonicalize_name(name)][0] == version, name
  assert len(found) > len(asked) > 20
  for name, (_, hashes) in found.items():
    assert hashes, name
  assert LOCK.count("==") == len(found)  # nothing else than pins


def test_what_locked_packages_need_is_locked():
  found = locked()
  checked = 0
  for name in found:
    try:
      needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
      continue  # for another platform
    for need in map(requirements.Requirement, needs):
      if need.marker is None or need.marker.evaluate({"extra": ""}):
        assert utils.canonicalize_name(need.name) in found, f"{need} of {name}"
        checked += 1
  assert checked > 100


def test_the_lock_names_no_host():
  for word in ("://", "index-url", "find-links", "trusted-host", " @ ", "file:"):
    assert word not in LOCK

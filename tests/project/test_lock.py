"""requirements.lock: pins all that requirements.txt pulls in, each with its hashes."""

import importlib.metadata
import pathlib
import re
import tomllib

from packaging import requirements, utils

ROOT = pathlib.Path(__file__).parents[2]
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
  needs = [(name, need) for name in found for need in _needs(name, "")]
  for name, need in needs:
    assert utils.canonicalize_name(need.name) in found, f"{need} of {name}"
  assert len(needs) > 100


def test_extras_can_be_installed_on_top():
  """What the installed extras pull in wants no other version of what is locked."""
  found, seen, checked = locked(), set(), 0
  project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
  extras = project["project"]["optional-dependencies"].values()
  queue = [requirements.Requirement(one) for extra in extras for one in extra]
  while queue:
    need = queue.pop()
    name = utils.canonicalize_name(need.name)
    if name in found:
      assert need.specifier.contains(found[name][0], prereleases=True), need
      checked += 1
    for extra in ("", *need.extras):
      if (name, extra) not in seen:
        seen.add((name, extra))
        queue += _needs(name, extra)
  assert checked > 50


def _needs(name: str, extra: str) -> list[requirements.Requirement]:
  """What a package, or one of its extras, needs here; none if it is not installed."""
  try:
    needs = importlib.metadata.requires(name) or []
  except importlib.metadata.PackageNotFoundError:
    return []
  return [
    need
    for need in map(requirements.Requirement, needs)
    if need.marker is None or need.marker.evaluate({"extra": extra})
  ]


def test_the_lock_names_no_host():
  for word in ("://", "index-url", "find-links", "trusted-host", " @ ", "file:"):
    assert word not in LOCK

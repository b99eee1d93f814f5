"""Ranges of the package; requirements.lock has exact versions of all it needs."""

import importlib.metadata
import pathlib
import re
import tomllib

import pytest
from packaging import requirements, utils

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
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


def asked(*extras: str) -> list[requirements.Requirement]:
  """What the package needs, with extras, whose own extras are followed."""
  text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
  lines = [line for line in text.splitlines() if line and not line.startswith("#")]
  queue, found = [*lines, *(one for name in extras for one in EXTRAS[name])], []
  while queue:
    need = requirements.Requirement(queue.pop())
    if need.name == "skipalign_jax":
      queue += [one for name in need.extras for one in EXTRAS[name]]
    else:
      found.append(need)
  return found


def test_requirements_are_ranges_and_the_lock_has_exact_versions_with_hashes():
  found = locked()
  needs = asked("dev")
  for need in needs:
    version, _ = found[utils.canonicalize_name(need.name)]
    assert need.specifier.contains(version), need
  assert len(found) > len(needs) > 30
  for name, (_, hashes) in found.items():
    assert hashes, name
  assert LOCK.count("==") == len(found)  # nothing else than pins
  for need in asked(*EXTRAS):
    kinds = {one.operator for one in need.specifier}
    assert ">=" in kinds and not kinds & {"==", "===", "~="}, need


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_what_locked_packages_need_is_locked(python):
  """Also on Pythons that are not this one."""
  found, checked = locked(), 0
  queue = [(need.name, extra) for need in asked("dev") for extra in ("", *need.extras)]
  seen = set(queue)
  while queue:
    name, extra = queue.pop()
    for need in _needs(name, extra, python):
      version, _ = found[utils.canonicalize_name(need.name)]
      assert need.specifier.contains(version, prereleases=True), f"{need} of {name}"
      checked += 1
      new = {(need.name, one) for one in ("", *need.extras)} - seen
      seen |= new
      queue += new
  assert checked > 100


def test_extras_can_be_installed_on_top():
  """What the installed extras pull in wants no other version of what is locked."""
  found, seen, checked = locked(), set(), 0
  queue = asked(*EXTRAS)
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


def _needs(
  name: str, extra: str, python: str = "3.11"
) -> list[requirements.Requirement]:
  """What a package, or one of its extras, needs; none if it is not installed here."""
  here = {"python_version": python, "python_full_version": f"{python}.9"}
  try:
    needs = importlib.metadata.requires(name) or []
  except importlib.metadata.PackageNotFoundError:
    return []
  return [
    need
    for need in map(requirements.Requirement, needs)
    if need.marker is None or need.marker.evaluate(here | {"extra": extra})
  ]


def test_the_lock_names_no_host():
  for word in ("://", "index-url", "find-links", "trusted-host", " @ ", "file:"):
    assert word not in LOCK

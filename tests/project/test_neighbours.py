"""Our ranges leave room for the packages that users have next to ours.

neighbours.json has what those packages publish; `make neighbours` reads it again.
"""

import json
import re

import neighbours
import pytest
import test_lock
from packaging import requirements, specifiers, utils, version

FOUND = json.loads(neighbours.FILE.read_text(encoding="utf-8"))
ENTRIES = {f"{one['name']} {one['version']}": one for one in FOUND["neighbours"]}
PYTHONS = ("3.11", "3.12", "3.13")
LINUX = {
  "os_name": "posix",
  "sys_platform": "linux",
  "platform_system": "Linux",
  "platform_machine": "x86_64",
  "platform_python_implementation": "CPython",
  "implementation_name": "cpython",
  "extra": "",
}


def candidates(*ranges):
  """Versions of which one fits all ranges, if any version does.

  The ends of the ranges, a version just above each, and the next one of its series:
  between two neighbouring ends all versions are alike.
  """
  yield version.Version("0")
  for each in ranges:
    for one in each:
      end = version.Version(one.version.removesuffix(".*"))
      *series, last = end.release
      yield end
      yield version.Version(f"{end.base_version}.0.0.1")
      yield version.Version(".".join(map(str, (*series, last + 1))))


def overlap(*ranges):
  """Whether a version fits all ranges."""
  return any(
    all(each.contains(one, prereleases=True) for each in ranges)
    for one in candidates(*ranges)
  )


def counts(need, python):
  """Whether a requirement is one of a Linux machine with this Python, no extras."""
  here = {"python_version": python, "python_full_version": f"{python}.9"}
  return need.marker is None or need.marker.evaluate(LINUX | here)


def conflicts(ours, requires, python):
  """Requirements of another package that no version fits together with ours."""
  found = []
  for need in map(requirements.Requirement, requires):
    for own in ours.get(utils.canonicalize_name(need.name), ()):
      if counts(need, python) and not overlap(own.specifier, need.specifier):
        found.append(f"{need} against our {own}")
  return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ENTRIES)
def test_no_range_of_ours_shuts_a_neighbour_out(name, python):
  assert not conflicts(neighbours.ours(), ENTRIES[name]["requires"], python)


@pytest.mark.parametrize("name", ENTRIES)
def test_what_was_found_for_both_still_fits_both(name):
  """After a change of our ranges: make neighbours."""
  entry, ours = ENTRIES[name], neighbours.ours()
  needs = map(requirements.Requirement, entry["requires"])
  theirs = [need for need in needs if counts(need, FOUND["python"])]
  assert {utils.canonicalize_name(need.name) for need in theirs} == set(
    entry["together"]
  )
  for need in (*theirs, *(own for one in entry["together"] for own in ours[one])):
    found = entry["together"][utils.canonicalize_name(need.name)]
    assert need.specifier.contains(found, prereleases=True), (need, found)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_python_has_both(name):
  theirs = specifiers.SpecifierSet(ENTRIES[name]["requires_python"])
  ours = specifiers.SpecifierSet(test_lock.PROJECT["project"]["requires-python"])
  assert overlap(ours, theirs) and theirs.contains("3.11.9")


def test_every_neighbour_was_read():
  asked = [requirements.Requirement(one) for one in neighbours.NEIGHBOURS]
  assert len(asked) == len(ENTRIES) == len(FOUND["neighbours"])
  for need, entry in zip(asked, FOUND["neighbours"], strict=True):
    assert utils.canonicalize_name(need.name) == utils.canonicalize_name(entry["name"])
    assert need.specifier.contains(entry["version"])
    assert entry["requires"]
  assert re.fullmatch(r"\d{4}-\d\d-\d\d", FOUND["read"])


@pytest.mark.parametrize(
  ("one", "other", "fits"),
  [
    (">=2,<3", ">=1.26,<2.3", True),
    (">=2,<3", "<2", False),
    (">=2,<3", "<=2", True),
    (">2,<3", "<=2", False),
    (">=0.9.2,<0.11", "==0.9.*", True),
    (">=0.9.2,<0.11", "~=0.11.0", False),
    (">=4.3,<6", "!=4.0.*,!=4.1.0,<4.4.0,>=3.4.1", True),
    (">=4.3,<4.4", "!=4.3.*", False),
    (">=4.3,<4.5", "!=4.3.*", True),
    (">=5.5,<6", "!=5.5.0,<5.6", True),
    (">=5.5,<6", "==5.17.0", True),
    (">=5.5,<6", "==4.57.6", False),
    ("", "", True),
    (">1,<1.0.0.0", "", False),
  ],
)
def test_overlaps(one, other, fits):
  assert overlap(*map(specifiers.SpecifierSet, (one, other))) == fits
  assert overlap(*map(specifiers.SpecifierSet, (other, one))) == fits


def test_a_range_that_shuts_a_neighbour_out_is_noticed():
  """As our exact versions did: no newer vllm could be installed next to them."""
  ours = {"numpy": [requirements.Requirement("numpy>=99")]}
  vllm = ["numpy<3", 'numpy>=1; extra == "a"', "torch==2.9"]
  assert conflicts(ours, vllm, "3.11") == ["numpy<3 against our numpy>=99"]
  assert not conflicts(ours, ['numpy<3; python_version < "3.12"'], "3.13")
  for name, entry in ENTRIES.items():
    shared = {requirements.Requirement(need).name for need in entry["requires"]}
    tight = {
      utils.canonicalize_name(one): [requirements.Requirement(f"{one}>99,<2")]
      for one in shared
    }
    assert len(conflicts(tight, entry["requires"], "3.11")) >= len(shared), name

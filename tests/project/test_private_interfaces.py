"""docs/porting.md lists the private interfaces of libraries that the code uses.

The tests fail for a private name that is not listed, for a table row that is no longer
needed, and for a pinned version that differs from the table's.
"""

import ast
import builtins
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
OURS = {"__future__", "skipalign_jax", "studies"}
# Modules whose interfaces may change without notice, although their names are public.
UNSTABLE = ("jax.experimental.", "jax.extend.", "unittest.mock.")
PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_replace"}  # documented by Python
DOTTED = re.compile(r"[a-z]\w*(\.\w+)*\._\w+(\.\w+)*")
COMMENT = re.compile(r"# private: (\w+(?:\.\w+)+)")


def private(segment: str) -> bool:
  return segment.startswith("_") and not segment.startswith("__")


def of_imports(tree: ast.Module) -> set[str]:
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      continue
    found |= {
      name
      for name in names
      if name.partition(".")[0] not in OURS
      and (any(map(private, name.split("."))) or f"{name}.".startswith(UNSTABLE))
    }
  return found


def defined(tree: ast.AST) -> set[str]:
  """Names with an underscore that the tree itself defines."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      found.add(node.name)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      found.add(node.id)
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
      found.add(node.attr)
  return set(filter(private, found))


def of_attributes(tree: ast.Module, ours: set[str]) -> set[str]:
  """Attributes, and arguments of getattr, that are defined nowhere in our code."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute):
      found.add(node.attr)
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("attr"):
      found |= {a.value for a in node.args[1:2] if isinstance(a, ast.Constant)}
  return {name for name in found if private(name)} - ours - PUBLIC


def of_overrides(tree: ast.Module) -> set[str]:
  """Private methods of subclasses of other packages' classes, unless only we call them.

  A base class is written `module.Class`; modules that are not ours are other packages.
  """
  own = {
    alias.asname or alias.name
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in OURS
    for alias in node.names
  }
  found = set()
  for node in ast.walk(tree):
    if not isinstance(node, ast.ClassDef):
      continue
    bases = [ast.unparse(base).partition(".") for base in node.bases]
    if all(module in own or hasattr(builtins, module) for module, *_ in bases):
      continue
    called = {
      use.attr
      for use in ast.walk(node)
      if isinstance(use, ast.Attribute) and getattr(use.value, "id", "") == "self"
    }
    methods = {m.name for m in node.body if isinstance(m, ast.FunctionDef)}
    found |= {name for name in methods - called if private(name)}
  return found


def of_strings(tree: ast.Module) -> set[str]:
  return {
    node.value
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
    if DOTTED.fullmatch(node.value)
  }


@functools.cache
def used() -> set[tuple[str, str]]:
  """(name, module) of all private interfaces in the package and the studies."""
  paths = [*ROOT.glob("skipalign_jax/**/*.py"), *ROOT.glob("studies/**/*.py")]
  texts = {path: path.read_text(encoding="utf-8") for path in paths}
  trees = {path: ast.parse(text) for path, text in texts.items()}
  ours = set().union(*map(defined, trees.values()))
  found = set()
  for path, tree in trees.items():
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    names = of_imports(tree) | of_attributes(tree, ours) | of_overrides(tree)
    names |= of_strings(tree) | set(COMMENT.findall(texts[path]))
    found |= {(name, module.removeprefix("skipalign_jax.")) for name in names}
  return found


def table(heading: str) -> list[list[str]]:
  """The cells of the table under a heading of docs/porting.md."""
  text = (ROOT / "docs" / "porting.md").read_text(encoding="utf-8")
  part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
  rows = [line.strip("|").split(" | ") for line in part.splitlines() if line[:1] == "|"]
  return [[cell.strip() for cell in row] for row in rows[2:]]


NAMES = table("When you upgrade a library: private names")
HABITS = table("When you upgrade a library: behaviour without a promise")


def spans(cell: str) -> list[str]:
  return re.findall(r"`([^`]+)`", cell)


def module_of(where: str) -> tuple[pathlib.Path, list[str]]:
  """The file of `module.function`, and the names inside it."""
  parts = where.split(".")
  for end in range(len(parts), 0, -1):
    for root in (ROOT / "skipalign_jax", ROOT):
      path = root.joinpath(*parts[:end]).with_suffix(".py")
      if path.is_file():
        return path, parts[end:]
  raise AssertionError(f"docs/porting.md: there is no module of `{where}`")


def test_private_names_are_those_of_the_table():
  listed = set()
  for _, interface, where, *_ in NAMES:
    for place in spans(where):
      _, inside = module_of(place)
      module = ".".join(place.split(".")[: -len(inside) or None])
      listed |= {(name, module) for name in spans(interface)}
  # An attribute or a method is found by its last name alone.
  matches = lambda name, other: other == name or other.endswith(f".{name}")
  new = {
    (name, module)
    for name, module in used()
    if not any(m == module and matches(name, other) for other, m in listed)
  }
  assert not new, f"add to docs/porting.md, or use a public interface: {new}"
  stale = {
    (other, module)
    for other, module in listed
    if not any(m == module and matches(name, other) for name, m in used())
  }
  assert not stale, f"remove from docs/porting.md: {stale}"


@pytest.mark.parametrize("row", [*NAMES, *HABITS], ids=lambda row: row[1][:50])
def test_table_rows_name_existing_functions_tests_and_versions(row):
  library, _, where, why, check = row
  for place in spans(where):
    path, inside = module_of(place)
    names = {
      node.name
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
      if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert set(inside) <= names, f"{path} has no {'.'.join(inside)}"
  assert spans(where) and why
  for test in spans(check):
    assert not test.startswith("tests/") or (ROOT / test).is_file(), test
  assert any(test.startswith("tests/") for test in spans(check)), check
  name, _, version = library.partition(" ")
  pins = (ROOT / "requirements.lock").read_text(encoding="utf-8")
  pins += (ROOT / "pyproject.toml").read_text(encoding="utf-8")
  pinned = re.findall(
    rf'(?:^|["\s]){re.escape(name).replace("_", "[-_]")}(?:\[\w+\])?==([\w.]+)', pins
  )
  assert (version in pinned) if pinned else not version, (
    f"{library}: pinned is {pinned}; check what the row says, then change its version"
  )

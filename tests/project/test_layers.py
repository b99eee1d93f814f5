"""A group imports only groups above it in this list; nobody imports a command line."""

import ast
import pathlib

GROUPS = (
  {"runtime"},
  {"config_keys"},
  {"config"},
  {"cli", "model"},
  {"hf", "method"},
  {"data"},
  {"evals"},
  {"training"},
  {"planning"},
  {"analysis", "sweep"},
  {"commands"},
  {"analyze", "convert", "evaluate", "generate", "plan", "show", "train"},
  {"studies"},
)
ROOT = pathlib.Path(__file__).parents[2]


def rank(unit: str) -> int:
  found = [i for i, group in enumerate(GROUPS) if unit in group]
  assert len(found) == 1, f"{unit} is in {len(found)} groups"
  return found[0]


def unit(module: str) -> str:
  first, *rest = module.split(".")
  return first if first == "studies" else rest[0]


def test_imports_point_down():
  checked = 0
  for path in (*ROOT.glob("skipalign_jax/**/*.py"), *ROOT.glob("studies/**/*.py")):
    here = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if here.endswith("__init__"):
      continue
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.ImportFrom) and node.module:
        if node.module.split(".")[0] not in ("skipalign_jax", "studies"):
          continue
        for alias in node.names:
          other = unit(f"{node.module}.{alias.name}")
          if other != unit(here):
            assert rank(other) < rank(unit(here)), f"{here} imports {alias.name}"
            checked += 1
  assert checked > 200


def test_data_workers_do_not_load_jax():
  for path in (ROOT / "skipalign_jax" / "data").glob("*.py"):
    assert "import jax" not in path.read_text(encoding="utf-8"), path

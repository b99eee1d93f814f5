"""A module imports only modules of lower layers; nobody imports a command."""

import ast
import pathlib

LAYERS = (
  {"position_baselines", "products", "terminal", "untrusted"},
  {"errors"},
  {
    "chat_template",
    "compile_cache",
    "config",
    "cpu",
    "distributed",
    "families",
    "frozen",
    "losses",
    "metrics",
    "optimizer",
    "positions",
    "preview",
    "rope",
    "sharding",
    "signals",
  },
  {"attention", "cli", "long_short", "lora", "model_config", "seal", "watch"},
  {"kernels", "lora_trees", "norm", "resolve", "shapes"},
  {"model"},
  {"hf", "inference", "step"},
  {"data", "manifest", "workdir"},
  {"checkpoint", "evals", "planning", "report"},
  {"analysis"},
  {
    "analyze",
    "convert",
    "evaluate",
    "generate",
    "length_study",
    "plan",
    "show",
    "sweep",
    "train",
  },
  {"needle_study"},
)
ROOT = pathlib.Path(__file__).parents[2] / "skipalign_jax"


def rank(unit: str) -> int:
  found = [i for i, layer in enumerate(LAYERS) if unit in layer]
  assert len(found) == 1, f"{unit} is in {len(found)} layers"
  return found[0]


def imports(path: pathlib.Path) -> set[str]:
  """Units (modules, or the packages data, hf and planning) that a file imports."""
  units = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module == "skipalign_jax":
        units |= {alias.name for alias in node.names}
      elif node.module.startswith("skipalign_jax."):
        units.add(node.module.split(".")[1])
    elif isinstance(node, ast.Import):
      assert not any(alias.name.startswith("skipalign_jax") for alias in node.names)
  return units


def test_imports_point_down():
  checked = 0
  for path in sorted(ROOT.rglob("*.py")):
    unit = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if unit == "__init__":
      continue
    for imported in imports(path) - {unit}:
      assert rank(imported) < rank(unit), f"{path.name} imports {imported}"
      checked += 1
  assert checked > 40


def test_data_workers_do_not_load_jax():
  for path in (ROOT / "data").glob("*.py"):
    assert "import jax" not in path.read_text(encoding="utf-8"), path

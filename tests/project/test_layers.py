"""A group imports only groups above it in this list; nobody imports a command line."""

import ast
import pathlib

COMMANDS = {
  "analyze",
  "check_device",
  "convert",
  "evaluate",
  "generate",
  "plan",
  "show",
  "train",
}
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
  COMMANDS | {"__main__"},
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


def test_a_modules_local_name_is_its_name():
  """Or NAME_lib where a variable has it, or PACKAGE_NAME where it says too little."""
  checked = 0
  for root in ("skipalign_jax", "studies", "tests", "benchmarks"):
    for path in (ROOT / root).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.module:
          continue
        if node.module.split(".")[0] not in ("skipalign_jax", "studies"):
          continue
        for alias in node.names:
          package = node.module.rpartition(".")[2]
          allowed = {None, f"{alias.name}_lib", f"{package}_{alias.name}"}
          if alias.name == "__main__":
            allowed.add("command")
          assert alias.asname in allowed, f"{path.name}: {alias.name} as {alias.asname}"
          checked += 1
  assert checked > 800


def test_the_root_of_the_package_holds_the_commands_and_their_config():
  found = {path.stem for path in (ROOT / "skipalign_jax").glob("*.py")} - {"__init__"}
  assert found == COMMANDS | {"cli", "config", "config_keys", "__main__"}

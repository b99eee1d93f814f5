"""The documentation says what is so: commands parse, links lead somewhere, all keys.

`make docs` builds the site itself.
"""

import argparse
import ast
import fnmatch
import importlib
import importlib.util
import json
import pathlib
import re
import shlex
import sys

import pytest
import test_layers
import yaml

from skipalign_jax import cli
from skipalign_jax import config as config_lib
from skipalign_jax.analysis import training
from skipalign_jax.commands import analyze
from skipalign_jax.hf import gguf_keys
from skipalign_jax.runtime import errors
from skipalign_jax.sweep import plan as plan_lib
from skipalign_jax.training import resolve

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OUTSIDE = ("README.md", "CONTRIBUTING.md", "launch/README.md", "benchmarks/README.md")
STUDIES = sorted((ROOT / "studies").glob("*/README.md"))
TEXTS = [*(ROOT / name for name in OUTSIDE), *PAGES, *STUDIES]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
# Words that stand for something in commands.
STAND_INS = {"--config=FILE": "--config=configs/quickstart.py"}


@pytest.fixture(scope="module")
def hooks():
  spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def commands(text):
  """(module, arguments) of each `python -m` of ours in a text.

  What is optional (in brackets) counts, an ellipsis and a comment do not.
  """
  text = re.sub(r"\\\n\s*", " ", text)
  ours = r"python -m (skipalign_jax\.\w+|studies\.\w+)([^\n`]*)"
  for module, rest in re.findall(ours, text):
    module = module.removeprefix("skipalign_jax.")
    rest = re.split(r"\s#\s|…$", rest)[0].replace("[--", "--")
    rest = re.sub(r"(?<!\S)…(?!\S)|(?<=\S)\](?=\s|$)|\[:\w+\]", "", rest)
    rest = re.sub(r"=auto\|off\|\S+", "=auto", rest)
    yield module, [STAND_INS.get(word, word) for word in shlex.split(rest)]


def full(module):
  """The name of a module that `commands` gave."""
  return module if module.startswith("studies.") else f"skipalign_jax.{module}"


def of_notebook(path, folder):
  """Its commands with their values; the configs that it writes go to `folder`."""
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  sources = ["".join(cell["source"]) for cell in cells]
  text = "\n".join(sources)
  values = dict(re.findall(r"^%env (\w+)=(.*)$", text, re.MULTILINE))
  values["alpha"] = "0.1"  # of a loop
  for source in sources:
    if written := re.match(r"%%writefile (\w+\.py)\n", source):
      (folder / written[1]).write_text(source[written.end() :], encoding="utf-8")
  for module, words in commands(text):
    words = [re.sub(r"\$(\w+)", lambda name: values[name[1]], word) for word in words]
    yield module, [re.sub("^--config=", f"--config={folder}/", word) for word in words]


def found(folder):
  """(where, module, arguments): every command of the documentation, once."""
  seen = {}
  for path in TEXTS:
    for module, words in commands(path.read_text(encoding="utf-8")):
      seen.setdefault((module, *words), path.name)
  for path in NOTEBOOKS:
    for module, words in of_notebook(path, folder):
      seen.setdefault((module, *words), path.name)
  return [(where, *command) for command, where in seen.items()]


class Parsed(Exception):  # noqa: N818
  """Stops a command after its command line."""


@pytest.fixture
def parse(monkeypatch):
  """Runs a command up to where it has understood its arguments."""

  def stop(*_):
    raise Parsed

  from_config, from_flags = cli.parse, argparse.ArgumentParser.parse_args

  def parse_config(argv, usage, **extra):
    config, _ = from_config(argv, usage, **extra)
    resolve.check(config)
    raise Parsed

  def parse_flags(self, args=None, namespace=None):
    from_flags(self, args, namespace)
    raise Parsed

  monkeypatch.setattr(cli, "parse", parse_config)
  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_flags)
  monkeypatch.setattr(training, "read", stop)
  monkeypatch.setattr(analyze, "redraw", stop)
  monkeypatch.setattr(plan_lib, "Plan", stop)
  monkeypatch.chdir(ROOT)

  def run(module, words):
    name = full(module)
    if importlib.util.find_spec(name) is None:
      raise errors.UserError(f"there is no {name}")
    if importlib.util.find_spec(name).submodule_search_locations:
      name += ".__main__"
    argv = sys.argv[:]
    sys.argv[:] = [module, *words]
    try:
      importlib.import_module(name).main()
    except Parsed:
      return
    finally:
      sys.argv[:] = argv
    raise AssertionError(f"{module} did not read its command line")

  return run


def test_commands_are_understood(parse, tmp_path, monkeypatch):
  checked = found(tmp_path)
  monkeypatch.setenv("DIALOGUES", "8")  # read by a notebook's config
  assert len({module for _, module, *_ in checked}) >= 9  # all but none forgotten
  wrong = []
  for where, module, *words in checked:
    try:
      parse(module, words)
    except (errors.UserError, SystemExit) as error:
      wrong.append(f"{where}: {module} {shlex.join(words)}: {error}")
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
  "text",
  [
    "python -m skipalign_jax.trian --config=configs/quickstart.py --workdir=w",
    "python -m skipalign_jax.train --config=configs/nowhere.py --workdir=w",
    "python -m skipalign_jax.train --config=configs/quickstart.py --wrkdir=w",
    "python -m skipalign_jax.show --config=configs/quickstart.py \\\n  --config.sed=1",
    "python -m skipalign_jax.show --config=configs/quickstart.py "
    "--config.positions.strategy=skip_out",
    "`python -m skipalign_jax.evaluate needle --model=REF --lenghts=1`",
    "python -m skipalign_jax.evaluate neddle --model=REF",
  ],
)
def test_wrong_commands_are_noticed(parse, text):
  ((module, words),) = commands(text)
  with pytest.raises((errors.UserError, SystemExit)):
    parse(module, words)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_of_notebooks_exist(path):
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
  for line in lines:
    if match := re.match(r"\s*from (skipalign_jax[\w.]*) import (.*)", line):
      for name in re.findall(r"\w+(?: as \w+)?", match[2]):
        importlib.import_module(f"{match[1]}.{name.split()[0]}")
    elif match := re.match(r"\s*import (skipalign_jax[\w.]*)", line):
      importlib.import_module(match[1])


def test_reference_has_every_key(hooks):
  text = hooks.reference()
  table_row = r"^\| `([\w.]+)` \| (.*) \| (.*) \| (.*) \|$"
  rows = {name: rest for name, *rest in re.findall(table_row, text, re.MULTILINE)}
  assert list(rows) == list(config_lib.KEYS)
  assert text.count("\n| `") == len(rows)
  plain = lambda escaped: re.sub(r"\\([|*<\[\]])", r"\1", escaped)
  for name, (_, allowed, meaning) in rows.items():
    assert plain(meaning) == config_lib.KEYS[name].meaning
    assert plain(allowed) == config_lib.KEYS[name].allowed()
  assert rows["optim.learning_rate"][:2] == ["`1e-05`", "at least 0"]
  assert rows["data.eval"][:2] == ['`"holdout"`', ""]
  assert rows["model.window"][0] == "unset"
  assert rows["model.remat"][:2] == ['`"full"`', "one of none, dots, full"]


def test_reference_has_every_section(hooks):
  text = hooks.reference()
  for part in config_lib.SECTIONS:
    if part.name:
      meaning = text.partition(f"\n## {part.name}\n\n")[2].partition("\n")[0]
      assert re.sub(r"\\([|*<\[\]])", r"\1", meaning) == part.meaning
    else:
      assert part.meaning in text


def test_links_lead_somewhere(hooks):
  for path in (*PAGES, *(ROOT / name for name in hooks.outside() if name[-2:] == "md")):
    source = path.relative_to(ROOT).as_posix()
    page = hooks.outside().get(source, source.removeprefix("docs/"))
    hooks.linked(path.read_text(encoding="utf-8"), source, page)  # raises if not


def name_of(member):
  """Of a method or a field; "" for others."""
  if isinstance(member, ast.AnnAssign):
    return ast.unparse(member.target)
  return getattr(member, "name", "")


def defined(path):
  """Names that a file of Python defines: `f`, `Class`, `Class.f`, `CONSTANT`."""
  names = set()
  for node in ast.parse(path.read_text(encoding="utf-8")).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.add(node.name)
      members = node.body if isinstance(node, ast.ClassDef) else []
      names |= {f"{node.name}.{name}" for name in map(name_of, members)}
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      names |= {ast.unparse(target) for target in targets}
  return names


@pytest.fixture(scope="module")
def sources():
  """Files of the repository → what they define (only modules define something)."""
  tops = ("skipalign_jax", "studies", "tests", "benchmarks", "configs", "launch")
  paths = [
    path for top in (*tops, "docs", "colabs") for path in ROOT.glob(f"{top}/**/*")
  ]
  modules = ROOT / "skipalign_jax", ROOT / "studies", ROOT / "tests"
  return {
    f"/{path.relative_to(ROOT).as_posix()}": defined(path)
    if path.suffix == ".py" and any(top in path.parents for top in modules)
    else set()
    for path in paths
    if path.is_file()
  }


# What a page names with a dot that is of others.
FOREIGN = {
  "np.load", "signal.set_wakeup_fd", "tokenizer.model", "evaluate.load",
  "lm_head.weight", "general.type", "tokenizer.ggml.model", "tokenizer.ggml.pre",
  "tokenizer.ggml.scores", "attention.scale", "attention.value_length",
  "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor",
  "lru_cache.LRUCache.put", "Figure.savefig", *gguf_keys.VALUES,
}  # fmt: skip
PACKAGES = set("jax torch transformers orbax lm_eval TemplateLM".split())
FILE_NAME = r"[\w./*]+\.(?:py|sh|sbatch|yaml|ipynb)\b"
DATA_NAME = r".*\.(?:jsonl?|txt|npz|png|parquet|lock|md)(?:\.gz)?"


def is_ours(span, sources):
  """Whether `span` names a config key or section, a module, or what one defines."""
  key = span.removeprefix("config.")
  sections = [part.name for part in config_lib.SECTIONS]
  if key in config_lib.KEYS or key in sections:
    return True
  if any(span in names for names in sources.values()):  # Class.function
    return True
  parts = span.split(".")
  for count in range(len(parts), 0, -1):
    module, name = "/".join(parts[:count]), ".".join(parts[count:])
    places = fnmatch.filter(sources, f"*/{module}.py")
    places += fnmatch.filter(sources, f"*/{module}/__init__.py")
    if places:
      return not name or any(name in sources[place] for place in places)
  return False


def stale(text, sources):
  """Files, tests and functions that a text names in backticks and we do not have."""
  wrong = []
  for span in re.findall(r"`([^`\n]+)`", text):
    files = re.findall(FILE_NAME, span)
    wrong += [name for name in files if not fnmatch.filter(sources, f"*/{name}")]
    _, colons, test = span.partition("::")
    if colons and not any(test in names for names in sources.values()):
      wrong.append(span)
    is_name = re.fullmatch(r"\w+(\.\w+)+", span) and not re.fullmatch(DATA_NAME, span)
    if not is_name or files or span in FOREIGN or span.split(".")[0] in PACKAGES:
      continue
    if not is_ours(span, sources):
      wrong.append(span)
  return wrong


def test_files_and_functions_that_are_named_exist(sources):
  notes = sorted((ROOT / "benchmarks").glob("*.md"))
  wrong = {
    path.relative_to(ROOT).as_posix(): names
    for path in {*TEXTS, *notes}
    if (names := stale(path.read_text(encoding="utf-8"), sources))
  }
  assert not wrong


def test_functions_that_docstrings_name_exist(sources):
  has_docstring = ast.Module | ast.ClassDef | ast.FunctionDef
  wrong = {}
  for path in (ROOT / "skipalign_jax").glob("**/*.py"):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    texts = [ast.get_docstring(one) for one in nodes if isinstance(one, has_docstring)]
    if names := stale("\n".join(filter(None, texts)), sources):
      wrong[path.name] = names
  assert not wrong


def test_stale_names_are_noticed(sources):
  text = (
    "`positions.synthesize`, `rope.kind`, `method/positions.py`, `::test_wrong` "
    "`positions.synthesise` `rope.sort` `positions/method.py` `data/*_jax.py` "
    "`test_docs.py::test_nothing` `position_baselines.pose` `metrics.jsonl`"
  )
  assert stale(text, sources) == [
    "::test_wrong",
    "positions.synthesise",
    "rope.sort",
    "positions/method.py",
    "data/*_jax.py",
    "test_docs.py::test_nothing",
    "position_baselines.pose",
  ]


def test_the_picture_of_the_groups_is_the_order_of_imports():
  text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
  picture = text.partition("```\n")[2].partition("```")[0]
  lines = [line for line in picture.splitlines() if not line.startswith(" ")]
  drawn = [set(re.split(r"\s{2,}", line)[0].split()) for line in lines]
  assert drawn[::-1] == list(test_layers.GROUPS)


def test_links_of_files_become_links_of_pages(hooks):
  text = (
    "[a](docs/faq.md#x) [b](LICENSE) ![c](docs/images/strategies.png) [d](https://e)"
  )
  assert hooks.linked(text, "README.md", "readme.md") == (
    "[a](faq.md#x) b ![c](images/strategies.png) [d](https://e)"
  )
  assert hooks.linked("[a](../README.md)", "docs/faq.md", "faq.md") == "[a](readme.md)"
  note = "benchmarks/README.md"
  assert hooks.linked("[a](../docs/faq.md)", note, note) == "[a](../faq.md)"
  with pytest.raises(ValueError, match=r"README\.md links to docs/nowhere\.md"):
    hooks.linked("[a](docs/nowhere.md)", "README.md", "readme.md")


def test_opening_is_of_the_readme(hooks):
  assert (ROOT / "docs/index.md").read_text(encoding="utf-8").count(hooks.OPENING) == 1
  text = hooks.opening()
  assert "arXiv 2405.03939" in text and "\n#" not in text and len(text) < 1500


def test_every_page_is_in_the_menu(hooks):
  menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
  named = re.findall(r"[\w/]+\.md", json.dumps(menu))
  assert len(named) == len(set(named))
  written = {hooks.REFERENCE, *hooks.outside().values()}
  assert set(named) <= {path.name for path in PAGES} | written
  assert {path.name for path in PAGES} <= set(named)

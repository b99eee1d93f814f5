"""What pages say in tables and code blocks goes together: keys, extras, arrays."""

import re

import pytest
import test_docs
import tiny

from skipalign_jax import cli
from skipalign_jax import config as config_lib
from skipalign_jax.data import packing
from skipalign_jax.training import resolve

RECIPES = (tiny.ROOT / "docs/recipes.md").read_text(encoding="utf-8")
# A code block, or a whole file of launch/, that installs extras.
INSTALL = re.compile(r"pip install [^\n]*'\.\[([\w,]+)\]'")


def table(text, head):
  """Cells of the rows below the line that begins with `head`."""
  rows = text.partition(f"\n{head}")[2].split("\n\n")[0].splitlines()[2:]
  return [row.strip("|").split(" | ") for row in rows]


def methods():
  """(method, overrides): each row of the table of methods, all of its keys."""
  for method, keys in table(RECIPES, "| method | keys |"):
    found = re.findall(r"`([a-z_.]+=[^`]*[^`N])`", keys)
    yield pytest.param(found, id=method.strip()[:20])


@pytest.mark.parametrize("keys", methods())
def test_keys_of_a_method_go_together(keys):
  assert keys
  is_text = any(key.startswith("data.text_") for key in keys)
  file = "smollm2_text" if is_text else "smollm2_ntk"
  argv = ["", f"--config={tiny.ROOT}/configs/{file}.py"]
  config, _ = cli.parse(argv + [f"--config.{key}" for key in keys], "")
  resolve.check(config)


def installs():
  """(where, extras, text): what installs and trains, in one block or one file."""
  for path in test_docs.TEXTS:
    for block in re.findall(r"```\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
      yield path.name, block
  for path in sorted((tiny.ROOT / "launch").glob("*.*")):
    yield path.name, path.read_text(encoding="utf-8")


def test_what_trains_on_data_of_the_hub_installs_what_reads_it():
  seen = []
  for where, text in installs():
    extras = INSTALL.search(text)
    name = re.search(r"skipalign_jax\.train\s[^`]*?--config=(configs/\w+\.py)", text)
    if extras and name:
      config, _ = cli.parse(["", f"--config={tiny.ROOT}/{name[1]}"], "")
      if config.data.train.startswith("hub:"):
        assert {"hub", "all"} & set(extras[1].split(",")), (where, extras[0])
        seen.append(where)
  assert {"recipes.md", "skypilot.yaml"} <= set(seen)


def test_what_pairs_cannot_be_combined_with_is_listed():
  text = RECIPES.partition("* Not possible together: ")[2].partition("* ")[0]
  listed = set(re.findall(r"`([a-z_]+\.\w+)", text))
  assert listed <= set(config_lib.KEYS)
  for key, value in {
    "long_short.alpha": 0.1,
    "distill.weight": 1.0,
    "data.text_window": 2048,
    "data.packing_mask": False,
    "data.rewritten": "each",
    "data.overlong": "split",
    "positions.terminal": "cue",
    "loss.reduction": "sequence",
  }.items():
    assert key in listed
    config = config_lib.default()
    config.data.train, config.loss.kind, config.loss.beta = "builtin:pairs", "dpo", 0.1
    config.epochs = 1
    config.positions.strategy = "endprompt"
    resolve.check(config)
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(Exception, match=rf"{key}={value} "):
      resolve.check(config)


# What texts name that is of others, or stands for any.
FOREIGN = {"conversion/base.py", "commands/NAME.py", "skipalign_jax/NAME.py"}


def test_files_that_messages_and_notes_of_the_code_name_exist():
  places = ("skipalign_jax", "configs", "launch", "benchmarks", "docs")
  others = [path.as_posix() for path in (tiny.ROOT / "tests").rglob("*.py")]
  paths = [path for place in places for path in (tiny.ROOT / place).rglob("*")]
  files = [*others, *(path.as_posix() for path in paths)]
  stale = [
    (path.name, name)
    for path in paths
    if path.suffix in {".py", ".js", ".sh", ".yaml", ".sbatch"}
    for name in re.findall(r"\b\w+/[\w/]*\w\.py\b", path.read_text(encoding="utf-8"))
    if name not in FOREIGN and not any(file.endswith(f"/{name}") for file in files)
  ]
  assert not stale


def test_arrays_of_a_batch_are_those_of_the_code():
  text = (tiny.ROOT / "docs/design.md").read_text(encoding="utf-8")
  named = {
    array
    for arrays, *_ in table(text, "| array | made in | read in |")
    for array in re.findall(r"`(\w+)`", arrays)
  }
  assert named >= {*packing.DTYPES, *packing.PAIR_DTYPES}
  paths = sorted((tiny.ROOT / "skipalign_jax").rglob("*.py"))
  code = "".join(path.read_text(encoding="utf-8") for path in paths)
  assert not [array for array in named if f'"{array}"' not in code]

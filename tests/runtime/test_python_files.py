"""--config=FILE with any other file: one message that names the file."""

import pytest

from skipalign_jax import cli
from skipalign_jax.runtime import errors
from skipalign_jax.sweep import runs

CONFIG = (
  "from skipalign_jax import config\n"
  "def get_config():\n"
  "  c = config.default()\n"
  "  c.seed = 7\n"
  "  return c\n"
)
SWEEP = (
  "from skipalign_jax.sweep import runs\n"
  "def get_sweep(variant=''):\n"
  "  return runs.sweep('t', {}, {}, variant)\n"
)
READERS = {
  "train": lambda path: cli.parse(["train", f"--config={path}"], "usage"),
  "sweep": lambda path: runs.load(str(path)),
}
OTHER_FILES = {  # name → content, and what the message says
  "README.md": (b"# A title\n\nIt's 3rd.\n", "is not a Python file"),
  "results.json": (b'{"protocol": null}', "is not a Python file"),
  "chats.jsonl": (b'{"messages": []}\n', "is not a Python file"),
  "list.yaml": (b"- a: 1\n", "is not a Python file"),
  "zeros.npz": (bytes(100), "is not a Python file"),
  "no_suffix": (CONFIG.encode(), "is not a Python file"),
  "missing.py": (None, "no such file"),
  "empty.py": (b"", r"has no get_\w+\(\); it is not a"),
  "zeros.py": (bytes(9), "cannot be loaded: SyntaxError"),
  "utf16.py": (CONFIG.encode("utf-16"), "cannot be loaded.*SyntaxError"),
  "prose.py": (b"a = 1\nIt is no program.", "cannot be loaded, line 2: SyntaxError"),
  "nested.py": (b"x = " + b"(" * 5000, "cannot be loaded.*SyntaxError"),
  "name.py": (b"\nx = null", "cannot be loaded, line 2: NameError"),
  "assert.py": (b"assert False", "cannot be loaded, line 1: AssertionError"),
  "recursion.py": (b"def f(): f()\nf()", "cannot be loaded, line 1: RecursionError"),
  "exit.py": (b"import sys; sys.exit(3)", "cannot be loaded, line 1: SystemExit"),
  "base.py": (b"class E(BaseException): pass\nraise E", "cannot be loaded, line 2: E"),
  "value.py": (b"get_config = get_sweep = 7", "has no get_"),
  "other.py": (b"def get_config(*v): return 7\nget_sweep = get_config", "returns int"),
  "none.py": (b"def get_config(*v): pass\nget_sweep = get_config", "returns NoneType"),
  "more.py": (
    b"def get_config(a, b): pass\nget_sweep = get_config",
    r"\(\) fails.*Type",
  ),
  "fails.py": (
    b"def get_config(*v):\n  1/0\nget_sweep = get_config",
    "line 2: Zero",
  ),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("name", [*OTHER_FILES, "a_folder.py"])
def test_other_files(tmp_path, read, name):
  content, message = OTHER_FILES.get(name, (None, "no such file"))
  if content is not None:
    (tmp_path / name).write_bytes(content)
  elif name == "a_folder.py":
    (tmp_path / name).mkdir()
  with pytest.raises(errors.UserError, match=rf"{name}\b.*{message}") as caught:
    read(tmp_path / name)
  assert "Traceback" not in str(caught.value)


def test_a_config_and_a_sweep_in_each_others_place(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  (tmp_path / "sweep.py").write_text(SWEEP)
  with pytest.raises(errors.UserError, match=r"no get_config.*skipalign_jax.sweep"):
    READERS["train"](tmp_path / "sweep.py")
  with pytest.raises(errors.UserError, match=r"no get_sweep.*skipalign_jax.train"):
    READERS["sweep"](tmp_path / "config.py")


def test_nothing_of_an_earlier_file_is_left(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  c, _ = READERS["train"](tmp_path / "config.py")
  assert c.seed == 7
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(errors.UserError, match="has no get_config"):
    READERS["train"](tmp_path / "empty.py")


def test_dataclasses_in_a_config_file(tmp_path):
  (tmp_path / "config.py").write_text(
    "from __future__ import annotations\nimport dataclasses\n"
    "@dataclasses.dataclass\nclass Seeds:\n  first: int = 5\n"
    + CONFIG.replace("= 7", "= Seeds().first")
  )
  c, _ = READERS["train"](tmp_path / "config.py")
  assert c.seed == 5


def test_overrides_may_come_before_the_file(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  argv = ["train", "--config.epochs=2", f"--config={tmp_path / 'config.py'}"]
  assert cli.parse(argv, "usage")[0].epochs == 2

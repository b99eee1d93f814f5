"""docs/refused.md says what the code refuses: its keys, families and messages."""

import ast
import functools
import pathlib
import re

import pytest

from skipalign_jax.hf import gguf, gguf_keys
from skipalign_jax.model import families, hf_keys, rope

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "refused.md").read_text(encoding="utf-8")
NAME = r"`([^`]+)`"


def section(title):
  """The text after a heading, up to the next one."""
  return re.search(rf"^#+ {title}\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S)[1]


def rows(title):
  """The cells of the table in a section, without its head."""
  lines = [line for line in section(title).splitlines() if line.startswith("|")]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def listed(title):
  """Keys of a table → the values that it accepts."""
  return {
    key: {ast.literal_eval(value) if value != "silu" else value for value in values}
    for keys, accepted, *_ in rows(title)
    for key in re.findall(NAME, keys)
    for values in [re.findall(NAME, accepted)]
  }


@functools.cache
def written():
  """All texts in the package; {} stands for a value."""
  found = []
  for path in (ROOT / "skipalign_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.JoinedStr):
        parts = (getattr(part, "value", "{}") for part in node.values)
        found.append("".join(p if isinstance(p, str) else "{}" for p in parts))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
  return "\n".join(found)


def test_families_are_those_of_the_table():
  first = section("Models").strip().splitlines()[0]
  assert re.findall(NAME, first) == [*families.TABLE, "model_type"]
  first = section("GGUF files").strip().splitlines()[0]
  assert re.findall(NAME, first) == list(gguf.ARCHITECTURES)
  read, _, trained = section("Rope").strip().splitlines()[0].partition("Training")
  kinds = re.findall(NAME, read)
  assert kinds[:-2] == ["default", *(k for k in rope.KINDS if k not in ("none", "ntk"))]
  assert set(re.findall(NAME, trained)) == {*rope.KINDS, "rope.kind"}


@pytest.mark.parametrize(
  ("title", "table"),
  [
    ("Keys of config.json", hf_keys.VALUES),
    ("Keys of a GGUF header", gguf_keys.VALUES),
  ],
)
def test_keys_are_those_of_the_table(title, table):
  accepted = {
    key: {value for value in values if value is not None} or {None}
    for key, values in table.items()
  }
  assert listed(title) == accepted


def test_keys_that_depend_on_others_are_checked():
  last = section("Keys of a GGUF header").strip().splitlines()[-1]
  keys = re.findall(NAME, last)
  assert len(keys) == 4
  for key in keys:
    with pytest.raises(gguf_keys.errors.UserError, match=f"{key} 7"):
      gguf_keys.check({key: 7}, 64, "none", "m.gguf")


@pytest.mark.parametrize(
  "title", ["Models", "Rope", "GGUF files", "Tokenizers", "Chat templates",
            "Chat records", "Data files", "Evaluations"],
)  # fmt: skip
def test_words_are_those_of_messages(title):
  column = 0 if title == "Chat records" else 1
  quoted = [re.findall(r'"([^"]+)"', row[column]) for row in rows(title)]
  assert len(quoted) >= 4 and all(quoted)
  assert [words for group in quoted for words in group if words not in written()] == []


def test_every_reason_of_a_chat_record_is_named():
  """Each text of a BadSample has words of the page."""
  words = {w for row in rows("Chat records") for w in re.findall(r'"([^"]+)"', row[0])}
  reasons = []
  for path in (ROOT / "skipalign_jax" / "data").glob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("BadSample"):
        reasons.append(ast.unparse(node.args[0]))
  texts = [reason for reason in reasons if reason[0] in "\"'f"]
  assert len(texts) > 15
  assert [text for text in texts if not any(word in text for word in words)] == []

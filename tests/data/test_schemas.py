"""Records of chats: every key is used, neutral, or refuses the record by its name."""

import json

import pytest
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax.data import prepare, schemas, sources, text
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.runtime import errors

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
PLAIN = [("user", "a"), ("assistant", "b")]


def read(record, ignored=()):
  return schemas.messages_of(record, 1000, frozenset(ignored))


def turn(**keys):
  """A chat whose reply has more keys."""
  return {"messages": [CHAT[0], CHAT[1] | keys]}


@pytest.mark.parametrize(
  "record",
  [
    {"conversations": CHAT},
    {"messages": SHAREGPT},
    {"conversation": CHAT, "text": "### Human: a ### Assistant: b"},
    {"messages": CHAT, "prompt": "a", "prompt_id": "7"},
    {"prompt": "a", "completion": "b"},
    {"messages": [{"role": "User", "content": "a"}, {"role": "MODEL", "content": "b"}]},
    {
      "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        CHAT[1],
      ]
    },
    {
      "messages": CHAT,
      "id": 1,
      "source": "x",
      "language": "en",
      "conversation_hash": 3,
    },
    {"messages": CHAT, "label": True, "tools": None, "images": [], "system": ""},
    turn(weight=1, train=True, tool_calls=None, name=None),
  ],
)
def test_shapes_that_are_the_plain_dialogue(record):
  assert text.text_of(record) is None
  assert read(record) == PLAIN


def test_a_system_key_is_the_system_prompt():
  for record in (
    {"conversations": SHAREGPT, "system": "S"},
    {"messages": [{"role": "developer", "content": "S"}, *CHAT]},
    {"messages": [{"role": "system", "content": "S"}, *CHAT], "system_prompt": "S"},
    {"instruction": "a", "output": "b", "system": "S"},
  ):
    assert read(record) == [("system", "S"), *PLAIN]


@pytest.mark.parametrize(
  ("record", "reason"),
  [
    ({"messages": CHAT, "tools": [{"type": "function"}]}, "key tools"),
    ({"messages": CHAT, "label": False}, "key label is not 1"),
    ({"messages": CHAT, "images": ["a.png"]}, "key images"),
    ({"messages": CHAT, "rejected": "c"}, "key rejected"),
    ({"messages": CHAT, "is_valid": False}, "key is_valid"),
    ({"messages": CHAT, "prompt": "another"}, "key prompt"),
    ({"messages": CHAT, "conversations": SHAREGPT}, "two dialogues"),
    ({"instruction": "a", "output": "b", "context": "c"}, "key context"),
    ({"prompt": "a", "completion": "b", "chosen": "c"}, "key chosen"),
    ({"conversations": [{"from": "system", "value": "S"}, *SHAREGPT], "system": "T"},
     "two system prompts"),
    (turn(weight=0), "turn key weight is not 1"),
    (turn(weight=0.5), "turn key weight is not 1"),
    (turn(train=False), "turn key train is not 1"),
    (turn(tool_calls=[{"type": "function"}]), "turn key tool_calls"),
    (turn(reasoning_content="because"), "turn key reasoning_content"),
    ({"messages": [{"role": "narrator\x1b", "content": "a"}, CHAT[1]]},
     r"unknown role narrator\x1b"),
    ({"messages": [CHAT[0], {"role": "tool", "content": "b"}]}, "unknown role tool"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]},
     "image in content"),
  ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_its_name(record, reason):
  with pytest.raises(schemas.BadSample) as caught:
    read(record)
  assert caught.value.reason.startswith(reason)


def test_ignored_keys_do_not_matter():
  record = {"messages": CHAT, "is_valid": False} | turn(mood="calm")
  assert read(record, ["is_valid", "mood"]) == PLAIN
  with pytest.raises(schemas.BadSample, match="mood"):
    read(record, ["is_valid"])


def prepared(path, cache_dir, **changes):
  config = config_lib.default().data
  config.update({"cache_dir": str(cache_dir), "seq_len": 64} | changes)
  tokenizer = tokenizer_lib.byte_tokenizer()
  (source,) = sources.parse(str(path))
  return prepare.prepare(source, config, tokenizer, rich_console.Console(quiet=True))


def test_the_refusal_names_the_keys_and_what_to_do(tmp_path):
  path = tmp_path / "chats.jsonl"
  lines = [{"messages": CHAT, "mood": "calm"}] * 3
  path.write_text("\n".join(map(json.dumps, lines)))
  with pytest.raises(errors.UserError, match=r"(?s)3 x key mood.*ignore_keys") as e:
    prepared(path, tmp_path)
  assert "chats.jsonl:1" in str(e.value)
  with pytest.raises(errors.UserError, match="no usable record: 3 x key mood"):
    prepared(path, tmp_path, max_bad_fraction=1.0)
  assert len(prepared(path, tmp_path, ignore_keys="mood, other").usable) == 3

"""Records of chats: every key is used, neutral, or refuses the record by its name."""

import datetime
import json
import pathlib

import pytest
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax.data import (
  dialogues,
  preferences,
  prepare,
  schemas,
  sources,
  text,
)
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.runtime import errors

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
PLAIN = [("user", "a"), ("assistant", "b")]


def read(record, ignored=()):
  dialogue = schemas.dialogue_of(record, 1000, frozenset(ignored))
  return [(one.role, one.content) for one in dialogue.messages]


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
    {"prompt": "a", "completion": "b", "text": "User: a Bot: b"},
    {"instruction": "a", "input": "", "output": "b", "text": "### a ### b"},
    {"prompt": CHAT[:1], "completion": CHAT[1:]},
    {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1.5},
    {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]},
    {"prompt": "a", "chosen": CHAT, "rejected": CHAT},
    {"prompt": CHAT[:1], "chosen": CHAT},
    {"prompt": "a", "chosen": CHAT, "rejected": [], "messages": CHAT},
    {"chosen": SHAREGPT, "rejected": SHAREGPT},
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
    {"messages": [{"role": "", "content": ""} | one for one in SHAREGPT]},
    {"messages": [left | right for left, right in zip(CHAT, SHAREGPT, strict=True)]},
    {"messages": CHAT, "length": 8123},
    {"messages": CHAT, "skip_prompt_formatting": False, "parallel_tool_calls": True},
    {"prompt": "a", "chosen": "b", "chosen_rating": 5.0, "rejected_rating": 1.0},
    {"messages": CHAT, "score_chosen": 8.0, "score_rejected": 3.0},
    {"prompt": "a", "chosen": "b", "chosen_model": "x", "rejected_model": "y"},
    {"messages": CHAT, "label": True, "tools": None, "images": [], "system": ""},
    {"messages": CHAT, "tools": "[]"},
    {"messages": [CHAT[0] | {"weight": 0}, CHAT[1] | {"weight": 1.0}]},
    {"messages": [*CHAT, {"role": "user", "content": "c"}]},
    turn(weight=1, train=True, tool_calls=None, name=None),
    turn(tool_calls="[]"),
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
    ({"messages": CHAT, "tools": [{"type": "function"}]}, "key tools is not a list of"),
    ({"messages": CHAT, "functions": "f"}, "key functions is not a list of"),
    ({"messages": CHAT, "tools": [TOOL], "functions": [TOOL]}, "two lists of tools"),
    ({"messages": CHAT, "label": 2}, "key label is not 0 or 1"),
    ({"messages": CHAT, "loss_mask": [0, 1]}, "key loss_mask is not 0 or 1"),
    ({"messages": CHAT, "images": ["a.png"]}, "key images"),
    ({"messages": CHAT, "rejected": "c"}, "key rejected"),
    ({"messages": CHAT, "chosen": [CHAT[0]], "rejected": "c"}, "keys chosen, rejected"),
    ({"messages": CHAT, "chosen": CHAT, "prompt": "c"}, "chosen does not begin with"),
    ({"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}},
     "key chat_template_kwargs is not understood"),
    ({"messages": CHAT, "is_valid": False}, "key is_valid"),
    ({"messages": CHAT, "prompt": "another"}, "key prompt"),
    ({"messages": CHAT, "conversations": SHAREGPT}, "two dialogues"),
    ({"instruction": "a", "output": "b", "context": "c"}, "key context"),
    ({"prompt": "a", "completion": "b", "chosen": "c"}, "key chosen"),
    ({"prompt": "a", "completion": "b", "rejected": "c"}, "key rejected"),
    ({"chosen": "Human: a Assistant: b", "rejected": "c"}, "chosen without a prompt"),
    ({"prompt": "c", "chosen": CHAT}, "chosen does not begin with the prompt"),
    ({"prompt": "a", "text": "a b"}, "unrecognised columns: prompt, text"),
    ({"prompt": "a", "completion": 7}, "content is a number, not text"),
    ({"conversations": [{"from": "system", "value": "S"}, *SHAREGPT], "system": "T"},
     "two system prompts"),
    ({"messages": CHAT, "tools": [TOOL | {"x": "\ud83d"}]}, "not UTF-8"),
    ({"messages": CHAT, "tools": json.dumps([TOOL | {"\ud83d": 1}])}, "not UTF-8"),
    ({"messages": CHAT, "tools": [TOOL | {"x": "y" * 1000}]}, "tools over 1000 bytes"),
    ({"messages": CHAT, "tools": [TOOL | {"x": datetime.date.min}]}, "a tool or call"),
    (turn(tool_calls=[CALL | {"x": b"y"}]), "a tool or call has a value that is not"),
    (turn(value="c"), "turn keys content and value differ"),
    (turn(**{"from": "human"}), "turn keys role and from differ"),
    (turn(**{"from": "function_call"}), "turn keys role and from differ"),
    (turn(weight=0.5), "turn key weight is not 0 or 1"),
    (turn(weight=float("nan")), "turn key weight is not 0 or 1"),
    (turn(train="false"), "turn key train is not 0 or 1"),
    ({"messages": [CHAT[0] | {"train": True}, CHAT[1]]}, "turn key train is 1"),
    ({"messages": [CHAT[0] | {"tool_calls": [CALL]}, CHAT[1]]}, "turn key tool_calls"),
    (turn(tool_calls=["f"]), "turn key tool_calls has a call that is not"),
    (turn(tool_calls=[{"function": "f"}]), "turn key tool_calls has a call that"),
    (turn(tool_calls="f"), "turn key tool_calls has a call that is not"),
    (turn(tool_calls=[{"name": 1}]), "turn key tool_calls has a name that is not text"),
    (turn(function_call={"name": "f", "arguments": "x"}), "turn key function_call"),
    (turn(tool_calls=[CALL], function_call=CALL), "two lists of calls"),
    ({"messages": [{"role": "narrator\x1b", "content": "a"}, CHAT[1]]},
     r"unknown role narrator\x1b"),
    ({"messages": [CHAT[0], {"role": "tool", "content": "b"}]},
     "roles do not alternate: tool after user"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]},
     "image in content"),
  ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_its_name(record, reason):
  with pytest.raises(dialogues.BadSample) as caught:
    read(record)
  assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize(
  "bot", ["bing", "bard", "chatgpt", "gpt", "model", "Assistant"]
)
def test_names_of_the_assistant(bot):
  turns = [{"from": "Human", "value": "a"}, {"from": bot, "value": "b"}]
  assert read({"conversations": turns}) == PLAIN


@pytest.mark.parametrize("key", ["weight", "train", "trainable", "loss", "loss_mask"])
@pytest.mark.parametrize("value", [0, 0.0, False])
def test_replies_that_are_only_read(key, value):
  messages = [*CHAT, *CHAT]
  messages[1] = messages[1] | {key: value}
  dialogue = schemas.dialogue_of({"messages": messages}, 1000)
  assert [one.learned for one in dialogue.messages] == [True, False, True, True]
  assert dialogue.id() != dialogues.plain([*PLAIN, *PLAIN]).id()
  with pytest.raises(dialogues.BadSample, match=f"nothing to learn: turn key {key} is"):
    read({"messages": messages[:2]})


@pytest.mark.parametrize("key", ["label", "weight", "train"])
def test_records_that_are_not_to_be_learned(key):
  for record in (
    {"messages": CHAT, key: False},
    {"prompt": "a", "completion": "b", key: False},
  ):
    with pytest.raises(
      dialogues.BadSample, match=f"nothing to learn: key {key} is fal"
    ):
      read(record)
    assert read(record, [key]) == PLAIN


TOOL_CHAT = [
  CHAT[0],
  {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": "1"}]},
  {"role": "tool", "content": "b", "name": "f", "tool_call_id": "1"},
  CHAT[1],
]


@pytest.mark.parametrize(
  "turns",
  [
    TOOL_CHAT,
    [*TOOL_CHAT[:1], TOOL_CHAT[1] | {"tool_calls": json.dumps([CALL])}, *TOOL_CHAT[2:]],
    [*TOOL_CHAT[:1], TOOL_CHAT[1] | {"tool_calls": [json.dumps(CALL)]}, *TOOL_CHAT[2:]],
    json.dumps(TOOL_CHAT),
    [
      CHAT[0],
      {"role": "assistant", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
      {"role": "function", "name": "f", "content": "b"},
      CHAT[1],
    ],
    [
      SHAREGPT[0],
      {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
      {"from": "observation", "value": "b"},
      SHAREGPT[1],
    ],
    [*TOOL_CHAT, CHAT[0]],
  ],
)
def test_calls_of_tools_have_one_form(turns):
  dialogue = schemas.dialogue_of({"messages": turns}, 1000)
  roles = ["user", "assistant", "tool", "assistant"]
  assert [one.role for one in dialogue.messages] == roles
  (call,) = dialogue.messages[1].calls
  assert call["type"] == "function" and call["function"] == CALL["function"]
  assert [dialogue.is_call(i) for i in range(4)] == [False, True, False, False]
  assert dialogue.messages[1].for_template()["content"] is None


def test_tools_have_the_form_that_templates_take():
  for record in (
    {"messages": CHAT, "tools": [TOOL]},
    {"messages": CHAT, "tools": json.dumps([TOOL])},
    {"messages": json.dumps(CHAT), "tools": [json.dumps(TOOL)]},
    {"messages": CHAT, "functions": [TOOL["function"]]},
  ):
    dialogue = schemas.dialogue_of(record, 1000)
    assert dialogue.tools == (TOOL,)
    ignored = frozenset({"tools", "functions"})
    assert schemas.dialogue_of(record, 1000, ignored) == dialogues.plain(PLAIN)
  assert dialogue.id() != dialogues.plain(PLAIN).id()


def test_ignored_keys_do_not_matter():
  assert read(turn(value="c"), ["value"]) == PLAIN
  record = {"messages": CHAT, "is_valid": False} | turn(mood="calm")
  assert read(record, ["is_valid", "mood"]) == PLAIN
  with pytest.raises(dialogues.BadSample, match="mood"):
    read(record, ["is_valid"])


@pytest.mark.parametrize(
  ("record", "ignored"),
  [
    ({"messages": CHAT, "system": "Be brief."}, "system"),
    ({"messages": CHAT, "conversations": [*SHAREGPT, *SHAREGPT]}, "conversations"),
    ({"messages": [], "conversations": SHAREGPT}, "messages"),
    ({"instruction": "a", "input": "more", "output": "b"}, "input"),
    ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "history"),
    ({"messages": [SHAREGPT[0] | {"content": "c"}, CHAT[1]]}, "content"),
    ({"prompt": CHAT[:1], "completion": [CHAT[1] | {"weight": 0}]}, "weight"),
  ],
)
def test_ignored_keys_are_not_read_whatever_they_are(record, ignored):
  if ignored == "content":
    record = {"messages": [record["messages"][0], SHAREGPT[1]]}
  assert read(record, [ignored]) == PLAIN


def test_an_ignored_column_next_to_a_pair_does_not_matter():
  record = {"prompt": "a", "chosen": "b", "rejected": "c", "messages": CHAT * 2}
  with pytest.raises(dialogues.BadSample, match="messages next to chosen"):
    preferences.pair_of(record, 1000)
  chosen, _ = preferences.pair_of(record, 1000, frozenset({"messages"}))
  assert [one[:2] for one in chosen.messages] == PLAIN


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


def test_all_keys_that_are_not_understood_are_named_at_once(tmp_path):
  path = tmp_path / "chats.jsonl"
  path.write_text(json.dumps({"messages": CHAT, "mood": "calm", "difficulty": 3}))
  reason = r"(?s)1 x keys difficulty, mood are not understood, first.*ignore_keys"
  with pytest.raises(errors.UserError, match=reason):
    prepared(path, tmp_path)
  assert len(prepared(path, tmp_path, ignore_keys="difficulty,mood").usable) == 1
  with pytest.raises(dialogues.BadSample, match=r"^turn keys a, b are not understood$"):
    read(turn(b=1, a=2), ())
  many = {f"k{i:02}": i for i in range(30)}
  with pytest.raises(dialogues.BadSample, match=r"^keys k00, .*, k23, … are not"):
    read({"messages": CHAT} | many, ())


def test_a_call_without_a_name_is_refused_with_the_remedy(tmp_path):
  path = tmp_path / "chats.jsonl"
  path.write_text(json.dumps(turn(tool_calls=[{"type": "function"}])))
  with pytest.raises(errors.UserError, match=r"(?s)1 x a call without.*=False reads"):
    prepared(path, tmp_path, learn_tool_calls=True)
  with pytest.raises(errors.UserError, match="nothing to learn: replies are calls"):
    prepared(path, tmp_path)


def test_what_is_not_to_be_learned_is_no_damage(tmp_path):
  """It is reported, and does not stop the run; nothing else left does."""
  path = tmp_path / "chats.jsonl"
  good, bad = {"messages": CHAT}, {"messages": CHAT, "label": False}
  half = {"messages": [*CHAT, CHAT[0], CHAT[1] | {"weight": 0}]}
  path.write_text("\n".join(map(json.dumps, [good, bad, half, turn(weight=0)])))
  found = prepared(path, tmp_path, max_bad_fraction=0.0, seq_len=256)
  assert len(found.usable) == 2
  for line in (
    "1 nothing to learn: key label is false",
    "1 nothing to learn: turn key weight is 0 in every reply",
    "not learned: 1 replies that the data excludes",
  ):
    assert line in found.report()
  path.write_text(json.dumps(bad) + "\n")
  with pytest.raises(errors.UserError, match="no usable record: 1 x nothing to learn"):
    prepared(path, tmp_path)


def test_unknown_roles_are_listed_and_not_called_too_long(tmp_path):
  path = tmp_path / "chats.jsonl"
  turns = [CHAT[0], {"role": "narrator", "content": "b"}]
  path.write_text(json.dumps({"messages": turns}) + "\n")
  for fraction in (0.01, 1.0):
    with pytest.raises(errors.UserError, match="1 x unknown role narrator") as caught:
      prepared(path, tmp_path, max_bad_fraction=fraction)
    assert "Known roles: system, developer" in str(caught.value)
    assert "seq_len" not in str(caught.value)


def test_many_different_reasons_are_not_all_listed(tmp_path):
  path = tmp_path / "chats.jsonl"
  records = [{"messages": CHAT, f"odd{i}": 1} for i in range(50)]
  path.write_text("\n".join(map(json.dumps, records)))
  with pytest.raises(errors.UserError, match="30 x 30 other reasons"):
    prepared(path, tmp_path)


def test_the_records_of_the_documentation_are_read():
  page = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text()
  block = page.partition("```json\n")[2].partition("```")[0]
  records = list(map(json.loads, block.splitlines()))
  assert len(records) > 8 and text.text_of(records[-1])
  for record in records[:-1]:
    assert text.text_of(record) is None and len(read(record)) >= 2


@pytest.mark.parametrize(
  ("lines", "hint"),
  [
    ('{"question": "a", "answer": "b"}', "A chat is an object with messages"),
    ('[[{"role": "user", "content": "a"}]]', "A chat is an object with messages"),
    ('{\n  "messages": [\n  ]\n}\n{\n}', "Each record is one line, or the file is"),
    ("\ufeff{}".encode("utf-16"), "Save the file as UTF-8."),
    ('[{"a": 1}]\n[{"a": 1}]', "in a file with a record per line, each is an object"),
    (json.dumps(turn(tool_calls=[{"name": "f", "arguments": {"a": 1}}])), "has tools"),
  ],
)
def test_a_refusal_says_what_a_file_should_have(lines, hint, tmp_path):
  path = tmp_path / "chats.jsonl"
  path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
  with pytest.raises(errors.UserError) as caught:
    prepared(path, tmp_path)
  assert hint in str(caught.value)


def test_rendered_chats_in_a_text_are_counted(tmp_path):
  """A tokenizer's special tokens are read as text there, so nothing would say so."""
  path = tmp_path / "texts.jsonl"
  eos = tokenizer_lib.byte_tokenizer().eos_token
  texts = [f"user: a{eos} {'b' * 200}{eos}", "plain", f"{eos}"]
  path.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
  found = prepared(path, tmp_path)
  assert "names of special tokens in 2 documents" in found.report()
  path.write_text(json.dumps({"text": "plain"}) + "\n")
  assert "special tokens" not in prepared(path, tmp_path).report()

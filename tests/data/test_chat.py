"""Blocks and targets: exactly the replies and their stop tokens, nothing else."""

import functools
import json
import pathlib

import hypothesis
import numpy as np
import pytest
import transformers
from hypothesis import strategies as st

from skipalign_jax.data import chat, dialogues, schemas, spans, templates
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.runtime import errors

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
LLAMA_STYLE = SHARED / "tokenizers" / "llama_style"

TEMPLATES = {"model": "<|im_end|>", "tulu": "<|endoftext|>"}  # and their stop tokens
LIMIT = 1_000_000

DIALOGUE = [
  ("system", "Be kind"),
  ("user", "Hi"),
  ("assistant", "Yo"),
  ("user", "2+2"),
  ("assistant", "4"),
  ("user", "Bye"),
  ("assistant", "So long"),
]


@functools.cache
def make_tokenizer(template="model"):
  tokenizer = tokenizer_lib.byte_tokenizer()
  templates.set_template(tokenizer, template)
  return tokenizer


def encode(messages, template="model", seq_len=4096, **kwargs):
  encoder = chat.Encoder(make_tokenizer(template), seq_len, **kwargs)
  (sample,) = encoder([messages])
  return sample


def turns(*roles_and_contents):
  return {"messages": [dict(role=r, content=c) for r, c in roles_and_contents]}


def messages_of(record):
  dialogue = schemas.dialogue_of(record, LIMIT)
  return [(one.role, one.content) for one in dialogue.messages]


def reason(record, limit=LIMIT):
  with pytest.raises(dialogues.BadSample) as caught:
    schemas.dialogue_of(record, limit)
  return caught.value.reason


def spell(tokenizer, ids):
  names = {"<|im_start|>": "S", "<|im_end|>": "E", "\n": "|"}
  pieces = [tokenizer.decode([i]) for i in ids]
  return "".join(names.get(piece, piece) for piece in pieces)


def test_golden_dialogue():
  """Text, block and target of each token; S, E and | are the control characters."""
  expected = [  # (text, block, target)
    ("Ssystem|Be kindE|Suser|HiE|", 0, False),
    ("Sassistant|", 1, False),
    ("YoE", 1, True),
    ("|", 1, False),
    ("Suser|2+2E|", 2, False),
    ("Sassistant|", 3, False),
    ("4E", 3, True),
    ("|", 3, False),
    ("Suser|ByeE|", 4, False),
    ("Sassistant|", 5, False),
    ("So longE", 5, True),
    ("|", 5, False),
  ]
  table = [
    "".join(text for text, _, _ in expected),
    "".join(str(block) * len(text) for text, block, _ in expected),
    "".join(".^"[target] * len(text) for text, _, target in expected),
  ]
  sample = encode(DIALOGUE)
  assert [
    spell(make_tokenizer(), sample.tokens),
    "".join(str(b) for b in sample.block_ids),
    "".join(".^"[int(t)] for t in sample.targets),
  ] == table
  np.testing.assert_array_equal(sample.is_response, sample.block_ids % 2 == 1)
  assert sample.turns == 3 and not sample.truncated


def test_tulu_text():
  rendered = spans.Finder(make_tokenizer("tulu"))(dialogues.plain(DIALOGUE[:3]))
  assert rendered.text == (
    "<|system|>\nBe kind\n<|user|>\nHi\n<|assistant|>\nYo<|endoftext|>\n"
  )
  begin, end, _ = rendered.replies[0]
  assert rendered.text[begin:end] == "Yo<|endoftext|>"


# What users type: any text, and text that looks like chat markup.
CONTENT = (
  st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(
      ["<|assistant|>\nYo", "assistant\n", "\n\n", "<|user|>", "é🙂", " x ", "<|im_"]
    ),
  )
  .map(lambda text: "a" + text)
  .filter(
    lambda text: (
      not any(f"<|{name}|>" in text for name in ("im_start", "im_end", "endoftext"))
    )
  )
)


@pytest.mark.parametrize("template", TEMPLATES)
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  system=st.none() | CONTENT,
  pairs=st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=4),
)
def test_targets_are_replies_and_stops(template, system, pairs):
  messages = [] if system is None else [("system", system)]
  for user, assistant in pairs:
    messages += [("user", user), ("assistant", assistant)]
  sample = encode(messages, template)
  tokenizer = make_tokenizer(template)
  for i, (_, assistant) in enumerate(pairs):
    block = sample.block_ids == 2 * i + 1
    reply = tokenizer.decode(sample.tokens[block & sample.targets])
    assert reply == assistant + TEMPLATES[template]
  assert not sample.targets[sample.block_ids % 2 == 0].any()
  assert set(np.diff(sample.block_ids)) <= {0, 1}
  assert sample.block_ids[-1] == 2 * len(pairs) - 1


def test_three_schemas_give_the_same_messages():
  expected = [("system", "S"), ("user", "Q\nin"), ("assistant", "A")]
  sharegpt = [
    {"from": "system", "value": "S"},
    {"from": "human", "value": "Q\nin"},
    {"from": "gpt", "value": "A"},
  ]
  alpaca = {"system": "S", "instruction": "Q", "input": "in", "output": "A"}
  for record in (
    turns(("system", "S"), ("user", "Q\nin"), ("assistant", "A")),
    {"id": 1, "conversations": sharegpt},
    alpaca,
  ):
    assert messages_of(record) == expected


def test_alpaca_history_and_empty_columns():
  record = {"instruction": "Q", "input": "", "output": "A", "history": [["q", "a"]]}
  assert messages_of(record) == [
    ("user", "q"), ("assistant", "a"), ("user", "Q"), ("assistant", "A"),
  ]  # fmt: skip


def test_last_user_turn_and_empty_system_are_dropped():
  record = turns(("system", " "), ("user", "a"), ("assistant", "b"), ("user", "c"))
  assert messages_of(record) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
  "record, expected",
  [
    (turns(("user", "a"), ("critic", "b")), "unknown role critic"),
    (turns(("user", "a"), ("tool", "b")), "roles do not alternate: tool after user"),
    ({"messages": [{"content": "a"}]}, "missing role"),
    (turns(("user", "a"), ("assistant", " \n")), "empty content (assistant)"),
    (turns(("user", ""), ("assistant", "a")), "empty content (user)"),
    (turns(("user", "a"), ("assistant", None)), "empty content (assistant)"),
    (
      turns(("user", ["a"]), ("assistant", "b")),
      "content is a list of parts without types",
    ),
    (turns(("user", {"a": 1}), ("assistant", "b")), "content is an object, not text"),
    (turns(("user", "a")), "no assistant turn"),
    (turns(), "no assistant turn"),
    (
      turns(("assistant", "a"), ("user", "b")),
      "roles do not alternate: assistant first",
    ),
    (
      turns(("user", "a"), ("user", "b"), ("assistant", "c")),
      "roles do not alternate: user after user",
    ),
    (
      turns(("user", "a"), ("assistant", "b"), ("system", "c"), ("assistant", "d")),
      "roles do not alternate: system after assistant",
    ),
    (turns(("user", "\ud800"), ("assistant", "b")), "not UTF-8"),
    ({"question": "a", "answer": "b"}, "unrecognised columns: answer, question"),
    ({"messages": "a"}, "messages is not a list of turns"),
    ([1], "the record is a list"),
  ],
)
def test_bad_records(record, expected):
  assert reason(record) == expected


def test_message_size_limit():
  record = turns(("user", "é" * 500_001), ("assistant", "b"))
  assert reason(record) == "message over 1000000 bytes"
  schemas.dialogue_of(record, 1_000_002)


def test_bad_lines():
  for line, expected in (
    (b'{"messages": [', "not valid JSON"),
    (b'{"a": "\xff"}', "not UTF-8"),
    (b"[" * 100_000, "not valid JSON"),
  ):
    with pytest.raises(dialogues.BadSample) as caught:
      schemas.parse_line(line)
    assert caught.value.reason == expected


def test_control_tokens_in_content():
  """Names of special tokens are text; in a reply those of the template are refused."""
  sample = encode([("user", "a"), ("assistant", "a<|im_end|>b")])
  assert sample.reason == "control token in content"
  for messages in (
    [("user", "a<|im_end|>b"), ("assistant", "c")],
    [("system", "<|im_start|>"), ("user", "a"), ("assistant", "<|endoftext|>")],
  ):
    sample = encode(messages)
    tokenizer = make_tokenizer()
    turns_ = [dict(role=role, content=content) for role, content in messages]
    text = tokenizer.apply_chat_template(turns_, tokenize=False)
    assert tokenizer.decode(sample.tokens) == text
    reply = tokenizer.decode(sample.tokens[sample.targets])
    assert reply == messages[-1][1] + "<|im_end|>"
    # One control token per header and end, as if the contents had none.
    control = sample.tokens < len(tokenizer_lib.SPECIAL)
    assert control.sum() == 2 * len(messages)
    assert set(np.diff(sample.block_ids)) <= {0, 1}


def test_truncation():
  whole = encode(DIALOGUE)
  cut = encode(DIALOGUE, seq_len=45)
  assert cut.truncated and len(cut.tokens) == 45 and cut.turns == 1
  np.testing.assert_array_equal(cut.targets, whole.targets[:45])
  assert encode(DIALOGUE, seq_len=30).reason == chat.NO_TARGET


def test_system_prompt_fills_in_only_where_there_is_none():
  without = DIALOGUE[1:]
  sample = encode(without, system_prompt="Be kind")
  np.testing.assert_array_equal(sample.tokens, encode(DIALOGUE).tokens)
  assert sample.sample_id == encode(without).sample_id
  kept = encode(DIALOGUE, system_prompt="Be brief")
  np.testing.assert_array_equal(kept.tokens, encode(DIALOGUE).tokens)


def test_sample_id_names_the_messages():
  ids = {dialogues.plain(DIALOGUE[:n]).id() for n in (3, 5, 7)}
  assert len(ids) == 3
  assert encode(DIALOGUE, "tulu").sample_id == dialogues.plain(DIALOGUE).id()
  again = json.loads(json.dumps(DIALOGUE))
  assert dialogues.plain(again).id() == dialogues.plain(DIALOGUE).id()


HEAD = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


@pytest.mark.parametrize(
  "template, message",
  [
    # A stop token after the last message only.
    (HEAD + "{% if loop.last %}{{ '<|im_end|>' }}{% endif %}{% endfor %}" + PROMPT,
     "differently when more messages follow"),
    # No generation prompt: the header would be trained as if it were the reply.
    (HEAD + "{{ '<|im_end|>\n' }}{% endfor %}", "right after its generation prompt"),
    # Replies without a stop token.
    (HEAD + "{{ '\n' }}{% endfor %}" + PROMPT, "does not end every reply"),
  ],
)  # fmt: skip
def test_unusable_templates_are_refused(template, message):
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template = template
  with pytest.raises(errors.UserError, match=message):
    chat.Encoder(tokenizer, 4096)([DIALOGUE[1:]])


def test_template_that_refuses_a_dialogue():
  tokenizer = tokenizer_lib.byte_tokenizer()
  refuse = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
  )
  tokenizer.chat_template = refuse + tokenizer_lib.CHATML
  bad, good = chat.Encoder(tokenizer, 4096)([DIALOGUE, DIALOGUE[1:]])
  assert bad.reason == "refused by the chat template: no"
  assert isinstance(good, chat.Sample)


def test_template_with_its_own_system_prompt():
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template = "{{ '<|im_start|>system\nX<|im_end|>\n' }}" + (
    tokenizer_lib.CHATML
  )
  (sample,) = chat.Encoder(tokenizer, 4096)([DIALOGUE[1:3]])
  first = tokenizer.decode(sample.tokens[sample.block_ids == 0])
  assert first == "<|im_start|>system\nX<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def test_set_template_errors_say_what_to_do():
  tokenizer = tokenizer_lib.byte_tokenizer()
  with pytest.raises(errors.UserError, match=r"data.template=.*model, tulu"):
    templates.set_template(tokenizer, "alpaca")
  tokenizer.chat_template = None
  with pytest.raises(errors.UserError, match=r"data\.template=tulu"):
    templates.set_template(tokenizer, "model")


@pytest.mark.skipif(not LLAMA_STYLE.exists(), reason="no ../shared/data")
def test_sentencepiece_style_tokenizer():
  tokenizer = transformers.AutoTokenizer.from_pretrained(LLAMA_STYLE)
  templates.set_template(tokenizer, "tulu")
  (sample,) = chat.Encoder(tokenizer, 4096)([DIALOGUE])
  assert sample.tokens[0] == tokenizer.bos_token_id
  for block, reply in ((1, "Yo"), (3, "4"), (5, "So long")):
    ids = sample.tokens[sample.targets & (sample.block_ids == block)]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == reply
  eos = sample.tokens == tokenizer.eos_token_id
  assert eos.sum() == 3 and sample.targets[eos].all()


THOUGHTFUL = tokenizer_lib.CHATML.replace(
  "message['content'] }}",
  "(message['content'] if loop.last else message['content'].split('</think>')[-1]) }}",
)


def test_where_earlier_thoughts_are_removed_only_the_last_reply_is_learned():
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template = THOUGHTFUL
  plain = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
  thinks = [*plain[:1], ("assistant", "hm</think>b"), *plain[2:]]
  good, last, again = chat.Encoder(tokenizer, 200)([plain, thinks, plain])
  assert (good.rewritten, last.rewritten) == (0, 1)
  np.testing.assert_array_equal(last.tokens, good.tokens)
  assert spell(tokenizer, last.tokens[last.targets]) == "dE" and last.turns == 2
  np.testing.assert_array_equal(good.tokens, again.tokens)

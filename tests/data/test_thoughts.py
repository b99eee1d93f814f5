"""Thoughts that data has apart from contents, in templates of several kinds."""

import json

import numpy as np
import pytest
from rich import console as rich_console

from skipalign_jax import config as config_lib
from skipalign_jax.data import (
  chat,
  dialogues,
  prepare,
  rendering,
  schemas,
  sources,
)
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.runtime import errors

HEAD = "{{ '<|im_start|>' + m.role + '\n' }}"
END = "{{ '<|im_end|>\n' }}{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
LAST = (
  "{% set n = namespace(last=0) %}{% for m in messages %}"
  "{% if m.role == 'user' %}{% set n.last = loop.index0 %}{% endif %}{% endfor %}"
)
LOOP = "{% for m in messages %}"
SPLIT = "{% set text = (m.content or '').split('</think>')[-1].lstrip('\n') %}"
WRITE = "{{ '<think>\n' + (m.%s or '').strip('\n') + '\n</think>\n\n' }}"
CALLS = "{% for c in m.tool_calls %}{{ '<call>' + c.function | tojson }}{% endfor %}"
TEMPLATES = {
  # Qwen3: only what follows the last question keeps its thoughts.
  "qwen3": LAST + LOOP + HEAD + "{% if m.role == 'assistant' and loop.index0 > n.last"
  " and (loop.last or m.reasoning_content) %}" + WRITE % "reasoning_content"
  + "{% endif %}{{ m.content or '' }}" + CALLS + END + ASK,
  # TRL's training variant: every reply has a thought.
  "always": LOOP + HEAD + "{% if m.role == 'assistant' %}" + WRITE % "reasoning"
  + "{% endif %}{{ m.content or '' }}" + CALLS + END + ASK,
  # LFM2.5: as it is, where there is one.
  "as_is": LOOP + HEAD + "{% if m.thinking %}{{ '<think>' + m.thinking + '</think>' }}"
  "{% endif %}{{ m.content or '' }}" + CALLS + END + ASK,
  # SmolLM3: knows thoughts as a part of the content.
  "content": "{{ 'Write <think> … </think><|im_end|>' }}" + LOOP + HEAD
  + "{{ m.content or '' }}" + CALLS + END + ASK,
  # Nemotron 3: earlier replies have an empty thought in place of their own.
  "emptied": LOOP + HEAD
  + "{% if m.role == 'assistant' and not (loop.last and '<think>' in m.content) %}"
  "{{ '<think></think>' + m.content.split('</think>')[-1].lstrip('\n') }}"
  "{% else %}{{ m.content or '' }}{% endif %}" + CALLS + END + ASK
  + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}",
  # DeepSeek-R1: the prompt opens a thought; replies are written without.
  "opened": LOOP + HEAD + SPLIT + "{{ text }}" + CALLS + END + ASK
  + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}",
}  # fmt: skip
KEYS = {"qwen3": "reasoning_content", "always": "reasoning", "as_is": "thinking"}
STOP = "<|im_end|>"
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def turn(role, content, **keys):
  return {"role": role, "content": content} | keys


def asked(name, thought=None, reply="", key="reasoning_content"):
  """A question and its reply."""
  reply = turn("assistant", reply or name.upper())
  return [turn("user", name), reply | ({} if thought is None else {key: thought})]


BOTH = [*asked("a", "hm"), *asked("b", "so\nso\n")]
SECOND = [*asked("a"), *asked("b", "so")]
FIRST = [*asked("a", "hm"), *asked("b")]
STEPS = [
  turn("user", "a"),
  turn("assistant", None, tool_calls=[CALL], reasoning_content="hm"),
  turn("tool", "dry"),
  turn("assistant", "A", reasoning_content="so"),
]


def make(template):
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template = TEMPLATES.get(template, template)
  return tokenizer


def encode(tokenizer, messages, **options):
  one = schemas.dialogue_of({"messages": messages}, 10_000)
  return chat.Encoder(tokenizer, 4096, **options).samples([one])[0]


def learned(tokenizer, sample):
  edges = np.flatnonzero(np.diff(sample.targets, prepend=False, append=False))
  return [
    tokenizer.decode(sample.tokens[begin:end]) for begin, end in edges.reshape(-1, 2)
  ]


def rendered(template, messages, **options):
  """By transformers, which gets thoughts as the template takes them."""
  messages = json.loads(json.dumps(messages))
  for one in messages:
    thought = one.pop("reasoning_content", None)
    if thought is not None and template in KEYS:
      one[KEYS[template]] = thought
    elif thought is not None:
      one["content"] = f"<think>\n{thought.strip()}\n</think>\n\n{one['content'] or ''}"
  return make(template).apply_chat_template(messages, tokenize=False, **options)


EMPTY = "<think>\n\n</think>\n\n"
HM, SO = "<think>\nhm\n</think>\n\n", "<think>\nso\n</think>\n\n"
SO_SO = "<think>\nso\nso\n</think>\n\n"


@pytest.mark.parametrize(
  ("template", "messages", "expected"),
  [
    ("qwen3", BOTH, [f"{SO_SO}B"]),
    ("qwen3", SECOND, [f"{SO}B"]),
    ("qwen3", FIRST, [f"{EMPTY}B"]),
    ("always", BOTH, [f"{HM}A", f"{SO_SO}B"]),
    ("always", FIRST, [f"{HM}A", f"{EMPTY}B"]),
    ("always", SECOND, [f"{EMPTY}A", f"{SO}B"]),
    ("as_is", BOTH, ["<think>hm</think>A", "<think>so\nso\n</think>B"]),
    ("as_is", SECOND, ["A", "<think>so</think>B"]),
    ("content", BOTH, [f"{HM}A", f"{SO_SO}B"]),
    ("content", FIRST, [f"{HM}A", "B"]),
  ],
)
def test_a_thought_is_learned_as_a_part_of_its_reply(template, messages, expected):
  tokenizer = make(template)
  (sample,) = encode(tokenizer, messages)
  assert tokenizer.decode(sample.tokens) == rendered(template, messages)
  assert learned(tokenizer, sample) == [one + STOP for one in expected]
  assert sample.rewritten == 2 - len(expected)
  # Up to where it begins, the text is the prompt that a model is given for it.
  begins = np.flatnonzero(np.diff(sample.targets, prepend=False) & sample.targets)
  for begin, end in zip(begins, (1, 3)[-len(begins) :], strict=True):
    prompt = rendered(template, messages[:end], add_generation_prompt=True)
    assert tokenizer.decode(sample.tokens[:begin]) == prompt
  second = tokenizer.decode(sample.tokens[sample.block_ids == 2])
  assert second == "<|im_start|>user\nb<|im_end|>\n"
  assert (sample.is_response | ~sample.targets).all()


@pytest.mark.parametrize("template", ["qwen3", "opened", "emptied"])
def test_each_reply_in_a_sample_of_its_own_has_its_thought(template):
  tokenizer = make(template)
  first, second = encode(tokenizer, BOTH, rewritten="each")
  lead = "<think>\n" if template == "qwen3" else ""
  assert learned(tokenizer, first) == [f"{lead}hm\n</think>\n\nA{STOP}"]
  assert learned(tokenizer, second) == [f"{lead}so\nso\n</think>\n\nB{STOP}"]
  for sample, end in ((first, 1), (second, 3)):
    begin = int(np.flatnonzero(sample.targets)[0])
    prompt = rendered(template, BOTH[:end], add_generation_prompt=True)
    assert tokenizer.decode(sample.tokens[:begin]) == prompt


@pytest.mark.parametrize("template", ["qwen3", "always", "as_is", "content"])
@pytest.mark.parametrize("learn", [False, True])
def test_thoughts_before_calls_and_after_results(template, learn):
  tokenizer = make(template)
  (sample,) = encode(tokenizer, STEPS, learn_calls=learn)
  assert tokenizer.decode(sample.tokens) == rendered(template, STEPS)
  hm, so = (
    ("<think>hm</think>", "<think>so</think>") if template == "as_is" else (HM, SO)
  )
  call = f'{hm}<call>{{"name": "f", "arguments": {{"x": 1}}}}{STOP}'
  assert learned(tokenizer, sample) == [*([call] if learn else []), f"{so}A{STOP}"]


def test_a_template_that_drops_thoughts_of_earlier_steps_keeps_the_call():
  """gpt-oss: the last reply has its thought, and calls before it have none."""
  template = (
    LOOP + HEAD + "{% if m.thinking and loop.last %}{{ m.thinking + '|' }}{% endif %}"
    "{{ m.content or '' }}" + CALLS + END + ASK
  )
  tokenizer = make(template)
  (sample,) = encode(tokenizer, STEPS)
  assert learned(tokenizer, sample) == [f"so|A{STOP}"]
  assert "hm" not in tokenizer.decode(sample.tokens)
  (sample,) = encode(tokenizer, STEPS, learn_calls=True)
  assert learned(tokenizer, sample) == [f"so|A{STOP}"] and sample.rewritten == 1
  both = encode(tokenizer, STEPS, learn_calls=True, rewritten="each")
  assert learned(tokenizer, both[0])[0].startswith("hm|<call>")


PLAIN = tokenizer_lib.CHATML
CLOSED = LOOP + HEAD + "{{ '<think>\n</think>\n' if m.role == 'assistant' }}"


@pytest.mark.parametrize(
  ("template", "messages", "reason"),
  [
    (PLAIN, BOTH, "turn key reasoning_content is not written by the chat template"),
    (PLAIN, FIRST, "turn key reasoning_content is not written by the chat template"),
    (PLAIN, asked("a", "hm", key="thinking"), "turn key thinking is not written"),
    # The last reply of a longer chat has no thought in this one.
    (
      LOOP + HEAD
      + "{% if m.role == 'assistant' and (not loop.last or messages | length == 2) %}"
      + WRITE % "reasoning_content" + "{% endif %}{{ m.content or '' }}" + CALLS + END
      + ASK,
      BOTH, "turn key reasoning_content is not written by the chat template",
    ),
    # A mode without thoughts (SmolLM3, Qwen3 with enable_thinking=false).
    (
      CLOSED + "{{ m.content }}" + END + ASK
      + "{% if add_generation_prompt %}{{ '<think>\n</think>\n' }}{% endif %}",
      BOTH, "a thought after a prompt that closes it",
    ),
    (
      TEMPLATES["qwen3"]
      + "{% if add_generation_prompt %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
      BOTH, "changed by the chat template",
    ),
    (
      LOOP + HEAD + "{{ m.content }}" + END + ASK
      + "{% if add_generation_prompt %}{{ '<think>\n</think>' }}{% endif %}",
      BOTH, "a thought after a prompt that closes it",
    ),
    # Kimi-K2: an empty thought in each reply of a plain chat.
    (
      CLOSED + "{{ m.content }}" + END + ASK,
      BOTH, "a thought after a prompt that closes it",
    ),
    # Solar: a thought is a message of its own.
    (
      LOOP + HEAD + "{% if m.thinking %}{{ m.thinking + '<|im_end|>' }}" + HEAD
      + "{% endif %}{{ m.content }}" + END + ASK,
      BOTH, "a thought that ends with the token that ends replies",
    ),
    # A template that writes a thought in another form.
    (
      LOOP + HEAD + "{{ (m.reasoning or '') | upper + m.content }}" + END + ASK,
      BOTH, "changed by the chat template",
    ),
  ],
)  # fmt: skip
def test_what_the_template_does_not_write_is_refused_by_name(
  template, messages, reason
):
  (bad,) = encode(make(template), messages)
  assert isinstance(bad, dialogues.BadSample) and bad.reason.startswith(reason)


def read(**keys):
  messages = [turn("user", "a"), turn("assistant", "b") | keys]
  return schemas.dialogue_of({"messages": messages}, 1000).messages[1]


@pytest.mark.parametrize("key", dialogues.THOUGHT_KEYS)
def test_thoughts_of_records(key):
  assert read(**{key: "hm"}).thought == "hm"
  assert read(**{key: " \n"}) == read(**{key: None}) == read()
  message = turn("assistant", "b") | {key: "hm"}
  plain = schemas.dialogue_of(
    {"messages": [turn("user", "a"), message]}, 1000, frozenset({key})
  )
  assert plain == dialogues.plain([("user", "a"), ("assistant", "b")])
  assert read(**{"reasoning_content": "hm", key: "hm"}).thought == "hm"
  with pytest.raises(dialogues.BadSample, match=f"turn key {key} is not understood"):
    schemas.dialogue_of({"messages": [turn("user", "a") | {key: "hm"}, message]}, 1000)


@pytest.mark.parametrize(
  ("keys", "reason"),
  [
    ({"thinking": True}, "turn key thinking is not text"),
    ({"reasoning": ["a"]}, "turn key reasoning is not text"),
    ({"reasoning": "a", "thinking": "b"}, "two thoughts: turn keys reasoning and th"),
    ({"content": "<think>a</think>b", "reasoning": "a"}, "two thoughts: turn key reas"),
    ({"content": "", "reasoning": "a"}, "empty content"),
  ],
)
def test_thoughts_that_are_refused(keys, reason):
  with pytest.raises(dialogues.BadSample) as caught:
    read(**keys)
  assert caught.value.reason.startswith(reason)


def test_the_id_follows_the_thought():
  messages = [asked("a", thought) for thought in (None, "hm", "so")]
  found = [schemas.dialogue_of({"messages": one}, 1000).id() for one in messages]
  assert len(set(found)) == 3


def test_a_thought_that_is_long_or_has_names_of_tokens_is_text():
  tokenizer = make("always")
  messages = [
    *asked("a", "see <|endoftext|> x"),
    *asked("b", "y\ue004", "<|endoftext|>"),
  ]
  (sample,) = encode(tokenizer, messages)
  assert tokenizer.decode(sample.tokens) == rendered("always", messages)
  plain = encode(tokenizer, BOTH)[0]
  special = tokenizer.all_special_ids
  assert np.isin(sample.tokens, special).sum() == np.isin(plain.tokens, special).sum()
  (bad,) = encode(tokenizer, asked("a", "x<|im_end|>"))
  assert bad.reason == "control token in content"
  one = schemas.dialogue_of({"messages": asked("a", "hm" * 99)}, 1000)
  (cut,) = chat.Encoder(tokenizer, 64)([one])
  assert cut.truncated and len(cut.tokens) == 64 and cut.targets[-1]
  with pytest.raises(dialogues.BadSample, match="message over 100 bytes"):
    schemas.dialogue_of({"messages": asked("a", "hm" * 99)}, 100)


def test_a_reply_that_is_only_read_may_have_a_thought():
  messages = [BOTH[0], BOTH[1] | {"weight": 0}, *BOTH[2:]]
  tokenizer = make("always")
  (sample,) = encode(tokenizer, messages)
  assert learned(tokenizer, sample) == [f"{SO_SO}B{STOP}"] and sample.excluded == 1


def test_renderings_of_thoughts_do_not_grow_with_the_chat(monkeypatch):
  """A thought is a hole in what the template writes, which is read once."""
  calls = []
  real = rendering.render
  monkeypatch.setattr(
    rendering, "render", lambda *a, **k: calls.append(1) or real(*a, **k)
  )
  counts = []
  for pairs in (4, 100):
    messages = [one for i in range(pairs) for one in asked("a", f"think {i}")]
    calls.clear()
    tokenizer = make("always")
    (sample,) = encode(tokenizer, messages)
    assert len(learned(tokenizer, sample)) == min(pairs, sample.turns)
    counts.append(len(calls))
  assert counts[0] == counts[1] < 16


def test_the_report_says_how_to_read_chats_without_their_thoughts(tmp_path):
  path = tmp_path / "chats.jsonl"
  path.write_text(json.dumps({"messages": asked("a", "hm", key="reasoning")}))
  config = config_lib.default().data
  config.update(cache_dir=str(tmp_path), seq_len=64, max_bad_fraction=1.0)
  (source,) = sources.parse(str(path))
  console = rich_console.Console(quiet=True)
  with pytest.raises(errors.UserError, match="1 x turn key reasoning is not") as caught:
    prepare.prepare(source, config, make(PLAIN), console)
  assert "data.ignore_keys=reasoning reads such" in str(caught.value)
  config.ignore_keys = "reasoning"
  assert len(prepare.prepare(source, config, make(PLAIN), console).usable) == 1

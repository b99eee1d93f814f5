"""Replies in the text of many kinds of templates, and the tokens before them."""

import time

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

from skipalign_jax.data import chat, dialogues, rendering, template_text, templates
from skipalign_jax.data import text as text_lib
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.runtime import errors

ROLE = "'<|im_start|>' + m['role'] + '\n'"
LOOP = "{% for m in messages %}"
END = "{{ '<|im_end|>\n' }}{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
SPLIT = (
  "{% set text = m['content'] %}{% set thought = '' %}"
  "{% if '</think>' in text %}"
  "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
  "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
THOUGHT = "'<think>\n' + thought + '\n</think>\n\n'"
TEMPLATES = {
  "chatml": tokenizer_lib.CHATML,
  # Qwen3: the last reply has a thought, perhaps an empty one; earlier ones have none.
  "qwen3": LOOP + SPLIT + "{{ " + ROLE + " }}"
  "{% if m['role'] == 'assistant' and loop.last %}{{ " + THOUGHT + " }}{% endif %}"
  "{{ text }}" + END + ASK
  + "{% if add_generation_prompt and enable_thinking is defined"
  " and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
  # TRL's training variant: every reply has a thought.
  "always": LOOP + SPLIT + "{{ " + ROLE + " }}"
  "{% if m['role'] == 'assistant' %}{{ " + THOUGHT + " }}{% endif %}"
  "{{ text }}" + END + ASK,
  # SmolLM3: a system message of its own, and a mode that a system prompt can set.
  "smollm3": "{% if enable_thinking is not defined %}{% set enable_thinking = true %}"
  "{% endif %}{% if '/no_think' in messages[0]['content'] %}"
  "{% set enable_thinking = false %}{% endif %}"
  "{{ '<|im_start|>system\nThinking: ' ~ enable_thinking }}"
  "{% if messages[0]['role'] == 'system' %}"
  "{{ '\n' ~ messages[0]['content'].replace('/no_think', '') }}{% endif %}"
  "{{ '<|im_end|>\n' }}"
  "{% for m in messages if m['role'] != 'system' %}{{ " + ROLE + " }}"
  "{% if m['role'] == 'assistant' and not enable_thinking %}"
  "{{ '<think>\n\n</think>\n' }}{% endif %}"
  "{{ m['content'].lstrip('\n') }}" + END + ASK
  + "{% if add_generation_prompt and not enable_thinking %}"
  "{{ '<think>\n\n</think>\n' }}{% endif %}",
  # DeepSeek-R1: the prompt opens a thought, replies have none.
  "r1": LOOP + SPLIT + "{{ " + ROLE + " + text }}" + END + ASK
  + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}",
  # The same with whole replies.
  "r1_whole": LOOP + "{{ " + ROLE + " + m['content'] }}" + END + ASK
  + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}",
  # Llama 2: no generation prompt.
  "llama2": LOOP + "{% if m['role'] == 'user' %}"
  "{{ '<|im_start|>[INST] ' + m['content'] | trim + ' [/INST]' }}"
  "{% else %}{{ ' ' + m['content'] | trim + ' <|im_end|>' }}{% endif %}{% endfor %}",
  # Phi-3: a second token ends the dialogue.
  "phi3": LOOP + "{{ " + ROLE + " + m['content'] }}" + END
  + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
  "{% else %}{{ eos_token }}{% endif %}",
  # A generation prompt after every text, wanted or not.
  "header": LOOP + "{{ " + ROLE + " + m['content'] }}" + END
  + "{{ '<|im_start|>assistant\n' }}",
}  # fmt: skip

PLAIN = [
  ("user", "a"),
  ("assistant", "Reply one"),
  ("user", "c"),
  ("assistant", "Two."),
]
THINK = [
  ("user", "a"),
  ("assistant", "<think>\nhm\n</think>\n\nb"),
  ("user", "c"),
  ("assistant", "<think>\nso\n</think>\n\nd"),
]
NO_THOUGHT = "<think>\n\n</think>\n\n"


def make(template):
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template = TEMPLATES[template]
  return tokenizer


def turns(messages):
  return [{"role": role, "content": content} for role, content in messages]


def replies(tokenizer, sample):
  """The learned text of each response block; None where nothing is learned."""
  found = []
  for block in range(1, int(sample.block_ids[-1]) + 1, 2):
    at = np.flatnonzero(sample.targets & (sample.block_ids == block))
    found.append(tokenizer.decode(sample.tokens[at]) if len(at) else None)
  return found


@pytest.mark.parametrize(
  "template, messages, expected",
  [
    ("chatml", PLAIN, ["Reply one", "Two."]),
    ("chatml", THINK, [THINK[1][1], THINK[3][1]]),
    ("qwen3", PLAIN, [None, NO_THOUGHT + "Two."]),
    ("qwen3", PLAIN[:2], [NO_THOUGHT + "Reply one"]),
    ("qwen3", THINK, [None, THINK[3][1]]),
    ("always", PLAIN, [NO_THOUGHT + "Reply one", NO_THOUGHT + "Two."]),
    ("always", THINK, [THINK[1][1], THINK[3][1]]),
    ("smollm3", THINK, [THINK[1][1], THINK[3][1]]),
    ("smollm3", [("system", "Be kind /no_think"), *PLAIN], ["Reply one", "Two."]),
    ("r1", PLAIN, ["Reply one", "Two."]),
    ("r1_whole", THINK, ["hm\n</think>\n\nb", "so\n</think>\n\nd"]),
    ("llama2", PLAIN, [" Reply one ", " Two. "]),
    ("phi3", PLAIN, ["Reply one", "Two."]),
    ("header", PLAIN, ["Reply one", "Two."]),
  ],
)
def test_replies_are_learned_as_they_will_be_prompted_for(template, messages, expected):
  tokenizer = make(template)
  (sample,) = chat.Encoder(tokenizer, 4096)([messages])
  text = tokenizer.apply_chat_template(turns(messages), tokenize=False)
  assert tokenizer.decode(sample.tokens) == text
  assert replies(tokenizer, sample) == [
    None if one is None else one + "<|im_end|>" for one in expected
  ]
  assert sample.rewritten == expected.count(None)
  for number, one in enumerate(expected):
    if one is None or template == "r1":
      continue
    begin = np.flatnonzero(sample.targets & (sample.block_ids == 2 * number + 1))[0]
    prompt = tokenizer.apply_chat_template(
      turns(messages[: len(messages) - 2 * (len(expected) - number) + 1]),
      tokenize=False,
      add_generation_prompt=True,
    )
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    np.testing.assert_array_equal(sample.tokens[:begin], ids)
  # Every header belongs to the block of its message.
  heads = [
    tokenizer.decode(sample.tokens[sample.block_ids == block]) for block in range(4)
  ]
  assert all(head.startswith("<|im_start|>") for head in heads[::2] if head)


def test_a_line_break_that_only_earlier_replies_have_is_in_their_blocks():
  """OLMo 2, Tulu 3, Falcon 3."""
  tokenizer = make("chatml")
  tokenizer.chat_template = (
    LOOP + "{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or m['role'] == 'user' %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
  )
  (sample,) = chat.Encoder(tokenizer, 4096)([PLAIN])
  assert replies(tokenizer, sample) == [
    "Reply one<|endoftext|>",
    "Two.<|endoftext|>",
  ]
  blocks = [
    tokenizer.decode(sample.tokens[sample.block_ids == block]) for block in range(4)
  ]
  assert blocks == [
    "<|user|>\na\n",
    "<|assistant|>\nReply one<|endoftext|>\n",
    "<|user|>\nc\n",
    "<|assistant|>\nTwo.<|endoftext|>",
  ]


# gpt-oss: a reply begins with its channel, and only the last one ends with eos.
HARMONY = (
  "{{ '<|im_start|>system\nsays<|im_end|>' }}"
  + LOOP
  + "{{ '<|im_start|>' + m['role'] }}"
  "{{ ('-final-' if m['role'] == 'assistant' else '-') + m['content'] }}"
  "{% if m['role'] == 'assistant' and loop.last and not add_generation_prompt %}"
  "{{ eos_token }}{% else %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


@pytest.mark.parametrize("system", [[], [("system", "Be kind")]])
def test_a_last_reply_with_an_end_of_its_own_is_the_one_that_is_learned(system):
  tokenizer = make("chatml")
  tokenizer.chat_template = HARMONY
  messages = [*system, *PLAIN]
  (sample,) = chat.Encoder(tokenizer, 4096)([messages])
  text = tokenizer.apply_chat_template(turns(messages), tokenize=False)
  assert tokenizer.decode(sample.tokens) == text
  assert replies(tokenizer, sample) == [None, "-final-Two.<|endoftext|>"]
  blocks = [
    tokenizer.decode(sample.tokens[sample.block_ids == block]) for block in range(4)
  ]
  assert blocks[1:] == [
    "<|im_start|>assistant-final-Reply one<|im_end|>",
    "<|im_start|>user-c<|im_end|>",
    "<|im_start|>assistant-final-Two.<|endoftext|>",
  ]
  (both,) = chat.Encoder(tokenizer, 4096, rewritten="each").samples([messages])
  assert [replies(tokenizer, one)[-1] for one in both] == [
    "-final-Reply one<|endoftext|>",
    "-final-Two.<|endoftext|>",
  ]
  assert tokenizer_lib.stop_token_ids(tokenizer, ()) == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("lead", ["<think>\n", "\n<think>\n\n", "<think>"])
@pytest.mark.parametrize("system", [[], [("system", "Be kind")]])
def test_a_thought_that_the_prompt_opens_is_learned(lead, system):
  tokenizer = make("r1")
  messages = [*system, *THINK[:3], ("assistant", lead + "so\n</think>\n\nd")]
  (sample,) = chat.Encoder(tokenizer, 4096)([messages])
  assert replies(tokenizer, sample) == [None, "so\n</think>\n\nd<|im_end|>"]
  asked = turns(messages[:-1])
  options = {"tokenize": False, "add_generation_prompt": True}
  prompt = tokenizer.apply_chat_template(asked, **options)
  assert prompt.endswith("assistant\n<think>\n")
  assert tokenizer.decode(sample.tokens) == (prompt + "so\n</think>\n\nd<|im_end|>\n")
  each = chat.Encoder(tokenizer, 4096, rewritten="each").samples([messages])[0]
  assert replies(tokenizer, each[0]) == ["hm\n</think>\n\nb<|im_end|>"]


def test_a_thought_that_the_template_drops_makes_the_dialogue_unusable():
  tokenizer = make("r1")
  tokenizer.chat_template = LOOP + SPLIT + "{{ " + ROLE + " + text }}" + END + ASK
  (sample,) = chat.Encoder(tokenizer, 4096)([THINK])
  assert sample.reason == "changed by the chat template"


def test_each_reply_in_a_sample_of_its_own():
  tokenizer = make("qwen3")
  encoder = chat.Encoder(tokenizer, 4096, rewritten="each")
  plain, think = encoder.samples([PLAIN, THINK])
  assert [replies(tokenizer, sample)[-1] for sample in plain] == [
    f"{NO_THOUGHT}{reply}<|im_end|>" for reply in ("Reply one", "Two.")
  ]
  assert [replies(tokenizer, sample) for sample in think] == [
    [THINK[1][1] + "<|im_end|>"],
    [None, THINK[3][1] + "<|im_end|>"],
  ]
  assert [s.sample_id for s in plain] == [
    dialogues.plain(PLAIN[:2]).id(),
    dialogues.plain(PLAIN).id(),
  ]
  (whole,) = chat.Encoder(make("chatml"), 4096, rewritten="each").samples([PLAIN])
  assert len(whole) == 1 and whole[0].turns == 2


def test_each_reply_has_its_sample_also_where_the_first_thought_comes_late():
  """A token has many characters: more of the chat fits than is looked at first."""
  words = [*"</>adefhikmnorsstuxy|_\n", *(word := ["xx" * 2**i for i in range(4)])]
  words += ["<|im_start|>", "<|im_end|>"]
  merges = [(one[: len(one) // 2],) * 2 for one in word]
  vocab = {one: i for i, one in enumerate(dict.fromkeys(words))}
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges)),
    additional_special_tokens=words[-2:],
  )
  tokenizer.chat_template = TEMPLATES["r1"]
  long = "x" * 640
  messages = [("user", long), ("assistant", long), *THINK[:2], *PLAIN[2:3]]
  messages += [("assistant", "d" * 200)]
  encoder = chat.Encoder(tokenizer, 250, rewritten="each")
  found = encoder.samples([messages])[0]
  assert [one.turns for one in found] == [1, 2, 3]
  assert all(one.targets.any() for one in found)


@pytest.mark.parametrize("template", TEMPLATES)
def test_stop_tokens_need_no_training_sample(template):
  tokenizer = make(template)
  assert template_text.stop_token(tokenizer) == "<|im_end|>"
  assert 3 in tokenizer_lib.stop_token_ids(tokenizer, ())


def test_a_prompt_that_opens_more_than_replies_have():
  found = {name: template_text.opened(make(name)) for name in TEMPLATES}
  assert {name: text for name, text in found.items() if text} == {
    "r1": "<think>\n",
    "r1_whole": "<think>\n",
  }
  tokenizer = make("chatml")
  tokenizer.chat_template = "{{ raise_exception('no') }}"
  assert template_text.opened(tokenizer) == ""


def test_a_template_without_a_stop_has_no_stop_token():
  tokenizer = make("chatml")
  tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
  assert template_text.stop_token(tokenizer) is None
  tokenizer.chat_template = "{{ raise_exception('no') }}"
  assert template_text.stop_token(tokenizer) is None


@pytest.mark.parametrize("template", ["chatml", "qwen3"])
def test_renderings_do_not_grow_with_the_turns(template, monkeypatch):
  calls = []
  real = rendering.render
  monkeypatch.setattr(
    rendering, "render", lambda *a, **k: calls.append(1) or real(*a, **k)
  )
  counts = []
  for pairs in (4, 400):
    dialogue = [("user", "a"), ("assistant", "b")] * pairs
    calls.clear()
    chat.Encoder(make(template), 1 << 20)([dialogue])
    counts.append(len(calls))
  assert counts[0] == counts[1] < 12


def test_many_turns_take_a_second_not_a_minute():
  dialogue = [("user", "a"), ("assistant", "b")] * 2000
  start = time.process_time()
  (sample,) = chat.Encoder(make("chatml"), 1 << 20)([dialogue])
  assert sample.turns == 2000 and time.process_time() - start < 10


def test_every_special_token_has_one_rule():
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.add_tokens([tokenizers.AddedToken("<eom>", special=True)])
  assert "<eom>" not in tokenizer.all_special_tokens
  found = template_text.special_tokens(tokenizer)
  assert found["<eom>"] == 260 and found.keys() >= set(tokenizer.all_special_tokens)
  (sample,) = chat.Encoder(tokenizer, 99)([[("user", "<eom>"), ("assistant", "b")]])
  assert 260 not in sample.tokens and "<eom>" in tokenizer.decode(sample.tokens)


def merging():
  """A tokenizer with the tokens "]{" and "\\n\\n\\n"."""
  words = ["<s>", "</s>", *"[]{}abINST/1\n", "]{", "\n\n", "\n\n\n"]
  merges = [("]", "{"), ("\n", "\n"), ("\n\n", "\n")]
  vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
  backend.pre_tokenizer = pre_tokenizers.Sequence([])
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
  )


@pytest.mark.parametrize(
  "head, replies_, split",
  [("]", ("{1}", "a"), 1), ("]", ("{1}", "{b}"), 2), ("\n", ("\n\na", "b"), 1)],
)
def test_a_reply_shares_no_token_with_its_header(head, replies_, split):
  tokenizer = merging()
  tokenizer.chat_template = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[' + m['content'] + '"
    + head
    + "' }}{% else %}{{ m['content'] + '</s>' }}{% endif %}{% endfor %}"
  )
  messages = [("user", "a"), ("assistant", replies_[0])]
  messages += [("user", "b"), ("assistant", replies_[1])]
  (sample,) = chat.Encoder(tokenizer, 99)([messages])
  text = tokenizer.apply_chat_template(turns(messages), tokenize=False)
  spelled = tokenizer.convert_ids_to_tokens(sample.tokens.tolist())
  assert "".join(spelled) == text and sample.split == split
  for block, reply in ((1, replies_[0]), (3, replies_[1])):
    at = sample.targets & (sample.block_ids == block)
    learned = tokenizer.convert_ids_to_tokens(sample.tokens[at].tolist())
    assert "".join(learned) == reply + "</s>"
  prompt = tokenizer(f"[a{head}", add_special_tokens=False)["input_ids"]
  np.testing.assert_array_equal(sample.tokens[: len(prompt)], prompt)


@pytest.mark.parametrize(
  ("rule", "head", "split"),
  [
    (r"\s+(?!\S)|\s+", "\n\n", 2),  # GPT-2: the last one of several belongs to a word
    (r"\s+(?!\S)|\s+", "\n", 0),
    (r"\s*[\r\n]+|\s+", "\n\n", 0),  # Llama 3
  ],
)
def test_a_reply_does_not_change_the_tokens_of_its_header(rule, head, split):
  tokenizer = tokenizer_lib.byte_tokenizer()
  backend = tokenizer.backend_tokenizer
  vocab = {**tokenizer.get_vocab(), "ĊĊ": 260}
  backend.model = models.BPE(vocab=vocab, merges=[("Ċ", "Ċ")])
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(rule), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.chat_template = (
    "{% for m in messages %}{{ m.role + ':HEAD' + m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:HEAD' }}{% endif %}"
  ).replace("HEAD", head)
  (sample,) = chat.Encoder(tokenizer, 4096)([PLAIN])
  assert sample.split == split
  begins = np.flatnonzero(np.diff(sample.targets, prepend=False) & sample.targets)
  for begin, asked in zip(begins, (PLAIN[:1], PLAIN[:3]), strict=True):
    prompt = rendering.render(tokenizer, dialogues.plain(asked), True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if asked == PLAIN[:1]:  # a later prompt has the reply before it unsplit
      assert sample.tokens[:begin].tolist() == ids
    assert tokenizer.decode(sample.tokens[:begin]) == prompt
    assert sample.tokens[begin - 1] == ids[-1]


@pytest.mark.parametrize("trim", [False, True])
def test_places_have_the_spaces_of_their_tokens(trim):
  """Many byte-level tokenizers leave them out of the offsets that they report."""
  tokenizer = tokenizer_lib.byte_tokenizer()
  backend = tokenizer.backend_tokenizer
  vocab = {**tokenizer.get_vocab(), "Ġb": 260}
  backend.model = models.BPE(vocab=vocab, merges=[("Ġ", "b")])
  processor = processors.ByteLevel(trim_offsets=trim)
  backend.post_processor = processor
  tokenizer.chat_template = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
  )
  (sample,) = chat.Encoder(tokenizer, 99)([[("user", "a"), ("assistant", "b b")]])
  assert replies(tokenizer, sample) == ["b b<|im_end|>"] and sample.split == 1
  learned = sample.tokens[sample.targets].tolist()
  assert tokenizer.convert_ids_to_tokens(learned) == ["b", "Ġb", "<|im_end|>"]
  assert str(backend.post_processor) == str(processor)  # as it was


def test_a_name_that_the_template_reads_is_refused():
  tokenizer = make("r1")
  tokenizer.add_tokens([tokenizers.AddedToken("</think>", special=True)])
  asks = [("user", "a</think>b"), ("assistant", "c")]
  (bad,) = chat.Encoder(tokenizer, 99)([asks])
  assert bad.reason == "control token in content"


def test_a_character_that_stands_for_names_is_refused_only_with_names():
  encoder = chat.Encoder(make("chatml"), 99)
  good, bad = encoder(
    [[("user", name + "\ue002"), ("assistant", "b")] for name in ("", "<|im_end|>")]
  )
  assert isinstance(good, chat.Sample) and bad.reason == "control token in content"


def test_template_kwargs_are_those_of_transformers():
  asked = {"tokenize": False, "add_generation_prompt": True}
  for text, values in (
    ("enable_thinking=False", {"enable_thinking": False}),
    ('{"enable_thinking": false}', {"enable_thinking": False}),
    ("enable_thinking=true", {"enable_thinking": True}),
  ):
    tokenizer = make("qwen3")
    expected = tokenizer.apply_chat_template(turns(PLAIN[:1]), **asked, **values)
    templates.set_template(tokenizer, "model", text)
    assert tokenizer.apply_chat_template(turns(PLAIN[:1]), **asked) == expected
    (sample,) = chat.Encoder(tokenizer, 4096)([PLAIN[:2]])
    lead = NO_THOUGHT if values["enable_thinking"] else ""
    assert replies(tokenizer, sample) == [f"{lead}Reply one<|im_end|>"]
    # Who renders the template can still choose.
    other = not values["enable_thinking"]
    rendered = tokenizer.apply_chat_template(
      turns(PLAIN[:1]), **asked, enable_thinking=other
    )
    assert rendered.endswith(NO_THOUGHT) == (not other)


@pytest.mark.parametrize(
  "text, message",
  [
    ("enable_thinkng=false", "no variable enable_thinkng"),
    ("messages=1", "'messages'"),
    ("a b=1", "'a b'"),
    ("enable_thinking", "'enable_thinking' is not a new name=value"),
    ("{", "not valid JSON"),
    ('{"enable_thinking": NaN}', "not valid JSON"),
  ],
)
def test_template_kwargs_that_do_not_fit(text, message):
  with pytest.raises(errors.UserError, match=rf"data\.template_kwargs.*{message}"):
    templates.set_template(make("qwen3"), "model", text)


def test_a_stop_that_is_an_added_token_but_not_a_special_one():
  """ChatML on a base model: its tokens are found in any text, so chats with them are
  refused."""
  tokenizer = tokenizer_lib.byte_tokenizer()
  names = ["<|user|>", "<|end|>", "<tool>"]
  tokenizer.add_tokens(names)
  tokenizer.chat_template = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
  )
  first, stop, _ = tokenizer.convert_tokens_to_ids(names)
  assert template_text.stop_token(tokenizer) == "<|end|>"
  assert template_text.markup_tokens(tokenizer) == {"<|user|>": first, "<|end|>": stop}
  assert stop in tokenizer_lib.stop_token_ids(tokenizer, ())
  encoder = chat.Encoder(tokenizer, 4096)
  sample, tool, bad = encoder(
    [
      PLAIN,
      [("user", "a <tool> b"), ("assistant", "c")],
      [("user", "a<|end|>"), ("assistant", "b")],
    ]
  )
  assert replies(tokenizer, sample) == ["Reply one<|end|>", "Two.<|end|>"]
  assert isinstance(tool, chat.Sample)
  assert bad.reason == "control token in content"
  ((good,), (document,)) = text_lib.Encoder(tokenizer, 99, "none")(["a b", "a<|end|>b"])
  assert isinstance(good, chat.Sample)
  assert document.reason == "control token in content"


# Mistral's: the system prompt is in the last question, from version 3 on.
MISTRAL = (
  "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}"
  "{{ '<|im_start|>[INST] ' }}{% if MOVED and messages[0]['role'] == 'system' %}"
  "{{ messages[0]['content'] + '\n\n' }}{% endif %}{{ m['content'] + '[/INST]' }}"
  "{% else %}{{ ' ' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)


def test_a_system_prompt_that_only_prompts_have():
  """Mistral Nemo: it is in the last question, if nothing follows."""
  tokenizer = make("chatml")
  template = MISTRAL.replace("MOVED", "loop.last")
  tokenizer.chat_template = template.replace("[/INST]", "<|endoftext|>")
  messages = [("system", "Be kind to all of them"), *PLAIN]
  (sample,) = chat.Encoder(tokenizer, 4096)([messages])
  asked = tokenizer.apply_chat_template(turns(messages[:-1]), tokenize=False)
  assert "Be kind to all of them" in asked
  assert tokenizer.decode(sample.tokens) == asked + " Two.<|im_end|>"
  assert replies(tokenizer, sample) == [None, " Two.<|im_end|>"]
  assert sample.rewritten == 1 and tokenizer.decode(
    sample.tokens[sample.block_ids == 2]
  ) == ("<|im_start|>[INST] Be kind to all of them\n\nc<|endoftext|>")
  each = chat.Encoder(tokenizer, 4096, rewritten="each").samples([messages])[0]
  assert [replies(tokenizer, one)[-1] for one in each] == [
    " Reply one<|im_end|>",
    " Two.<|im_end|>",
  ]


def test_a_system_prompt_that_prompts_have_in_several_questions():
  """The blocks of the text would not be those of the prompt."""
  tokenizer = make("chatml")
  template = MISTRAL.replace("MOVED", "messages[-1]['role'] == 'user'")
  tokenizer.chat_template = template.replace("[/INST]", "<|endoftext|>")
  (bad,) = chat.Encoder(tokenizer, 4096)([[("system", "Be kind"), *PLAIN]])
  assert bad.reason == "changed by the chat template"


@pytest.mark.parametrize("moved", ["loop.first", "loop.revindex <= 2"])
def test_a_system_prompt_that_the_template_moves(moved):
  """In the first question all replies are learned, in the last one only the last."""
  tokenizer = make("chatml")
  tokenizer.chat_template = MISTRAL.replace("MOVED", moved)
  messages = [("system", "Be kind"), *PLAIN]
  (sample,) = chat.Encoder(tokenizer, 4096)([messages])
  text = tokenizer.apply_chat_template(turns(messages), tokenize=False)
  assert tokenizer.decode(sample.tokens) == text
  is_first = moved == "loop.first"
  first = " Reply one<|im_end|>" if is_first else None
  assert replies(tokenizer, sample) == [first, " Two.<|im_end|>"]
  asked = "<|im_start|>[INST] Be kind\n\nc[/INST]" if not is_first else "[INST] c"
  assert asked in tokenizer.decode(sample.tokens[sample.block_ids == 2])
  each = chat.Encoder(tokenizer, 4096, rewritten="each").samples([messages])[0]
  assert len(each) == (1 if is_first else 2)
  assert "Be kind" in tokenizer.decode(each[0].tokens[: 4 * len("Be kind")])
